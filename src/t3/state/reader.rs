//! How a database is opened for reading: a live one through its WAL, a stopped one as a file that nothing may be added
//! to. `immutable=1` on a live one shows old data, plain `mode=ro` on a stopped one leaves files behind (CONTRACT §7).

use std::path::Path;
use std::time::Duration;

use tokio_rusqlite::rusqlite::config::DbConfig;
use tokio_rusqlite::rusqlite::{self, Connection, ErrorCode, OpenFlags};

use super::stamp::{Stamp, beside};
use crate::outcome::{Failure, Reason};

/// How long a reader waits where another process recovers the WAL; writers never make it wait.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often a stopped database is looked at again that was started meanwhile.
const TRIES: usize = 3;

/// A database open for reading.
pub struct Reader {
    pub connection: Connection,
    /// What a stopped database looked like when it was opened: nothing locks it, so it is compared afterwards.
    stopped: Option<Stamp>,
}

impl Reader {
    pub fn open(database: &Path) -> Result<Self, Failure> {
        std::fs::metadata(database).map_err(|error| unreadable(database, &error))?;
        let stamp = Stamp::of(database);
        let live = beside(database, "-wal").exists();
        let immutable = if live { "" } else { "&immutable=1" };
        let connection = connect(&format!("file:{}?mode=ro{immutable}", escape(database)));
        let connection = connection.map_err(|error| failure(database, &error))?;
        Ok(Self { connection, stopped: (!live).then_some(stamp) })
    }

    /// Whether the database was started, and so perhaps written, while it was read as a stopped one.
    pub fn was_disturbed(&self, database: &Path) -> bool {
        self.stopped.as_ref().is_some_and(|before| Stamp::of(database) != *before)
    }
}

/// Opens a file that nobody writes, such as a snapshot; nothing appears beside it.
pub fn open_still(file: &Path) -> rusqlite::Result<Connection> {
    connect(&format!("file:{}?mode=ro&immutable=1", escape(file)))
}

/// Asks one question in one read transaction: the answers belong to one moment.
pub fn ask<T>(database: &Path, question: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<T, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let reader = Reader::open(database)?;
        let answer = within_transaction(&reader.connection, &question);
        if reader.was_disturbed(database) && tries < TRIES {
            continue;
        }
        return answer.map_err(|error| failure(database, &error));
    }
}

/// What an SQLite error means for whoever wanted to read.
pub fn failure(database: &Path, error: &rusqlite::Error) -> Failure {
    let reason = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Reason::Corrupt,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Reason::Locked,
        Some(ErrorCode::DiskFull) => Reason::NoSpace,
        _ => Reason::Unreadable,
    };
    Failure::new(reason, format!("cannot read {}: {error}", database.display()))
}

fn within_transaction<T>(
    connection: &Connection,
    question: &impl Fn(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.unchecked_transaction()?;
    question(&transaction)
}

fn connect(uri: &str) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.busy_timeout(PATIENCE)?;
    // Also root reads its own copies of what users have written: nothing in a schema is executed for it, and a page that
    // does not hold together is an error.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

fn unreadable(database: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", database.display()))
}

/// A path inside an SQLite URI.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}
