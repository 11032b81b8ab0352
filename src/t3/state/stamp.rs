//! The files of a database as the file system shows them: how large they are, and whether they changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A change this young may be followed by another one that the clock of the file system cannot tell apart.
const SETTLED: Duration = Duration::from_secs(1);

/// Sizes in bytes; a file that is not there has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    pub main: u64,
    pub wal: u64,
}

/// Differs whenever the content of the database does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp([Option<Mark>; 2]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Sizes {
    pub fn of(database: &Path) -> Self {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        Self { main: size(database), wal: size(&beside(database, "-wal")) }
    }

    pub fn total(self) -> u64 {
        self.main + self.wal
    }
}

impl Stamp {
    pub fn of(database: &Path) -> Self {
        Self([Mark::of(database), Mark::of(&beside(database, "-wal"))])
    }

    /// Whether a later change could not hide behind the same stamp.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let settled = |mark: &Mark| {
            let seconds = u64::try_from(mark.seconds).unwrap_or(0);
            let nanoseconds = u32::try_from(mark.nanoseconds).unwrap_or(0);
            Duration::new(seconds, nanoseconds) + SETTLED < since_epoch
        };
        self.0.iter().flatten().all(settled)
    }
}

impl Mark {
    fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            seconds: file.mtime(),
            nanoseconds: file.mtime_nsec(),
        })
    }
}

/// The `-wal` or `-shm` of a database.
pub fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.to_path_buf().into_os_string();
    path.push(suffix);
    PathBuf::from(path)
}
