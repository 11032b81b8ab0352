//! Writeback and removal of large files, piece by piece. A user's server waits at each of its commits for what stands
//! before it in the disk's queue, and hundreds of megabytes at a time would stand there for long: ARCHITECTURE.md has
//! the figures.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK, off_t};

/// What writeback is begun for at a time.
const PIECE: u64 = 1 << 20;
/// What may be under writeback before it is waited for, at first: twice as much whenever the disk turns out to keep up with
/// us, half as much whenever it does not.
const QUEUED: u64 = 16 * PIECE;
const LEAST_QUEUED: u64 = 4 * PIECE;
const MOST_QUEUED: u64 = 128 * PIECE;
/// A flush that takes longer had something to wait for.
const BEHIND: Duration = Duration::from_millis(50);
/// What a file is truncated by at a time. ext4 with `discard` tells the disk of all of it: at once where it has no journal,
/// which is where it was measured, else at the next commit.
const CUT: u64 = 4 * PIECE;

/// A file that is written from its beginning to its end.
pub struct Incoming<'a> {
    file: &'a File,
    begun: u64,
    flushed: u64,
    queued: u64,
}

impl<'a> Incoming<'a> {
    pub fn new(file: &'a File) -> Self {
        Self { file, begun: 0, flushed: 0, queued: QUEUED }
    }

    /// As much of it is written by now as will not change any more.
    pub fn reached(&mut self, written: u64) -> io::Result<()> {
        while self.begun + PIECE <= written {
            // Linux begins to write what is said to be needed no longer, and waits for none of it. Where it does not, the
            // flush below does.
            let _ = posix_fadvise(
                self.file,
                self.begun as off_t,
                PIECE as off_t,
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            );
            self.begun += PIECE;
        }
        if self.begun - self.flushed >= self.queued {
            let clock = Instant::now();
            self.file.sync_data()?;
            self.flushed = self.begun;
            self.queued = match clock.elapsed() {
                took if took > BEHIND => LEAST_QUEUED.max(self.queued / 2),
                _ => MOST_QUEUED.min(self.queued * 2),
            };
        }
        Ok(())
    }
}

/// Copies what is left to read, as a clone where the file system makes one; it is on disk when the caller has synced it.
pub fn copy(from: &File, mut to: &File) -> io::Result<()> {
    let mut incoming = Incoming::new(to);
    let mut written = 0;
    loop {
        let copied = io::copy(&mut from.take(PIECE), &mut to)?;
        if copied == 0 {
            return Ok(());
        }
        written += copied;
        incoming.reached(written)?;
    }
}

/// Removes a file that nobody else may write to.
pub fn remove(path: &Path) -> io::Result<()> {
    if let Ok(file) = open_to_cut(path) {
        cut(&file);
    }
    fs::remove_file(path)
}

/// Opens a file that is about to be removed; neither follows a link nor waits for anybody.
pub fn open_to_cut(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)
}

/// Truncates what is about to be removed, down to its last piece. The pieces are for those who use the disk meanwhile:
/// where it cannot be done, or the content has another name, it is removed as it is.
pub fn cut(file: &File) {
    let Ok(found) = file.metadata() else { return };
    if !found.is_file() || found.nlink() != 1 {
        return;
    }
    let mut length = found.len();
    while length > CUT {
        length -= CUT;
        if file.set_len(length).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_to_the_last_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        for length in [0, 1, PIECE as usize, QUEUED as usize + 4097] {
            let bytes: Vec<u8> = (0..length).map(|at| (at / 4096 + at) as u8).collect();
            let (from, to) = (dir.path().join("from"), dir.path().join(length.to_string()));
            fs::write(&from, &bytes).expect("a file");
            copy(&File::open(&from).expect("it"), &File::create(&to).expect("a file")).expect("a copy");
            assert!(fs::read(&to).expect("it") == bytes, "of {length} bytes");
        }
    }

    #[test]
    fn what_goes_is_cut_down_first_and_what_has_another_name_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, name) = (dir.path().join("file"), dir.path().join("name"));
        fs::write(&file, vec![1; 2 * CUT as usize + 7]).expect("a file");
        fs::hard_link(&file, &name).expect("another name");
        let length = || fs::metadata(&file).expect("it").len();
        cut(&open_to_cut(&file).expect("it"));
        assert_eq!(length(), 2 * CUT + 7);
        fs::remove_file(&name).expect("removed");
        cut(&open_to_cut(&file).expect("it"));
        assert_eq!(length(), 7);
    }

    #[test]
    fn what_is_removed_takes_nothing_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (kept, name, link) = (dir.path().join("kept"), dir.path().join("name"), dir.path().join("link"));
        let content = vec![1; 2 * CUT as usize + 1];
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
