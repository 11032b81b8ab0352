//! The directory that a user's database lies in, held open: what is done there is done to that very directory, even
//! when the user swaps a name for a symlink meanwhile. Only what belongs to the user is touched.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::libc::{O_DIRECTORY, O_NOFOLLOW};

use super::disk;
use crate::outcome::{Failure, Reason};
use crate::t3::Instance;

/// The database and the two files that belong to it, in the order in which they are put aside and brought back.
const FILES: [&str; 3] = ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"];

/// t3 makes its files readable for everybody (CONTRACT §8); a database whose mode is not known is not shown to all.
const MODE: u32 = 0o600;

/// An instance's `userdata`.
pub struct Place {
    directory: File,
    path: PathBuf,
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Place {
    pub fn open(instance: &Instance) -> Result<Self, Failure> {
        let path = instance.base_dir.join("userdata");
        let directory = OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(&path);
        let unusable = |error: io::Error| failure(&path, &error);
        let directory = directory.map_err(unusable)?;
        let metadata = directory.metadata().map_err(unusable)?;
        owned(&path, &metadata, instance.uid)?;
        let mut place = Self { directory, uid: metadata.uid(), gid: metadata.gid(), mode: MODE, path };
        for name in FILES {
            let file = place.path.join(name);
            match fs::symlink_metadata(place.pinned(name)) {
                Ok(found) => {
                    owned(&file, &found, instance.uid)?;
                    if !found.is_file() {
                        let detail = format!("{} is no regular file; nothing was touched", file.display());
                        return Err(Failure::new(Reason::WrongOwner, detail));
                    }
                    if name == FILES[0] {
                        (place.gid, place.mode) = (found.gid(), found.mode() & 0o777);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failure(&file, &error)),
            }
        }
        Ok(place)
    }

    /// Where a name in this directory is shown to people.
    pub fn shown(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Copies a file here under a name that t3 does not know, with the owner and mode that the database has.
    pub fn bring(&self, from: &Path, name: &str) -> io::Result<()> {
        let to = self.pinned(name);
        let source = File::open(from)?;
        let copy =
            OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW).open(&to)?;
        disk::copy(&source, &copy)?;
        std::os::unix::fs::fchown(&copy, Some(self.uid), Some(self.gid))?;
        copy.set_permissions(fs::Permissions::from_mode(self.mode))?;
        copy.sync_all()
    }

    /// A file of this directory, for reading.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.pinned(name)
    }

    /// Makes an empty directory that the present database can be put aside in.
    pub fn make_aside(&self, aside: &str) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(self.pinned(aside))?;
        chown(self.pinned(aside), Some(self.uid), Some(self.gid))
    }

    /// Removes it where it is empty again; what is not empty stays.
    pub fn remove_aside(&self, aside: &str) {
        let _ = fs::remove_dir(self.pinned(aside));
    }

    /// Moves the present database there.
    pub fn put_aside(&self, aside: &str) -> io::Result<()> {
        self.shift(str::to_owned, |name| format!("{aside}/{name}"))
    }

    /// Moves back what was put aside.
    pub fn bring_back(&self, aside: &str) -> io::Result<()> {
        self.shift(|name| format!("{aside}/{name}"), str::to_owned)
    }

    /// Brings back whatever lies aside, file by file; what has come into its place meanwhile goes to `since`.
    pub fn replace_from(&self, aside: &str, since: &str) -> io::Result<()> {
        for name in FILES {
            let aside = self.pinned(&format!("{aside}/{name}"));
            if fs::symlink_metadata(&aside).is_ok() {
                if fs::symlink_metadata(self.pinned(name)).is_ok() {
                    fs::rename(self.pinned(name), self.pinned(&format!("{since}/{name}")))?;
                }
                fs::rename(aside, self.pinned(name))?;
            }
        }
        self.directory.sync_all()
    }

    /// Whether the former database lies aside and another one is in its place.
    pub fn is_replaced(&self, aside: &str) -> bool {
        let there = |name: &str| fs::symlink_metadata(self.pinned(name)).is_ok();
        there(FILES[0]) && there(&format!("{aside}/{}", FILES[0]))
    }

    /// Removes the database in place, once the former one lies aside as a whole. The main file last: killed in between,
    /// no WAL of this one is left for the other.
    pub fn clear(&self) -> io::Result<()> {
        FILES.iter().rev().try_for_each(|name| self.remove(name))
    }

    /// Gives a file that was brought its real name; nothing of the former database may be there.
    pub fn put_in_place(&self, name: &str) -> io::Result<()> {
        // A WAL of another database would be played into this one.
        for leftover in &FILES[1..] {
            self.remove(leftover)?;
        }
        fs::rename(self.pinned(name), self.pinned(FILES[0]))?;
        self.directory.sync_all()
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.pinned(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn shift(&self, from: impl Fn(&str) -> String, to: impl Fn(&str) -> String) -> io::Result<()> {
        for name in FILES {
            let from = self.pinned(&from(name));
            // That the file is not there is fine; that the place for it is not there is not.
            if fs::symlink_metadata(&from).is_ok() {
                fs::rename(from, self.pinned(&to(name)))?;
            }
        }
        self.directory.sync_all()
    }

    fn pinned(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd())).join(name)
    }
}

fn owned(path: &Path, metadata: &fs::Metadata, uid: u32) -> Result<(), Failure> {
    if metadata.uid() == uid {
        return Ok(());
    }
    Err(Failure::new(
        Reason::WrongOwner,
        format!(
            "{} belongs to uid {}, not to uid {uid}; nothing was touched",
            path.display(),
            metadata.uid()
        ),
    ))
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("cannot use {}: {error}", path.display()))
}
