//! A user is moved to the new build.

use super::super::canary::Why;
use super::super::journal::{Ledger, Move};
use super::super::plan::{Deferred, Presence};
use super::super::proof::OTHER_VERSION;
use super::{Mishap, Moves, entry_of, unlinked, unwritten};
use crate::inventory::Target;
use crate::outcome::{Deferral, Failure, MoveStep, Reason, Step};
use crate::probe::instance_of;
use crate::t3::version::Version;

impl Moves<'_> {
    /// Moves a user, after a last look whether they may be moved.
    pub async fn begin(
        &self,
        ledger: &Ledger,
        target: &Target,
        from: &Version,
        group: usize,
    ) -> Result<(), Mishap> {
        let user = target.user.to_string();
        let (_, pulse) = self.prover.look(target).await;
        let ran = match self.presence(target, &pulse).await {
            Presence::Idle => true,
            Presence::Stopped => false,
            Presence::Away(why, detail) => return Err(Mishap::Deferred(Deferred { user, why, detail })),
        };
        if ran && !self.forward_fix {
            // Whoever could not log in before would be no proof, and no reason to roll back.
            let before = self.prover.login(target, Some(pulse.outcome())).await;
            if !before.outcome().is_ok() {
                let detail = format!("it does not work on the old build: {}", Why::of(&before));
                return Err(Mishap::Deferred(Deferred { user, why: Deferral::Unwell, detail }));
            }
        }
        if self.interrupt.told().is_some() {
            return Err(Mishap::Interrupted);
        }
        let entry = Move {
            user: user.clone(),
            from: from.clone(),
            group,
            ran,
            step: MoveStep::Stopping,
            copy: None,
            restoring: None,
        };
        ledger
            .change(|journal| journal.moves.push(entry))
            .map_err(|error| Mishap::Ours(unwritten(&error)))?;
        self.carry_on(ledger, target).await
    }

    /// Brings a user who is on the way to the new build, from whatever step the journal names.
    pub async fn carry_on(&self, ledger: &Ledger, target: &Target) -> Result<(), Mishap> {
        let user = target.user.as_str();
        self.pause(user);
        let moved = self.to_the_new_build(ledger, target).await;
        match moved {
            Ok(()) => {
                self.resume(user);
                Ok(())
            }
            // Nothing was linked: the old build goes on.
            Err(mishap @ (Mishap::Ours(_) | Mishap::Deferred(_))) => {
                let again = self.start_again(ledger, target).await;
                self.resume(user);
                let Err(worse) = again else { return Err(mishap) };
                let first = match mishap {
                    Mishap::Ours(failure) => failure.detail,
                    Mishap::Deferred(deferred) => deferred.detail,
                    other => return Err(other),
                };
                let detail = format!("{first}; and {user} could not be started again: {}", worse.detail);
                Err(Mishap::Ours(Failure::new(worse.reason, detail)))
            }
            // Whoever undoes it ends the pause.
            Err(other) => Err(other),
        }
    }

    async fn to_the_new_build(&self, ledger: &Ledger, target: &Target) -> Result<(), Mishap> {
        let (journal, instance, user) = (ledger.read(), instance_of(target), target.user.as_str());
        let entry = entry_of(ledger, user).map_err(Mishap::Ours)?;
        let to = journal.target;
        // A link that names the new build was set after the copy: nobody has run the old one since.
        if self.links.of(user).as_ref() != Some(&to) {
            self.stop_copy_link(ledger, target, &entry, &to).await?;
        }
        self.note(ledger, user, MoveStep::Linked).map_err(Mishap::Ours)?;
        if entry.ran {
            (self.say)(&format!("{user}: starting t3 {to}"));
            let service = self.service(&instance);
            if let Err(failure) = service.start().await {
                if failure.reason == Reason::CliMissing {
                    return Err(Mishap::Ours(failure));
                }
                let why = Why {
                    user: user.to_owned(),
                    step: Some(Step::Reach),
                    reason: failure.reason.to_string(),
                    detail: failure.detail,
                };
                return Err(self.weighed(ledger, &entry, why));
            }
            let confirmed = self.prover.pulse_interval();
            if let Err(why) = self.prover.log_in(target, &to, self.service.start_timeout, confirmed).await {
                return Err(self.weighed(ledger, &entry, why));
            }
        }
        self.note(ledger, user, MoveStep::Proven).map_err(Mishap::Ours)?;
        let how = if entry.ran { "somebody logged in" } else { "it was stopped and stays so" };
        (self.say)(&format!("{user}: on t3 {to}; {how}"));
        Ok(())
    }

    /// A start command that does not go through the link is no fault of the build: what runs is the old one. Neither is
    /// what fails while everything is being stopped: the next run looks again.
    fn weighed(&self, ledger: &Ledger, entry: &Move, why: Why) -> Mishap {
        if self.interrupt.told().is_some() {
            return Mishap::Ours(Failure::new(Reason::CliFailed, why.to_string()));
        }
        if why.reason != OTHER_VERSION {
            return Mishap::Build(why);
        }
        let failure = Failure::new(Reason::CliFailed, why.to_string());
        let back = self.links.set(&entry.user, &entry.from).map_err(|error| unlinked(&entry.user, &error));
        let noted = back.and_then(|()| self.note(ledger, &entry.user, MoveStep::Stopping));
        Mishap::Ours(noted.err().unwrap_or(failure))
    }

    /// The copy that a rollback uses is taken while nothing runs: no message can come between the two.
    async fn stop_copy_link(
        &self,
        ledger: &Ledger,
        target: &Target,
        entry: &Move,
        to: &Version,
    ) -> Result<(), Mishap> {
        let (instance, user) = (instance_of(target), target.user.as_str());
        (self.say)(&format!("{user}: stopping t3 {}", entry.from));
        self.note(ledger, user, MoveStep::Stopping).map_err(Mishap::Ours)?;
        if let Err(failure) = self.service(&instance).stop().await {
            // Whoever has the database open beside t3 is this user's matter: all others are moved.
            if failure.reason == Reason::Timeout && self.is_down(&instance).await {
                let (user, detail) = (user.to_owned(), failure.detail);
                return Err(Mishap::Deferred(Deferred { user, why: Deferral::Held, detail }));
            }
            return Err(Mishap::Ours(failure));
        }
        self.copy_link(ledger, target, entry, to).await.map_err(Mishap::Ours)
    }

    async fn copy_link(
        &self,
        ledger: &Ledger,
        target: &Target,
        entry: &Move,
        to: &Version,
    ) -> Result<(), Failure> {
        let user = target.user.as_str();
        let copy = self.copy(target, Some(&entry.from)).await?;
        let copied = ledger.change_move(user, |entry| {
            entry.copy = Some(copy.name());
            entry.step = MoveStep::Copied;
        });
        copied.map_err(|error| unwritten(&error))?;
        self.links.set(user, to).map_err(|error| unlinked(user, &error))
    }

    /// After a mishap of ours: the user runs the old build, and nothing is under way for them.
    async fn start_again(&self, ledger: &Ledger, target: &Target) -> Result<(), Failure> {
        let user = target.user.as_str();
        let Ok(entry) = entry_of(ledger, user) else { return Ok(()) };
        let instance = instance_of(target);
        let service = self.service(&instance);
        if self.links.of(user).as_ref() == Some(&ledger.read().target) {
            // The new build is linked and perhaps at work: the next run carries on from here.
            return if entry.ran && !service.is_up().await { service.start().await } else { Ok(()) };
        }
        if entry.ran {
            service.start().await?;
        }
        let forgotten = ledger.change(|journal| journal.moves.retain(|entry| entry.user != user));
        forgotten.map_err(|error| unwritten(&error))
    }

    pub(super) fn note(&self, ledger: &Ledger, user: &str, step: MoveStep) -> Result<(), Failure> {
        ledger.change_move(user, |entry| entry.step = step).map_err(|error| unwritten(&error))
    }
}
