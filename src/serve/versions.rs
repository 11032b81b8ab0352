//! Where pinned, installed, proven and running versions differ: looked at twice a minute, said in metrics and in words, and
//! kept in the history when it begins and when it is over.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::gating::Tracked;
use super::lock;
use crate::board::Board;
use crate::history::{self, History};
use crate::metrics::Metrics;
use crate::outcome::{EventKind, Place};
use crate::pins::{self, Difference, Running, Since, Subject};
use crate::t3;
use crate::t3::cli::Cli;
use crate::t3::install::Installs;

const LOOK: Duration = Duration::from_secs(30);

/// The versions that places and running instances name.
pub type Named = Arc<Mutex<BTreeSet<String>>>;

/// A difference as the status page says it, and since when it is there.
pub type Said = Arc<Mutex<Vec<(String, SystemTime)>>>;

/// What is compared, and where it is told.
pub struct Versions {
    pub pins: pins::Section,
    pub t3: t3::Section,
    pub board: Arc<Mutex<Board>>,
    pub metrics: Arc<Metrics>,
    pub history: Arc<History>,
    pub said: Said,
    pub tracked: Tracked,
    pub named: Named,
    /// Where it is kept since when each difference is there.
    pub memory: PathBuf,
}

impl Versions {
    /// Looks until it is told to stop.
    pub async fn watch(self, stop: CancellationToken) {
        let (installs, cli) = (Installs::new(&self.t3), Cli::default());
        let mut since = Since::load(&self.memory);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let tracked = lock(&self.tracked).clone();
            let versions = self.pins.read(&installs, &cli, tracked).await;
            let running = self.running(&installs);
            *lock(&self.named) = names(&versions, &running);
            let differences = versions.differences(&running, self.t3.mint);
            let before = since.clone();
            let began = since.see(&differences, |user| self.is_silent(user), SystemTime::now());
            self.remember(&before, &since, &differences);
            if since != before
                && let Err(error) = since.store(&self.memory)
            {
                let file = self.memory.display();
                tracing::warn!(%error, "cannot write {file}; after a restart every difference begins anew");
            }
            self.export(&versions, &running, &differences, &began);
            *lock(&self.said) = differences.iter().map(ToString::to_string).zip(began).collect();
        }
    }

    /// What has begun, in words, and what is over.
    fn remember(&self, before: &Since, since: &Since, differences: &[Difference]) {
        let event = |subject: &Subject, outcome: &str, detail| history::Event {
            at: SystemTime::now(),
            user: subject.user().map(ToOwned::to_owned),
            kind: EventKind::Version,
            subject: subject.to_string(),
            outcome: outcome.to_owned(),
            detail,
        };
        for subject in since.new_since(before) {
            let words = differences.iter().find(|difference| difference.subject() == *subject);
            let detail = words.map(|words| serde_json::json!({ "detail": words.to_string() }));
            self.history.record_event(event(subject, "began", detail.unwrap_or_default()));
        }
        for subject in before.new_since(since) {
            self.history.record_event(event(subject, "ended", serde_json::Value::Null));
        }
    }

    /// Whether it is not known yet what a user's instance runs: not asked, or nobody is served yet.
    fn is_silent(&self, user: &str) -> bool {
        let board = lock(&self.board);
        let mut users = board.users().peekable();
        users.peek().is_none()
            || users.any(|(name, standing)| {
                name == user && standing.fact(|run| run.facts.version.as_deref()).is_none()
            })
    }

    /// What each instance said it runs when it was asked last.
    fn running(&self, installs: &Installs) -> Vec<Running> {
        let board = lock(&self.board);
        let running = board.users().filter_map(|(user, standing)| {
            let version: t3::version::Version =
                standing.fact(|run| run.facts.version.as_deref()?.parse().ok())?;
            Some(Running { user: user.to_owned(), has_install: installs.has(&version), version })
        });
        running.collect()
    }

    fn export(
        &self,
        versions: &pins::Versions,
        running: &[Running],
        differences: &[Difference],
        began: &[SystemTime],
    ) {
        let since = |is_it: &dyn Fn(&Difference) -> bool| {
            differences.iter().zip(began).find(|(difference, _)| is_it(difference)).map(|(_, since)| *since)
        };
        let known: Vec<_> = versions.known().map(|(place, version)| (place, version.to_string())).collect();
        let drift = |place: Place| {
            let is_it = |difference: &Difference| matches!(difference, Difference::Drift { place: there, .. } if *there == place);
            (place, since(&is_it))
        };
        let drifts: Vec<_> = known.iter().map(|(place, _)| drift(*place)).collect();
        self.metrics.version.state(&known, &drifts);
        for Running { user, .. } in running {
            let is_it = |difference: &Difference| matches!(difference, Difference::Skew { user: whose, .. } if whose == user);
            self.metrics.version.set_skew(user, since(&is_it));
        }
    }
}

fn names(versions: &pins::Versions, running: &[Running]) -> BTreeSet<String> {
    let places = versions.known().map(|(_, version)| version.to_string());
    places.chain(running.iter().map(|running| running.version.to_string())).collect()
}
