//! The databases of real servers, stopped and in use.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::outcome::SessionKind;
use crate::{fixtures, writer};

/// When the fixtures were recorded: their sessions are live by this clock.
fn recorded() -> SystemTime {
    humantime::parse_rfc3339("2026-11-22T07:00:00Z").expect("a time")
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Every file of the directory with its content.
fn content(database: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(database.parent().expect("a parent")).expect("the directory");
    files
        .map(|file| file.expect("a file").path())
        .map(|path| (path.clone(), fs::read(path).expect("it")))
        .collect()
}

fn change(database: &Path, sql: &str) {
    let connection = Connection::open(database).expect("the database opens");
    connection.execute_batch(sql).expect(sql);
    connection.close().expect("a clean close");
}

fn runtime(database: &Path, pid: u32, started_at: SystemTime) {
    let text = format!(r#"{{"version":1,"pid":{pid},"startedAt":"{}"}}"#, as_written(started_at));
    fs::write(database.with_file_name("server-runtime.json"), text).expect("server-runtime.json");
}

#[tokio::test]
async fn the_databases_of_real_servers_are_read_and_nothing_appears_beside_them() {
    for (version, level, events, last) in
        [("0.0.24", 30, 193, 193), ("0.0.26", 32, 193, 193), ("0.0.33", 40, 302, 302)]
    {
        let dir = dir();
        let Some(database) = fixtures::copy(version, dir.path()) else { return };
        let before = content(&database);
        let state = read(&database, recorded()).await.expect(version);
        assert!(content(&database) == before, "{version}");
        assert_eq!(state.level.level, SchemaLevel(level));
        assert!(state.level.is_known());
        assert_eq!((state.fingerprint.events(), state.fingerprint.last_sequence), (events, last));
        assert_eq!((state.fingerprint.messages(), state.fingerprint.count("projection_threads")), (54, 17));
        assert!(state.fingerprint.projectors.values().all(|position| *position == last));
        assert_eq!(state.fingerprint.projectors.len(), 9);
        assert_eq!(state.auth.sessions.iter().map(|(_, live)| live).sum::<u64>(), 5);
        assert_eq!((state.auth.links, state.auth.session_rows, state.auth.link_rows), (3, 10, 12));
        assert_eq!(state.auth.flaw, None);
        assert!(!state.activity.is_busy(), "turns that are pending for ever are not work");
        assert_eq!(state.sizes.wal, 0);
    }
}

#[tokio::test]
async fn a_live_database_is_read_through_its_wal_and_its_files_stay_as_they_are() {
    let dir = dir();
    let Some(database) = fixtures::copy("0.0.24", dir.path()) else { return };
    let server = writer::open(&database);
    // The shared memory holds the marks of readers; the data is in the other two.
    let data = |files: BTreeMap<PathBuf, Vec<u8>>| {
        files.into_iter().filter(|(path, _)| !path.ends_with("state.sqlite-shm")).collect::<Vec<_>>()
    };
    let before = data(content(&database));
    let state = read(&database, recorded()).await.expect("a state");
    assert!(data(content(&database)) == before);
    assert_eq!(state.fingerprint.last_sequence, 194, "the newest event is only in the WAL");
    assert!(state.sizes.wal > 0);
    drop(server);
}

#[tokio::test]
async fn a_server_without_patience_never_finds_its_database_locked_by_a_reader() {
    let dir = dir();
    let Some(database) = fixtures::copy("0.0.24", dir.path()) else { return };
    let writer = writer::Writer::start(&database, Duration::from_millis(1));
    let mut seen = 193;
    for _ in 0..200 {
        let state = read(&database, recorded()).await.expect("a state");
        assert!(state.fingerprint.last_sequence >= seen, "history never goes back");
        seen = state.fingerprint.last_sequence;
    }
    let writes = writer.finish().expect("no write was refused");
    assert!(!writes.is_empty());
    assert!(!stamp::beside(&database, "-wal").exists(), "the clean stop removed the WAL");
}

#[tokio::test]
async fn sessions_are_told_apart_by_who_made_them() {
    let dir = dir();
    let Some(database) = fixtures::copy("0.0.26", dir.path()) else { return };
    change(
        &database,
        "UPDATE auth_sessions SET revoked_at = NULL, expires_at = '2027-01-01T00:00:00.000Z', client_label = NULL;
         WITH numbered AS (SELECT session_id, row_number() OVER () AS n FROM auth_sessions)
         UPDATE auth_sessions SET client_label = (SELECT CASE n WHEN 1 THEN 't3-prober' WHEN 2 THEN 't3-prober drill'
             WHEN 3 THEN 't3-prober keeper' WHEN 4 THEN 't3-prober front' ELSE 'Firefox' END
             FROM numbered WHERE numbered.session_id = auth_sessions.session_id)",
    );
    let state = read(&database, recorded()).await.expect("a state");
    let expected =
        [(SessionKind::Probe, 2), (SessionKind::Keeper, 1), (SessionKind::Front, 1), (SessionKind::Other, 6)];
    assert_eq!(state.auth.sessions, expected);
}

#[tokio::test]
async fn a_running_turn_is_work_and_one_that_a_crash_left_behind_is_not() {
    let dir = dir();
    let Some(database) = fixtures::copy("0.0.24", dir.path()) else { return };
    change(
        &database,
        "UPDATE projection_thread_sessions
         SET status = 'running', active_turn_id = 'x', updated_at = '2026-11-22T06:00:00.000Z'",
    );
    let activity = async || read(&database, recorded()).await.expect("a state").activity;
    assert!(activity().await.is_busy(), "nobody knows when the server started, so the turn counts");

    let began = SystemTime::now() - Duration::from_secs(1);
    runtime(&database, std::process::id(), began);
    let stale = activity().await;
    assert_eq!((stale.turns, stale.left_over), (0, 1), "the turn is older than the server");

    let now = as_written(SystemTime::now());
    change(&database, &format!("UPDATE projection_thread_sessions SET updated_at = '{now}'"));
    assert_eq!(activity().await.turns, 1);

    // The process of that id began long after the file was written: the id was given away again.
    runtime(&database, std::process::id(), SystemTime::UNIX_EPOCH);
    assert_eq!((activity().await.is_busy(), Server::of(&database)), (false, Server::Killed));
    runtime(&database, i32::MAX as u32, began);
    assert_eq!((activity().await.is_busy(), Server::of(&database)), (false, Server::Killed));
}

#[tokio::test]
async fn a_request_that_waits_for_approval_and_a_provider_that_was_just_seen_are_work() {
    let dir = dir();
    let Some(database) = fixtures::copy("0.0.24", dir.path()) else { return };
    let now = SystemTime::now();
    runtime(&database, std::process::id(), now - Duration::from_secs(1));
    let at = |time: SystemTime| as_written(time);
    change(
        &database,
        &format!(
            "INSERT INTO projection_pending_approvals (request_id, thread_id, status, created_at) VALUES
                 ('new', 'x', 'pending', '{0}'), ('old', 'x', 'pending', '2026-01-01T00:00:00.000Z'),
                 ('done', 'x', 'resolved', '{0}');
             INSERT INTO provider_session_runtime (thread_id, provider_name, adapter_key, status, last_seen_at) VALUES
                 ('x', 'codex', 'codex', 'running', '{0}'), ('y', 'codex', 'codex', 'stopped', '{0}')",
            at(now)
        ),
    );
    let found = async |now| read(&database, now).await.expect("a state").activity;
    let busy = found(now).await;
    assert_eq!((busy.turns, busy.approvals, busy.providers, busy.left_over), (0, 1, 1, 1));
    assert!(busy.is_busy());
    // Nobody has seen the provider since; whoever has to approve is still waited for.
    let later = found(now + Duration::from_secs(31 * 60)).await;
    assert_eq!((later.approvals, later.providers, later.left_over), (1, 0, 2));
}

#[tokio::test]
async fn authentication_tables_of_another_generation_are_a_flaw() {
    let dir = dir();
    let Some(database) = fixtures::copy("0.0.26", dir.path()) else { return };
    change(&database, "ALTER TABLE auth_sessions RENAME COLUMN scopes TO role");
    let flaw = read(&database, recorded()).await.expect("a state").auth.flaw;
    assert_eq!(flaw.as_deref(), Some("auth_sessions has no column scopes, which level 32 gives it"));
    change(
        &database,
        "DROP TABLE auth_pairing_links; ALTER TABLE auth_sessions RENAME COLUMN role TO scopes",
    );
    let flaw = read(&database, recorded()).await.expect("a state").auth.flaw;
    assert_eq!(flaw.as_deref(), Some("there is no table auth_pairing_links"));
}

#[tokio::test]
async fn a_level_without_the_newer_tables_and_columns_is_read_all_the_same() {
    let dir = dir();
    let database = dir.path().join("state.sqlite");
    change(
        &database,
        "CREATE TABLE effect_sql_migrations (migration_id INTEGER PRIMARY KEY, created_at TEXT, name TEXT);
         INSERT INTO effect_sql_migrations VALUES (20, '', 'AuthAccessManagement');
         CREATE TABLE auth_sessions (session_id TEXT, role TEXT, expires_at TEXT, revoked_at TEXT);
         CREATE TABLE auth_pairing_links (id TEXT, role TEXT, expires_at TEXT, consumed_at TEXT, revoked_at TEXT);
         INSERT INTO auth_sessions VALUES ('a', 'client', '2027-01-01T00:00:00.000Z', NULL);
         CREATE TABLE orchestration_events (sequence INTEGER PRIMARY KEY);
         INSERT INTO orchestration_events VALUES (7)",
    );
    let state = read(&database, recorded()).await.expect("a state");
    assert_eq!((state.level.level, state.fingerprint.last_sequence), (SchemaLevel(20), 7));
    assert_eq!(state.auth.sessions.last(), Some(&(SessionKind::Other, 1)));
    assert_eq!(state.activity, Activity::default());
}

#[tokio::test]
async fn a_main_file_that_lost_its_wal_is_not_taken_for_an_empty_history() {
    let dir = dir();
    let database = dir.path().join("state.sqlite");
    let server = Connection::open(&database).expect("opens");
    server.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).expect("WAL");
    server.execute_batch("CREATE TABLE effect_sql_migrations (migration_id INTEGER)").expect("a table");
    let copy = dir.path().join("copy.sqlite");
    fs::copy(&database, &copy).expect("the trap");
    assert_eq!(fs::metadata(&copy).expect("it").len(), 4096);
    assert_eq!(level(&copy).await.expect_err("no level").reason, Reason::SchemaForeign);
    fs::write(&copy, "no database at all, but long enough to be one, or so it looks").expect("garbage");
    assert_eq!(level(&copy).await.expect_err("no level").reason, Reason::Corrupt);
    assert_eq!(level(&dir.path().join("none")).await.expect_err("no level").reason, Reason::Unreadable);
}

#[test]
fn a_loss_is_said_in_words() {
    let fingerprint = |last, events, messages| Fingerprint {
        rows: BTreeMap::from([
            ("orchestration_events".to_owned(), events),
            ("projection_thread_messages".to_owned(), messages),
        ]),
        last_sequence: last,
        projectors: BTreeMap::from([("projection.threads".to_owned(), last)]),
    };
    let earlier = fingerprint(193, 193, 54);
    assert_eq!(fingerprint(200, 200, 60).lost_since(&earlier), Vec::<String>::new());
    assert_eq!(
        fingerprint(190, 190, 54).lost_since(&earlier),
        [
            "the newest event is 190, it was 193",
            "orchestration_events has 190 rows, it had 193",
            "projection.threads is at event 190, it was at 193",
        ]
    );
    assert_eq!(
        fingerprint(193, 193, 0).lost_since(&earlier),
        ["projection_thread_messages has 0 rows, it had 54"]
    );
    assert_eq!(
        fingerprint(195, 195, 50).lost_since(&earlier),
        Vec::<String>::new(),
        "a thread that the user set back loses messages by new events"
    );
    let mut without = fingerprint(193, 193, 54);
    without.rows.remove("projection_thread_messages");
    assert_eq!(without.lost_since(&earlier), ["the table projection_thread_messages is gone with 54 rows"]);
}

#[test]
fn a_change_shows_in_the_stamp_and_a_fresh_one_is_not_trusted() {
    let dir = dir();
    let database = dir.path().join("state.sqlite");
    fs::write(&database, "one").expect("a file");
    let before = stamp::Stamp::of(&database);
    assert_eq!(stamp::Stamp::of(&database), before);
    assert!(!before.is_settled(SystemTime::now()));
    assert!(before.is_settled(SystemTime::now() + Duration::from_secs(2)));
    fs::write(stamp::beside(&database, "-wal"), "two").expect("a file");
    assert_ne!(stamp::Stamp::of(&database), before);
}
