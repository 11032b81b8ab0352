//! What is done for one user's snapshots, and how it ended: the same for the commands, the timer and the service. Every
//! act ends as a `BackupRun`, and is published where everybody can read how the user stands.

use std::time::{Duration, Instant, SystemTime};

use super::hands::Hands;
use super::{Drilled, Section, Snapshot, Standing, Tree, drill, due, prove, take};
use crate::outcome::{BackupAct, BackupFailure, BackupRun, Failure, Reason};
use crate::t3::http::Client;
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;
use crate::t3::{self, Instance, descriptor};

/// How long an instance is asked for its version; a stopped one refuses at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// One user, and what their snapshots need.
pub struct Duty<'a, H> {
    pub section: &'a Section,
    pub t3: &'a t3::Section,
    pub instance: &'a Instance,
    pub hands: &'a H,
}

/// An act that has ended, and the snapshot it was about as it is now.
#[derive(Debug)]
pub struct Done {
    pub run: BackupRun,
    pub snapshot: Option<Snapshot>,
}

impl Done {
    /// The snapshot of an act that went well.
    pub fn into_snapshot(self) -> Result<Snapshot, Failure> {
        match (self.run.failure, self.snapshot) {
            (None, Some(snapshot)) => Ok(snapshot),
            (Some(BackupFailure { reason, detail, .. }), _) => Err(Failure { reason, detail }),
            (None, None) => Err(Failure::new(Reason::Unreadable, "there is no snapshot")),
        }
    }
}

impl<H: Hands> Duty<'_, H> {
    pub fn tree(&self) -> Tree {
        Tree::new(self.section, &self.instance.name)
    }

    /// Does one thing after the other until nothing more is due, or something fails.
    pub async fn due(&self, now: SystemTime) -> Result<Vec<Done>, Failure> {
        let mut done = Vec::new();
        // After a take comes its verification, and after that its drill.
        for _ in 0..3 {
            let snapshots = self.tree().list()?;
            let next = due(self.section, &snapshots, now);
            let newest = snapshots.into_iter().rev().find(|snapshot| snapshot.manifest.is_some());
            match (next, newest) {
                (Some(BackupAct::Take), _) => done.extend(self.take().await),
                (Some(BackupAct::Verify), Some(newest)) => done.push(self.verify(newest).await),
                (Some(BackupAct::Drill), Some(newest)) => done.push(self.drill(newest).await),
                _ => break,
            }
            if done.last().is_some_and(|last| last.run.failure.is_some()) {
                break;
            }
        }
        Ok(done)
    }

    /// Takes a snapshot and looks at every byte of it: two acts, where the first one succeeds.
    pub async fn take(&self) -> Vec<Done> {
        self.take_of(running_version(self.instance).await).await
    }

    /// The same where it is known which version has written the database.
    pub async fn take_of(&self, version: Option<Version>) -> Vec<Done> {
        let clock = Instant::now();
        let taken = take(self.section, self.instance, self.hands, version.as_ref(), SystemTime::now()).await;
        let (snapshot, failure) = match taken {
            Ok(snapshot) => (Some(snapshot), None),
            Err(failure) => (None, Some(failure.into())),
        };
        let taken = self.end(BackupAct::Take, clock, snapshot.clone(), failure);
        match snapshot {
            None => vec![taken],
            Some(snapshot) => vec![taken, self.verify(snapshot).await],
        }
    }

    pub async fn verify(&self, mut snapshot: Snapshot) -> Done {
        let clock = Instant::now();
        let failure = match prove(&mut snapshot, self.hands, SystemTime::now()).await {
            Ok(Ok(())) => None,
            Ok(Err(defect)) => {
                let detail = format!("{} does not restore: {defect}", snapshot.name());
                let failure = Failure::new(Reason::Corrupt, detail).into();
                Some(BackupFailure { flaw: Some(defect.flaw), ..failure })
            }
            Err(failure) => Some(failure.into()),
        };
        self.end(BackupAct::Verify, clock, Some(snapshot), failure)
    }

    pub async fn drill(&self, mut snapshot: Snapshot) -> Done {
        let clock = Instant::now();
        let now = SystemTime::now();
        let owner = self.instance.uid;
        let drilled = drill::drill(self.section, self.t3, owner, self.hands, &mut snapshot, now).await;
        let name = snapshot.name();
        let failure = match drilled {
            Ok(Drilled { failure: None, .. }) => None,
            Ok(Drilled { failure: Some(failure), .. }) => Some(BackupFailure {
                step: Some(failure.step),
                flaw: None,
                reason: failure.reason,
                detail: format!("{name}: {}", failure.detail),
            }),
            Err(failure) => Some(failure.into()),
        };
        self.end(BackupAct::Drill, clock, Some(snapshot), failure)
    }

    fn end(
        &self,
        act: BackupAct,
        clock: Instant,
        snapshot: Option<Snapshot>,
        failure: Option<BackupFailure>,
    ) -> Done {
        let run = BackupRun {
            user: self.instance.name.clone(),
            act,
            at: SystemTime::now(),
            duration: clock.elapsed(),
            snapshot: snapshot.as_ref().map(Snapshot::name),
            failure,
        };
        if let Err(failure) = Standing::publish(self.section, &run) {
            tracing::warn!(user = run.user, %failure, "how the user stands is not published");
        }
        Done { run, snapshot }
    }
}

/// The version that answers on the instance's port; `None` where none does.
pub async fn running_version(instance: &Instance) -> Option<Version> {
    let trace = TraceContext::unsampled();
    let mut client = Client::new(instance, &trace);
    descriptor::read(&mut client, PATIENCE).await.ok().map(|descriptor| descriptor.version)
}
