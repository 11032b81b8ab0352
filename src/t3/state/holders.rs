//! Who has a user's database open, its WAL and shared memory included. Of other users only root sees it.

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::stamp::beside;

/// A database's files, as the kernel tells them apart.
pub struct Files(HashSet<(u64, u64)>);

impl Files {
    pub fn of(database: &Path) -> Self {
        let files = ["", "-wal", "-shm"].map(|suffix| std::fs::metadata(beside(database, suffix)));
        Self(files.into_iter().flatten().map(|file| identity(&file)).collect())
    }

    /// Whether this process has one of them open.
    pub fn are_open_in(&self, pid: i32) -> bool {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| std::fs::metadata(file.path()).ok())
            .any(|file| self.0.contains(&identity(&file)))
    }

    /// Every process that has one of them open.
    pub fn holders(&self) -> impl Iterator<Item = i32> {
        let processes = procfs::process::all_processes().into_iter().flatten().flatten();
        processes.map(|process| process.pid).filter(|pid| self.are_open_in(*pid))
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_wal_open_holds_the_database_and_whoever_has_another_file_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (database, wal) = (dir.path().join("state.sqlite"), dir.path().join("state.sqlite-wal"));
        let us = i32::try_from(std::process::id()).expect("a pid");
        for file in [&database, &wal] {
            std::fs::write(file, "").expect("a file");
        }
        let files = Files::of(&database);
        let other = std::fs::File::create(dir.path().join("other")).expect("a file");
        assert!(!files.are_open_in(us) && files.holders().all(|pid| pid != us));
        let open = std::fs::File::open(&wal).expect("the WAL");
        assert!(files.are_open_in(us) && files.holders().any(|pid| pid == us));
        drop((open, other));
    }
}
