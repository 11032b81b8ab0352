//! How far a restore has come, kept on disk before each step: what a killed run left half done, the next one undoes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::super::place::Place;
use super::super::service::{Service, is_our_ancestor};
use super::super::tree::unwritable;
use super::super::{Section, Tree};
use super::{ByHand, Names, inside, moving};
use crate::outcome::{Failure, Reason, RestoreStep, utc};
use crate::t3::Instance;

/// Not swept up: it ends neither in `.tmp` nor in `.json`.
const NAME: &str = ".restore";

/// A restore under way, or one that was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    #[serde(skip)]
    path: PathBuf,
    /// The step that was begun last.
    pub step: RestoreStep,
    pub snapshot: String,
    #[serde(with = "utc")]
    pub began: SystemTime,
    pub(super) names: Names,
    /// Whether there was a database when it began.
    #[serde(default = "mostly")]
    pub(super) had: bool,
}

/// Journals of versions that did not say.
fn mostly() -> bool {
    true
}

impl Journal {
    pub(super) fn begin(
        tree: &Tree,
        snapshot: String,
        names: Names,
        had: bool,
        now: SystemTime,
    ) -> Result<Self, Failure> {
        let mut journal =
            Self { path: tree.path(NAME), step: RestoreStep::Copy, snapshot, began: now, names, had };
        journal.reach(RestoreStep::Copy)?;
        Ok(journal)
    }

    /// What was cut off; `None` where nothing was.
    pub fn read(tree: &Tree) -> Result<Option<Self>, Failure> {
        let path = tree.path(NAME);
        let unreadable = |error: &dyn std::fmt::Display| {
            Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", path.display()))
        };
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&error)),
            Ok(text) => {
                let read: Self = serde_json::from_slice(&text).map_err(|error| unreadable(&error))?;
                Ok(Some(Self { path, ..read }))
            }
        }
    }

    /// On disk before the step is begun.
    pub(super) fn reach(&mut self, step: RestoreStep) -> Result<(), Failure> {
        self.step = step;
        // Under a name that no take under way sweeps up.
        let beside = self.path.with_extension("new");
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)?;
            self.sync()
        };
        write().map_err(|error| unwritable(&self.path, &error))
    }

    pub(super) fn end(&self) -> Result<(), Failure> {
        let ended = fs::remove_file(&self.path).and_then(|()| self.sync());
        ended.map_err(|error| unwritable(&self.path, &error))
    }

    /// The tree may lie on another file system than the user's directory: what is said here has to be on disk before what
    /// is done there.
    fn sync(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Puts the former state back from where it lies aside. Whatever is in its place by then goes to `since`: the instance
    /// may have been started on it, and written.
    pub(super) fn put_back(&mut self, place: &Place, since: &str) -> Result<(), Failure> {
        let moved = |error: io::Error| moving(place, &error);
        let aside = place.shown(&self.names.aside);
        let gone = || {
            let detail = format!("no former state lies in {} any more", aside.display());
            Failure::new(Reason::Unreadable, detail)
        };
        if self.step >= RestoreStep::Place {
            // Somebody else has had their hands in it: what is in its place may be all there is.
            if self.had && !place.lies_aside(&self.names.aside) {
                return Err(gone());
            }
            place.make_aside(since).map_err(moved)?;
            place.put_aside(since).map_err(moved)?;
            self.reach(RestoreStep::PutAside)?;
        }
        place.bring_back(&self.names.aside, since).map_err(moved)?;
        if self.had && !place.is_taken() {
            return Err(gone());
        }
        place.remove_aside(since);
        place.remove_aside(&self.names.aside);
        // What is left of the copy is only in the way.
        let _ = place.remove(&self.names.copy);
        Ok(())
    }

    /// Whoever keeps a journal of their own has cleared up.
    pub(super) fn forget(tree: &Tree) -> Result<(), Failure> {
        match Self::read(tree)? {
            Some(journal) => journal.end(),
            None => Ok(()),
        }
    }

    /// Undoes what the killed run had done; `None` where nothing has been in use since, else where it lies.
    pub async fn undo(
        mut self,
        section: &Section,
        instance: &Instance,
        now: SystemTime,
        by_hand: Option<ByHand<'_>>,
    ) -> Result<Option<PathBuf>, Failure> {
        if is_our_ancestor(instance) {
            return Err(inside(&format!("t3-prober backup restore {} --yes", instance.name)));
        }
        let place = Place::open(instance)?;
        let service = Service { section, instance, by_hand };
        let began = self.step;
        if began >= RestoreStep::PutAside {
            service.stop().await?;
        }
        let since = format!("aside-{}-cut-off", super::super::tree::compact(now));
        self.put_back(&place, &since)?;
        if began >= RestoreStep::Stop && !service.is_up().await {
            service.start_again().await?;
        }
        self.end()?;
        Ok(place.has(&since).then(|| place.shown(&since)))
    }
}
