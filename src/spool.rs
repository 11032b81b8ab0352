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

use crate::outcome::{Endpoint, Reason, Run, SpoolRefusal, Step, seconds, utc};

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
    // `serve` reads it through the group of the directory, whatever the umask of this process.
    file.set_permissions(fs::Permissions::from_mode(0o640))?;
    file.write_all(text)
}

fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Facts, Kind, Outcome, StepResult, Trigger};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
    }

    fn run(user: &str, outcome: Outcome) -> Run {
        Run {
            user: user.to_owned(),
            kind: Kind::Handshake,
            trigger: Trigger::Demand,
            started: at(2),
            duration: Duration::from_millis(4),
            steps: vec![StepResult {
                step: Step::Reach,
                outcome,
                duration: Duration::from_millis(2),
                detail: None,
            }],
            facts: Facts::default(),
            trace_id: "a".repeat(32),
        }
    }

    fn login(user: &str) -> Event {
        Event::Login {
            user: user.to_owned(),
            endpoint: Endpoint::BrowserSession,
            duration: Duration::from_millis(120),
            at: at(0),
        }
    }

    fn spool(limits: Limits) -> (tempfile::TempDir, Spool) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("spool");
        fs::create_dir(&path).expect("made");
        (directory, Spool::new(path, limits))
    }

    /// The refusals of one round, and how many events it brought.
    fn refusals(spool: &mut Spool) -> (Vec<SpoolRefusal>, usize) {
        let taken = spool.take().expect("taken");
        let refused: Vec<_> = taken.iter().filter_map(|one| one.as_ref().err().map(|no| no.reason)).collect();
        let events = taken.len() - refused.len();
        (refused, events)
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .expect("read")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn events_of_several_processes_are_taken_once_and_oldest_first() {
        let (_directory, mut spool) = spool(Limits::default());
        let other = Spool::new(spool.directory.clone(), Limits::default());
        let events = [
            login("ann"),
            Event::LoginFailed {
                user: "bob".to_owned(),
                step: Step::Exchange,
                reason: Reason::AuthStore,
                at: at(1),
            },
            Event::Run(run("cid", Outcome::Failed(Reason::Refused))),
            login("bob"),
        ];
        for (n, event) in events.iter().enumerate() {
            if n % 2 == 0 { &spool } else { &other }.put(event).expect("put");
        }
        let taken: Vec<_> =
            spool.take().expect("taken").into_iter().collect::<Result<_, _>>().expect("accepted");
        assert_eq!(taken, events);
        assert!(spool.take().expect("taken").is_empty());
        assert!(names(&spool.directory).is_empty());
    }

    #[test]
    fn an_event_is_json_with_its_word_beside_its_fields() {
        insta::assert_snapshot!(serde_json::to_string(&login("ann")).expect("written"), @r#"{"event":"login","user":"ann","endpoint":"browser_session","duration_seconds":0.12,"at":"2026-01-01T00:00:00.000Z"}"#);
    }

    #[test]
    fn a_half_written_file_is_left_until_it_is_whole_or_its_writer_is_long_dead() {
        let (_directory, mut spool) = spool(Limits::default());
        let half = spool.directory.join(".half.json");
        fs::write(&half, "{\"event\": \"logi").expect("written");
        assert!(spool.take().expect("taken").is_empty());
        assert!(half.exists());
        let file = OpenOptions::new().write(true).open(&half).expect("opened");
        file.set_modified(SystemTime::now() - ABANDONED * 2).expect("aged");
        assert!(spool.take().expect("taken").is_empty());
        assert!(!half.exists());
    }

    #[test]
    fn a_flood_is_bounded_by_number_and_by_bytes_and_the_writer_is_told() {
        let (_directory, spool) = spool(Limits { files: 10, ..Limits::default() });
        for _ in 0..10 {
            spool.put(&login("ann")).expect("room");
        }
        let error = spool.put(&login("ann")).expect_err("full");
        assert!(error.to_string().contains("is full (10 files"), "{error}");
        assert_eq!(names(&spool.directory).len(), 10);

        let small = Spool::new(spool.directory.clone(), Limits { bytes: 1200, ..Limits::default() });
        assert!(matches!(small.put(&login("ann")), Err(PutError::Full { .. })));
        let tiny = Spool::new(spool.directory.clone(), Limits { file_bytes: 20, ..Limits::default() });
        assert!(matches!(tiny.put(&login("ann")), Err(PutError::TooLarge(20))));
    }

    #[test]
    fn a_flood_past_the_bounds_is_worked_off_in_rounds() {
        let (_directory, mut spool) = spool(Limits { files: 10, ..Limits::default() });
        let writer = Spool::new(spool.directory.clone(), Limits::default());
        for _ in 0..50 {
            writer.put(&login("ann")).expect("put");
        }
        let rounds: Vec<usize> = (0..3).map(|_| spool.take().expect("taken").len()).collect();
        assert_eq!(rounds, [20, 20, 10]);
    }

    #[test]
    fn a_file_of_a_uid_that_may_not_report_is_refused_and_kept_for_a_look() {
        let stranger = nix::unistd::geteuid().as_raw() + 1;
        let (_directory, mut spool) = spool(Limits { accepted_uids: vec![stranger], ..Limits::default() });
        spool.put(&login("ann")).expect("put");
        assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::ForeignOwner], 0));
        assert_eq!(names(&spool.refused()).len(), 1);
        assert_eq!(refusals(&mut spool), (vec![], 0), "said once");
    }

    #[test]
    fn what_is_no_file_of_its_own_is_refused_unread_and_holds_nothing_up() {
        let (_directory, mut spool) = spool(Limits::default());
        let outside = tempfile::tempdir().expect("temporary directory");
        let event = serde_json::to_string(&login("ann")).expect("written");
        let target = outside.path().join("target.json");
        fs::write(&target, &event).expect("written");
        std::os::unix::fs::symlink(&target, spool.directory.join("1.json")).expect("linked");
        fs::hard_link(&target, spool.directory.join("2.json")).expect("linked");
        nix::unistd::mkfifo(&spool.directory.join("3.json"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        fs::create_dir(spool.directory.join("4.json")).expect("made");
        spool.put(&login("bob")).expect("put");

        assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::NotAFile; 4], 1));
        assert_eq!(refusals(&mut spool), (vec![], 0), "said once");
        assert_eq!(names(&spool.directory), ["4.json"], "a directory is left to people");
        assert_eq!(fs::read_to_string(&target).expect("untouched"), event);
    }

    #[test]
    fn garbage_is_refused_without_quoting_it_and_only_the_newest_are_kept() {
        let (_directory, mut spool) = spool(Limits::default());
        fs::write(spool.directory.join("1.json"), r#"{"event": "hunter2"}"#).expect("written");
        let refusal = spool.take().expect("taken").remove(0).expect_err("refused");
        assert_eq!(refusal.reason, SpoolRefusal::Garbage);
        assert!(!refusal.to_string().contains("hunter2"), "{refusal}");
        for n in 0..REFUSED_KEPT + 8 {
            fs::write(spool.directory.join(format!("{n}.json")), "").expect("written");
            assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::Garbage], 0));
        }
        assert_eq!(names(&spool.refused()).len(), REFUSED_KEPT);
    }

    #[test]
    fn a_file_larger_than_any_event_is_refused_and_not_kept() {
        let (_directory, mut spool) = spool(Limits { file_bytes: 500, ..Limits::default() });
        fs::write(spool.directory.join("1.json"), vec![b' '; 501]).expect("written");
        assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::TooLarge], 0));
        assert!(names(&spool.directory).is_empty());
    }

    #[test]
    fn an_event_is_readable_for_the_group_and_nobody_else() {
        let (_directory, spool) = spool(Limits::default());
        spool.put(&login("ann")).expect("put");
        let name = names(&spool.directory).remove(0);
        let mode = fs::metadata(spool.directory.join(name)).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn a_missing_directory_is_an_error_with_a_remedy_for_both_sides() {
        let (_directory, spool) = spool(Limits::default());
        let mut spool = Spool::new(spool.directory.join("missing"), Limits::default());
        assert!(spool.take().is_err());
        let error = spool.put(&login("ann")).expect_err("no directory");
        assert!(error.to_string().contains("check that it exists and is writable"), "{error}");
    }
}
