//! A consistent copy of a database that is in use: SQLite's backup in steps, within one read transaction, so that a
//! steady writer neither waits for it nor makes it begin again. Copying the main file alone is the trap of CONTRACT §7.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::backup::{Backup, StepResult};
use tokio_rusqlite::rusqlite::{self, Connection, OpenFlags};

use super::disk::{self, Incoming};
use crate::outcome::{Failure, Reason};
use crate::t3::state::Level;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::reader::{self, Reader};

/// One MiB of t3's pages: short enough for the deadline to be kept, long enough not to matter.
const PAGES_PER_STEP: i32 = 256;
/// What SQLite may hold back of the copy, in KiB: half a step, so that the steps before the last one are in the file.
const HELD_BACK: i64 = 512;
/// How often a stopped database is copied anew that was started meanwhile.
const TRIES: usize = 3;

/// What the copy holds, read in the same transaction as the copy was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    pub level: Level,
    pub fingerprint: Fingerprint,
}

/// Copies `database` to the file `into`, new and readable by us alone where there is none yet, and waits until it is on
/// disk. What fails leaves no file that we may remove.
pub fn copy(database: &Path, into: &Path, limit: Duration) -> Result<Copied, Failure> {
    let deadline = Instant::now() + limit;
    let mut tries = 0;
    loop {
        tries += 1;
        let source = Reader::open(database)?;
        let copied = copy_once(&source, database, into, deadline).inspect_err(|_| remove(into))?;
        if !source.was_disturbed(database) || tries == TRIES {
            return Ok(copied);
        }
        remove(into);
    }
}

/// What cannot be removed is swept up by the next take: it has no name that counts.
fn remove(into: &Path) {
    let _ = disk::remove(into);
}

fn copy_once(source: &Reader, database: &Path, into: &Path, deadline: Instant) -> Result<Copied, Failure> {
    let unreadable = |error| reader::failure(database, &error);
    // The read transaction pins one moment of the WAL; the steps below see that moment, whoever writes meanwhile.
    let moment = source.connection.unchecked_transaction().map_err(unreadable)?;
    let level = Level::of(&moment).map_err(unreadable)?.ok_or_else(|| {
        Failure::new(
            Reason::SchemaForeign,
            format!(
                "{} is no database of t3, or one that lost its -wal; nothing was taken",
                database.display()
            ),
        )
    })?;
    let fingerprint = Fingerprint::of(&moment).map_err(unreadable)?;
    let (file, mut copy) = create(into)?;
    let unfinished = |error| unfinished(database, into, &error);
    let backup = Backup::new(&moment, &mut copy).map_err(unfinished)?;
    let mut incoming = Incoming::new(&file);
    let page: u32 = moment.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(unreadable)?;
    let step = u64::from(page) * PAGES_PER_STEP as u64;
    let mut steps = 0;
    while backup.step(PAGES_PER_STEP).map_err(unfinished)? != StepResult::Done {
        incoming.reached(steps * step).map_err(|error| unwritable(into, &error))?;
        steps += 1;
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Reason::Timeout,
                format!("copying {} was given up at `[backup] take_timeout`", database.display()),
            ));
        }
    }
    drop(backup);
    copy.close().map_err(|(_, error)| unfinished(error))?;
    file.sync_all().map_err(|error| unwritable(into, &error))?;
    Ok(Copied { level, fingerprint })
}

/// The copy is nobody's until it is whole, so it needs neither a journal nor an order of its writes.
fn create(into: &Path) -> Result<(File, Connection), Failure> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(into)
        .map_err(|error| unwritable(into, &error))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let copy = Connection::open_with_flags(into, flags)?;
        copy.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
        copy.pragma_update_and_check(None, "journal_mode", "off", |_| Ok(()))?;
        copy.pragma_update(None, "synchronous", "off")?;
        copy.pragma_update(None, "cache_size", -HELD_BACK)?;
        Ok(copy)
    };
    Ok((file, open().map_err(|error| unfinished(into, into, &error))?))
}

fn unfinished(database: &Path, into: &Path, error: &rusqlite::Error) -> Failure {
    let full = nix::sys::statvfs::statvfs(into)
        .is_ok_and(|system| system.blocks_available() * system.fragment_size() < 1 << 16);
    let failure = reader::failure(database, error);
    // A full file system also shows as an input or output error.
    let reason = if full { Reason::NoSpace } else { failure.reason };
    let (from, to) = (database.display(), into.display());
    Failure::new(reason, format!("cannot copy {from} to {to}: {error}"))
}

fn unwritable(into: &Path, error: &io::Error) -> Failure {
    let reason =
        if error.kind() == io::ErrorKind::StorageFull { Reason::NoSpace } else { Reason::Unreadable };
    Failure::new(reason, format!("cannot write {}: {error}", into.display()))
}
