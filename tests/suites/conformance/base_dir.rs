//! The files and the database of a base dir, read as the recordings show them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use tokio_rusqlite::rusqlite::types::ValueRef;
use tokio_rusqlite::rusqlite::{self, Connection, OpenFlags};

use super::recording::{Db, File, Migration, Sqlite};

/// Every file and directory below, with its mode in letters.
pub fn files(directory: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    list(directory, "", &mut files)?;
    Ok(files)
}

fn list(directory: &Path, above: &str, files: &mut Vec<File>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let path = format!("{above}{}", entry.file_name().to_string_lossy());
        files.push(File {
            path: path.clone(),
            mode: letters(metadata.is_dir(), metadata.permissions().mode()),
        });
        if metadata.is_dir() {
            list(&entry.path(), &format!("{path}/"), files)?;
        }
    }
    Ok(())
}

/// `-rw-r--r--`
fn letters(is_dir: bool, mode: u32) -> String {
    let bits = (0..9).rev().map(|bit| if mode & (1 << bit) == 0 { '-' } else { ['x', 'w', 'r'][bit % 3] });
    std::iter::once(if is_dir { 'd' } else { '-' }).chain(bits).collect()
}

/// Copies a directory with everything in it; modes are kept.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Ok(())
}

/// A connection that leaves no files behind, whether a server is running or not.
fn open_read_only(file: &Path) -> anyhow::Result<Connection> {
    let is_live = file.with_extension("sqlite-wal").exists();
    let uri = format!("file:{}?mode=ro{}", file.display(), if is_live { "" } else { "&immutable=1" });
    Connection::open_with_flags(&uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)
        .with_context(|| format!("opening {uri}"))
}

/// The level and, of the tables named by `like`, the columns and the number of rows.
pub fn db(file: &Path, like: &Db) -> anyhow::Result<Db> {
    let database = open_read_only(file)?;
    Ok(Db {
        max_migration: database.query_row(
            "SELECT max(migration_id) FROM effect_sql_migrations",
            [],
            |row| row.get(0),
        )?,
        columns: columns(&database, like.columns.keys())?,
        rows: rows(&database, like.rows.keys())?,
    })
}

/// The whole of it, of the tables that `like` names.
pub fn sqlite(file: &Path, like: &Sqlite) -> anyhow::Result<Sqlite> {
    let database = open_read_only(file)?;
    let migrations = database
        .prepare("SELECT migration_id, name FROM effect_sql_migrations ORDER BY migration_id")?
        .query_map([], |row| Ok(Migration { id: row.get(0)?, name: row.get(1)? }))?
        .collect::<Result<_, _>>()?;
    let tables = database
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(Sqlite {
        migrations,
        tables,
        columns: columns(&database, like.columns.keys())?,
        pragmas: pragmas(file, like)?,
        rows: rows(&database, like.rows.keys())?,
    })
}

/// Read by a connection of its own: an immutable one does not say which journal mode the file has.
fn pragmas(file: &Path, like: &Sqlite) -> anyhow::Result<BTreeMap<String, Value>> {
    let copy = tempfile::tempdir()?;
    let beside = copy.path().join("state.sqlite");
    fs::copy(file, &beside)?;
    let database = Connection::open(&beside)?;
    like.pragmas
        .keys()
        .map(|pragma| {
            let value = database.query_row(&format!("PRAGMA {pragma}"), [], |row| {
                Ok(match row.get_ref(0)? {
                    ValueRef::Integer(number) => json!(number),
                    other => json!(other.as_str()?),
                })
            })?;
            Ok((pragma.clone(), value))
        })
        .collect()
}

/// A table that is not there has no columns.
fn columns<'a>(
    database: &Connection,
    tables: impl Iterator<Item = &'a String>,
) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    tables
        .map(|table| {
            let names = database
                .prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?
                .query_map([table], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            Ok((table.clone(), names))
        })
        .collect()
}

/// A table that is not there is not in the answer.
fn rows<'a>(
    database: &Connection,
    tables: impl Iterator<Item = &'a String>,
) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut rows = BTreeMap::new();
    for table in tables {
        let count = database.query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |row| row.get(0));
        match count {
            Ok(count) => {
                rows.insert(table.clone(), count);
            }
            Err(rusqlite::Error::SqliteFailure(_, Some(why))) if why.starts_with("no such table") => {}
            Err(error) => return Err(error).with_context(|| format!("counting {table}")),
        }
    }
    Ok(rows)
}

/// Another program that writes, and does not come to an end.
pub fn lock(file: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    Ok(connection)
}

/// Renames both auth tables, `from` and `to` being what stands before and after the name.
pub fn rename_auth_tables(file: &Path, from: &str, to: &str) -> anyhow::Result<()> {
    let connection = Connection::open(file)?;
    for table in ["auth_pairing_links", "auth_sessions"] {
        connection.execute_batch(&format!("ALTER TABLE {from}{table} RENAME TO {to}{table}"))?;
    }
    Ok(())
}

mod tests {
    use super::*;

    #[test]
    fn modes_are_written_in_letters() {
        assert_eq!(letters(true, 0o755), "drwxr-xr-x");
        assert_eq!(letters(false, 0o600), "-rw-------");
    }

    #[test]
    fn a_database_is_read_without_leaving_files_behind() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("state.sqlite");
        let writer = Connection::open(&file)?;
        writer.execute_batch(
            "PRAGMA journal_mode = wal; CREATE TABLE effect_sql_migrations (migration_id INTEGER PRIMARY KEY, name);
             INSERT INTO effect_sql_migrations VALUES (1, 'First'), (2, 'Second');",
        )?;
        let like = Sqlite {
            migrations: Vec::new(),
            tables: Vec::new(),
            columns: [("effect_sql_migrations".to_owned(), Vec::new())].into(),
            pragmas: [("journal_mode".to_owned(), Value::Null), ("user_version".to_owned(), Value::Null)]
                .into(),
            rows: [("effect_sql_migrations".to_owned(), 0), ("nowhere".to_owned(), 0)].into(),
        };
        assert_eq!(sqlite(&file, &like)?.rows, [("effect_sql_migrations".to_owned(), 2)].into(), "live");
        drop(writer);
        let read = sqlite(&file, &like)?;
        assert_eq!(read.migrations[1], Migration { id: 2, name: "Second".to_owned() });
        assert_eq!(read.tables, ["effect_sql_migrations"]);
        assert_eq!(read.columns["effect_sql_migrations"], ["migration_id", "name"]);
        assert_eq!(read.pragmas["journal_mode"], "wal");
        assert_eq!(read.pragmas["user_version"], 0);
        assert_eq!(files(directory.path())?.len(), 1);
        Ok(())
    }
}
