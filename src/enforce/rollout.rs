//! A rollout under way: group after group forward, each watched for its soak; or everybody back.

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use super::canary::{Watch, Why};
use super::freeze::Freeze;
use super::interrupt::Interrupt;
use super::journal::Ledger;
use super::moves::{Mishap, Moves, Returned};
use super::plan::{Deferred, Plan, group_size, soak_of};
use super::progress::Progress;
use super::witness::Witness;
use super::{Report, Stop};
use crate::inventory::Target;
use crate::outcome::{End, Failure, MoveStep, Reason, Stage};
use crate::t3::version::Version;

/// Databases copied back at once; more would only make each other wait for the disk.
const RESTORES: usize = 4;

pub struct Rollout<'a> {
    pub moves: &'a Moves<'a>,
    pub targets: &'a [Target],
    pub freeze: &'a Freeze,
    pub interrupt: &'a Interrupt,
    pub progress: &'a Progress,
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// A build that turned out to be bad.
pub struct Bad(Why);

impl Bad {
    pub async fn end(self, ledger: Ledger, rollout: &Rollout<'_>) -> Report {
        rollout.back(ledger, self.0).await
    }
}

impl Rollout<'_> {
    fn target(&self, user: &str) -> Option<&Target> {
        self.targets.iter().find(|target| target.user.as_str() == user)
    }

    /// Moves who is in the plan, and promotes the build when nobody is left to be moved.
    pub async fn forward(&self, ledger: Ledger, plan: Plan) -> Result<Report, Stop> {
        let mut deferred = plan.deferred.clone();
        if let Some(Bad(why)) = self.groups(&ledger, &plan, &mut deferred).await? {
            return Ok(self.back(ledger, why).await);
        }
        let moved: Vec<_> = ledger.read().moves.into_iter().map(|entry| entry.user).collect();
        if moved.is_empty() {
            close(ledger)?;
            return Ok(Report::nobody_idle(plan.target, deferred));
        }
        self.promote(&plan.target)?;
        close(ledger)?;
        let stays: Vec<_> = deferred.iter().map(|deferred| format!("; {deferred}")).collect();
        Ok(Report {
            end: End::Done,
            hold: None,
            detail: format!("{} run t3 {}{}", moved.join(", "), plan.target, stays.concat()),
            target: Some(plan.target),
            moved,
            deferred,
        })
    }

    /// Brings those who were on the way when the last run ended to the new build.
    pub async fn settle(&self, ledger: &Ledger, deferred: &mut Vec<Deferred>) -> Result<Option<Bad>, Stop> {
        self.progress.at(Stage::Moving);
        let on_the_way = ledger.read().moves.into_iter().filter(|entry| entry.step != MoveStep::Proven);
        let moved = on_the_way.map(|entry| async move {
            let Some(target) = self.target(&entry.user) else { return Err(Mishap::Ours(gone(&entry.user))) };
            self.moves.carry_on(ledger, target).await
        });
        weighed(join_all(moved).await, deferred)
    }

    async fn groups(
        &self,
        ledger: &Ledger,
        plan: &Plan,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Option<Bad>, Stop> {
        let (mut watch, witness) = (Watch::default(), Witness::new(self.moves.config, self.say));
        let mut queue = plan.queue.iter();
        loop {
            self.goes_on()?;
            let journal = ledger.read();
            let number = journal.groups;
            // A group that was moved and not watched to the end is watched anew.
            if !journal.moves.iter().any(|entry| entry.group == number) {
                let group: Vec<_> = queue.by_ref().take(group_size(number)).collect();
                if group.is_empty() {
                    break;
                }
                self.progress.at(Stage::Moving);
                let moved = group.into_iter().map(|(user, from)| async move {
                    let Some(target) = self.target(user) else { return Err(Mishap::Ours(gone(user))) };
                    self.moves.begin(ledger, target, from, number).await
                });
                if let Some(bad) = weighed(join_all(moved).await, deferred)? {
                    return Ok(Some(bad));
                }
                self.goes_on()?;
            }
            let journal = ledger.read();
            if !journal.moves.iter().any(|entry| entry.group == number) {
                // All of them had become busy.
                continue;
            }
            let running = journal.moves.iter().filter(|entry| entry.ran);
            let watched: Vec<_> = running.filter_map(|entry| self.target(&entry.user)).collect();
            let soak = soak_of(number, journal.soak);
            let who: Vec<_> = watched.iter().map(|target| target.user.as_str()).collect();
            (self.say)(&format!(
                "watching {} on t3 {} for {}",
                who.join(", "),
                journal.target,
                humantime::format_duration(soak)
            ));
            self.progress.at(Stage::Watching);
            let (prover, until) = (&self.moves.prover, self.interrupt);
            let well = prover.watch(&mut watch, &witness, &journal.target, &watched, soak, until).await;
            // Whoever goes down with the host is no proof either way, and a group is watched to its end or not at all.
            self.goes_on()?;
            if let Err(why) = well {
                return Ok(Some(Bad(why)));
            }
            ledger.change(|journal| journal.groups += 1).map_err(|error| unwritten(&error))?;
        }
        let number = ledger.read().groups;
        self.progress.at(Stage::Moving);
        for (user, from) in &plan.stopped {
            self.goes_on()?;
            let Some(target) = self.target(user) else { continue };
            if let Some(bad) = weighed(vec![self.moves.begin(ledger, target, from, number).await], deferred)?
            {
                return Ok(Some(bad));
            }
        }
        Ok(None)
    }

    /// Not where it was told to stop.
    fn goes_on(&self) -> Result<(), Stop> {
        if self.interrupt.told().is_some() { Err(Stop::Interrupted) } else { Ok(()) }
    }

    /// The build is proven: new users start with it, and a rollback leads to it.
    pub fn promote(&self, version: &Version) -> Result<(), Failure> {
        let links = &self.moves.links;
        let failed = |what: &str, error: std::io::Error| {
            Failure::new(Reason::Unreadable, format!("cannot write the {what}: {error}"))
        };
        if links.default().as_ref() != Some(version) {
            links.set_default(version).map_err(|error| failed("default link", error))?;
        }
        if links.last_good().as_ref() != Some(version) {
            links.set_last_good(version).map_err(|error| failed("last good version", error))?;
        }
        Ok(())
    }

    /// Brings everybody who was moved back, whatever else fails on the way, and whoever tells it to stop: on a build that
    /// broke nobody is left.
    pub async fn back(&self, ledger: Ledger, why: Why) -> Report {
        self.progress.at(Stage::Returning);
        let begun = ledger.change(|journal| journal.back = Some(why.clone()));
        if let Err(error) = begun {
            tracing::error!(%error, "going back without the journal: a run that is killed now cannot be carried on");
        }
        let (version, at) = (ledger.read().target, std::time::SystemTime::now());
        if let Err(error) = self.freeze.after(&version, &why.to_string(), at) {
            tracing::error!(%error, "cannot freeze: the next run may try the same build again");
        }
        (self.say)(&format!("t3 {version} is bad: {why}; everybody goes back"));
        let users: Vec<_> = ledger.read().moves.into_iter().map(|entry| entry.user).collect();
        let stopped = join_all(users.iter().map(|user| async {
            let target = self.target(user).ok_or_else(|| gone(user))?;
            self.moves.stop_to_return(&ledger, target).await
        }));
        let stopped = stopped.await;
        let returns = users.iter().zip(stopped).map(|(user, stopped)| {
            let ledger = &ledger;
            async move {
                let target = self.target(user).ok_or_else(|| gone(user))?;
                self.moves.go_back(ledger, target, stopped.err()).await
            }
        });
        let returned: Vec<Result<Returned, Failure>> =
            stream::iter(returns).buffered(RESTORES).collect().await;
        self.returned(ledger, &version, &why, &users, returned)
    }

    fn returned(
        &self,
        ledger: Ledger,
        version: &Version,
        why: &Why,
        users: &[String],
        returned: Vec<Result<Returned, Failure>>,
    ) -> Report {
        let (mut failures, mut kept) = (Vec::new(), Vec::new());
        for (user, returned) in users.iter().zip(returned) {
            match returned {
                Err(failure) => failures.push(format!("{user}: {failure}")),
                Ok(Returned { aside: Some((aside, loss)) }) => {
                    kept.push(format!("{user}: {loss}, kept in {}", aside.display()));
                }
                Ok(Returned { aside: None }) => {}
            }
        }
        let mut report = Report {
            end: End::RolledBack,
            hold: None,
            target: Some(version.clone()),
            detail: String::new(),
            moved: users.to_vec(),
            deferred: Vec::new(),
        };
        if failures.is_empty()
            && let Err(failure) = close(ledger)
        {
            failures.push(failure.to_string());
        }
        if !failures.is_empty() {
            report.end = End::RollbackFailed;
            report.detail = format!(
                "t3 {version} is bad ({why}), and not everybody could be brought back: {}; run enforce again once that is mended",
                failures.join("; ")
            );
            return report;
        }
        let kept = if kept.is_empty() { "no database was changed".to_owned() } else { kept.join("; ") };
        report.detail = format!(
            "t3 {version} was rolled back: {why}; back where they were: {}; {kept}; nothing else is begun until {} is removed",
            users.join(", "),
            self.freeze.file().display()
        );
        report
    }
}

