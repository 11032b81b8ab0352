//! The repair on databases of real servers: what it makes is what 0.0.24 made itself.

use super::*;
use crate::{fixtures, writer};

const OLD: Version = Version::new(0, 0, 24);

/// Name, type, NOT NULL, default and key of every column, and every index with its columns.
fn shape(connection: &Connection) -> Vec<String> {
    let sql = "SELECT m.name || '.' || c.cid || ' ' || c.name || ' ' || c.type || ' ' || c.\"notnull\" || ' '
                   || coalesce(c.dflt_value, '-') || ' ' || c.pk
               FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name LIKE 'auth_%'
               UNION ALL
               SELECT m.name || ' ' || i.name || ' ' || i.\"unique\" || ' ' || i.origin || ' ' || k.seqno || ' ' || k.name
               FROM sqlite_schema m, pragma_index_list(m.name) i, pragma_index_info(i.name) k
               WHERE m.type = 'table' AND m.name LIKE 'auth_%'
               ORDER BY 1";
    let mut statement = connection.prepare(sql).expect("the schema");
    let rows = statement.query_map([], |row| row.get(0)).expect("the schema");
    rows.collect::<rusqlite::Result<_>>().expect("the schema")
}

fn level(connection: &Connection) -> Level {
    Level::of(connection).expect("a level").expect("a level")
}

#[test]
fn a_database_that_0_0_26_migrated_gets_the_tables_of_0_0_24_back_and_keeps_every_row_of_history() {
    let dir = tempfile::tempdir().expect("a directory");
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let (Some(old), Some(new)) = (fixtures::copy("0.0.24", &old), fixtures::copy("0.0.26", &new)) else {
        return;
    };
    let before = reader::ask(&new, Fingerprint::of).expect("a fingerprint");
    rebuild(&new, &OLD).expect("repaired");
    let (old, repaired) = (Connection::open(old).expect("opens"), Connection::open(&new).expect("opens"));
    assert_eq!(shape(&repaired), shape(&old));
    assert_eq!(level(&repaired), level(&old));
    assert_eq!(Fingerprint::of(&repaired).expect("a fingerprint"), before);
    let integrity: String =
        repaired.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    assert_eq!(integrity, "ok");
}

#[test]
fn a_live_database_is_repaired_under_its_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(database) = fixtures::copy("0.0.26", dir.path()) else { return };
    let server = writer::Writer::start(&database, Duration::from_millis(20));
    rebuild(&database, &OLD).expect("repaired");
    // t3 has no patience, so a write that met the transaction would have failed; it is over within milliseconds.
    let _ = server.finish();
    let connection = Connection::open(&database).expect("opens");
    assert_eq!(level(&connection).level, SchemaLevel(30));
}

#[test]
fn in_every_other_case_the_repair_refuses_with_the_reason_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(database) = fixtures::copy("0.0.33", dir.path()) else { return };
    let before = std::fs::read(&database).expect("the database");
    let refusal = rebuild(&database, &OLD).expect_err("refused").to_string();
    assert_eq!(refusal, "migration 33 touches more than the authentication tables; restore a snapshot");
    assert!(std::fs::read(&database).expect("the database") == before);

    let level = |level, name: &str| Level { level: SchemaLevel(level), name: name.to_owned() };
    let at_32 = level(32, "AuthPairingProofKeyThumbprint");
    assert_eq!(applies(&at_32, Some(&OLD)), Ok(SchemaLevel(30)));
    assert_eq!(applies(&at_32, None), Err(Refusal::VersionUnknown));
    let unknown = Version::new(0, 0, 99);
    assert_eq!(applies(&at_32, Some(&unknown)), Err(Refusal::LevelUnknown(unknown)));
    let same = Version::new(0, 0, 26);
    assert_eq!(applies(&at_32, Some(&same)), Err(Refusal::NothingToDo(SchemaLevel(32), same)));
    let newer = Version::new(0, 0, 33);
    assert_eq!(applies(&at_32, Some(&newer)), Err(Refusal::Behind(SchemaLevel(32), SchemaLevel(40))));
    let foreign = level(32, "SomethingElse");
    assert_eq!(
        applies(&foreign, Some(&OLD)),
        Err(Refusal::Foreign(SchemaLevel(32), "SomethingElse".to_owned()))
    );
    let older = Version::new(0, 0, 22);
    assert_eq!(applies(&at_32, Some(&older)), Err(Refusal::TouchesHistory(SchemaLevel(30))));
}

#[test]
fn a_foreign_migration_below_the_newest_one_is_refused_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(database) = fixtures::copy("0.0.26", dir.path()) else { return };
    let connection = Connection::open(&database).expect("opens");
    connection
        .execute("UPDATE effect_sql_migrations SET name = 'Mine' WHERE migration_id = 31", [])
        .expect("a row");
    connection.close().expect("a clean close");
    let refused = rebuild(&database, &OLD).expect_err("refused");
    assert!(matches!(refused, NotRepaired::Refused(Refusal::Foreign(SchemaLevel(31), _))), "{refused}");
}
