//! Large files come to disk and leave it in small pieces. A user's server waits at each of its commits for what stands
//! before it in the disk's queue, and hundreds of megabytes at a time would stand there for long: ARCHITECTURE.md has
//! the figures.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK, off_t};

/// What is set going at a time.
pub const PIECE: u64 = 1 << 20;
/// What is set going before it is waited for, at first: twice as much whenever the disk turns out to keep up with us, half
/// as much whenever it does not.
const QUEUED: u64 = 16 * PIECE;
const LEAST_QUEUED: u64 = 4 * PIECE;
const MOST_QUEUED: u64 = 128 * PIECE;
/// A flush that takes longer had something to wait for.
const BEHIND: Duration = Duration::from_millis(50);
/// What is given back at a time: ext4 with `discard` tells the disk of each at once.
const GIVEN_BACK: u64 = 4 * PIECE;

/// A file that is written from its beginning to its end.
pub struct Incoming<'a> {
    file: &'a File,
    going: u64,
    flushed: u64,
    queued: u64,
}

impl<'a> Incoming<'a> {
    pub fn new(file: &'a File) -> Self {
        Self { file, going: 0, flushed: 0, queued: QUEUED }
    }

    /// As much of it is written by now as will not change any more.
    pub fn reached(&mut self, written: u64) -> io::Result<()> {
        while self.going + PIECE <= written {
            // Linux begins to write what is said to be needed no longer, and waits for none of it. Where it does not, the
            // flush below does.
            let _ = posix_fadvise(
                self.file,
                self.going as off_t,
                PIECE as off_t,
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            );
            self.going += PIECE;
        }
        if self.going - self.flushed >= self.queued {
            let clock = Instant::now();
            self.file.sync_data()?;
            self.flushed = self.going;
            self.queued = match clock.elapsed() {
                took if took > BEHIND => LEAST_QUEUED.max(self.queued / 2),
                _ => MOST_QUEUED.min(self.queued * 2),
            };
        }
        Ok(())
    }
}

/// Copies what is left to read; it is on disk when the caller has synced it.
pub fn copy(mut from: impl Read, mut to: &File) -> io::Result<()> {
    let mut incoming = Incoming::new(to);
    let mut piece = vec![0; PIECE as usize];
    let mut written = 0;
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&piece[..read])?;
        written += read as u64;
        incoming.reached(written)?;
    }
}

/// Removes a file that nobody else may write to, from its end.
pub fn remove(path: &Path) -> io::Result<()> {
    // The pieces are for those who use the disk meanwhile; the name goes whatever became of them.
    let _ = give_back(path);
    fs::remove_file(path)
}

fn give_back(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    // What has another name is not gone with this one.
    if !found.is_file() || found.nlink() != 1 {
        return Ok(());
    }
    let mut length = found.len();
    while length > GIVEN_BACK {
        length -= GIVEN_BACK;
        file.set_len(length)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_to_the_last_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        for length in [0, 1, PIECE as usize, QUEUED as usize + 4097] {
            let bytes: Vec<u8> = (0..length).map(|at| (at / 4096 + at) as u8).collect();
            let path = dir.path().join(length.to_string());
            copy(bytes.as_slice(), &File::create(&path).expect("a file")).expect("a copy");
            assert!(fs::read(&path).expect("it") == bytes, "of {length} bytes");
        }
    }

    #[test]
    fn what_is_removed_takes_nothing_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (kept, name, link) = (dir.path().join("kept"), dir.path().join("name"), dir.path().join("link"));
        let content = vec![1; 2 * GIVEN_BACK as usize + 1];
        fs::write(&kept, &content).expect("a file");
        fs::hard_link(&kept, &name).expect("another name");
        std::os::unix::fs::symlink(&kept, &link).expect("a link");
        remove(&name).expect("removed");
        remove(&link).expect("removed");
        assert!(fs::read(&kept).expect("still there") == content);
        remove(&kept).expect("removed");
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
        assert_eq!(remove(&kept).expect_err("gone").kind(), io::ErrorKind::NotFound);
    }
}
