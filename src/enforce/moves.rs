//! What is done to one user's instance: stopped, copied, linked, started, proven, and all of it back. Every step is in
//! the journal before it is done and can be done again, so a run that was killed is carried on by the next.

use std::time::Duration;

use procfs::process::Process;

use super::canary::Why;
use super::holders;
use super::interrupt::Interrupt;
use super::journal::{Ledger, Move};
use super::links::Links;
use super::plan::{Deferred, Presence};
use super::proof::{Prover, is_stopped};
use crate::backup::service::Service;
use crate::backup::{self, Done, Duty, Snapshot, Tree};
use crate::config::Config;
use crate::helper::Rightful;
use crate::inventory::Target;
use crate::outcome::{Deferral, Failure, Outcome, Reason, Run};
use crate::pause;
use crate::probe::instance_of;
use crate::t3::Instance;
use crate::t3::access::Access;
use crate::t3::state::server::Server;
use crate::t3::version::Version;

mod back;
mod forward;

pub use back::Returned;

/// How long a look at a database may take.
const LOOK: Duration = Duration::from_secs(15);
/// Another process takes or drills a snapshot of this user: it is done within this time, or something is wrong.
const TREE_PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Why probes are paused, as it stands on the status page.
const PAUSE: &str = "moved to another build by the enforcer";

/// Everything that acting on users needs.
pub struct Moves<'a> {
    pub config: &'a Config,
    /// The backup settings, with the commands that the enforcer stops and starts with.
    pub service: backup::Section,
    pub links: Links,
    pub prover: Prover,
    pub access: Access,
    /// The outage itself: who cannot log in is moved all the same, because going forward is the way out.
    pub forward_fix: bool,
    pub interrupt: &'a Interrupt,
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// Why a user was not moved.
#[derive(Debug)]
pub enum Mishap {
    /// The new build does not work for this user.
    Build(Why),
    /// Something of ours or of the machine; the user runs the old build, as before.
    Ours(Failure),
    /// The user may not be moved now after all.
    Deferred(Deferred),
    /// It was told to stop before anything was done to the user.
    Interrupted,
}

