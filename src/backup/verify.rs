//! Whether a snapshot would bring the data back: from the whole file to its single rows, each kind of damage under its
//! own word. The structure is looked at before the checksum, which only says that something is different.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use tokio_rusqlite::rusqlite::{self, Connection, ErrorCode};

use super::manifest::{Content, HEADER, Manifest};
use crate::outcome::Flaw;
use crate::t3::schema::SchemaLevel;
use crate::t3::state::Level;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::reader;

/// Integrity problems that are quoted; one is as bad as a hundred.
const LINES: usize = 20;

/// The first thing that is wrong with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail} [{flaw}]")]
pub struct Defect {
    pub flaw: Flaw,
    pub detail: String,
}

impl Defect {
    fn new(flaw: Flaw, detail: impl Into<String>) -> Self {
        Self { flaw, detail: detail.into() }
    }
}

/// Looks at everything; blocks for as long as reading the file twice takes.
pub fn verify(file: &Path, manifest: Option<&Manifest>) -> Result<(), Defect> {
    let metadata = fs::symlink_metadata(file).map_err(|error| unreadable(file, &error))?;
    if metadata.len() == 0 {
        return Err(Defect::new(Flaw::Empty, format!("{} has no content", file.display())));
    }
    ownership(&metadata)?;
    let manifest = manifest.ok_or_else(|| {
        Defect::new(
            Flaw::Manifest,
            "the manifest is missing or cannot be understood; nothing says what this was",
        )
    })?;
    let content = Content::read(file, Some(&manifest.header)).map_err(|error| unreadable(file, &error))?;
    whole(file, &content, manifest)?;
    if content.header != manifest.header && content.sha256_with_header.as_ref() == Some(&manifest.sha256) {
        return Err(Defect::new(Flaw::Header, "the first hundred bytes differ from what was written"));
    }
    let connection = reader::open_still(file).map_err(|error| damaged(&error))?;
    let level = belongs_to_t3(&connection)?;
    known(&level)?;
    integrity(file, &connection)?;
    if level != manifest.level {
        let claimed = &manifest.level;
        return Err(Defect::new(
            Flaw::LevelDiffers,
            format!(
                "it is at level {} ({}), the manifest says {} ({})",
                level.level, level.name, claimed.level, claimed.name
            ),
        ));
    }
    let lost =
        Fingerprint::of(&connection).map_err(|error| damaged(&error))?.lost_since(&manifest.fingerprint);
    if !lost.is_empty() {
        return Err(Defect::new(
            Flaw::HistoryMissing,
            format!("less than the manifest claims: {}", lost.join("; ")),
        ));
    }
    if content.sha256 != manifest.sha256 {
        return Err(Defect::new(Flaw::Altered, "the checksum is not that of what was written"));
    }
    Ok(())
}

fn ownership(metadata: &fs::Metadata) -> Result<(), Defect> {
    let us = nix::unistd::geteuid().as_raw();
    let trusted = metadata.uid() == us || metadata.uid() == 0;
    if metadata.is_file() && trusted && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let what = if metadata.is_file() { "file" } else { "something that is no file" };
    Err(Defect::new(
        Flaw::WrongOwner,
        format!("a {what} of uid {uid} with mode {mode:04o}; expected one of uid {us}"),
    ))
}

/// As long as its own header says.
fn whole(file: &Path, content: &Content, manifest: &Manifest) -> Result<(), Defect> {
    let claimed = claimed_length(file);
    let is_short = claimed.is_none_or(|claimed| content.bytes < claimed);
    // With the length that was written it is the header that is wrong.
    if is_short && content.bytes != manifest.bytes {
        let claimed = claimed.unwrap_or(HEADER as u64);
        return Err(Defect::new(
            Flaw::Truncated,
            format!("{} bytes are left of {}", content.bytes, claimed.max(manifest.bytes)),
        ));
    }
    Ok(())
}

/// Page size times page count; `None` where there is no whole header.
fn claimed_length(file: &Path) -> Option<u64> {
    let mut header = [0; HEADER];
    File::open(file).ok()?.read_exact(&mut header).ok()?;
    let size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size => u64::from(size),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    Some(size * u64::from(pages))
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

fn unreadable(file: &Path, error: &std::io::Error) -> Defect {
    Defect::new(Flaw::Unreadable, format!("cannot read {}: {error}", file.display()))
}
