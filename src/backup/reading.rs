//! What SQLite makes of a snapshot. A user has written every page of it, so it is read by whoever the data belongs to and
//! never by root: `verify` judges the answer.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::{self, Connection, ErrorCode};

use super::manifest::HEADER;
use super::verify::Defect;
use crate::outcome::{Failure, Flaw, Reason};
use crate::t3::schema::SchemaLevel;
use crate::t3::state::Level;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::reader;

/// Integrity problems that are quoted; one is as bad as a hundred.
const LINES: usize = 20;

/// A look into a snapshot, or into a copy that was lent for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reading {
    pub file: PathBuf,
}

/// What a database that holds together holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    pub level: Level,
    pub fingerprint: Fingerprint,
}

impl Reading {
    /// Blocks for as long as reading the file twice takes. The failure is that it may not be read, which says nothing of it.
    pub fn carry_out(&self) -> Result<Result<Found, Defect>, Failure> {
        let file = &self.file;
        File::open(file).map_err(|error| {
            Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", file.display()))
        })?;
        Ok(read(file))
    }
}

fn read(file: &Path) -> Result<Found, Defect> {
    let connection = reader::open_still(file).map_err(|error| damaged(&error))?;
    let level = belongs_to_t3(&connection)?;
    known(&level)?;
    integrity(file, &connection)?;
    let fingerprint = Fingerprint::of(&connection).map_err(|error| damaged(&error))?;
    Ok(Found { level, fingerprint })
}

fn belongs_to_t3(connection: &Connection) -> Result<Level, Defect> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table'";
    let tables: i64 = connection.query_row(tables, [], |row| row.get(0)).map_err(|error| damaged(&error))?;
    if tables == 0 {
        return Err(Defect::new(
            Flaw::WithoutWal,
            "a database without a single table: a main file that was copied without its -wal",
        ));
    }
    Level::of(connection)
        .map_err(|error| damaged(&error))?
        .ok_or_else(|| Defect::new(Flaw::OtherProgram, "a database in which no t3 has recorded a migration"))
}

fn known(found: &Level) -> Result<(), Defect> {
    let Level { level, name } = found;
    if *level > SchemaLevel::NEWEST {
        let newest = SchemaLevel::NEWEST;
        return Err(Defect::new(
            Flaw::LevelNewer,
            format!("level {level} ({name}); the newest known is {newest}"),
        ));
    }
    if *level < SchemaLevel::OLDEST {
        let oldest = SchemaLevel::OLDEST;
        return Err(Defect::new(
            Flaw::LevelOlder,
            format!("level {level} ({name}); the oldest known is {oldest}"),
        ));
    }
    if !found.is_known() {
        return Err(Defect::new(
            Flaw::LevelForeign,
            format!("level {level} under the name {name}, which no t3 uses"),
        ));
    }
    Ok(())
}

fn integrity(file: &Path, connection: &Connection) -> Result<(), Defect> {
    let check = |sql: &str, of: fn(&rusqlite::Row<'_>) -> rusqlite::Result<String>| {
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map([], of)?;
        rows.take(LINES).collect::<rusqlite::Result<Vec<_>>>()
    };
    let lines = check(&format!("PRAGMA integrity_check({LINES})"), |row| row.get(0));
    let lines = lines.map_err(|error| damaged(&error))?;
    if lines != ["ok"] {
        // SQLite heads its list with the name of the database.
        let lines: Vec<_> =
            lines.iter().flat_map(|line| line.lines()).filter(|line| !line.starts_with("***")).collect();
        return Err(Defect::new(kind_of_damage(file, &lines), lines.join("; ")));
    }
    let orphans = check("PRAGMA foreign_key_check", |row| {
        Ok(format!("{} refers to {}", row.get::<_, String>(0)?, row.get::<_, String>(2)?))
    });
    match orphans.map_err(|error| damaged(&error))?.first() {
        Some(first) => Err(Defect::new(Flaw::ForeignKey, format!("{first}, and there is no such row"))),
        None => Ok(()),
    }
}

/// What `integrity_check` complains of. Damage in one place draws complaints of several kinds, so the order matters.
fn kind_of_damage(file: &Path, lines: &[&str]) -> Flaw {
    let any = |part: &str| lines.iter().any(|line| line.to_ascii_lowercase().contains(part));
    if any("freelist") {
        Flaw::Freelist
    } else if any("overflow") || lines.iter().any(|line| is_in_a_chain(file, line)) {
        Flaw::Overflow
    } else if lines.iter().all(|line| line.contains("index")) {
        Flaw::Index
    } else {
        Flaw::Page
    }
}

/// `Tree 5 page 7 cell 3: invalid page number 99`, where page 7 is a leaf: only the chain of a long row leads on from it.
fn is_in_a_chain(file: &Path, line: &str) -> bool {
    let page = || {
        let (place, complaint) = line.split_once(": ")?;
        let is_reference = ["invalid page number", "2nd reference", "failed to get page"];
        let (before, _) = place.split_once(" cell ")?;
        let page = before.rsplit(' ').next()?.parse::<u64>().ok()?;
        is_reference.iter().any(|known| complaint.starts_with(known)).then_some(page)
    };
    let kind = |page: u64| {
        let mut kind = [0];
        // t3's pages are 4096 bytes (CONTRACT §7); the first one begins behind the header.
        let offset = if page == 1 { HEADER as u64 } else { (page - 1) * 4096 };
        File::open(file).ok()?.read_exact_at(&mut kind, offset).ok()?;
        Some(kind[0])
    };
    page().and_then(kind).is_some_and(|kind| matches!(kind, 0x0a | 0x0d))
}

fn damaged(error: &rusqlite::Error) -> Defect {
    let flaw = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Flaw::Header,
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Flaw::Unreadable,
        _ => Flaw::Page,
    };
    Defect::new(flaw, format!("SQLite: {error}"))
}
