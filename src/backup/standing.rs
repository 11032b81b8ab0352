//! Where one user stands: what metrics and pages say of their snapshots.

use std::time::{Duration, SystemTime};

use super::Snapshot;
use crate::outcome::Flaw;
use crate::t3::version::Version;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// When the newest snapshot was taken, how large it is and its level.
    pub taken_at: Option<SystemTime>,
    pub bytes: u64,
    pub level: Option<u32>,
    /// What the last verification of the newest snapshot found.
    pub flaw: Option<Flaw>,
    /// When the newest snapshot that is verified was taken: nothing older can be lost.
    pub proven_taken_at: Option<SystemTime>,
    /// The releases that open that one without migrating it.
    pub opened_by: Vec<Version>,
    /// The newest drill in which somebody logged in: when, how long the restore took, how old the data was.
    pub drilled_at: Option<SystemTime>,
    pub restore: Option<Duration>,
    pub rpo: Option<Duration>,
}

impl Standing {
    /// Of these, oldest first.
    pub fn of(snapshots: &[Snapshot]) -> Self {
        let newest =
            snapshots.iter().rev().find_map(|snapshot| Some((snapshot, snapshot.manifest.as_ref()?)));
        let proven = snapshots.iter().rev().find(|snapshot| snapshot.is_verified());
        let proven = proven.and_then(|snapshot| snapshot.manifest.as_ref());
        let drills = snapshots.iter().filter_map(|snapshot| snapshot.proof.drilled.as_ref());
        let drill = drills.filter(|drill| drill.failure.is_none()).max_by_key(|drill| drill.at);
        Self {
            taken_at: newest.map(|(_, manifest)| manifest.taken_at),
            bytes: newest.map_or(0, |(_, manifest)| manifest.bytes),
            level: newest.map(|(_, manifest)| manifest.level.level.0),
            flaw: newest.and_then(|(snapshot, _)| snapshot.proof.verified.as_ref()?.flaw),
            proven_taken_at: proven.map(|manifest| manifest.taken_at),
            opened_by: proven.map(|manifest| manifest.level.level.versions()).unwrap_or_default(),
            drilled_at: drill.map(|drill| drill.at),
            restore: drill.map(|drill| drill.restore),
            rpo: drill.map(|drill| drill.rpo),
        }
    }
}
