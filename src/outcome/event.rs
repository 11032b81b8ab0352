//! What happens beside probes, and what becomes of the files that tell of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// What the history remembers beside probes.
    pub enum EventKind {
        /// A real user came in, or could not, through the dispatch proxy.
        Login = "login",
        /// A candidate build was judged.
        Verdict = "verdict",
        /// The enforcer installed, rolled back or held.
        Upgrade = "upgrade",
        /// A planned absence began or ended.
        Pause = "pause",
        /// A snapshot was taken, verified, drilled or put back.
        Backup = "backup",
        /// Versions began to differ, or agree again.
        Version = "version",
    }
}

words! {
    /// Why a file that another process dropped into the spool was not taken in.
    pub enum SpoolRefusal {
        /// The file belongs to a uid that may not report events.
        ForeignOwner = "foreign_owner",
        /// Not a regular file of its own: a symlink, a directory, a pipe, a second name of another file.
        NotAFile = "not_a_file",
        /// Larger than any event.
        TooLarge = "too_large",
        /// Not an event that this version knows.
        Garbage = "garbage",
        /// The file may not be read.
        Unreadable = "unreadable",
        /// The file cannot be removed, and would be counted again and again.
        Stuck = "stuck",
    }
}
