//! Planned absence: a user, or everybody, is still probed and shown, and nobody is woken. A pause always ends by
//! itself. The file is written by commands and read by `serve`; every time comes from the caller.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::outcome::utc;

/// Longer than any planned absence: what is meant to last is a change of the inventory.
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Bytes of a reason; it stands on pages and in logs.
const REASON: usize = 200;

/// Bytes of the file; thousands of pauses.
const FILE: u64 = 1024 * 1024;

/// One planned absence. JSON: `user` (absent: everybody), `since`, `until`, `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(with = "utc")]
    pub since: SystemTime,
    #[serde(with = "utc")]
    pub until: SystemTime,
    /// Why, in the words of whoever paused.
    pub reason: String,
}

/// All pauses that have not ended, at most one a user and one for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pauses {
    pauses: Vec<Pause>,
}

#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    #[error(
        "a pause must last between a second and {}, it always ends by itself",
        humantime::format_duration(LONGEST)
    )]
    Length,
    #[error("the reason of a pause is 1 to {REASON} bytes of one line, without control characters")]
    Reason,
    #[error("reading {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is not a list of pauses; remove it to begin anew", .0.display())]
    Malformed(PathBuf, #[source] serde_json::Error),
    #[error("writing {}; check that its directory exists and is writable for this user", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

impl Pause {
    /// A pause from now on.
    pub fn new(
        user: Option<String>,
        now: SystemTime,
        length: Duration,
        reason: &str,
    ) -> Result<Self, PauseError> {
        let reason = reason.trim();
        if reason.is_empty() || reason.len() > REASON || reason.chars().any(char::is_control) {
            return Err(PauseError::Reason);
        }
        if length < Duration::from_secs(1) || length > LONGEST {
            return Err(PauseError::Length);
        }
        let until = now.checked_add(length).ok_or(PauseError::Length)?;
        Ok(Self { user, since: now, until, reason: reason.to_owned() })
    }

    /// What a hand-written file may not say either.
    fn is_sound(&self) -> bool {
        let length = self.until.duration_since(self.since).unwrap_or_default();
        Self::new(self.user.clone(), self.since, length, &self.reason).is_ok()
    }

    fn holds(&self, now: SystemTime) -> bool {
        self.since <= now && now < self.until
    }
}

impl Pauses {
    /// The pauses that hold now; a missing file is none.
    pub fn load(path: &Path, now: SystemTime) -> Result<Self, PauseError> {
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(PauseError::Read(path.to_owned(), error)),
        };
        let mut pauses: Self =
            serde_json::from_str(&text).map_err(|error| PauseError::Malformed(path.to_owned(), error))?;
        if let Some(unsound) = pauses.pauses.iter().find(|pause| !pause.is_sound()) {
            let name = unsound.user.as_deref().unwrap_or("everybody");
            let error =
                serde::de::Error::custom(format!("the pause of {name:?} has no proper end or reason"));
            return Err(PauseError::Malformed(path.to_owned(), error));
        }
        pauses.expire(now);
        Ok(pauses)
    }

    /// Changes the file as one step: two commands at once lose neither's change, and a reader never sees half of one.
    pub fn change<T>(
        path: &Path,
        now: SystemTime,
        change: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, PauseError> {
        let failed = |error| PauseError::Write(path.to_owned(), error);
        // The directory is the lock: a lock file would belong to whoever paused first, and shut out the others.
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let lock = File::open(directory).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut pauses = Self::load(path, now)?;
        let result = change(&mut pauses);
        pauses.write(path).map_err(failed)?;
        Ok(result)
    }

    /// Adds a pause in the place of an earlier one of the same user.
    pub fn add(&mut self, pause: Pause) {
        self.pauses.retain(|known| known.user != pause.user);
        self.pauses.push(pause);
    }

    /// Ends the pause of a user, or with `None` the one of everybody. False when there was none.
    pub fn remove(&mut self, user: Option<&str>) -> bool {
        let before = self.pauses.len();
        self.pauses.retain(|pause| pause.user.as_deref() != user);
        self.pauses.len() < before
    }

    /// The pause that covers a user now; where their own and everybody's both do, the one that ends later.
    pub fn of(&self, user: &str, now: SystemTime) -> Option<&Pause> {
        self.pauses
            .iter()
            .filter(|pause| pause.user.as_deref().is_none_or(|paused| paused == user) && pause.holds(now))
            .max_by_key(|pause| pause.until)
    }

    pub fn is_paused(&self, user: &str, now: SystemTime) -> bool {
        self.of(user, now).is_some()
    }

    fn expire(&mut self, now: SystemTime) {
        self.pauses.retain(|pause| now < pause.until);
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        // Under the lock there is one writer: what lies here was left by one that was killed.
        let mut half = path.as_os_str().to_owned();
        half.push(".new");
        match fs::remove_file(&half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&half)?;
        // `serve` reads it through its group, whatever the umask of whoever paused.
        file.set_permissions(fs::Permissions::from_mode(0o640))?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&half, path)
    }
}

