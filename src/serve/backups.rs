//! Everybody's snapshots: how each user stands is read where root's timer publishes it, and where there is no helper the
//! service itself does what is due, one user at a time, when nothing else waits.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::backup::{self, Duty, Ourselves, Standing};
use crate::enforce;
use crate::inventory::{Target, Watch};
use crate::metrics::{Metrics, Snapshots};
use crate::outcome::BackupRun;
use crate::probe::instance_of;
use crate::t3;

/// How often the published files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often it is asked whether something is due.
const ROUND: Duration = Duration::from_secs(60);
/// After a failure a user's snapshots are left alone for this long.
const REST: Duration = Duration::from_secs(600);

/// How everybody stands, as it was published last.
pub type Standings = Arc<Mutex<BTreeMap<String, Standing>>>;

/// What is read, and where it is told.
pub struct Backups {
    pub section: backup::Section,
    pub inventory: Watch,
    pub metrics: Arc<Metrics>,
    pub standings: Standings,
}

/// What does the acts that are due.
pub struct Keeper {
    pub state_dir: PathBuf,
    pub section: backup::Section,
    pub t3: t3::Section,
    pub hands: Ourselves,
    pub inventory: Watch,
    pub ended: mpsc::Sender<BackupRun>,
}

impl Backups {
    /// Looks until it is told to stop.
    pub async fn watch(self, stop: CancellationToken) {
        self.metrics.backup.set_intervals(self.section.interval, self.section.drill_interval);
        let mut said: HashMap<String, String> = HashMap::new();
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let mut standings = BTreeMap::new();
            for target in self.inventory.snapshot().inventory.targets() {
                let user = target.user.as_str();
                match Standing::read(&self.section, user) {
                    Ok(standing) => {
                        let standing = standing.unwrap_or_default();
                        self.metrics.backup.state(user, &summary(&standing));
                        self.metrics.backup.set_failing(user, &standing.failing);
                        standings.insert(user.to_owned(), standing);
                        said.remove(user);
                    }
                    Err(failure) => {
                        if said.insert(user.to_owned(), failure.detail.clone()).as_ref()
                            != Some(&failure.detail)
                        {
                            tracing::warn!(user, %failure, "how old the user's snapshots are is not known");
                        }
                    }
                }
            }
            *lock(&self.standings) = standings;
        }
    }
}

fn summary(standing: &Standing) -> Snapshots {
    let Standing { count, newest, proven, drilled, .. } = standing;
    Snapshots {
        taken_at: newest.as_ref().map(|newest| newest.at),
        verified_taken_at: proven.as_ref().map(|proven| proven.at),
        count: *count,
        bytes: newest.as_ref().map(|newest| newest.bytes),
        level: proven.as_ref().map(|proven| proven.level),
        drilled_at: drilled.as_ref().map(|drilled| drilled.at),
        restore: drilled.as_ref().map(|drilled| drilled.restore),
        rpo: drilled.as_ref().map(|drilled| drilled.rpo),
    }
}

impl Keeper {
    /// Does what is due until it is told to stop. Only where the tree is there: whoever wants snapshots makes the
    /// directory for them.
    pub async fn keep(self, stop: CancellationToken) {
        let mut resting: HashMap<String, Instant> = HashMap::new();
        let mut ticks = interval(ROUND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let dir: PathBuf = self.section.dir.clone();
            // A rollout takes its own copies, and relies on them.
            if !dir.is_dir() || enforce::lock::is_busy(&self.state_dir) {
                continue;
            }
            resting.retain(|_, until| *until > Instant::now());
            let targets = self.inventory.snapshot().inventory.targets().to_vec();
            for target in targets.iter().filter(|target| target.withheld.is_none()) {
                let user = target.user.as_str();
                if resting.contains_key(user) {
                    continue;
                }
                // Boxed: it is large, and rarely under way.
                let attending = Box::pin(self.attend(target));
                let Some(well) = stop.run_until_cancelled(attending).await else { return };
                if !well {
                    resting.insert(user.to_owned(), Instant::now() + REST);
                }
            }
        }
    }

    /// Answers whether all that was due for this user went well.
    async fn attend(&self, target: &Target) -> bool {
        let instance = instance_of(target);
        let duty = Duty { section: &self.section, t3: &self.t3, instance: &instance, hands: &self.hands };
        match duty.due(SystemTime::now()).await {
            Ok(done) => {
                let well = done.iter().all(|done| done.run.failure.is_none());
                for done in done {
                    // Nobody listens any more when the program stops.
                    let _ = self.ended.send(done.run).await;
                }
                well
            }
            Err(failure) => {
                tracing::warn!(user = instance.name, %failure, "the user's snapshots cannot be listed");
                false
            }
        }
    }
}
