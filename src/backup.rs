//! Snapshots of users' state, and proof that they restore. A snapshot counts when it is whole, under its own name,
//! with a manifest; it is worth something once it has been verified; it is trusted once somebody logged in to it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::outcome::{BackupAct, Failure, Reason};
use crate::t3::Instance;
use crate::t3::version::Version;

mod disk;
mod drill;
mod duty;
mod hands;
mod manifest;
mod place;
mod reading;
pub mod repair;
pub mod restore;
pub mod service;
mod snapshot;
mod standing;
mod tree;
mod verify;

pub use drill::{Trial, Tried, Trying};
pub use duty::{Done, Duty, running_version};
pub use hands::{Copying, Hands, Ourselves};
pub use manifest::{Drilled, Manifest, Verified};
pub use reading::{Found, Reading};
pub use snapshot::{Copied, copy};
pub use standing::Standing;
pub use tree::{InUse, Snapshot, Tree};
pub use verify::{Defect, verify};

/// `[backup]`: where snapshots lie, how often they are made and how an instance is stopped for a restore.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The tree of snapshots, one directory per user. Default `/var/backups/t3`. It belongs to the account that takes
    /// them; users must not be able to write there. Without a helper `serve` takes them itself, as soon as the directory
    /// is there; with one, root's `t3-prober-backup.timer` does.
    pub dir: PathBuf,
    /// How often a user's state is taken. Default 6h; `0s` means only on demand.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How often the newest snapshot of a user is restored to a copy and logged in to. Default 1d; `0s` means only on
    /// demand.
    #[serde(with = "humantime_serde")]
    pub drill_interval: Duration,
    /// How many snapshots of a user are kept. Default 14. The last one before a loss of history goes by its age alone.
    pub keep: usize,
    /// How long a snapshot is kept. Default 30d. The newest one and the newest proven one stay, whatever their age.
    #[serde(with = "humantime_serde")]
    pub keep_for: Duration,
    /// How long taking a snapshot may last before it is given up. Default 5m.
    #[serde(with = "humantime_serde")]
    pub take_timeout: Duration,
    /// The command that stops a user's instance and returns when it has stopped; `{user}` is replaced. Default none:
    /// a restore waits up to 10 minutes for somebody to stop it by hand.
    pub stop_command: Vec<String>,
    /// The command that starts a user's instance; `{user}` is replaced. Default none: a restore
    /// waits up to 10 minutes for somebody to start it by hand.
    pub start_command: Vec<String>,
    /// How long an instance may take to stop. Default 90s: t3 waits up to 50 s for silent browsers.
    #[serde(with = "humantime_serde")]
    pub stop_timeout: Duration,
    /// How long an instance may take from its start to its first answer. Default 30s.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
}

impl Default for Section {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            dir: PathBuf::from("/var/backups/t3"),
            interval: DAY / 4,
            drill_interval: DAY,
            keep: 14,
            keep_for: 30 * DAY,
            take_timeout: Duration::from_secs(300),
            stop_command: Vec::new(),
            start_command: Vec::new(),
            stop_timeout: Duration::from_secs(90),
            start_timeout: Duration::from_secs(30),
        }
    }
}

impl Section {
    /// What no single key shows, as (key, sentence).
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        if self.dir.is_relative() {
            let sentence = format!("'{}' is not an absolute path; begin it with /", self.dir.display());
            complaints.push(("dir", sentence));
        }
        let none = [
            ("take_timeout", self.take_timeout),
            ("stop_timeout", self.stop_timeout),
            ("start_timeout", self.start_timeout),
        ];
        let none = none.iter().filter(|(_, limit)| limit.is_zero());
        complaints.extend(
            none.map(|(key, _)| (*key, "nothing can be done in no time; write 1s or more".to_owned())),
        );
        if self.keep == 0 {
            complaints.push(("keep", "0 would keep nothing; at least 1".to_owned()));
        }
        complaints
    }
}

/// What did not succeed is done again this soon, whatever its interval.
const AGAIN: Duration = Duration::from_secs(3600);

/// A clock that is put right moves by less; what was done further in the future was done by one that was wrong.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);