impl Moves<'_> {
    fn service<'s>(&'s self, instance: &'s Instance) -> Service<'s> {
        Service { section: &self.service, instance, by_hand: None }
    }

    /// Whether stopping the user now would cut somebody off, or be in vain.
    pub async fn presence(&self, target: &Target, pulse: &Run) -> Presence {
        let presence = self.at_work(target, pulse).await;
        if matches!(presence, Presence::Away(..)) {
            return presence;
        }
        match holders::holder(&instance_of(target)).await {
            Some(holder) => {
                let detail = format!("{holder} has the database open; end it, or have it close the file");
                Presence::Away(Deferral::Held, detail)
            }
            None => presence,
        }
    }

    async fn at_work(&self, target: &Target, pulse: &Run) -> Presence {
        if let Some(finding) = target.withheld {
            return Presence::Away(
                Deferral::Withheld,
                format!("the inventory contradicts itself: {finding}"),
            );
        }
        let instance = instance_of(target);
        let server = Server::of(&instance.database());
        let refused = pulse.outcome() == Outcome::Failed(Reason::Refused);
        // A clean end removes the runtime file, a crash does not (CONTRACT §8).
        if is_stopped(pulse) || (refused && server == Server::Unknown) {
            return Presence::Stopped;
        }
        let unwell = !pulse.outcome().is_ok();
        if unwell && !(self.forward_fix && pulse.facts.version.is_some()) {
            return Presence::Away(Deferral::Unwell, Why::of(pulse).to_string());
        }
        let activity = match self.access.inspect(&instance, LOOK).await {
            Ok(inspection) => inspection.state.map(|state| state.activity).map_err(|failure| failure.detail),
            Err(why) => Err(why.detail().to_owned()),
        };
        match activity {
            // Nobody is kept out for longer because it cannot be told who works.
            Err(_) if unwell => Presence::Idle,
            Err(why) => Presence::Away(Deferral::Unknown, why),
            Ok(activity) if activity.is_busy() => {
                let (turns, approvals, providers) = (activity.turns, activity.approvals, activity.providers);
                let detail = format!(
                    "at work: {turns} turns, {approvals} approvals waited for, {providers} provider processes"
                );
                Presence::Away(Deferral::Busy, detail)
            }
            Ok(_) => match children(&server) {
                0 => Presence::Idle,
                n => Presence::Away(Deferral::Busy, format!("{n} processes run below the instance")),
            },
        }
    }

    /// Keeps alerts quiet about a user until `resume`, and by itself ends soon after the longest that this can take. A
    /// pause that an operator made stays as it is.
    fn pause(&self, user: &str) {
        let length = (self.service.stop_timeout + self.service.start_timeout) * 2 + self.service.take_timeout;
        let length = length.clamp(Duration::from_secs(60), Duration::from_secs(24 * 3600));
        pause::for_work(&self.pauses(), user, length, PAUSE);
    }

    fn resume(&self, user: &str) {
        pause::work_is_over(&self.pauses(), user, PAUSE);
    }

    fn pauses(&self) -> std::path::PathBuf {
        self.config.state_dir.join("pauses.json")
    }

    /// Whether t3 itself has stopped, whoever else has its database open.
    async fn is_down(&self, instance: &Instance) -> bool {
        !self.service(instance).is_up().await
            && !matches!(Server::of(&instance.database()), Server::Running { .. })
    }

    /// A verified snapshot of a user's database.
    pub async fn copy(&self, target: &Target, version: Option<&Version>) -> Result<Snapshot, Failure> {
        let deadline = tokio::time::Instant::now() + TREE_PATIENCE;
        loop {
            let instance = instance_of(target);
            let hands =
                Rightful::of(self.config, &instance).map_err(|why| Failure::new(Reason::Helper, why))?;
            let (section, t3) = (&self.service, &self.config.t3);
            let duty = Duty { section, t3, instance: &instance, hands: &hands };
            let taken = Box::pin(duty.take_of(version.cloned())).await.pop().map(Done::into_snapshot);
            let nothing = || Err(Failure::new(Reason::Panicked, "taking a snapshot came to nothing"));
            let taken = taken.unwrap_or_else(nothing);
            match taken {
                Err(failure)
                    if failure.reason == Reason::Locked && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                taken => return taken,
            }
        }
    }

    fn snapshot(&self, entry: &Move) -> Result<Option<Snapshot>, Failure> {
        let Some(name) = &entry.copy else { return Ok(None) };
        let found = Tree::new(&self.service, &entry.user).find(name)?;
        let missing = || Failure::new(Reason::Unreadable, format!("the copy {name} is gone"));
        found.map(Some).ok_or_else(missing)
    }
}

/// Turns a step that could not be written down into a failure of ours.
fn unwritten(error: &std::io::Error) -> Failure {
    let reason = match error.kind() {
        std::io::ErrorKind::StorageFull => Reason::NoSpace,
        _ => Reason::Unreadable,
    };
    Failure::new(reason, format!("cannot write the journal: {error}"))
}

fn unlinked(user: &str, error: &std::io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("cannot change the link of {user}: {error}"))
}

fn entry_of(ledger: &Ledger, user: &str) -> Result<Move, Failure> {
    let entry = ledger.read().moves.into_iter().find(|entry| entry.user == user);
    entry.ok_or_else(|| Failure::new(Reason::Unreadable, format!("{user} is not in the journal")))
}

/// Processes that a server started and that still run: terminals and background work are not in its database.
fn children(server: &Server) -> usize {
    let Server::Running { pid, .. } = server else { return 0 };
    let Ok(processes) = procfs::process::all_processes() else { return 0 };
    let is_child =
        |process: &Process| process.stat().is_ok_and(|stat| stat.ppid == *pid && stat.state != 'Z');
    processes.flatten().filter(is_child).count()
}
