//! What a run is at, on disk before it is at it: one that is killed says so by what it left.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::standing::{AtWork, Standing};
use crate::outcome::Stage;
use crate::t3::version::Version;

pub struct Progress {
    /// `None` where nothing is done and nothing is written, as in a dry run.
    dir: Option<PathBuf>,
    at_work: Mutex<AtWork>,
}

impl Progress {
    pub fn begin(dir: Option<&Path>, now: SystemTime) -> Self {
        let at_work = AtWork { began: now, stage: Stage::Looking, since: now, target: None };
        let progress = Self { dir: dir.map(Path::to_path_buf), at_work: Mutex::new(at_work) };
        progress.change(|_| ());
        progress
    }

    pub fn at(&self, stage: Stage) {
        if stage != self.read().stage {
            self.change(|at_work| (at_work.stage, at_work.since) = (stage, SystemTime::now()));
        }
    }

    pub fn to(&self, target: &Version) {
        if self.read().target.as_ref() != Some(target) {
            self.change(|at_work| at_work.target = Some(target.clone()));
        }
    }

    pub fn read(&self) -> AtWork {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut AtWork)) {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut at_work);
        let Some(dir) = &self.dir else { return };
        let mut standing = Standing::load(dir);
        standing.at_work = Some(at_work.clone());
        if let Err(error) = standing.store(dir) {
            tracing::warn!(%error, "what this run is at cannot be written down; nobody will know where it ended if it is killed");
        }
    }
}
