//! How other processes tell `serve` what they saw: one JSON file an event, renamed into place whole, taken in oldest
//! first. The directory is shared, so a file counts only by its owner, its size and its shape, and everything is bounded.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::outcome::{BackupRun, End, Endpoint, Hold, Reason, Run, SpoolRefusal, Step, seconds, utc};

/// Refused files kept for whoever wants to look; the newest.
const REFUSED_KEPT: usize = 32;

/// A dot-file older than this was left by a process that died while writing it.
const ABANDONED: Duration = Duration::from_secs(600);

/// Something another process saw. JSON: `event` is the word, the fields beside it; times and durations as in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A real user came in through the dispatch proxy.
    Login {
        user: String,
        endpoint: Endpoint,
        #[serde(rename = "duration_seconds", with = "seconds")]
        duration: Duration,
        #[serde(with = "utc")]
        at: SystemTime,
    },
    /// A real user could not.
    LoginFailed {
        user: String,
        step: Step,
        reason: Reason,
        #[serde(with = "utc")]
        at: SystemTime,
    },
    /// A probe that another process ran.
    Run(Run),
    /// Something was done to a user's snapshots, or with one of them.
    Backup(BackupRun),
    /// A run of the enforcer ended.
    Upgrade(Upgrade),
}

/// How a run of the enforcer ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upgrade {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub end: End,
    /// Why it holds, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    pub detail: String,
    /// Who was moved, or brought back.
    pub moved: Vec<String>,
    #[serde(with = "utc")]
    pub at: SystemTime,
    #[serde(rename = "duration_seconds", with = "seconds")]
    pub duration: Duration,
}

impl Event {
    /// The word that stands for it in JSON and in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Login { .. } => "login",
            Self::LoginFailed { .. } => "login_failed",
            Self::Run(_) => "run",
            Self::Backup(_) => "backup",
            Self::Upgrade(_) => "upgrade",
        }
    }
}

/// How much may lie in the spool, and whose files count.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Files waiting at most; default 4096.
    pub files: usize,
    /// Bytes waiting at most; default 16 MiB.
    pub bytes: u64,
    /// Bytes of one event; default 256 KiB.
    pub file_bytes: u64,
    /// Whose files are taken in; default our own and root's.
    pub accepted_uids: Vec<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            files: 4096,
            bytes: 16 * 1024 * 1024,
            file_bytes: 256 * 1024,
            accepted_uids: vec![0, nix::unistd::geteuid().as_raw()],
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("the spool {} is full ({files} files, {bytes} bytes); is `t3-prober serve` running?", .directory.display())]
    Full { directory: PathBuf, files: usize, bytes: u64 },
    #[error("the event is larger than the {0} bytes that the spool takes")]
    TooLarge(u64),
    #[error("writing to the spool {}; check that it exists and is writable for this user", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// A file that was not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the spooled file {name:?} was refused: {detail} [{reason}]")]
pub struct Rejection {
    pub name: OsString,
    pub reason: SpoolRefusal,
    /// For people; never what stood in the file.
    pub detail: String,
}

/// The directory, as both sides use it. Every call blocks for a few file operations.
pub struct Spool {
    directory: PathBuf,
    limits: Limits,
    /// Entries that could be neither taken nor moved: each is said once.
    stuck: HashSet<OsString>,
    sequence: AtomicU64,
}

/// An entry as the directory lists it.
struct Waiting {
    name: OsString,
    bytes: u64,
}

impl Spool {
    pub fn new(directory: PathBuf, limits: Limits) -> Self {
        Self { directory, limits, stuck: HashSet::new(), sequence: AtomicU64::new(0) }
    }

    /// Drops an event, whole or not at all.
    pub fn put(&self, event: &Event) -> Result<(), PutError> {
        let failed = |error| PutError::Write(self.directory.clone(), error);
        let text = serde_json::to_vec(event).map_err(|error| failed(error.into()))?;
        let size = text.len() as u64;
        if size > self.limits.file_bytes {
            return Err(PutError::TooLarge(self.limits.file_bytes));
        }
        let waiting = self.list().map_err(failed)?;
        let bytes = waiting.iter().map(|file| file.bytes).sum::<u64>();
        if waiting.len() >= self.limits.files || bytes + size > self.limits.bytes {
            return Err(PutError::Full { directory: self.directory.clone(), files: waiting.len(), bytes });
        }
        let name = self.next_name();
        let half = self.directory.join(format!(".{name}"));
        let written = write_new(&half, &text).and_then(|()| fs::rename(&half, self.directory.join(&name)));
        if written.is_err() {
            let _ = fs::remove_file(&half);
        }
        written.map_err(failed)
    }

    /// Takes in what is waiting, oldest first, and removes it. A file that cannot be removed is refused, for it would
    /// come again. An unreadable or missing directory is an error; nothing waiting is not.
    pub fn take(&mut self) -> io::Result<Vec<Result<Event, Rejection>>> {
        let mut waiting = self.list()?;
        waiting.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        self.stuck.retain(|name| waiting.iter().any(|file| file.name == *name));
        let mut taken = Vec::new();
        for Waiting { name, .. } in waiting {
            if name.as_encoded_bytes().starts_with(b".") {
                self.remove_if_abandoned(&name);
            } else if !self.stuck.contains(&name) {
                // Between the listing and now another process may have cleared it away.
                taken.extend(self.take_one(&name).transpose());
            }
        }
        Ok(taken)
    }

