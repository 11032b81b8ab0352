//! The database file as the writer uses it: opened and migrated, written in small transactions, kept within its bounds.
//! Everything here blocks; it runs on the connection's own thread.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio_rusqlite::rusqlite::{self, Connection, Transaction, params};

use crate::outcome::{Ended, Kind};

use super::{Event, Recorded, Section, Standing};

/// One entry a schema level; `PRAGMA user_version` counts how many were run.
const MIGRATIONS: [&str; 1] = [include_str!("schema.sql")];

/// "t3pr": marks the file as ours, so that a mistaken path never gets our tables added to somebody's database.
const APPLICATION_ID: i64 = 0x7433_7072;

/// Rows removed in one transaction; a removal never holds up the next outcome for long.
const CHUNK: usize = 2000;

/// Rows written in one transaction; small, so that room for them can be made in the smallest file.
const TOGETHER: usize = 100;

/// The last failure of each user and kind, which is kept for ever.
const KEPT_FOR_EVER: &str =
    "SELECT id FROM (SELECT id, max(last) FROM run WHERE outcome = 'failed' GROUP BY user, kind)";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0} is damaged ({1})")]
    Corrupt(PathBuf, String),
    #[error("{0} was written by a newer t3-prober (schema {1}, this one knows {known}); it is left alone: run that version, or move the file away", known = MIGRATIONS.len())]
    Newer(PathBuf, i64),
    #[error(
        "{0} is a database of another program; it is left alone: set another state_dir, or move the file away"
    )]
    Foreign(PathBuf),
    #[error("{0} was removed or replaced while it was in use")]
    Replaced(PathBuf),
    #[error("opening {path}; check that its directory exists and is writable for this user", path = .0.display())]
    Open(PathBuf, #[source] std::io::Error),
    #[error("the thread that writes the history has ended ({0})")]
    Gone(String),
    #[error("writing the history; check the free space and the mode of its directory")]
    Sql(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Self::Corrupt(PathBuf::from("the history"), error.to_string())
            }
            _ => Self::Sql(error),
        }
    }
}

impl StoreError {
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Sql(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub keep: Duration,
    /// Of the main file; the write-ahead log beside it stays below 5 MB.
    pub max_bytes: u64,
}

impl From<&Section> for Bounds {
    fn from(section: &Section) -> Self {
        Self { keep: section.keep, max_bytes: u64::from(section.max_mib) * 1024 * 1024 }
    }
}

/// What is to be written.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub rows: BTreeMap<i64, Recorded>,
    pub standings: BTreeMap<(String, Kind), Standing>,
    pub events: BTreeMap<i64, Event>,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.rows.len() + self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.standings.is_empty()
    }

    /// Puts an older batch, which could not be written, below this one.
    pub fn put_back(&mut self, older: Self) {
        for (id, row) in older.rows {
            self.rows.entry(id).or_insert(row);
        }
        for (key, standing) in older.standings {
            self.standings.entry(key).or_insert(standing);
        }
        for (id, event) in older.events {
            self.events.entry(id).or_insert(event);
        }
    }
}

/// The open file.
pub struct Store {
    path: PathBuf,
    inode: u64,
    bounds: Bounds,
}

impl Store {
    /// Opens or begins the history; `checked` reads the whole file for damage.
    pub fn open(path: &Path, bounds: Bounds, checked: bool) -> Result<(Self, Connection), StoreError> {
        let inode = create(path).map_err(|error| StoreError::Open(path.to_owned(), error))?;
        let named = |error: rusqlite::Error| match StoreError::from(error) {
            StoreError::Corrupt(_, what) => StoreError::Corrupt(path.to_owned(), what),
            other => other,
        };
        let mut db = Connection::open(path).map_err(named)?;
        db.busy_timeout(Duration::from_secs(2)).map_err(named)?;
        let level = level(&db).map_err(named)?;
        if level > MIGRATIONS.len() as i64 {
            return Err(StoreError::Newer(path.to_owned(), level));
        }
        if !is_ours(&db).map_err(named)? {
            return Err(StoreError::Foreign(path.to_owned()));
        }
        if checked && level > 0 {
            let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(named)?;
            if found != "ok" {
                return Err(StoreError::Corrupt(path.to_owned(), found));
            }
        }
        prepare(&mut db, bounds, level).map_err(named)?;
        Ok((Self { path: path.to_owned(), inode, bounds }, db))
    }

