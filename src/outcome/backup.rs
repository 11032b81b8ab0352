//! The words of snapshots and restores.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Ended, Failure, Reason, UnknownWord};

words! {
    /// What is done to a user's snapshots, or with one of them.
    pub enum BackupAct {
        /// A snapshot is made.
        Take = "take",
        /// Every byte of a snapshot is looked at.
        Verify = "verify",
        /// A snapshot is restored to a copy, and somebody logs in to it.
        Drill = "drill",
        /// A snapshot is put back in place of the present state.
        Restore = "restore",
        /// The authentication tables alone are made anew; no history is touched.
        AuthOnly = "auth_only",
    }
}

words! {
    /// The files of a database.
    pub enum StateFile {
        /// `state.sqlite`.
        Main = "main",
        /// `state.sqlite-wal`: what was written since the last checkpoint.
        Wal = "wal",
    }
}

words! {
    /// Whether a row of an authentication table still opens something.
    pub enum RowState {
        /// It can be used.
        Live = "live",
        /// It was used up, was revoked or has expired; t3 never removes it.
        Ended = "ended",
    }
}

words! {
    /// Who made a session, by its label.
    pub enum SessionKind {
        /// A probe's login.
        Probe = "probe",
        /// The administrative session that mints and revokes.
        Keeper = "keeper",
        /// The session kept for requests through the dispatch proxy.
        Front = "front",
        /// Everybody else: the user.
        Other = "other",
    }
}

words! {
    /// Why a snapshot is not proven to bring the data back.
    pub enum Flaw {
        /// The copy was never finished; it does not count.
        HalfWritten = "half_written",
        /// The file or its manifest may not be read.
        Unreadable = "unreadable",
        /// The file belongs to somebody else, or others may write it: its content is nobody's word.
        WrongOwner = "wrong_owner",
        /// There is no manifest, or one that cannot be understood.
        Manifest = "manifest",
        /// The file has no content.
        Empty = "empty",
        /// The file is shorter than its own header says.
        Truncated = "truncated",
        /// The first hundred bytes are damaged.
        Header = "header",
        /// A page of a table or an index is damaged.
        Page = "page",
        /// The list of free pages is damaged.
        Freelist = "freelist",
        /// The continuation of a long row is damaged.
        Overflow = "overflow",
        /// An index and its table do not agree.
        Index = "index",
        /// Rows refer to rows that are not there.
        ForeignKey = "foreign_key",
        /// A valid database without content: a main file that was copied without its -wal.
        WithoutWal = "without_wal",
        /// A database of another program.
        OtherProgram = "other_program",
        /// Migrated by a t3 newer than any this program knows.
        LevelNewer = "level_newer",
        /// Older than any t3 this program knows.
        LevelOlder = "level_older",
        /// Migrated under a name that no known t3 uses at that level.
        LevelForeign = "level_foreign",
        /// The level is another one than the manifest says.
        LevelDiffers = "level_differs",
        /// History that the manifest claims is not in it.
        HistoryMissing = "history_missing",
        /// The content is not, byte for byte, what was written.
        Altered = "altered",
    }
}

words! {
    /// The steps of a restore, in order; what was done is undone in the opposite order.
    pub enum RestoreStep {
        /// The snapshot is proven to be whole.
        Verify = "verify",
        /// The instance, its files and the snapshot fit each other.
        Check = "check",
        /// The snapshot is copied beside the present database.
        Copy = "copy",
        /// The instance is stopped.
        Stop = "stop",
        /// The present database is put aside.
        PutAside = "put_aside",
        /// The copy takes its place.
        Place = "place",
        /// The instance is started.
        Start = "start",
        /// A login is made.
        Prove = "prove",
    }
}

/// An act on one user's snapshots that has ended. JSON: `user`, `act`, `at`, `duration_seconds`, `snapshot`, and where it
/// failed `failure` with `reason`, `detail`, and where there are such `step` and `flaw`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackupRun {
    pub user: String,
    pub act: BackupAct,
    /// When it ended.
    #[serde(with = "super::utc")]
    pub at: SystemTime,
    #[serde(rename = "duration_seconds", with = "super::seconds")]
    pub duration: Duration,
    /// The snapshot's name, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<BackupFailure>,
}

/// Why an act failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFailure {
    /// Of a drill or a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<RestoreStep>,
    /// What a verification found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flaw: Option<Flaw>,
    pub reason: Reason,
    pub detail: String,
}

impl BackupRun {
    pub fn ended(&self) -> Ended {
        if self.failure.is_none() { Ended::Ok } else { Ended::Failed }
    }
}

impl From<Failure> for BackupFailure {
    fn from(Failure { reason, detail }: Failure) -> Self {
        Self { step: None, flaw: None, reason, detail }
    }
}