/// Pauses a user for work of ours on their instance, where nobody has paused them already. It ends by itself, and what
/// keeps it from being written keeps nobody from working.
pub fn for_work(path: &Path, user: &str, length: Duration, reason: &str) {
    let now = SystemTime::now();
    let changed = Pause::new(Some(user.to_owned()), now, length, reason).and_then(|pause| {
        Pauses::change(path, now, |pauses| {
            if !pauses.is_paused(user, now) {
                pauses.add(pause);
            }
        })
    });
    if let Err(error) = changed {
        tracing::warn!(user, error = &error as &dyn std::error::Error, "alerts are not paused");
    }
}

/// Ends it where it is that one.
pub fn work_is_over(path: &Path, user: &str, reason: &str) {
    let now = SystemTime::now();
    let changed = Pauses::change(path, now, |pauses| {
        let ours = pauses.of(user, now).is_some_and(|pause| pause.user.is_some() && pause.reason == reason);
        ours && pauses.remove(Some(user))
    });
    if let Err(error) = changed {
        tracing::warn!(user, error = &error as &dyn std::error::Error, "the pause ends by itself");
    }
}

/// What `serve` keeps: the pauses as last read, and by what it sees that the file changed.
pub struct PauseFile {
    path: PathBuf,
    pauses: Pauses,
    seen: Option<Stamp>,
}

