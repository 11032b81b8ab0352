//! The database of an instance, read without disturbing it (CONTRACT §7): never written, never locked, opened for the
//! length of one question.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::{self, OpenFlags};

use super::schema::SchemaLevel;
use crate::outcome::{Failure, Reason};

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
}

/// What a look at an instance's database found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub level: Result<Level, Failure>,
    /// The process that holds the write lock at this moment.
    pub locked_by: Option<i32>,
}

/// Looks at the database; what cannot be read is in the answer.
pub async fn inspect(database: &Path) -> Inspection {
    Inspection { level: level(database).await, locked_by: write_lock_holder(database) }
}

/// Reads the level.
pub async fn level(database: &Path) -> Result<Level, Failure> {
    read(database.to_path_buf(), |connection| {
        connection.query_row(
            "SELECT migration_id, name FROM effect_sql_migrations ORDER BY migration_id DESC LIMIT 1",
            [],
            |row| Ok(Level { level: SchemaLevel(row.get(0)?), name: row.get(1)? }),
        )
    })
    .await
}

/// The process that holds the database's write lock at this moment, where one does.
///
/// A writer in WAL mode locks one byte of the `-shm` file; the kernel lists such locks for everybody to see.
pub fn write_lock_holder(database: &Path) -> Option<i32> {
    const WRITE_LOCK_BYTE: u64 = 120;
    let mut shm = database.to_path_buf().into_os_string();
    shm.push("-shm");
    let inode = std::fs::metadata(shm).ok()?.ino();
    let covers = |lock: &procfs::Lock| {
        let last = lock.offset_last.unwrap_or(u64::MAX);
        lock.inode == inode
            && lock.offset_first <= WRITE_LOCK_BYTE
            && WRITE_LOCK_BYTE <= last
            && matches!(lock.kind, procfs::LockKind::Write)
    };
    procfs::locks().ok()?.iter().find(|lock| covers(lock)).and_then(|lock| lock.pid)
}

/// Opens the database read-only as its state demands, asks one question, closes it.
async fn read<T, F>(database: PathBuf, question: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
{
    let path = database.display().to_string();
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::new(Reason::Unreadable, format!("cannot read {path}: {error}"))
    };
    if let Err(error) = tokio::fs::metadata(&database).await {
        return Err(unreadable(&error));
    }
    // A live database has a WAL that immutable=1 would not see; on a stopped one plain mode=ro would leave files behind.
    let mut wal = database.clone().into_os_string();
    wal.push("-wal");
    let immutable = if Path::new(&wal).exists() { "" } else { "&immutable=1" };
    let uri = format!("file:{}?mode=ro{immutable}", escape(&database));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        tokio_rusqlite::Connection::open_with_flags(uri, flags).await.map_err(|error| unreadable(&error))?;
    let result = connection.call(move |connection| question(connection)).await;
    let closed = connection.close().await;
    match (result, closed) {
        (Ok(value), Ok(())) => Ok(value),
        (Err(error), _) | (_, Err(error)) => Err(describe(&path, &error)),
    }
}

fn describe(path: &str, error: &tokio_rusqlite::Error) -> Failure {
    let reason = match error {
        tokio_rusqlite::Error::Error(rusqlite::Error::SqliteFailure(failure, _)) => match failure.code {
            rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt => Reason::Corrupt,
            rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked => Reason::Locked,
            _ => Reason::Unreadable,
        },
        _ => Reason::Unreadable,
    };
    Failure::new(reason, format!("cannot read {path}: {error}"))
}

/// A path inside an SQLite URI.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}
