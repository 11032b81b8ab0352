//! The databases that are rehearsed on: nothing at all, each user's newest proven backup or else a fresh copy, or a
//! file. Never a live one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::evidence::Seed;
use super::hands::{Account, Hands};
use super::place::Place;
use crate::backup::{self, Copied, Copying, InUse, Tree};
use crate::outcome::{Failure, Grounds, Reason};
use crate::t3::Instance;
use crate::t3::state::reader;

/// The name of the seed that is no database.
pub const FRESH: &str = "<fresh>";
/// How long copying a user's database may take.
pub const COPY_LIMIT: Duration = Duration::from_secs(300);

/// A seed, and the file it is copied from; a fresh one has none.
#[derive(Clone, Debug)]
pub struct Source {
    pub seed: Seed,
    pub file: Option<PathBuf>,
    /// No take removes a backup while builds are tried on it.
    #[expect(dead_code, reason = "held for its Drop")]
    in_use: Option<Arc<InUse>>,
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
        Self { seed, file: None, in_use: None }
    }

    /// A database that somebody names; it is copied first, because nobody says that it is at rest.
    pub fn of_file(file: &Path, place: &Place, now: SystemTime) -> Result<Self, (Grounds, String)> {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
        let cannot = |failure: Failure| cannot_copy(&file.display(), &failure);
        let into = place.file_for(Account::ours()).map_err(|error| cannot(unusable(&error)))?;
        let copied = backup::copy(file, &into, COPY_LIMIT).map_err(cannot)?;
        Self::copied(into, &copied, name, None, now).map_err(cannot)
    }

    /// A user's newest proven backup, else a copy of what they have now, made by their own hands.
    pub async fn of_user(
        instance: &Instance,
        hands: &impl Hands,
        section: &backup::Section,
        place: &Place,
        now: SystemTime,
    ) -> Result<Self, (Grounds, String)> {
        let user = &instance.name;
        let source = async {
            if let Some(snapshot) = Tree::new(section, user).newest_proven()? {
                return Self::of_snapshot(user, snapshot);
            }
            let into = place.file_for(Account::of(hands)).map_err(|error| unusable(&error))?;
            let free = place.free().map_err(|error| unusable(&error))?;
            let copied =
                hands.copy(instance, Copying { into: into.clone(), free, limit: COPY_LIMIT }).await?;
            // From here on it is nobody's but ours.
            super::place::give(&into, Account::ours()).map_err(|error| unusable(&error))?;
            Self::copied(into, &copied, user.clone(), Some(user.clone()), now)
        };
        source.await.map_err(|failure| cannot_copy(&format!("the data of {user}"), &failure))
    }

    fn of_snapshot(user: &str, snapshot: backup::Snapshot) -> Result<Self, Failure> {
        let unknown = || {
            Failure::new(Reason::Unreadable, format!("the manifest of {} is gone", snapshot.file.display()))
        };
        let manifest = snapshot.manifest.as_ref().ok_or_else(unknown)?;
        let seed = Seed {
            name: user.to_owned(),
            user: Some(user.to_owned()),
            level: Some(manifest.level.level.0),
            bytes: manifest.bytes,
            taken_at: manifest.taken_at,
            is_backup: true,
        };
        let in_use = Some(Arc::new(snapshot.in_use()?));
        Ok(Self { seed, file: Some(snapshot.file), in_use })
    }

    fn copied(
        file: PathBuf,
        copied: &Copied,
        name: String,
        user: Option<String>,
        now: SystemTime,
    ) -> Result<Self, Failure> {
        // A page that cannot be read would be found by the control, after a minute, as something else.
        reader::ask(&file, |connection| {
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
        })?;
        let bytes = std::fs::metadata(&file).map(|metadata| metadata.len()).unwrap_or_default();
        let level = Some(copied.level.level.0);
        let seed = Seed { name, user, level, bytes, taken_at: now, is_backup: false };
        Ok(Self { seed, file: Some(file), in_use: None })
    }

    /// Puts a copy where a build looks for it. A clone where the file system can, so it costs nothing.
    pub fn place_in(&self, room: &Path) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let copy = room.join("base/userdata/state.sqlite");
        std::fs::copy(file, &copy)?;
        std::fs::set_permissions(copy, std::fs::Permissions::from_mode(0o600))
    }
}

fn unusable(error: &std::io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("no place for it: {error}"))
}

fn cannot_copy(what: &impl std::fmt::Display, failure: &Failure) -> (Grounds, String) {
    let grounds = if failure.reason == Reason::NoSpace { Grounds::NoSpace } else { Grounds::NoSeed };
    (grounds, format!("{what} cannot be copied: {}", failure.detail))
}
