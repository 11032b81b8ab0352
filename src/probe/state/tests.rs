//! What the state tier says of healthy, migrated and shrunken databases.

use std::path::PathBuf;

use tokio_rusqlite::rusqlite::Connection;

use super::*;
use crate::fixtures;
use crate::outcome::Outcome;

const RUNNING: Version = Version::new(0, 0, 24);

fn instance(base_dir: PathBuf) -> Instance {
    Instance { name: "ann".to_owned(), port: 1, base_dir, uid: 0 }
}

fn change(database: &Path, sql: &str) {
    let connection = Connection::open(database).expect("the database opens");
    connection.execute_batch(sql).expect(sql);
    connection.close().expect("a clean close");
}

async fn look(instance: &Instance, memory: &mut Memory) -> Run {
    let access = Access::own(PathBuf::from("/nowhere"), &crate::t3::Section::default());
    run(instance, &access, Duration::from_secs(60), memory, Some(&RUNNING), Trigger::Schedule).await
}

fn detail(run: &Run) -> &str {
    run.steps[0].detail.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn a_healthy_database_is_ok_and_its_facts_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    if fixtures::copy("0.0.24", dir.path()).is_none() {
        return;
    }
    let run = look(&instance(dir.path().to_path_buf()), &mut Memory::default()).await;
    assert_eq!((run.outcome(), run.steps[0].step), (Outcome::Ok, Step::Database));
    let facts = run.facts.state.expect("facts");
    assert_eq!((facts.level, facts.expected_level, facts.events, facts.busy), (30, Some(30), 193, false));
}

#[tokio::test]
async fn a_database_that_a_newer_t3_migrated_is_named_with_the_way_back() {
    let dir = tempfile::tempdir().expect("a directory");
    for (version, way_back) in
        [("0.0.26", "restore ann --auth-only"), ("0.0.33", "restore a snapshot of level 30")]
    {
        if fixtures::copy(version, dir.path()).is_none() {
            return;
        }
        let run = look(&instance(dir.path().to_path_buf()), &mut Memory::default()).await;
        assert_eq!(run.outcome(), Outcome::Failed(Reason::SchemaAhead), "{version}");
        assert!(detail(&run).contains(way_back), "{}", detail(&run));
    }
}

#[tokio::test]
async fn a_database_is_read_again_only_when_it_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(path) = fixtures::copy("0.0.24", dir.path()) else { return };
    std::fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_modified(SystemTime::now() - Duration::from_secs(60)))
        .expect("an older file");
    let mut database = Database::default();
    let read_at = async |database: &mut Database| {
        database.current(&path).await.expect("a state");
        database.0.as_ref().map(|reading| reading.at)
    };
    let first = read_at(&mut database).await;
    assert_eq!(read_at(&mut database).await, first);
    change(&path, "DELETE FROM auth_sessions");
    let second = read_at(&mut database).await;
    assert_ne!(second, first);
    assert_ne!(read_at(&mut database).await, second, "a change this young may hide another one");
}

#[tokio::test]
async fn history_that_is_gone_is_said_in_every_round() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(database) = fixtures::copy("0.0.24", dir.path()) else { return };
    let (instance, mut memory) = (instance(dir.path().to_path_buf()), Memory::default());
    assert_eq!(look(&instance, &mut memory).await.outcome(), Outcome::Ok);
    change(&database, "DELETE FROM projection_thread_messages WHERE rowid <= 10");
    for _ in 0..2 {
        let run = look(&instance, &mut memory).await;
        assert_eq!(run.outcome(), Outcome::Failed(Reason::HistoryShrank));
        assert!(
            detail(&run).contains("projection_thread_messages has 44 rows, it had 54"),
            "{}",
            detail(&run)
        );
    }
}

#[tokio::test]
async fn what_a_restore_has_taken_away_is_no_loss_and_what_goes_after_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(database) = fixtures::copy("0.0.24", dir.path()) else { return };
    let (instance, mut memory) = (instance(dir.path().to_path_buf()), Memory::default());
    assert_eq!(look(&instance, &mut memory).await.outcome(), Outcome::Ok);
    change(&database, "DELETE FROM projection_thread_messages WHERE rowid <= 10");
    assert_eq!(look(&instance, &mut memory).await.outcome(), Outcome::Failed(Reason::HistoryShrank));
    memory.restored();
    assert_eq!(look(&instance, &mut memory).await.outcome(), Outcome::Ok);
    change(&database, "DELETE FROM projection_thread_messages WHERE rowid <= 11");
    assert_eq!(look(&instance, &mut memory).await.outcome(), Outcome::Failed(Reason::HistoryShrank));
}

#[test]
fn a_loss_is_news_for_an_hour_and_then_what_is_left_counts() {
    let fingerprint = |last_sequence| Fingerprint { last_sequence, ..Fingerprint::default() };
    let (mut history, start) = (History::default(), Instant::now());
    assert_eq!(history.compare(&fingerprint(9), start), None);
    assert!(history.compare(&fingerprint(5), start).is_some());
    let almost = LOSS_IS_NEWS_FOR - Duration::from_secs(1);
    assert!(history.compare(&fingerprint(6), start + almost).is_some());
    assert_eq!(history.compare(&fingerprint(6), start + LOSS_IS_NEWS_FOR), None);
    assert!(
        history.compare(&fingerprint(5), start + LOSS_IS_NEWS_FOR).is_some(),
        "the next loss is news again"
    );
}

#[test]
fn a_level_that_the_running_version_may_know_better_is_no_failure() {
    let level = |level, name: &str| Level { level: SchemaLevel(level), name: name.to_owned() };
    let newer: Version = "0.0.40".parse().expect("a version");
    let reason = |found: &Level, version: Option<&Version>| {
        schema_failure("ann", found, version).map(|failure| failure.reason)
    };
    assert_eq!(reason(&level(57, "SomethingNew"), Some(&newer)), None);
    assert_eq!(reason(&level(57, "SomethingNew"), None), Some(Reason::SchemaForeign));
    assert_eq!(reason(&level(57, "SomethingNew"), Some(&RUNNING)), Some(Reason::SchemaAhead));
    assert_eq!(reason(&level(30, "Mine"), Some(&RUNNING)), Some(Reason::SchemaForeign));
    assert_eq!(
        reason(&level(29, "ProjectionThreadDetailOrderingIndexes"), Some(&RUNNING)),
        Some(Reason::SchemaBehind)
    );
}
