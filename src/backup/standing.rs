//! Where one user stands, for whoever may not look into the tree itself: a file a user in `[backup] dir`, written anew
//! after every act, readable for everybody. It says when, how large and at which level, and nothing of the content.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::tree::{unwritable, write_beside};
use super::{Section, Snapshot, Tree};
use crate::outcome::{BackupRun, Failure, Flaw, Reason, seconds, utc};
use crate::t3::schema::SchemaLevel;
use crate::t3::version::Version;

/// What is known of a user's snapshots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    pub count: usize,
    /// The newest snapshot.
    pub newest: Option<Taken>,
    /// What the last verification of the newest snapshot found.
    pub flaw: Option<Flaw>,
    /// The newest snapshot that is verified and of no outage: nothing older can be lost.
    pub proven: Option<Taken>,
    /// The releases that open that one without migrating it.
    pub opened_by: Vec<Version>,
    /// The newest drill in which somebody logged in.
    pub drilled: Option<Rehearsed>,
    /// The acts that failed when they were last tried.
    pub failing: Vec<BackupRun>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    #[serde(with = "utc")]
    pub at: SystemTime,
    pub bytes: u64,
    pub level: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rehearsed {
    #[serde(with = "utc")]
    pub at: SystemTime,
    #[serde(rename = "restore_seconds", with = "seconds")]
    pub restore: Duration,
    #[serde(rename = "rpo_seconds", with = "seconds")]
    pub rpo: Duration,
}

impl Standing {
    /// Of these, oldest first.
    pub fn of(snapshots: &[Snapshot], failing: Vec<BackupRun>) -> Self {
        let taken = |snapshot: &Snapshot| {
            let manifest = snapshot.manifest.as_ref()?;
            Some(Taken { at: manifest.taken_at, bytes: manifest.bytes, level: manifest.level.level.0 })
        };
        let newest = snapshots.iter().rev().find(|snapshot| snapshot.manifest.is_some());
        let proven = snapshots.iter().rev().find(|snapshot| snapshot.is_proven());
        let level = proven.and_then(|snapshot| Some(snapshot.manifest.as_ref()?.level.level));
        let drills = snapshots.iter().filter_map(|snapshot| snapshot.proof.drilled.as_ref());
        let drill = drills.filter(|drill| drill.failure.is_none()).max_by_key(|drill| drill.at);
        Self {
            count: snapshots.len(),
            newest: newest.and_then(taken),
            flaw: newest.and_then(|snapshot| snapshot.proof.verified.as_ref()?.flaw),
            proven: proven.and_then(taken),
            opened_by: level.map(SchemaLevel::versions).unwrap_or_default(),
            drilled: drill.map(|drill| Rehearsed { at: drill.at, restore: drill.restore, rpo: drill.rpo }),
            failing,
        }
    }

    /// Writes it anew after an act, as the tree is now.
    pub fn publish(section: &Section, act: &BackupRun) -> Result<(), Failure> {
        let mut failing = Self::read(section, &act.user).ok().flatten().unwrap_or_default().failing;
        failing.retain(|before| before.act != act.act);
        failing.extend(act.failure.is_some().then(|| act.clone()));
        let standing = Self::of(&Tree::new(section, &act.user).list()?, failing);
        let path = file(section, &act.user);
        let written = write_beside(&path, &standing)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)));
        written.map_err(|error| unwritable(&path, &error))
    }

    /// What was written last; `None` where nothing ever was. A file that belongs neither to us nor to root is
    /// nobody's word.
    pub fn read(section: &Section, user: &str) -> Result<Option<Self>, Failure> {
        let path = file(section, user);
        let unreadable = |error: &dyn std::fmt::Display| {
            Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", path.display()))
        };
        let metadata = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&error)),
        };
        let us = nix::unistd::geteuid().as_raw();
        if !metadata.is_file() || ![0, us].contains(&metadata.uid()) {
            let detail =
                format!("{} belongs to uid {}, which may not say so", path.display(), metadata.uid());
            return Err(Failure::new(Reason::WrongOwner, detail));
        }
        let text = std::fs::read(&path).map_err(|error| unreadable(&error))?;
        serde_json::from_slice(&text).map(Some).map_err(|error| unreadable(&error))
    }
}

fn file(section: &Section, user: &str) -> PathBuf {
    section.dir.join(format!("{user}.json"))
}