    /// Writes a batch, a part a transaction; written twice it is the same as once. Returns the file's size.
    pub fn write(&self, db: &mut Connection, batch: &Batch) -> Result<u64, StoreError> {
        // Somebody who removes the file leaves us writing into nowhere, and SQLite does not tell.
        if std::fs::metadata(&self.path).map_or(0, |metadata| metadata.ino()) != self.inode {
            return Err(StoreError::Replaced(self.path.clone()));
        }
        let rows: Vec<&Recorded> = batch.rows.values().collect();
        for rows in rows.chunks(TOGETHER) {
            self.with_room(db, |change| rows.iter().try_for_each(|row| write_row(change, row)))?;
        }
        let events: Vec<(&i64, &Event)> = batch.events.iter().collect();
        for events in events.chunks(TOGETHER) {
            self.with_room(db, |change| {
                events.iter().try_for_each(|(id, event)| write_event(change, **id, event))
            })?;
        }
        self.with_room(db, |change| {
            batch.standings.values().try_for_each(|one| write_standing(change, one))
        })?;
        Ok(size(db, "page_count")? * size(db, "page_size")?)
    }

    /// Removes what is older than the history keeps.
    pub fn prune(&self, db: &mut Connection, now: SystemTime) -> Result<(), StoreError> {
        remove_before(db, millis(now.checked_sub(self.bounds.keep).unwrap_or(SystemTime::UNIX_EPOCH)))?;
        db.execute_batch("PRAGMA incremental_vacuum(1000)")?;
        Ok(())
    }

