//! What happened between the recorded steps: the recorder did it, or the world did, and no step shows it. Everything
//! that a replay does beyond the steps themselves stands in this list.

use super::recording::Step;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A pairing credential was minted that is first seen in the request of the named step.
    MintFor(&'static str),
    /// The credential minted last came to the end of its life.
    CredentialExpires,
    /// Another process began a write transaction and kept it.
    LockDatabase,
    UnlockDatabase,
    /// Both auth tables were renamed, by hand, under the running server.
    RenameAuthTables,
    RenameAuthTablesBack,
    /// The WebSocket of this step was not closed after the upgrade.
    KeepSocketOpen,
    /// The kept WebSocket was closed with a close frame.
    CloseSocket,
    /// An empty directory of this name was made beside the base dir.
    MakeEmptyDirectory(&'static str),
    /// A base dir of this name was made beside the base dir, with garbage for a `state.sqlite`.
    MakeGarbageDatabase(&'static str),
    RemoveBaseDir,
    /// The base dir of the stopped server was copied aside.
    CopyBaseDir,
    /// The copy took the place of the base dir.
    RestoreBaseDir,
    /// The files and the runtime file of the running server were read (top level of a full recording).
    ReadRunningFiles,
}

use Event::{
    CloseSocket, CopyBaseDir, CredentialExpires, KeepSocketOpen, LockDatabase, MakeEmptyDirectory,
    MakeGarbageDatabase, MintFor, ReadRunningFiles, RemoveBaseDir, RenameAuthTables, RenameAuthTablesBack,
    RestoreBaseDir, UnlockDatabase,
};

/// Before the named step of the six full recordings (phase, step, event).
const FULL: &[(Option<&str>, &str, Event)] = &[
    (None, "exchange lower-cased fresh credential", MintFor("exchange lower-cased fresh credential")),
    (None, "exchange expired credential", CredentialExpires),
    (None, "WS upgrade kept open", KeepSocketOpen),
    (None, "auth session issue", CloseSocket),
    (None, "bootstrap/bearer", MintFor("bootstrap/bearer")),
    (None, "oauth/token", MintFor("oauth/token")),
    (LOCKED, "exchange valid credential under lock", LockDatabase),
    (Some("lock released"), "exchange the same credential after lock", UnlockDatabase),
    (None, "mint against an empty base dir", MakeEmptyDirectory("empty")),
    (None, "mint against a garbage state.sqlite", MakeGarbageDatabase("junk")),
    (None, "last mint before stop", ReadRunningFiles),
    (RENAMED, "GET / broken auth schema", MintFor("exchange valid, broken auth schema")),
    (RENAMED, "GET / broken auth schema", RenameAuthTables),
    (REPAIRED, "session valid cookie, schema repaired", RenameAuthTablesBack),
];

const LOCKED: Option<&str> = Some("another process holds a write lock");
const RENAMED: Option<&str> = Some("auth tables renamed by hand (stand-in for any broken auth schema)");
const REPAIRED: Option<&str> = Some("tables renamed back, server not restarted");

/// Before the named step of the outage.
const OUTAGE: &[(Option<&str>, &str, Event)] = &[
    (Some("incident-before"), "WS opened before the incident, kept open", KeepSocketOpen),
    (Some("incident-after"), "serve stop (SIGTERM)", CloseSocket),
    (Some("downgrade-1-old"), "serve 0.0.24", RemoveBaseDir),
    (Some("downgrade-2-upgrade"), "serve 0.0.26", CopyBaseDir),
    (Some("downgrade-4-restore"), "serve 0.0.24", RestoreBaseDir),
];

/// Which directory a `files` step lists, and which of its files: no step says it. The default is the base dir.
const LISTED: &[(&str, &str, &str)] = &[
    ("files created by that mint", "/home/ann/other", ""),
    ("database files before", "/home/ann/.t3", "userdata/state.sqlite"),
    ("database files after", "/home/ann/.t3", "userdata/state.sqlite"),
];

/// What happened before a step, in order.
pub fn before(recording: &str, step: &Step) -> Vec<Event> {
    events(recording)
        .iter()
        .filter(|(phase, name, _)| *phase == step.phase.as_deref() && *name == step.name)
        .map(|(_, _, event)| *event)
        .collect()
}

fn events(recording: &str) -> &'static [(Option<&'static str>, &'static str, Event)] {
    if recording.starts_with("outage") { OUTAGE } else { FULL }
}

/// The directory that a `files` step lists, as recorded, and how the paths begin that it shows.
pub fn listed(step: &Step) -> (&'static str, &'static str) {
    LISTED
        .iter()
        .find(|(name, _, _)| *name == step.name)
        .map_or(("/home/ann/.t3", ""), |(_, directory, beginning)| (directory, beginning))
}

mod tests {
    use super::super::RECORDINGS;
    use super::super::recording::Recording;
    use super::*;

    #[test]
    fn every_entry_of_the_lists_is_about_a_step_that_exists() {
        let all: Vec<(&str, Recording)> =
            RECORDINGS.iter().map(|name| (*name, Recording::load(name))).collect();
        let exists = |of: &dyn Fn(&str) -> bool, phase: Option<&str>, name: &str| {
            all.iter().filter(|(recording, _)| of(recording)).any(|(_, it)| {
                it.steps.iter().any(|step| step.phase.as_deref() == phase && step.name == name)
            })
        };
        for (list, of_outage) in [(FULL, false), (OUTAGE, true)] {
            for (phase, name, _) in list {
                let of = |recording: &str| recording.starts_with("outage") == of_outage;
                assert!(exists(&of, *phase, name), "no step {phase:?} {name:?}");
            }
        }
        for (name, _, _) in LISTED {
            assert!(
                all.iter().any(|(_, it)| it.steps.iter().any(|step| step.name == *name)),
                "no step {name:?}"
            );
        }
    }
}