/// What came of a group: a bad build before anything else, then what is our own fault.
fn weighed(results: Vec<Result<(), Mishap>>, deferred: &mut Vec<Deferred>) -> Result<Option<Bad>, Stop> {
    let (mut bad, mut ours, mut interrupted) = (None, None, false);
    for result in results {
        match result {
            Ok(()) => {}
            Err(Mishap::Build(why)) => bad = bad.or(Some(Bad(why))),
            Err(Mishap::Ours(failure)) => ours = ours.or(Some(failure)),
            Err(Mishap::Deferred(stays)) => deferred.push(stays),
            Err(Mishap::Interrupted) => interrupted = true,
        }
    }
    match (bad, ours) {
        (Some(bad), _) => Ok(Some(bad)),
        (None, Some(failure)) => Err(Stop::Failed(failure)),
        (None, None) if interrupted => Err(Stop::Interrupted),
        (None, None) => Ok(None),
    }
}

fn gone(user: &str) -> Failure {
    Failure::new(Reason::UnknownIdentity, format!("{user} is no longer in the inventory"))
}

fn unwritten(error: &std::io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("cannot write the journal: {error}"))
}

fn close(ledger: Ledger) -> Result<(), Failure> {
    ledger.close().map_err(|error| unwritten(&error))
}
