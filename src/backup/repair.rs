//! The repair for the outage: where every migration above the wanted level is known to touch only the authentication
//! tables, these are made anew at that level and the migrations' rows removed, in one transaction. No history is
//! touched, everybody logs in anew, and a running server recovers at once (CONTRACT §5, §10).

use std::path::Path;
use std::time::Duration;

use tokio_rusqlite::rusqlite::{self, Connection, OpenFlags, TransactionBehavior};

use crate::outcome::{Failure, Reason};
use crate::t3::schema::SchemaLevel;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::{Level, reader};
use crate::t3::version::Version;

/// The only level whose authentication tables are known here column by column (CONTRACT §7).
const REPAIRABLE: SchemaLevel = SchemaLevel(30);

/// How long a write of the running server is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The columns and indexes that level 30 has, as real databases of 0.0.24 show them.
const TABLES: &str = "
    DROP TABLE IF EXISTS auth_pairing_links;
    DROP TABLE IF EXISTS auth_sessions;
    CREATE TABLE auth_pairing_links (
        id TEXT PRIMARY KEY, credential TEXT NOT NULL UNIQUE, method TEXT NOT NULL, role TEXT NOT NULL,
        subject TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT NOT NULL, consumed_at TEXT, revoked_at TEXT,
        label TEXT);
    CREATE TABLE auth_sessions (
        session_id TEXT PRIMARY KEY, subject TEXT NOT NULL, role TEXT NOT NULL, method TEXT NOT NULL,
        issued_at TEXT NOT NULL, expires_at TEXT NOT NULL, revoked_at TEXT, client_label TEXT, client_ip_address TEXT,
        client_user_agent TEXT, client_device_type TEXT NOT NULL DEFAULT 'unknown', client_os TEXT,
        client_browser TEXT, last_connected_at TEXT);
    CREATE INDEX idx_auth_pairing_links_active ON auth_pairing_links (revoked_at, consumed_at, expires_at);
    CREATE INDEX idx_auth_sessions_active ON auth_sessions (revoked_at, expires_at, issued_at);";

/// Why the repair is not for this database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the version that the database is wanted for is not known; name it with --for VERSION")]
    VersionUnknown,
    #[error("no level is known for t3 {0}")]
    LevelUnknown(Version),
    #[error("the database is at level {0}, as t3 {1} expects: there is nothing to repair")]
    NothingToDo(SchemaLevel, Version),
    #[error("the database is at level {0}, below the {1} that is wanted: start t3, and it migrates")]
    Behind(SchemaLevel, SchemaLevel),
    #[error(
        "the database was migrated under the name {1} at level {0}, which no known t3 uses; restore a snapshot"
    )]
    Foreign(SchemaLevel, String),
    #[error("migration {0} touches more than the authentication tables; restore a snapshot")]
    TouchesHistory(SchemaLevel),
    #[error("the authentication tables of level {0} are not known; restore a snapshot")]
    TablesUnknown(SchemaLevel),
}

/// A repair that was not made.
#[derive(Debug, thiserror::Error)]
pub enum NotRepaired {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<NotRepaired> for Failure {
    fn from(why: NotRepaired) -> Self {
        match why {
            NotRepaired::Failed(failure) => failure,
            NotRepaired::Refused(refusal) => Self::new(Reason::SchemaForeign, refusal.to_string()),
        }
    }
}

/// The level to go back to, where the repair is for this database.
pub fn applies(found: &Level, version: Option<&Version>) -> Result<SchemaLevel, Refusal> {
    let version = version.ok_or(Refusal::VersionUnknown)?;
    let wanted = SchemaLevel::expected(version).ok_or_else(|| Refusal::LevelUnknown(version.clone()))?;
    let Level { level, name } = found;
    if *level == wanted {
        return Err(Refusal::NothingToDo(*level, version.clone()));
    }
    if *level < wanted {
        return Err(Refusal::Behind(*level, wanted));
    }
    level.only_authentication_above(wanted).map_err(Refusal::TouchesHistory)?;
    if !found.is_known() {
        return Err(Refusal::Foreign(*level, name.clone()));
    }
    if wanted != REPAIRABLE {
        return Err(Refusal::TablesUnknown(wanted));
    }
    Ok(wanted)
}

/// Repairs a database, live or stopped, as its owner. Everything is decided anew within the transaction.
pub fn rebuild(database: &Path, version: &Version) -> Result<(), NotRepaired> {
    let mut connection = open(database).map_err(|error| reader::failure(database, &error))?;
    let done = within_transaction(&mut connection, version);
    let closed = connection.close().map_err(|(_, error)| error);
    done.map_err(|why| match why {
        Undone::Refused(refusal) => NotRepaired::Refused(refusal),
        Undone::Sqlite(error) => NotRepaired::Failed(unwritten(database, &error)),
        Undone::Lossy(lost) => NotRepaired::Failed(Failure::new(
            Reason::HistoryShrank,
            format!("the repair would have lost history, so it was not made: {}", lost.join("; ")),
        )),
    })?;
    Ok(closed.map_err(|error| unwritten(database, &error))?)
}

/// Why the transaction was not committed.
enum Undone {
    Refused(Refusal),
    Sqlite(rusqlite::Error),
    Lossy(Vec<String>),
}

impl From<rusqlite::Error> for Undone {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn open(database: &Path) -> rusqlite::Result<Connection> {
    // Never created: a database that is not there is not repaired.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

fn within_transaction(connection: &mut Connection, version: &Version) -> Result<(), Undone> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let never = || Level { level: SchemaLevel(0), name: String::new() };
    let level = Level::of(&transaction)?.unwrap_or_else(never);
    let wanted = applies(&level, Some(version)).map_err(Undone::Refused)?;
    for above in rows_above(&transaction, wanted)? {
        if !above.is_known() {
            return Err(Undone::Refused(Refusal::Foreign(above.level, above.name)));
        }
    }
    let before = Fingerprint::of(&transaction)?;
    transaction.execute_batch(TABLES)?;
    transaction.execute("DELETE FROM effect_sql_migrations WHERE migration_id > ?1", [wanted.0])?;
    let lost = Fingerprint::of(&transaction)?.lost_since(&before);
    if !lost.is_empty() {
        return Err(Undone::Lossy(lost));
    }
    Ok(transaction.commit()?)
}

fn rows_above(connection: &Connection, wanted: SchemaLevel) -> rusqlite::Result<Vec<Level>> {
    let sql = "SELECT migration_id, name FROM effect_sql_migrations WHERE migration_id > ?1";
    let mut statement = connection.prepare(sql)?;
    let rows = statement
        .query_map([wanted.0], |row| Ok(Level { level: SchemaLevel(row.get(0)?), name: row.get(1)? }))?;
    rows.collect()
}

fn unwritten(database: &Path, error: &rusqlite::Error) -> Failure {
    let failure = reader::failure(database, error);
    Failure::new(
        failure.reason,
        format!("cannot repair {}: {error}; nothing was changed", database.display()),
    )
}

#[cfg(test)]
mod tests;