    /// Writes in one transaction, and makes room where there is too little.
    fn with_room(
        &self,
        db: &mut Connection,
        write: impl Fn(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let attempt = |db: &mut Connection| {
            let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            write(&change)?;
            change.commit().map_err(StoreError::from)
        };
        match attempt(db) {
            Err(full) if full.is_full() => {
                self.trim(db, 5)?;
                attempt(db)?;
            }
            written => written?,
        }
        if live_bytes(db)? > self.bounds.max_bytes / 10 * 9 {
            self.trim(db, 8)?;
        }
        Ok(())
    }

    /// Removes the oldest tenth again and again until at most so many tenths of the bound are in use.
    fn trim(&self, db: &mut Connection, tenths: u64) -> Result<(), StoreError> {
        while live_bytes(db)? > self.bounds.max_bytes / 10 * tenths {
            let span = "SELECT min(oldest), max(newest) FROM (
                SELECT min(last) AS oldest, max(last) AS newest FROM run WHERE id NOT IN (KEPT)
                UNION ALL SELECT min(at), max(at) FROM event)";
            let (oldest, newest): (Option<i64>, Option<i64>) =
                db.query_row(&span.replace("KEPT", KEPT_FOR_EVER), [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let (Some(oldest), Some(newest)) = (oldest, newest) else { break };
            if remove_before(db, oldest + (newest - oldest) / 10 + 1)? == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Makes sure that there is a file, and says which. Made here and not by SQLite, which would leave free text readable
/// for everybody; and an existing file is not opened, because closing it again would drop SQLite's locks on it.
fn create(path: &Path) -> std::io::Result<u64> {
    match OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    Ok(std::fs::metadata(path)?.ino())
}

/// The schema level of an open history.
pub fn level(db: &Connection) -> rusqlite::Result<i64> {
    pragma(db, "user_version")
}

/// The highest level this program reads and writes.
pub const fn known_level() -> i64 {
    MIGRATIONS.len() as i64
}

/// Milliseconds since 1970; what lies outside of what SQLite can hold is brought to its edge.
pub fn millis(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn pragma(db: &Connection, name: &str) -> rusqlite::Result<i64> {
    db.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
}

fn size(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(pragma(db, name)?).unwrap_or(0))
}

fn is_ours(db: &Connection) -> rusqlite::Result<bool> {
    let application = pragma(db, "application_id")?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(application == APPLICATION_ID || (application == 0 && tables == 0))
}

fn prepare(db: &mut Connection, bounds: Bounds, level: i64) -> rusqlite::Result<()> {
    // auto_vacuum must be chosen before the first table. A small cache: rows are written once and hardly read.
    db.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
         PRAGMA foreign_keys = ON; PRAGMA journal_size_limit = 4194304; PRAGMA cache_size = -512",
    )?;
    let pages = (bounds.max_bytes / size(db, "page_size")?.max(1)).max(64);
    db.execute_batch(&format!("PRAGMA max_page_count = {pages}"))?;
    for (index, migration) in (1_i64..).zip(MIGRATIONS).skip_while(|(index, _)| *index <= level) {
        let change = db.transaction()?;
        change.execute_batch(migration)?;
        change.execute_batch(&format!(
            "PRAGMA user_version = {index}; PRAGMA application_id = {APPLICATION_ID}"
        ))?;
        change.commit()?;
    }
    Ok(())
}

fn live_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let pages = size(db, "page_count")?.saturating_sub(size(db, "freelist_count")?);
    Ok(pages * size(db, "page_size")?)
}

fn write_event(change: &Transaction<'_>, id: i64, event: &Event) -> rusqlite::Result<()> {
    change
        .prepare_cached(
            "INSERT OR IGNORE INTO event (id, at, user, kind, subject, outcome, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            id,
            millis(event.at),
            event.user,
            event.kind.as_str(),
            event.subject,
            event.outcome,
            event.detail.to_string(),
        ])?;
    Ok(())
}

fn write_row(change: &Transaction<'_>, row: &Recorded) -> rusqlite::Result<()> {
    // The trace id guards against the one way a number can come twice: a clock set back between two processes.
    let grown = change
        .prepare_cached("UPDATE run SET last = ?, count = ?, slowest_us = ? WHERE id = ? AND trace_id = ?")?
        .execute(params![
            millis(row.last),
            i64::try_from(row.count).unwrap_or(i64::MAX),
            micros(row.slowest),
            row.id,
            row.run.trace_id,
        ])?;
    if grown > 0 {
        return Ok(());
    }
    let outcome = row.run.outcome();
    let decided_by = row.run.decided_by();
    let facts = serde_json::to_string(&row.run.facts)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let new = change
        .prepare_cached(
            "INSERT OR IGNORE INTO run (id, user, kind, \"trigger\", started, last, count, duration_us, slowest_us,
                outcome, step, reason, detail, trace_id, facts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            row.id,
            row.run.user,
            row.run.kind.as_str(),
            row.run.trigger.as_str(),
            millis(row.run.started),
            millis(row.last),
            i64::try_from(row.count).unwrap_or(i64::MAX),
            micros(row.run.duration),
            micros(row.slowest),
            outcome.ended().as_str(),
            decided_by.map(|step| step.step.as_str()),
            outcome.reason(),
            decided_by.and_then(|step| step.detail.as_deref()),
            row.run.trace_id,
            facts,
        ])?;
    if new == 0 {
        return Ok(());
    }
    for (position, step) in (0_i64..).zip(&row.run.steps) {
        change
            .prepare_cached(
                "INSERT INTO step (run, position, step, outcome, reason, detail, duration_us) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                row.id,
                position,
                step.step.as_str(),
                step.outcome.ended().as_str(),
                step.outcome.reason(),
                step.detail,
                micros(step.duration),
            ])?;
    }
    Ok(())
}

fn write_standing(change: &Transaction<'_>, standing: &Standing) -> rusqlite::Result<()> {
    change
        .prepare_cached(
            "INSERT OR REPLACE INTO standing (user, kind, definite, since, skipped_since, last) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            standing.user,
            standing.kind.as_str(),
            standing.definite.map(Ended::as_str),
            standing.since.map(millis),
            standing.skipped_since.map(millis),
            millis(standing.last),
        ])?;
    Ok(())
}

/// Removes, a chunk a transaction, what ended before `cutoff`; never a last failure.
fn remove_before(db: &mut Connection, cutoff: i64) -> rusqlite::Result<usize> {
    let old_runs = format!(
        "DELETE FROM run WHERE id IN
            (SELECT id FROM run WHERE last < ? AND id NOT IN ({KEPT_FOR_EVER}) ORDER BY last LIMIT {CHUNK})"
    );
    let old_events = format!(
        "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE at < ? ORDER BY at LIMIT {CHUNK})"
    );
    let mut removed = 0;
    for old in [old_runs, old_events, "DELETE FROM standing WHERE last < ?".to_owned()] {
        loop {
            let gone = db.prepare_cached(&old)?.execute([cutoff])?;
            removed += gone;
            if gone < CHUNK {
                break;
            }
        }
    }
    Ok(removed)
}
