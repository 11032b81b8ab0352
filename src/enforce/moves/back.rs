//! A user is brought back to the old build, and their database where the new build changed it.

use std::path::PathBuf;
use std::time::SystemTime;

use super::super::journal::{Ledger, Move};
use super::{Moves, entry_of, unlinked, unwritten};
use crate::backup::restore::{self, Loss, Present, Restore};
use crate::backup::{Hands, Snapshot};
use crate::helper::Rightful;
use crate::inventory::Target;
use crate::outcome::{BackupAct, BackupRun, Failure, MoveStep, Reason};
use crate::probe::instance_of;
use crate::t3::Instance;
use crate::t3::version::Version;

/// What was done to bring a user back.
#[derive(Debug, Default)]
pub struct Returned {
    /// Where the newer database lies, and what was written to it since the copy.
    pub aside: Option<(PathBuf, Loss)>,
}

impl Moves<'_> {
    /// Stops a user's instance, where it has to be. Everybody is stopped at once, because t3 takes up to a minute.
    pub async fn stop_to_return(&self, ledger: &Ledger, target: &Target) -> Result<(), Failure> {
        let (instance, user) = (instance_of(target), target.user.as_str());
        self.pause(user);
        let entry = entry_of(ledger, user)?;
        if entry.step == MoveStep::Back || !self.was_linked(ledger, &entry) {
            return Ok(());
        }
        if entry.step != MoveStep::Unlinked {
            // What cannot be written down is done all the same: being back counts for more than having said so.
            self.note_if_possible(ledger, user, MoveStep::Returning);
        }
        self.service(&instance).stop().await
    }

    /// Brings a user back who was stopped, or whose stop failed. Where t3 itself has stopped all the same, because
    /// somebody else has the database open, nothing can be put back; but nobody is left without anything that runs.
    pub async fn go_back(
        &self,
        ledger: &Ledger,
        target: &Target,
        held: Option<Failure>,
    ) -> Result<Returned, Failure> {
        let (instance, user) = (instance_of(target), target.user.as_str());
        let entry = entry_of(ledger, user)?;
        if entry.step == MoveStep::Back {
            return Ok(Returned::default());
        }
        if let Some(failure) = &held
            && !self.is_down(&instance).await
        {
            return Err(failure.clone());
        }
        let returned = self.to_the_old_build(ledger, target, &entry, held.as_ref()).await;
        match returned {
            Ok(returned) => {
                self.note_if_possible(ledger, user, MoveStep::Back);
                self.resume(user);
                Ok(returned)
            }
            Err(failure) => {
                // On the old build the newer database would lock everybody out, and say so to nobody.
                let forward = self.leave_on_what_fits(ledger, target, &entry, held.is_some()).await;
                let detail = match forward {
                    Ok(()) => format!("{}; {}", failure.detail, self.what_runs(target, &entry).await),
                    Err(worse) => format!("{}; and nothing runs: {}", failure.detail, worse.detail),
                };
                Err(Failure::new(failure.reason, detail))
            }
        }
    }

    async fn to_the_old_build(
        &self,
        ledger: &Ledger,
        target: &Target,
        entry: &Move,
        held: Option<&Failure>,
    ) -> Result<Returned, Failure> {
        let (instance, user, from) = (instance_of(target), target.user.as_str(), &entry.from);
        let mut returned = Returned::default();
        if self.was_linked(ledger, entry) {
            if let Some(begun) = entry.restoring {
                restore::clear_up(&self.service, &instance, begun)?;
            }
            self.links.set(user, from).map_err(|error| unlinked(user, &error))?;
            self.note_if_possible(ledger, user, MoveStep::Unlinked);
            if let Some(copy) = self.snapshot(entry)?
                && self.is_changed(&instance, &copy).await
            {
                if let Some(failure) = held {
                    return Err(failure.clone());
                }
                (self.say)(&format!("{user}: putting back the database of t3 {from}"));
                returned.aside = self.restore(ledger, target, entry, &copy).await?;
                return Ok(returned);
            }
        }
        if entry.ran {
            self.start(target, from).await?;
        }
        (self.say)(&format!("{user}: back on t3 {from}; the database was not changed"));
        Ok(returned)
    }

    async fn restore(
        &self,
        ledger: &Ledger,
        target: &Target,
        entry: &Move,
        copy: &Snapshot,
    ) -> Result<Option<(PathBuf, Loss)>, Failure> {
        let (instance, user, now) = (instance_of(target), target.user.as_str(), SystemTime::now());
        let loss = self.present(&instance, copy).await.map(|present| present.loss).unwrap_or_default();
        // Where it lies aside has to be known to whoever carries on.
        let begun = ledger.change_move(user, |entry| entry.restoring = Some(now));
        begun.map_err(|error| unwritten(&error))?;
        let mut service = self.service.clone();
        if !entry.ran {
            service.start_command.clear();
        }
        let restore = Restore {
            section: &service,
            instance: &instance,
            snapshot: copy,
            version: Some(entry.from.clone()),
            now,
            by_hand: None,
        };
        let hands = Rightful::of(self.config, &instance).map_err(|why| Failure::new(Reason::Helper, why))?;
        let restored = restore
            .run(&hands, async |_| if entry.ran { self.prove(target, &entry.from).await } else { Ok(()) })
            .await
            .map_err(|failed| Failure::new(failed.failure.reason, failed.to_string()))?;
        self.prover.tell_of_restore(BackupRun {
            user: user.to_owned(),
            act: BackupAct::Restore,
            at: SystemTime::now(),
            duration: now.elapsed().unwrap_or_default(),
            snapshot: Some(copy.name()),
            failure: None,
        });
        (self.say)(&format!("{user}: back on t3 {} with its database; {loss}", entry.from));
        if let Some(aside) = &restored.aside {
            (self.say)(&format!("{user}: the newer database lies in {}", aside.display()));
        }
        Ok(restored.aside.map(|aside| (aside, loss)))
    }

    async fn start(&self, target: &Target, version: &Version) -> Result<(), Failure> {
        let instance = instance_of(target);
        self.service(&instance).start().await?;
        self.prove(target, version).await
    }

    async fn prove(&self, target: &Target, version: &Version) -> Result<(), Failure> {
        // There is nowhere else to go to: all the time that a start may take.
        let limit = self.service.start_timeout;
        let proven = self.prover.log_in(target, version, limit, limit).await;
        proven.map_err(|why| Failure::new(Reason::NotAuthenticated, why.to_string()))
    }

    /// After a defect of our own: who ran before and is down runs again, on the build that fits their database. Answers
    /// whether they were down.
    pub async fn keep_up(&self, ledger: &Ledger, target: &Target) -> Result<bool, Failure> {
        let (instance, journal) = (instance_of(target), ledger.read());
        let Some(entry) = journal.moves.iter().find(|entry| entry.user == target.user.as_str()) else {
            return Ok(false);
        };
        let service = self.service(&instance);
        if !entry.ran || service.is_up().await {
            return Ok(false);
        }
        if journal.back.is_some() && entry.step != MoveStep::Back {
            self.leave_on_what_fits(ledger, target, entry, false).await?;
        } else {
            service.start().await?;
        }
        self.resume(target.user.as_str());
        Ok(true)
    }

    /// What runs for somebody who could not be brought back, by its own word: it may be either build, or none.
    async fn what_runs(&self, target: &Target, entry: &Move) -> String {
        match self.prover.look(target).await.0 {
            Some(version) => format!("t3 {version} runs meanwhile"),
            None if entry.ran => "nothing answers meanwhile".to_owned(),
            None => "nothing runs, as before".to_owned(),
        }
    }

    /// The new build where it has changed the database, else the old one.
    async fn leave_on_what_fits(
        &self,
        ledger: &Ledger,
        target: &Target,
        entry: &Move,
        is_down: bool,
    ) -> Result<(), Failure> {
        let (instance, user) = (instance_of(target), target.user.as_str());
        let service = self.service(&instance);
        if !self.was_linked(ledger, entry) {
            return if entry.ran && !service.is_up().await { service.start().await } else { Ok(()) };
        }
        let copy = self.snapshot(entry).ok().flatten();
        let changed = match &copy {
            Some(copy) => self.is_changed(&instance, copy).await,
            None => true,
        };
        if !changed {
            // The database is the old one's: only the old build fits it.
            return if entry.ran && !service.is_up().await { service.start().await } else { Ok(()) };
        }
        if !is_down
            && let Err(failure) = service.stop().await
            && !self.is_down(&instance).await
        {
            return Err(failure);
        }
        self.links.set(user, &ledger.read().target).map_err(|error| unlinked(user, &error))?;
        self.note_if_possible(ledger, user, MoveStep::Returning);
        if entry.ran { service.start().await } else { Ok(()) }
    }

    /// Whether the new build can have been started.
    fn was_linked(&self, ledger: &Ledger, entry: &Move) -> bool {
        match entry.step {
            MoveStep::Stopping | MoveStep::Copied => {
                self.links.of(&entry.user).as_ref() == Some(&ledger.read().target)
            }
            MoveStep::Linked
            | MoveStep::Proven
            | MoveStep::Returning
            | MoveStep::Unlinked
            | MoveStep::Back => true,
        }
    }

    fn note_if_possible(&self, ledger: &Ledger, user: &str, step: MoveStep) {
        if let Err(failure) = self.note(ledger, user, step) {
            tracing::warn!(user, %failure, "going on without the journal");
        }
    }

    /// The user's database as its owner reads it, beside a copy; `None` where it cannot be told.
    async fn present(&self, instance: &Instance, copy: &Snapshot) -> Option<Present> {
        let taken = copy.manifest.as_ref()?.fingerprint.clone();
        Rightful::of(self.config, instance).ok()?.look(instance, taken).await.ok()
    }

    /// Whether the new build made something else of the database than the copy holds: another schema, or less history.
    async fn is_changed(&self, instance: &Instance, copy: &Snapshot) -> bool {
        let (present, manifest) = (self.present(instance, copy).await, copy.manifest.as_ref());
        present.zip(manifest).is_none_or(|(present, manifest)| {
            present.level != manifest.level
                || !present.fingerprint.lost_since(&manifest.fingerprint).is_empty()
        })
    }
}
