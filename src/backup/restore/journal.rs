//! How far a restore has come, kept on disk before each step: what a killed run left half done, the next one undoes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::super::place::Place;
use super::super::service::{Service, is_our_ancestor};
use super::super::tree::unwritable;
use super::super::{Section, Tree};
use super::{Ask, Names, inside, moving};
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
}

impl Journal {
    pub(super) fn begin(
        tree: &Tree,
        snapshot: String,
        names: Names,
        now: SystemTime,
    ) -> Result<Self, Failure> {
        let mut journal =
            Self { path: tree.path(NAME), step: RestoreStep::Copy, snapshot, began: now, names };
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
            fs::rename(&beside, &self.path)
        };
        write().map_err(|error| unwritable(&self.path, &error))
    }

    pub(super) fn end(&self) -> Result<(), Failure> {
        fs::remove_file(&self.path).map_err(|error| unwritable(&self.path, &error))
    }

    /// Whoever keeps a journal of their own has cleared up.
    pub(super) fn forget(tree: &Tree) -> Result<(), Failure> {
        match Self::read(tree)? {
            Some(journal) => journal.end(),
            None => Ok(()),
        }
    }

    /// Puts the former state back where the killed run had moved it. Whatever lies in its place by now is put aside as
    /// well: the instance may have been started on it since, and written.
    pub async fn undo(
        mut self,
        section: &Section,
        instance: &Instance,
        now: SystemTime,
        by_hand: Option<Ask<'_>>,
    ) -> Result<(), Failure> {
        if is_our_ancestor(instance) {
            return Err(inside(&format!("t3-prober backup restore {} --yes", instance.name)));
        }
        let place = Place::open(instance)?;
        let service = Service { section, instance, by_hand };
        if self.step >= RestoreStep::PutAside {
            let stopped = service.stop().await;
            // A command that stops what is stopped already may well fail.
            if !service.is_stopped().await {
                stopped?;
            }
            let moved = |error: io::Error| moving(&place, &error);
            let since = format!("aside-{}-cut-off", super::super::tree::compact(now));
            place.make_aside(&since).map_err(moved)?;
            if self.step >= RestoreStep::Place {
                place.put_aside(&since).map_err(moved)?;
                self.reach(RestoreStep::PutAside)?;
            }
            place.replace_from(&self.names.aside, &since).map_err(moved)?;
            place.remove_aside(&since);
        }
        place.remove_aside(&self.names.aside);
        let _ = place.remove(&self.names.copy);
        if self.step >= RestoreStep::Stop && !service.is_up().await {
            service.start_again().await?;
        }
        self.end()
    }
}
