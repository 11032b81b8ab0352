//! The stand-in t3 behaves as the real one did: every step of the recordings, in order, and the same answers.
//!
//! Compared: status; header names and values; JSON to full depth (of a cut answer, what came before the cut); the name,
//! the claims and the attributes of cookies; how long a credential, a session, a ticket lives; exit code, stream, the
//! last `[cause]` and the answer of a command; what a starting server says that one may wait for; tables, columns,
//! migration rows, row counts, pragmas; files and modes. An id, a credential, a token is bound where it is first seen
//! and must be the same wherever the recording repeats it.
//!
//! Not compared, because it is ours or the recording machine's: the case of header names; dates, lengths, durations and
//! numbers that count them; addresses and the name of the machine; HTML, help text, stack frames, the prose of logs (only
//! which levels occur in them); indexes and other DDL; the content of files, but for `server-runtime.json` and
//! `environment-id`; memory and threads. No single step is exempt from anything else.
//!
//! Not asked for by the replay: the connection of the first moment that is never answered, and the slow SIGTERM with an
//! open WebSocket; the suite `sim` tries them. Not held by any recording: 0.0.29, `project add`, SIGKILL, what a server
//! writes to its trace file.

mod base_dir;
mod between;
mod bindings;
mod compare;
mod difference;
mod json;
mod planted;
mod recording;
mod replay;
mod standin;
mod startup;
mod text;
mod unchanged;

use difference::Table;
use recording::{Recording, What};

const RECORDINGS: [&str; 7] = [
    "0.0.24-any",
    "0.0.24-loopback",
    "0.0.26-any",
    "0.0.26-loopback",
    "0.0.33-any",
    "0.0.33-loopback",
    "outage-0.0.24-0.0.26",
];

async fn assert_same(recording: &str) {
    let differences = replay::replay(recording, &Recording::load(recording)).await;
    assert!(
        differences.is_empty(),
        "{recording}: {} differences\n{}",
        differences.len(),
        Table(&differences)
    );
}

#[tokio::test]
async fn version_24_on_all_addresses_answers_as_recorded() {
    assert_same("0.0.24-any").await;
}

#[tokio::test]
async fn version_24_on_loopback_answers_as_recorded() {
    assert_same("0.0.24-loopback").await;
}

#[tokio::test]
async fn version_26_on_all_addresses_answers_as_recorded() {
    assert_same("0.0.26-any").await;
}

#[tokio::test]
async fn version_26_on_loopback_answers_as_recorded() {
    assert_same("0.0.26-loopback").await;
}

#[tokio::test]
async fn version_33_on_all_addresses_answers_as_recorded() {
    assert_same("0.0.33-any").await;
}

#[tokio::test]
async fn version_33_on_loopback_answers_as_recorded() {
    assert_same("0.0.33-loopback").await;
}

#[tokio::test]
async fn the_outage_and_the_downgrade_happen_as_recorded() {
    assert_same("outage-0.0.24-0.0.26").await;
}

/// The comparison above could pass because nothing is compared: a recording that is wrong in four places must fail in
/// exactly these.
#[tokio::test]
async fn a_replay_finds_what_is_wrong_in_a_recording() {
    let mut wrong = Recording::load("outage-0.0.24-0.0.26");
    for step in &mut wrong.steps {
        match (step.title().as_str(), &mut step.what) {
            ("incident-after / exchange bogus on bootstrap (after)", What::Http { response, .. }) => {
                response.status = 401;
            }
            ("incident-after / mint 0.0.24 (after)", What::Cli(cli)) => cli.exit = Some(0),
            ("incident-command / database files after", What::Files { files }) => {
                files[0].mode = "-rw-------".to_owned();
            }
            ("downgrade-4-restore / database", What::Db(db)) => db.max_migration = 32,
            _ => {}
        }
    }
    let found = replay::replay("outage-0.0.24-0.0.26", &wrong).await;
    let fields: Vec<&str> = found.iter().map(|difference| difference.field.as_str()).collect();
    assert_eq!(
        fields,
        ["file userdata/state.sqlite", "status", "exit", "max migration"],
        "{}",
        Table(&found)
    );
}