/// What is due at `now` for the user of these snapshots, oldest first; one of `Take`, `Verify` and `Drill`.
pub fn due(section: &Section, snapshots: &[Snapshot], now: SystemTime) -> Option<BackupAct> {
    let passed = |since: SystemTime, interval: Duration| match now.duration_since(since) {
        Ok(age) => age >= interval,
        Err(early) => early.duration() > CLOCKS_DIFFER,
    };
    let newest = snapshots.iter().rev().find(|snapshot| snapshot.manifest.is_some());
    let taken = newest.and_then(Snapshot::taken_at);
    let does_not_restore =
        newest.is_some_and(|newest| newest.proof.verified.is_some() && !newest.is_verified());
    let interval = if does_not_restore { section.interval.min(AGAIN) } else { section.interval };
    if !section.interval.is_zero() && taken.is_none_or(|taken| passed(taken, interval)) {
        return Some(BackupAct::Take);
    }
    let newest = newest?;
    if newest.proof.verified.is_none() {
        return Some(BackupAct::Verify);
    }
    let drills = snapshots.iter().filter_map(|snapshot| snapshot.proof.drilled.as_ref());
    let drill_due = drills.max_by_key(|drill| drill.at).is_none_or(|last| {
        let failed = last.failure.is_some();
        passed(last.at, if failed { section.drill_interval.min(AGAIN) } else { section.drill_interval })
    });
    (!section.drill_interval.is_zero() && drill_due && newest.is_proven()).then_some(BackupAct::Drill)
}

/// Takes a snapshot of a user's database into the tree, which is ours.
///
/// Killed at any moment it leaves nothing that counts: the next take sweeps up and begins again.
pub async fn take(
    section: &Section,
    instance: &Instance,
    hands: &impl Hands,
    version: Option<&Version>,
    now: SystemTime,
) -> Result<Snapshot, Failure> {
    let tree = Tree::new(section, &instance.name);
    let _turn = tree.prepare()?;
    tree.sweep()?;
    let clock = std::time::Instant::now();
    let beside = match hands.account() {
        None => tree.new_file(now),
        Some(_) => tree.stage_file()?,
    };
    let order = Copying { into: beside.clone(), free: tree.free()?, limit: section.take_timeout };
    let copied = match hands.copy(instance, order).await {
        Ok(copied) => copied,
        Err(failure) => {
            let _ = std::fs::remove_file(&beside);
            return Err(failure);
        }
    };
    let (section, user, version) = (section.clone(), instance.name.clone(), version.cloned());
    let work = move || {
        // From here on it is nobody's but ours.
        tree.close(&beside)?;
        let manifest = Manifest::of(&user, version.as_ref(), copied, &beside, now, clock.elapsed())?;
        let snapshot = tree.publish(&beside, manifest)?;
        tree.prune(section.keep, section.keep_for, now)?;
        Ok(snapshot)
    };
    hands::blocking(work).await
}

/// A symlink planted in one user's directory must not bring another user's data into their tree.
fn owned(database: &Path, uid: u32) -> Result<(), Failure> {
    let shown = database.display();
    let metadata = std::fs::metadata(database)
        .map_err(|error| Failure::new(Reason::Unreadable, format!("cannot read {shown}: {error}")))?;
    if metadata.uid() == uid {
        return Ok(());
    }
    let detail = format!("{shown} belongs to uid {}, not to uid {uid}; nothing was taken", metadata.uid());
    Err(Failure::new(Reason::WrongOwner, detail))
}

/// Verifies a snapshot and remembers the answer beside it.
pub async fn prove(
    snapshot: &mut Snapshot,
    hands: &impl Hands,
    now: SystemTime,
) -> Result<Result<(), Defect>, Failure> {
    let _in_use = snapshot.in_use()?;
    let answer = verify(snapshot, hands).await?;
    let defect = answer.as_ref().err();
    let verified = Verified {
        at: now,
        flaw: defect.map(|defect| defect.flaw),
        detail: defect.map(|defect| defect.detail.clone()),
    };
    snapshot.record(|proof| proof.verified = Some(verified))?;
    Ok(answer)
}

#[cfg(test)]
pub mod tests;
