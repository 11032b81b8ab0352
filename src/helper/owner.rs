//! Hands of the owner: root has a child of its own become the user, and that child reads the user's database and runs
//! t3 on restored copies.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::account::Account;
use super::as_user::{AsUser, Children, Ticks, plain};
use super::child::Task;
use crate::backup::restore::Present;
use crate::backup::{Copied, Copying, Defect, Found, Hands, Ourselves, Reading, Tried, Trying};
use crate::config::Config;
use crate::gate::hands as gate;
use crate::inventory::{Admitted, Roster};
use crate::outcome::{Failure, Grounds, NotDone, Reason};
use crate::t3::Instance;
use crate::t3::job::{Job, Limits, Ran, Stopped};
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::version::Version;

/// Beyond the limits that the work has itself.
const GRACE: Duration = Duration::from_secs(5);
/// Counting the events of a large history.
const LOOK: Duration = Duration::from_secs(30);
/// A write of the running server is waited for, then two small tables are made.
const REPAIR: Duration = Duration::from_secs(60);
/// Loading a large history, twice; beside t3's start and stop.
const LOGIN: Duration = Duration::from_secs(240);

/// Our own program, wherever it lies and whatever the user may pass through.
const OURSELVES: &str = "/proc/self/exe";
/// The hidden command that reads a snapshot: a `Reading` on stdin, on stdout what was found.
const READER: &str = "snapshot-reader";
/// Reading a large history twice.
const READING: Limits = Limits { memory: 1 << 30, deadline: Duration::from_secs(600) };

/// A user, and the children that act as them.
pub struct Owner<'a> {
    config: &'a Config,
    as_user: AsUser<'a>,
}

/// Whoever has the right to one user's data: we, where it is ours, else the owner.
pub enum Rightful<'a> {
    Ourselves(Ourselves),
    Owner { config: &'a Config, admitted: Box<Admitted>, children: Children },
}

impl<'a> Owner<'a> {
    pub fn new(config: &'a Config, admitted: &Admitted, children: &'a Children) -> Self {
        Self { config, as_user: AsUser::new(admitted, config, children) }
    }

    /// Whoever has nothing, for what is nobody's data.
    pub fn nobody(config: &'a Config, account: Account, children: &'a Children) -> Self {
        Self { config, as_user: AsUser::nobody(account, config, children) }
    }

    async fn perform<T: DeserializeOwned>(&self, task: Task, limit: Duration) -> Result<T, Failure> {
        let began = Ticks::now();
        let done = self.as_user.perform(task, limit).await;
        self.as_user.sweep(began).await;
        let value = done.map_err(|why| match why {
            NotDone::Failed(failure) => failure,
            NotDone::Skipped { detail, .. } => Failure::new(Reason::Helper, detail),
        })?;
        serde_json::from_value(value)
            .map_err(|_| Failure::new(Reason::Malformed, "the child's answer is not of this version's form"))
    }
}