/// Inode, size and time of change: an atomic replacement alters the first.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl PauseFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, pauses: Pauses::default(), seen: None }
    }

    /// Reads the file if it changed: the users (`None`: everybody) whose pause began, ended or is another than before.
    /// A bad file is an error once; the pauses read before go on, to their end.
    pub fn refresh(&mut self, now: SystemTime) -> Result<BTreeSet<Option<String>>, PauseError> {
        let before = self.pauses.clone();
        self.pauses.expire(now);
        let stamp = fs::metadata(&self.path)
            .ok()
            .map(|file| Stamp(file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
        if stamp != self.seen {
            self.seen = stamp;
            self.pauses = Pauses::load(&self.path, now)?;
        }
        let differs = |one: &Pauses, other: &Pauses| {
            let gone = one.pauses.iter().filter(|pause| !other.pauses.contains(pause));
            gone.map(|pause| pause.user.clone()).collect::<BTreeSet<_>>()
        };
        Ok(&differs(&before, &self.pauses) | &differs(&self.pauses, &before))
    }

    pub fn pauses(&self) -> &Pauses {
        &self.pauses
    }
}

fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.len() > FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any list of pauses"));
    }
    io::read_to_string(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600) + HOUR * hours
    }

    fn pause(user: Option<&str>, hours: u32) -> Pause {
        Pause::new(user.map(str::to_owned), at(0), HOUR * hours, "moving the disk").expect("a proper pause")
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("pauses.json");
        (directory, path)
    }

    #[test]
    fn a_pause_covers_its_user_until_its_end_and_nobody_else() {
        let mut pauses = Pauses::default();
        pauses.add(pause(Some("ann"), 2));
        assert!(pauses.is_paused("ann", at(0)));
        assert!(pauses.is_paused("ann", at(2) - Duration::from_millis(1)));
        assert!(!pauses.is_paused("ann", at(2)));
        assert!(!pauses.is_paused("bob", at(0)));
    }

    #[test]
    fn a_pause_of_everybody_covers_all_and_the_longer_one_counts() {
        let mut pauses = Pauses::default();
        pauses.add(pause(None, 2));
        pauses.add(pause(Some("ann"), 4));
        assert!(pauses.is_paused("bob", at(1)));
        assert!(!pauses.is_paused("bob", at(3)));
        assert_eq!(pauses.of("ann", at(1)).map(|pause| pause.until), Some(at(4)));
    }

    #[test]
    fn a_second_pause_of_a_user_replaces_the_first_and_resume_ends_only_theirs() {
        let mut pauses = Pauses::default();
        pauses.add(pause(Some("ann"), 8));
        pauses.add(pause(Some("ann"), 2));
        pauses.add(pause(None, 1));
        assert_eq!(pauses.of("ann", at(0)).map(|pause| pause.until), Some(at(2)));
        assert!(pauses.remove(Some("ann")));
        assert!(!pauses.remove(Some("ann")));
        assert!(pauses.is_paused("ann", at(0)), "everybody is still paused");
        assert!(pauses.remove(None));
        assert!(!pauses.is_paused("ann", at(0)));
    }

    #[test]
    fn a_pause_without_an_end_or_with_a_reason_that_would_spoil_a_page_is_refused() {
        let new = |length, reason: &str| Pause::new(None, at(0), length, reason);
        assert!(matches!(new(Duration::ZERO, "x"), Err(PauseError::Length)));
        assert!(matches!(new(LONGEST + HOUR, "x"), Err(PauseError::Length)));
        assert!(matches!(new(Duration::MAX, "x"), Err(PauseError::Length)));
        for reason in ["", "  ", "two\nlines", "\u{1b}[31mred", &"x".repeat(REASON + 1)] {
            assert!(matches!(new(HOUR, reason), Err(PauseError::Reason)), "{reason:?}");
        }
        assert_eq!(new(HOUR, " disk ").expect("proper").reason, "disk");
    }

    #[test]
    fn what_was_written_is_read_and_what_has_ended_vanishes_from_the_file() {
        let (_directory, path) = file();
        assert_eq!(Pauses::load(&path, at(0)).expect("a missing file is no pause"), Pauses::default());
        Pauses::change(&path, at(0), |pauses| pauses.add(pause(Some("ann"), 1))).expect("written");
        Pauses::change(&path, at(0), |pauses| pauses.add(pause(None, 3))).expect("written");
        assert!(Pauses::load(&path, at(0)).expect("read").is_paused("ann", at(0)));
        Pauses::change(&path, at(2), |_| ()).expect("written");
        let text = fs::read_to_string(&path).expect("read");
        assert!(!text.contains("ann"), "{text}");
        insta::assert_snapshot!(text, @r#"
        {
          "pauses": [
            {
              "since": "2026-01-01T00:00:00.000Z",
              "until": "2026-01-01T03:00:00.000Z",
              "reason": "moving the disk"
            }
          ]
        }
        "#);
    }

    #[test]
    fn many_commands_at_once_lose_no_pause() {
        let (_directory, path) = file();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let user = format!("user{n}");
                    Pauses::change(path, at(0), |pauses| pauses.add(pause(Some(&user), 1))).expect("written");
                });
            }
        });
        assert_eq!(Pauses::load(&path, at(0)).expect("read").pauses.len(), 8);
    }

    #[test]
    fn a_bad_file_is_named_once_and_the_pauses_read_before_go_on_to_their_end() {
        let (_directory, path) = file();
        Pauses::change(&path, at(0), |pauses| pauses.add(pause(Some("ann"), 2))).expect("written");
        let mut kept = PauseFile::new(path.clone());
        kept.refresh(at(0)).expect("read");
        fs::write(&path, "{\"pauses\": [{\"us").expect("spoiled");
        let error = kept.refresh(at(1)).expect_err("malformed");
        assert!(error.to_string().contains("pauses.json is not a list of pauses; remove it"), "{error}");
        assert!(kept.refresh(at(1)).expect("said once").is_empty());
        assert!(kept.pauses().is_paused("ann", at(1)));
        assert!(!kept.pauses().is_paused("ann", at(2)));
    }

    #[test]
    fn a_file_written_by_hand_cannot_pause_for_ever() {
        let (_directory, path) = file();
        let pause = |since, until| {
            format!(
                r#"{{"pauses": [{{"since": "{since}T00:00:00Z", "until": "{until}T00:00:00Z", "reason": "x"}}]}}"#
            )
        };
        fs::write(&path, pause("2026-01-01", "2030-01-01")).expect("written");
        let error = Pauses::load(&path, at(0)).expect_err("refused");
        assert!(matches!(error, PauseError::Malformed(..)), "{error}");
        fs::write(&path, pause("2030-01-01", "2030-01-02")).expect("written");
        assert!(!Pauses::load(&path, at(0)).expect("read").is_paused("ann", at(0)), "it has not begun");
    }

    #[test]
    fn a_refresh_names_whose_pause_began_and_whose_ended() {
        let (_directory, path) = file();
        let mut kept = PauseFile::new(path.clone());
        assert!(kept.refresh(at(0)).expect("read").is_empty());
        let ann = BTreeSet::from([Some("ann".to_owned())]);
        Pauses::change(&path, at(0), |pauses| pauses.add(pause(Some("ann"), 1))).expect("written");
        assert_eq!(kept.refresh(at(0)).expect("read"), ann);
        assert!(kept.refresh(at(0)).expect("read").is_empty());
        assert_eq!(kept.refresh(at(1)).expect("read"), ann, "it ended by itself");
        Pauses::change(&path, at(1), |pauses| pauses.add(pause(Some("ann"), 3))).expect("written");
        fs::remove_file(&path).expect("removed");
        assert!(kept.refresh(at(1)).expect("read").is_empty());
    }

    #[test]
    fn a_pause_that_cannot_be_written_says_where_and_what_to_check() {
        let (directory, _) = file();
        let path = directory.path().join("missing/pauses.json");
        let error = Pauses::change(&path, at(0), |_| ()).expect_err("no such directory");
        assert!(error.to_string().contains("check that its directory exists"), "{error}");
    }
}
