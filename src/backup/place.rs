//! The directory that a user's database lies in, held open: what is done there is done to that very directory, even
//! when the user swaps a name for a symlink meanwhile, and so it is with what is put aside beside it. Only what belongs
//! to the user is touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::libc::{O_DIRECTORY, O_NOFOLLOW};

use super::disk;
use crate::outcome::{Failure, Reason};
use crate::t3::Instance;

/// The database and the two files that belong to it, in the order in which they are put aside and brought back.
const FILES: [&str; 3] = ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"];

/// t3 makes its files readable for everybody (CONTRACT §8); a database whose mode is not known is not shown to all.
const MODE: u32 = 0o600;

/// A directory held open, never through a link.
struct Pinned(File);

impl Pinned {
    fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(path).map(Self)
    }

    fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }

    fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.at(name)).is_ok()
    }

    /// Moves one of the database's files; that it is not there is fine.
    fn give(&self, name: &str, to: &Self) -> io::Result<()> {
        if self.has(name) { fs::rename(self.at(name), to.at(name)) } else { Ok(()) }
    }
}

/// An instance's `userdata`.
pub struct Place {
    directory: Pinned,
    path: PathBuf,
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Place {
    pub fn open(instance: &Instance) -> Result<Self, Failure> {
        let path = instance.base_dir.join("userdata");
        let unusable = |error: io::Error| failure(&path, &error);
        let directory = Pinned::open(&path).map_err(unusable)?;
        let metadata = directory.0.metadata().map_err(unusable)?;
        owned(&path, &metadata, instance.uid)?;
        let mut place = Self { directory, uid: metadata.uid(), gid: metadata.gid(), mode: MODE, path };
        for name in FILES {
            let file = place.path.join(name);
            match fs::symlink_metadata(place.directory.at(name)) {
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

    /// Copies a file here under a name that t3 does not know, with the owner and mode that the database has; answers the
    /// copy, for reading.
    pub fn bring(&self, from: &Path, name: &str) -> io::Result<File> {
        let mut new = OpenOptions::new();
        new.read(true).write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW);
        let source = File::open(from)?;
        let mut copy = new.open(self.directory.at(name))?;
        disk::copy(&source, &copy)?;
        fchown(&copy, Some(self.uid), Some(self.gid))?;
        copy.set_permissions(fs::Permissions::from_mode(self.mode))?;
        copy.sync_all()?;
        copy.rewind()?;
        Ok(copy)
    }

    /// Makes an empty directory that the present database can be put aside in.
    pub fn make_aside(&self, aside: &str) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(self.directory.at(aside))?;
        let made = Pinned::open(&self.directory.at(aside))?;
        // What was put in its place meanwhile is not given away.
        if made.0.metadata()?.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other(format!("{aside} is not what was made")));
        }
        fchown(&made.0, Some(self.uid), Some(self.gid))
    }

    /// Removes it where it is empty again; what is not empty stays.
    pub fn remove_aside(&self, aside: &str) {
        let _ = fs::remove_dir(self.directory.at(aside));
    }

    /// Moves the present database there.
    pub fn put_aside(&self, aside: &str) -> io::Result<()> {
        let aside = self.aside(aside)?;
        FILES.iter().try_for_each(|name| self.directory.give(name, &aside))?;
        self.sync(&aside)
    }

    /// Brings back whatever lies aside, file by file; what has come into its place meanwhile goes to `since`, which is
    /// made where there is any.
    pub fn bring_back(&self, aside: &str, since: &str) -> io::Result<()> {
        let aside = match self.aside(aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || self.is_taken() => return Ok(()),
            aside => aside?,
        };
        for name in FILES.iter().filter(|name| aside.has(name)) {
            if self.directory.has(name) {
                if !self.directory.has(since) {
                    self.make_aside(since)?;
                }
                self.directory.give(name, &self.aside(since)?)?;
            }
            aside.give(name, &self.directory)?;
        }
        self.sync(&aside)
    }

    /// Whether there is a database.
    pub fn is_taken(&self) -> bool {
        self.directory.has(FILES[0])
    }

    /// Whether a former database lies aside.
    pub fn lies_aside(&self, aside: &str) -> bool {
        self.aside(aside).is_ok_and(|aside| aside.has(FILES[0]))
    }

    /// Whether anything lies there at all.
    pub fn has(&self, name: &str) -> bool {
        self.directory.has(name)
    }

    /// Removes a copy that was put in place and that nobody has used. The main file last: killed in between, no WAL of
    /// this one is left for the other.
    pub fn clear(&self) -> io::Result<()> {
        FILES.iter().rev().try_for_each(|name| self.remove(name))
    }

    /// Gives a file that was brought its real name; nothing of the former database may be there.
    pub fn put_in_place(&self, name: &str) -> io::Result<()> {
        // A WAL of another database would be played into this one.
        for leftover in &FILES[1..] {
            self.remove(leftover)?;
        }
        fs::rename(self.directory.at(name), self.directory.at(FILES[0]))?;
        self.directory.0.sync_all()
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.at(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn aside(&self, name: &str) -> io::Result<Pinned> {
        let aside = Pinned::open(&self.directory.at(name))?;
        match aside.0.metadata()?.uid() == self.uid {
            true => Ok(aside),
            false => Err(io::Error::other(format!("{name} does not belong to uid {}", self.uid))),
        }
    }

    fn sync(&self, aside: &Pinned) -> io::Result<()> {
        aside.0.sync_all()?;
        self.directory.0.sync_all()
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
