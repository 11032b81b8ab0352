//! Small files that t3 keeps in a user's own directory. The user may have put a link, a pipe or anything else in their
//! place: only an ordinary file counts, nobody waits for it, and no more of it is read than such a file holds.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

pub struct SmallFile {
    pub text: String,
    /// Whose it is.
    pub uid: u32,
}

/// The file's first bytes, at most `longest`; `None` where there is none that counts.
pub fn read(path: &Path, longest: u64) -> Option<SmallFile> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(longest).read_to_string(&mut text).ok()?;
    Some(SmallFile { text, uid: metadata.uid() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_a_pipe_or_a_directory_does_not_count_and_a_large_file_is_not_read_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "0123456789").expect("a file");
        std::os::unix::fs::symlink(path("file"), path("link")).expect("a link");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        for odd in ["link", "pipe", ".", "nothing"] {
            assert!(read(&path(odd), 8).is_none(), "{odd}");
        }
        let found = read(&path("file"), 8).expect("an ordinary file");
        assert_eq!((found.text.as_str(), found.uid), ("01234567", nix::unistd::geteuid().as_raw()));
    }
}