    fn take_one(&mut self, name: &OsStr) -> Result<Option<Event>, Rejection> {
        let path = self.directory.join(name);
        match self.read(&path) {
            Ok(None) => Ok(None),
            Ok(Some(event)) => match fs::remove_file(&path) {
                Ok(()) => Ok(Some(event)),
                Err(error) => {
                    self.stuck.insert(name.to_owned());
                    let detail = format!("it cannot be removed ({error}); check the mode of the directory");
                    Err(Rejection { name: name.to_owned(), reason: SpoolRefusal::Stuck, detail })
                }
            },
            Err((reason, detail)) => {
                if self.put_aside(name).is_err() {
                    self.stuck.insert(name.to_owned());
                }
                Err(Rejection { name: name.to_owned(), reason, detail })
            }
        }
    }

    fn read(&self, path: &Path) -> Result<Option<Event>, (SpoolRefusal, String)> {
        let opened = OpenOptions::new()
            .read(true)
            // A symlink is never followed, and a pipe without a writer must not hold us up.
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if is_regular(path) => {
                return Err((SpoolRefusal::Unreadable, format!("opening it: {error}")));
            }
            Err(error) => return Err((SpoolRefusal::NotAFile, format!("it is no regular file: {error}"))),
        };
        // Of the opened file: what the name stands for may change under us.
        let metadata =
            file.metadata().map_err(|error| (SpoolRefusal::Unreadable, format!("looking at it: {error}")))?;
        if !metadata.is_file() || metadata.nlink() > 1 {
            return Err((SpoolRefusal::NotAFile, "it is no regular file with a single name".to_owned()));
        }
        if !self.limits.accepted_uids.contains(&metadata.uid()) {
            return Err((
                SpoolRefusal::ForeignOwner,
                format!("uid {} may not report events", metadata.uid()),
            ));
        }
        let most = self.limits.file_bytes;
        let mut text = Vec::new();
        file.take(most + 1)
            .read_to_end(&mut text)
            .map_err(|error| (SpoolRefusal::Unreadable, format!("reading it: {error}")))?;
        if text.len() as u64 > most {
            return Err((SpoolRefusal::TooLarge, format!("it is larger than {most} bytes")));
        }
        match serde_json::from_slice(&text) {
            Ok(event) => Ok(Some(event)),
            // The parser's own message quotes the file, and nobody knows what stands in it.
            Err(error) => Err((
                SpoolRefusal::Garbage,
                format!("no event of this version at line {} column {}", error.line(), error.column()),
            )),
        }
    }

    /// Moves a refused file out of the way; what is no small regular file is removed.
    fn put_aside(&self, name: &OsStr) -> io::Result<()> {
        let path = self.directory.join(name);
        let metadata = fs::symlink_metadata(&path)?;
        if !metadata.is_file() || metadata.nlink() > 1 || metadata.len() > self.limits.file_bytes {
            return fs::remove_file(&path);
        }
        let aside = self.refused();
        match fs::create_dir(&aside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut names = fs::read_dir(&aside)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        let surplus = (names.len() + 1).saturating_sub(REFUSED_KEPT);
        for old in names.into_iter().take(surplus) {
            fs::remove_file(aside.join(old))?;
        }
        // Under a name of ours, which sorts by the time of the refusal whatever the file was called.
        fs::rename(path, aside.join(self.next_name()))
    }

    /// Beside the spool and not in it: whoever may write to the spool could put a link in its place, and have files
    /// elsewhere removed.
    fn refused(&self) -> PathBuf {
        let mut name = self.directory.as_os_str().to_owned();
        name.push(".refused");
        PathBuf::from(name)
    }

    /// What lies in the directory; of a flood only so much that one round stays short.
    fn list(&self) -> io::Result<Vec<Waiting>> {
        let mut waiting = Vec::new();
        for entry in fs::read_dir(&self.directory)?.take(self.limits.files.saturating_mul(2)) {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => waiting.push(Waiting { name: entry.file_name(), bytes: metadata.len() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(waiting)
    }

    fn remove_if_abandoned(&self, name: &OsStr) {
        let path = self.directory.join(name);
        let age = fs::symlink_metadata(&path)
            .and_then(|file| file.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_file(&path);
        }
    }

    /// Sorts by time; the random part tells apart what two processes drop in the same microsecond.
    fn next_name(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let n = self.sequence.fetch_add(1, Ordering::Relaxed);
        format!("{:017}-{n:08}-{:08x}.json", now.as_micros(), rand::random::<u32>())
    }
}

fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
    // `serve` reads it through the group of the directory, whatever the umask and the group of this process.
    if let Some(group) =
        path.parent().and_then(|directory| fs::metadata(directory).ok()).map(|found| found.gid())
    {
        // Whoever may not is in that group already, or is `serve` itself.
        let _ = std::os::unix::fs::fchown(&file, None, Some(group));
    }
    file.set_permissions(fs::Permissions::from_mode(0o640))?;
    file.write_all(text)
}

fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests;
