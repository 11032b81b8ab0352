//! The database of an instance, read without disturbing it (CONTRACT §7): never written, never locked, opened for the
//! length of one question.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::{self, Connection, OptionalExtension};

use super::schema::SchemaLevel;
use crate::outcome::{Failure, Reason};

pub mod activity;
pub mod auth;
pub mod fingerprint;
pub mod holders;
pub mod reader;
pub mod server;
pub mod stamp;

use activity::Activity;
use auth::AuthTables;
use fingerprint::Fingerprint;
use server::Server;
use stamp::Sizes;

/// Everything that is asked of a database in one round, as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub level: Level,
    pub auth: AuthTables,
    pub activity: Activity,
    pub fingerprint: Fingerprint,
    pub sizes: Sizes,
}

/// The highest applied migration and the name it was applied under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    pub level: SchemaLevel,
    pub name: String,
}

impl Level {
    /// Whether a known t3 applies a migration of this name at this level.
    pub fn is_known(&self) -> bool {
        self.level.name() == Some(&self.name)
    }

    /// `None` where nothing was ever migrated: no t3 made this database, or it is a main file without its WAL.
    pub fn of(connection: &Connection) -> rusqlite::Result<Option<Self>> {
        if !has_table(connection, "effect_sql_migrations")? {
            return Ok(None);
        }
        let newest =
            "SELECT migration_id, name FROM effect_sql_migrations ORDER BY migration_id DESC LIMIT 1";
        let level = |row: &rusqlite::Row<'_>| Ok(Self { level: SchemaLevel(row.get(0)?), name: row.get(1)? });
        connection.query_row(newest, [], level).optional()
    }
}

/// What a look at an instance's database found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub level: Result<Level, Failure>,
    pub state: Result<State, Failure>,
    /// The process that holds the write lock at this moment.
    pub locked_by: Option<i32>,
}

/// Looks at the database; what cannot be read is in the answer.
pub async fn inspect(database: &Path) -> Inspection {
    let state = read(database, SystemTime::now()).await;
    let level = match &state {
        Ok(state) => Ok(state.level.clone()),
        Err(_) => level(database).await,
    };
    Inspection { level, state, locked_by: write_lock_holder(database) }
}

/// Reads the level.
pub async fn level(database: &Path) -> Result<Level, Failure> {
    let level = ask(database, Level::of).await?;
    level.ok_or_else(|| never_migrated(database))
}

/// Reads everything, as the owner of the data. The same question serves a live and a stopped instance.
pub async fn read(database: &Path, now: SystemTime) -> Result<State, Failure> {
    let (server, sizes) = (Server::of(database), Sizes::of(database));
    let state = ask(database, move |connection| {
        let Some(level) = Level::of(connection)? else { return Ok(None) };
        Ok(Some(State {
            auth: AuthTables::of(connection, level.level, now)?,
            activity: Activity::of(connection, &server, now)?,
            fingerprint: Fingerprint::of(connection)?,
            sizes,
            level,
        }))
    });
    state.await?.ok_or_else(|| never_migrated(database))
}

/// The process that holds the database's write lock at this moment, where one does.
///
/// A writer in WAL mode locks one byte of the `-shm` file; the kernel lists such locks for everybody to see.
pub fn write_lock_holder(database: &Path) -> Option<i32> {
    const WRITE_LOCK_BYTE: u64 = 120;
    let inode = std::fs::metadata(stamp::beside(database, "-shm")).ok()?.ino();
    let covers = |lock: &procfs::Lock| {
        let last = lock.offset_last.unwrap_or(u64::MAX);
        lock.inode == inode
            && lock.offset_first <= WRITE_LOCK_BYTE
            && WRITE_LOCK_BYTE <= last
            && matches!(lock.kind, procfs::LockKind::Write)
    };
    procfs::locks().ok()?.iter().find(|lock| covers(lock)).and_then(|lock| lock.pid)
}

/// Which tables and columns there are differs by level.
pub fn has_table(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)";
    connection.query_row(sql, [table], |row| row.get(0))
}

fn has_column(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2)";
    connection.query_row(sql, [table, column], |row| row.get(0))
}

/// A time as t3 writes it into its columns: texts of this form sort as the times do.
fn as_written(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A count or a sequence number; SQLite's integers are signed.
pub fn count(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

async fn ask<T, F>(database: &Path, question: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
{
    let database = database.to_path_buf();
    let asked = tokio::task::spawn_blocking(move || reader::ask(&database, question));
    asked
        .await
        .unwrap_or_else(|error| Err(Failure::new(Reason::Panicked, format!("reading a database: {error}"))))
}

fn never_migrated(database: &Path) -> Failure {
    Failure::new(
        Reason::SchemaForeign,
        format!(
            "{} has no migrations: no t3 made it, or it is a main file that lost its -wal",
            database.display()
        ),
    )
}

#[cfg(test)]
mod tests;
