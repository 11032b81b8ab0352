//! The databases that are rehearsed on: nothing at all, each user's newest verified backup or else a fresh copy, or a
//! file. Never a live one.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::evidence::Seed;
use super::place::Place;
use crate::backup::{self, Tree};
use crate::outcome::{Failure, Reason};
use crate::t3::Instance;
use crate::t3::state::Level;
use crate::t3::state::reader;

/// The name of the seed that is no database.
pub const FRESH: &str = "<fresh>";
/// How long copying a user's database may take.
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// A seed, and the file it is copied from; a fresh one has none.
#[derive(Clone, Debug)]
pub struct Source {
    pub seed: Seed,
    pub file: Option<PathBuf>,
}

impl Source {
    pub fn fresh(now: SystemTime) -> Self {
        let seed = Seed {
            name: FRESH.to_owned(),
            user: None,
            level: None,
            bytes: 0,
            taken_at: now,
            is_backup: false,
        };
        Self { seed, file: None }
    }

    /// A database that somebody names; it is copied first, because nobody says that it is at rest.
    pub fn of_file(file: &Path, place: &Place, now: SystemTime) -> Result<Self, Failure> {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
        Self::copied(file, place, name, None, now)
    }

    /// A user's newest verified backup, else a copy of what they have now.
    pub fn of_user(
        instance: &Instance,
        section: &backup::Section,
        place: &Place,
        now: SystemTime,
    ) -> Result<Self, Failure> {
        let user = &instance.name;
        let Some(snapshot) = Tree::new(section, user).newest_verified()? else {
            let name = user.clone();
            return Self::copied(&instance.database(), place, name.clone(), Some(name), now);
        };
        let unknown = || {
            Failure::new(Reason::Unreadable, format!("the manifest of {} is gone", snapshot.file.display()))
        };
        let manifest = snapshot.manifest.as_ref().ok_or_else(unknown)?;
        let seed = Seed {
            name: user.clone(),
            user: Some(user.clone()),
            level: Some(manifest.level.level.0),
            bytes: manifest.bytes,
            taken_at: manifest.taken_at,
            is_backup: true,
        };
        Ok(Self { seed, file: Some(snapshot.file.clone()) })
    }

    fn copied(
        database: &Path,
        place: &Place,
        name: String,
        user: Option<String>,
        now: SystemTime,
    ) -> Result<Self, Failure> {
        let file = place.dir().join(format!("seed-{:016x}.sqlite", rand::random::<u64>()));
        let copied = backup::copy(database, &file, COPY_LIMIT)?;
        let level: Level = copied.level;
        // A page that cannot be read would be found by the control, after a minute, as something else.
        reader::ask(&file, |connection| {
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
        })?;
        let bytes = std::fs::metadata(&file).map(|metadata| metadata.len()).unwrap_or_default();
        let seed = Seed { name, user, level: Some(level.level.0), bytes, taken_at: now, is_backup: false };
        Ok(Self { seed, file: Some(file) })
    }

    /// Puts a copy where a build looks for it. A clone where the file system can, so it costs nothing.
    pub fn place_in(&self, room: &Path) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        std::fs::copy(file, room.join("base/userdata/state.sqlite")).map(|_| ())
    }
}
