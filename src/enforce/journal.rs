//! The journal: what was begun, on disk before it is done. Killed anywhere, the next run reads it and finishes or
//! undoes; without a journal nothing is under way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::canary::Why;
use crate::outcome::{MoveStep, seconds, utc};
use crate::t3::version::Version;

const FORMAT: u32 = 1;

/// A rollout under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    format: u32,
    #[serde(with = "utc")]
    pub began: SystemTime,
    pub target: Version,
    #[serde(rename = "soak_seconds", with = "seconds")]
    pub soak: Duration,
    /// Groups that were watched to the end of their soak.
    pub groups: usize,
    /// Who was moved, or is being moved.
    pub moves: Vec<Move>,
    /// Who stays because the run that began it was told so; whoever carries it on leaves them alone as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// Why everybody goes back; absent while it goes forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Why>,
}

/// One user on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    pub user: String,
    pub from: Version,
    pub group: usize,
    /// Whether the instance ran; one that was stopped on purpose is not started.
    pub ran: bool,
    pub step: MoveStep,
    /// The snapshot that was taken while the instance was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
    /// Where a restore that was begun puts the newer database aside: the time in its name.
    #[serde(default, with = "maybe_utc", skip_serializing_if = "Option::is_none")]
    pub restoring: Option<SystemTime>,
}

/// The journal in memory and on disk, the same at every moment.
pub struct Ledger {
    path: PathBuf,
    journal: Mutex<Journal>,
}

impl Journal {
    pub fn new(target: Version, soak: Duration, began: SystemTime) -> Self {
        Self {
            format: FORMAT,
            began,
            target,
            soak,
            groups: 0,
            moves: Vec::new(),
            except: Vec::new(),
            back: None,
        }
    }
}

impl Ledger {
    /// Begins a rollout.
    pub fn begin(dir: &Path, journal: Journal) -> io::Result<Self> {
        let ledger = Self { path: dir.join("journal.json"), journal: Mutex::new(journal) };
        write(&ledger.path, &*ledger.lock())?;
        Ok(ledger)
    }

    /// The rollout that an earlier run left unfinished, where one did.
    pub fn find(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join("journal.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let journal: Journal = serde_json::from_slice(&text)?;
        if journal.format != FORMAT {
            let other = format!("it is of format {}, this program knows {FORMAT}", journal.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, other));
        }
        Ok(Some(Self { path, journal: Mutex::new(journal) }))
    }

    /// Whether one lies there, without reading it.
    pub fn exists(dir: &Path) -> bool {
        dir.join("journal.json").exists()
    }

    pub fn read(&self) -> Journal {
        self.lock().clone()
    }

    /// Changes the journal; it is on disk when this returns, or nothing has changed.
    pub fn change(&self, change: impl FnOnce(&mut Journal)) -> io::Result<()> {
        let mut journal = self.lock();
        let mut changed = journal.clone();
        change(&mut changed);
        write(&self.path, &changed)?;
        *journal = changed;
        Ok(())
    }

    /// Changes one user's entry.
    pub fn change_move(&self, user: &str, change: impl FnOnce(&mut Move)) -> io::Result<()> {
        self.change(|journal| {
            if let Some(entry) = journal.moves.iter_mut().find(|entry| entry.user == user) {
                change(entry);
            }
        })
    }

    /// The rollout is over.
    pub fn close(self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the directory of the enforcer's files; others may look at them, and nobody else may change them.
pub fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

/// Writes a file of the enforcer beside its place, waits until it is on disk, and gives it its name.
pub fn write(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(content)?;
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

mod maybe_utc {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::outcome::utc;

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct At(#[serde(with = "utc")] SystemTime);

    pub fn serialize<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        at.map(At).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<At>::deserialize(deserializer)?.map(|At(at)| at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_000 + milliseconds)
    }

    fn journal() -> Journal {
        let mut journal = Journal::new(Version::new(0, 0, 33), Duration::from_secs(120), at(0));
        journal.moves.push(Move {
            user: "ann".to_owned(),
            from: Version::new(0, 0, 24),
            group: 0,
            ran: true,
            step: MoveStep::Stopping,
            copy: None,
            restoring: None,
        });
        journal
    }

    #[test]
    fn what_was_written_is_found_and_after_the_end_nothing_is() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Ledger::find(dir.path()).expect("no journal is fine").is_none());
        let ledger = Ledger::begin(dir.path(), journal()).expect("begun");
        ledger
            .change_move("ann", |entry| {
                entry.step = MoveStep::Copied;
                entry.copy = Some("20260101T000000.000Z-level30-0.0.24".to_owned());
                entry.restoring = Some(at(7));
            })
            .expect("written");
        let found = Ledger::find(dir.path()).expect("read").expect("a journal");
        assert_eq!(found.read(), ledger.read());
        assert_eq!(found.read().moves[0].restoring, Some(at(7)));
        found.close().expect("closed");
        assert!(!Ledger::exists(dir.path()));
    }

    #[test]
    fn a_change_that_cannot_be_written_is_not_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = Ledger::begin(dir.path(), journal()).expect("begun");
        fs::create_dir(dir.path().join("journal.new")).expect("in the way");
        ledger.change(|journal| journal.groups = 3).expect_err("in the way");
        assert_eq!(ledger.read().groups, 0);
    }

    #[test]
    fn a_journal_of_another_program_is_not_guessed_at() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("journal.json"), "{\"format\": 9}").expect("written");
        assert!(Ledger::find(dir.path()).is_err());
    }
}
