//! One at a time: upgrades, restores, and whatever else must not run beside them. The lock dies with its process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::journal::{Ledger, make};

/// Held while instances are stopped, moved and started.
pub struct Lock(#[expect(dead_code, reason = "what is held is the lock")] Flock<File>);

/// Takes the lock; `None` where another process has it.
pub fn claim(state_dir: &Path) -> io::Result<Option<Lock>> {
    let dir = super::dir(state_dir);
    make(&dir)?;
    let path = dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Lock(lock))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Whether a rollout is under way, be it that its process was killed: snapshots that it relies on must not be pruned, and
/// nothing else may stop or start instances.
pub fn is_busy(state_dir: &Path) -> bool {
    let dir = super::dir(state_dir);
    Ledger::exists(&dir) || is_held(&dir)
}

/// Whether a process of this host has the lock in this directory.
pub fn is_held(dir: &Path) -> bool {
    // Asking for the lock would take it away from an enforcer that starts at this moment.
    let Ok(lock) = std::fs::metadata(dir.join("lock")) else { return false };
    procfs::locks().unwrap_or_default().iter().any(|held| {
        let device = nix::sys::stat::makedev(u64::from(held.devmaj), u64::from(held.devmin));
        held.inode == lock.ino() && device == lock.dev()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_so_until_the_first_has_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = claim(dir.path()).expect("the file").expect("nobody has it");
        assert!(claim(dir.path()).expect("the file").is_none());
        assert!(is_busy(dir.path()));
        drop(first);
        assert!(!is_busy(dir.path()));
        assert!(claim(dir.path()).expect("the file").is_some());
    }
}