impl Hands for Owner<'_> {
    fn account(&self) -> Option<(u32, u32)> {
        Some(self.as_user.account())
    }

    async fn copy(&self, _instance: &Instance, order: Copying) -> Result<Copied, Failure> {
        let limit = order.limit + GRACE;
        let mut copied: Copied = self.perform(Task::Copy(order), limit).await?;
        copied.level.name = plain(&copied.level.name);
        Ok(copied)
    }

    async fn look(&self, _instance: &Instance, taken: Fingerprint) -> Result<Present, Failure> {
        let mut present: Present = self.perform(Task::Look(taken), LOOK).await?;
        present.level.name = plain(&present.level.name);
        for time in [&mut present.loss.first, &mut present.loss.last].into_iter().flatten() {
            *time = plain(time);
        }
        Ok(present)
    }

    async fn repair(&self, _instance: &Instance, version: Version) -> Result<(), Failure> {
        self.perform(Task::Repair(version), REPAIR).await
    }

    /// What a user has written might be made to harm whoever parses it: that is nobody but the user.
    async fn read(&self, order: Reading) -> Result<Result<Found, Defect>, Failure> {
        let malformed = |error: serde_json::Error| Failure::new(Reason::Malformed, error.to_string());
        let input = serde_json::to_string(&order).map_err(malformed)?;
        let words = [OURSELVES, READER].map(str::to_owned).to_vec();
        let job = Job { input, ..Job::new(words, READING, Grounds::NoSeed) };
        let ran = gate::Hands::run(self, job).await.map_err(|stopped| {
            let reason = if stopped.grounds == Grounds::Deadline { Reason::Timeout } else { Reason::Helper };
            Failure::new(reason, format!("reading the snapshot as its owner: {}", plain(&stopped.detail)))
        })?;
        let mut found: Result<Found, Defect> = serde_json::from_str(&ran.stdout).map_err(|_| {
            let (status, complaint) = (ran.status(), plain(&ran.complaint));
            let detail = format!("reading the snapshot as its owner ended with {status}: {complaint}");
            Failure::new(Reason::Crashed, detail)
        })?;
        match &mut found {
            Ok(Found { level, .. }) => level.name = plain(&level.name),
            Err(defect) => defect.detail = plain(&defect.detail),
        }
        Ok(found)
    }

    async fn try_out(&self, order: Trying) -> Result<Tried, Failure> {
        let limit = order.start_timeout + order.stop_timeout + LOGIN;
        let mut tried: Tried =
            self.perform(Task::TryOut(Box::new(order), self.config.gate.boxing()), limit).await?;
        if let Some(failure) = &mut tried.failure {
            failure.detail = plain(&failure.detail);
        }
        Ok(tried)
    }
}

impl gate::Hands for Owner<'_> {
    async fn run(&self, job: Job) -> Result<Ran, Stopped> {
        let (limit, grounds) = (job.limits.deadline + GRACE, job.grounds);
        let ran: Result<Result<Ran, Stopped>, Failure> = self.perform(Task::Run(Box::new(job)), limit).await;
        ran.unwrap_or_else(|failure| Err(Stopped { grounds, detail: failure.detail }))
    }
}

impl<'a> Rightful<'a> {
    /// Root gives up what it is; everybody else has the rights they have.
    pub fn of(config: &'a Config, instance: &Instance) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() || instance.uid == 0 {
            return Ok(Self::Ourselves(Ourselves { boxing: config.gate.boxing() }));
        }
        let roster = Roster::read(&config.inventory).map_err(|error| error.to_string())?;
        let admitted = Box::new(roster.admit(&instance.name).map_err(|error| error.to_string())?);
        Ok(Self::Owner { config, admitted, children: Children::new()? })
    }
}

impl Hands for Rightful<'_> {
    fn account(&self) -> Option<(u32, u32)> {
        match self {
            Self::Ourselves(ourselves) => ourselves.account(),
            Self::Owner { admitted, .. } => Some((admitted.uid, admitted.gid)),
        }
    }

    async fn copy(&self, instance: &Instance, order: Copying) -> Result<Copied, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.copy(instance, order).await,
            Self::Owner { config, admitted, children } => {
                Owner::new(config, admitted, children).copy(instance, order).await
            }
        }
    }

    async fn look(&self, instance: &Instance, taken: Fingerprint) -> Result<Present, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.look(instance, taken).await,
            Self::Owner { config, admitted, children } => {
                Owner::new(config, admitted, children).look(instance, taken).await
            }
        }
    }

    async fn repair(&self, instance: &Instance, version: Version) -> Result<(), Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.repair(instance, version).await,
            Self::Owner { config, admitted, children } => {
                Owner::new(config, admitted, children).repair(instance, version).await
            }
        }
    }

    async fn read(&self, order: Reading) -> Result<Result<Found, Defect>, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.read(order).await,
            Self::Owner { config, admitted, children } => {
                Owner::new(config, admitted, children).read(order).await
            }
        }
    }

    async fn try_out(&self, order: Trying) -> Result<Tried, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.try_out(order).await,
            Self::Owner { config, admitted, children } => {
                Owner::new(config, admitted, children).try_out(order).await
            }
        }
    }
}
