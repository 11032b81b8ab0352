//! One small file, read or replaced whole or not at all: bounded, never blocking on a pipe, never half of the old and
//! half of the new content.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;

/// A table of a hundred thousand users is smaller than this.
pub const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// What `stat` says about a file; another stamp means other content (or other permissions: hence ctime).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error("it is not an ordinary file")]
    NotAFile,
    #[error("it is larger than 16 MiB, which no real table is")]
    TooLarge,
    #[error("it was being written while it was read; replace it by a rename instead of writing in place")]
    Changing,
}

impl Stamp {
    /// `None` where there is no file or it cannot be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The file's content, following symlinks. A file replaced by a rename meanwhile is read as it was when opened.
pub fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        // Opening a pipe would wait for its writer.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        let before = file.metadata()?;
        if !before.is_file() {
            return Err(ReadError::NotAFile);
        }
        let content = read_bounded(&file)?;
        let after = file.metadata()?;
        // ctime moves when a rename unlinks the file that we hold; its content stays what it was.
        if before.size() == after.size()
            && before.mtime_nsec() == after.mtime_nsec()
            && before.mtime() == after.mtime()
        {
            return Ok(content);
        }
    }
    Err(ReadError::Changing)
}

/// Replaces a file of this program's own by JSON: written beside its place, on disk before it is renamed. There is one
/// writer.
pub fn replace(path: &Path, content: &impl Serialize, mode: u32) -> io::Result<()> {
    let half = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&half)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    file.sync_all()?;
    std::fs::rename(half, path)
}

fn read_bounded(file: &File) -> Result<Vec<u8>, ReadError> {
    let mut content = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_SIZE { Err(ReadError::TooLarge) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_written_over_and_never_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("known.json");
        replace(&path, &["one"], 0o600).expect("written");
        std::fs::write(dir.path().join("known.new"), "[\"half of a much longer text").expect("written");
        assert_eq!(read(&path).expect("whole"), br#"["one"]"#);
        replace(&path, &["two"], 0o600).expect("written");
        assert_eq!(read(&path).expect("whole"), br#"["two"]"#);
        assert!(!dir.path().join("known.new").exists());
    }

    #[test]
    fn a_directory_or_a_pipe_is_refused_and_does_not_block() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(matches!(read(dir.path()), Err(ReadError::NotAFile)));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(matches!(read(&pipe), Err(ReadError::NotAFile)));
    }

    #[test]
    fn a_file_larger_than_the_bound_is_refused_without_being_read_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("large");
        File::create(&path).and_then(|file| file.set_len(MAX_SIZE * 1000)).expect("a sparse file");
        assert!(matches!(read(&path), Err(ReadError::TooLarge)));
    }

    #[test]
    fn a_symlink_is_followed_and_its_new_target_has_another_stamp() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let link = dir.path().join("link");
        std::fs::write(dir.path().join("old"), "one").expect("written");
        std::fs::write(dir.path().join("new"), "two").expect("written");
        std::os::unix::fs::symlink("old", &link).expect("a symlink");
        let stamp = Stamp::of(&link);
        assert_eq!(read(&link).expect("readable"), b"one");
        std::fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink("new", &link).expect("a symlink");
        assert_ne!(Stamp::of(&link), stamp);
    }
}
