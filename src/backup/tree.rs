//! The tree of snapshots: one directory per user, `<time>-level<level>-<version>.sqlite` with its manifest and its proof
//! beside it. A name ending in `.tmp` never counts; a name without it is whole.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::CLOCKS_DIFFER;
use super::Section;
use super::disk;
use super::manifest::{Manifest, Proof};
use crate::outcome::{Failure, Reason};

const UNFINISHED: &str = ".tmp";

/// One user's snapshots.
#[derive(Clone, Debug)]
pub struct Tree {
    dir: PathBuf,
}

/// One snapshot that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub file: PathBuf,
    /// `None` where it is missing or cannot be understood: nothing is known of the content then.
    pub manifest: Option<Manifest>,
    pub proof: Proof,
}

/// Held while a snapshot is read.
#[derive(Debug)]
pub struct InUse(#[expect(dead_code, reason = "held for its Drop")] Option<Flock<File>>);

/// A copy for somebody who may not look into the tree; gone when this is dropped.
pub struct Lent(PathBuf);

/// Held while snapshots are made or removed; given up when dropped, or when the process dies.
pub struct Turn(#[expect(dead_code, reason = "what is held is the lock")] Flock<File>);

impl Snapshot {
    /// The file's name without its ending: how a snapshot is called on the command line.
    pub fn name(&self) -> String {
        self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub fn taken_at(&self) -> Option<SystemTime> {
        self.manifest.as_ref().map(|manifest| manifest.taken_at)
    }

    /// Whether the last verification found nothing.
    pub fn is_verified(&self) -> bool {
        self.proof.verified.as_ref().is_some_and(|verified| verified.flaw.is_none())
    }

    /// Whether nothing is known against the version that ran then having used it.
    fn was_usable(&self) -> bool {
        self.manifest
            .as_ref()
            .is_some_and(|manifest| manifest.version.is_none() || manifest.usable_by().is_some())
    }

    /// Whether somebody logged in to it in the last drill of it.
    pub fn is_drilled(&self) -> bool {
        self.proof.drilled.as_ref().is_some_and(|drill| drill.failure.is_none())
    }

    /// Whether a user can be brought back to it, as far as that shows without a drill: a copy of an outage is nothing to
    /// go back to.
    pub fn is_proven(&self) -> bool {
        self.is_verified() && self.was_usable()
    }

    /// The tree that it lies in.
    pub fn tree(&self) -> Tree {
        Tree { dir: self.file.parent().map(Path::to_path_buf).unwrap_or_default() }
    }

    /// Remembers what was found out.
    pub fn record(&mut self, change: impl FnOnce(&mut Proof)) -> Result<(), Failure> {
        change(&mut self.proof);
        let path = self.file.with_extension("proof.json");
        write_beside(&path, &self.proof).map_err(|error| unwritable(&path, &error))
    }

    fn read(file: PathBuf) -> Self {
        let manifest = fs::read(file.with_extension("json")).ok();
        let proof = fs::read(file.with_extension("proof.json")).ok();
        Self {
            manifest: manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            proof: proof.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default(),
            file,
        }
    }

    /// As long as this is held, no take removes it. A file that cannot be opened is not held, and whoever reads it finds
    /// out why; nor is one on a file system without such locks.
    pub fn in_use(&self) -> Result<InUse, Failure> {
        let goes = || Failure::new(Reason::Locked, format!("{} is being removed just now", self.name()));
        let Ok(file) = File::open(&self.file) else { return Ok(InUse(None)) };
        let held = match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => return Err(goes()),
            Err(_) => return Ok(InUse(None)),
        };
        // Between opening and locking it may have gone.
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let there = fs::symlink_metadata(&self.file).map(id).ok();
        if there.is_none() || there != held.metadata().map(id).ok() {
            return Err(goes());
        }
        Ok(InUse(Some(held)))
    }

    /// What is in use stays for the next take to remove. Killed half-way it leaves nothing that counts, and the next take
    /// sweeps that up: the name that says that it is whole goes first.
    fn remove(&self) -> io::Result<()> {
        let file = match disk::open_to_cut(&self.file)
            .map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock))
        {
            Ok(Ok(alone)) => Some(alone),
            Ok(Err((_, Errno::EWOULDBLOCK))) => return Ok(()),
            Ok(Err(_)) | Err(_) => None,
        };
        let gone = |removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let going = self.file.with_extension(format!("sqlite{UNFINISHED}"));
        fs::rename(&self.file, &going)?;
        File::open(self.tree().dir)?.sync_all()?;
        gone(fs::remove_file(self.file.with_extension("proof.json")))?;
        gone(fs::remove_file(self.file.with_extension("json")))?;
        if let Some(alone) = &file {
            disk::cut(alone);
        }
        fs::remove_file(going)
    }
}

impl Lent {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // What is left over is swept up by the next take.
        let _ = fs::remove_file(&self.0);
    }
}

impl Tree {
    /// `user` is a checked name, so it is one path component.
    pub fn new(section: &Section, user: &str) -> Self {
        Self { dir: section.dir.join(user) }
    }

    /// Where something that is no snapshot lies beside them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Every snapshot that counts, oldest first; none where there is no directory yet. One that was taken in the future,
    /// by a clock that was wrong, is newer than none: nobody is to take it for the newest until then.
    pub fn list(&self) -> Result<Vec<Snapshot>, Failure> {
        let mut files: Vec<_> = self
            .files()?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|ext| ext == "sqlite"))
            .collect();
        // The names begin with the time.
        files.sort();
        let future = self.dir.join(compact(SystemTime::now() + CLOCKS_DIFFER));
        let from_the_past = files.partition_point(|file| *file <= future);
        files.rotate_left(from_the_past);
        Ok(files.into_iter().map(Snapshot::read).collect())
    }

    /// The snapshot of that name.
    pub fn find(&self, name: &str) -> Result<Option<Snapshot>, Failure> {
        Ok(self.list()?.into_iter().find(|snapshot| snapshot.name() == name))
    }

    /// The newest snapshot that a user can be brought back to.
    pub fn newest_proven(&self) -> Result<Option<Snapshot>, Failure> {
        Ok(self.list()?.into_iter().rev().find(Snapshot::is_proven))
    }

    /// What a take that was killed left behind.
    pub fn half_written(&self) -> Result<Vec<PathBuf>, Failure> {
        Ok(self.files()?.into_iter().filter(|path| is_unfinished(path)).collect())
    }

    /// Makes the directory, or makes sure that nobody else can write to it, and waits for nobody: two takes of one
    /// user at once are a mistake.
    pub fn prepare(&self) -> Result<Turn, Failure> {
        let unusable = |error: io::Error| unwritable(&self.dir, &error);
        self.open_parent().map_err(unusable)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(unusable)?;
        let metadata = fs::symlink_metadata(&self.dir).map_err(unusable)?;
        let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
        if !metadata.is_dir() || !ours || metadata.mode() & 0o022 != 0 {
            return Err(Failure::new(
                Reason::WrongOwner,
                format!(
                    "{} belongs to uid {} with mode {:04o}: others could change the snapshots; give it to uid {} with mode 0700",
                    self.dir.display(),
                    metadata.uid(),
                    metadata.mode() & 0o7777,
                    nix::unistd::geteuid()
                ),
            ));
        }
        let lock = self.dir.join(".lock");
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let file = file.map_err(|error| unwritable(&lock, &error))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map(Turn).map_err(|_| {
            Failure::new(Reason::Locked, format!("another process is at work in {}", self.dir.display()))
        })
    }

    /// The directory of everybody's trees can be looked into, whatever the umask of whoever makes it: where each user
    /// stands lies there for everybody. The trees themselves are closed.
    fn open_parent(&self) -> io::Result<()> {
        let Some(parent) = self.dir.parent().filter(|parent| !parent.exists()) else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755))
    }

    /// Removes what killed takes left behind: unfinished files, and manifests without their data.
    pub fn sweep(&self) -> Result<(), Failure> {
        for path in fs::read_dir(self.stage()).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&self.mark())) {
                discard(&path)?;
            }
        }
        for path in self.files()? {
            let stem = path
                .file_name()
                .and_then(|name| name.to_str()?.split_once(".proof.json"))
                .map(|(stem, _)| stem);
            let data = match stem {
                Some(stem) => self.dir.join(format!("{stem}.sqlite")),
                None => path.with_extension("sqlite"),
            };
            let is_orphan = path.extension().is_some_and(|extension| extension == "json") && !data.exists();
            if is_orphan || is_unfinished(&path) {
                discard(&path)?;
            }
        }
        Ok(())
    }

    /// Bytes that we may still write.
    pub fn free(&self) -> Result<u64, Failure> {
        let system =
            nix::sys::statvfs::statvfs(&self.dir).map_err(|error| unwritable(&self.dir, &error.into()))?;
        Ok(system.blocks_available() * system.fragment_size())
    }

    /// Where the copy is written to until it is whole.
    pub fn new_file(&self, now: SystemTime) -> PathBuf {
        self.dir.join(format!("{}{UNFINISHED}", compact(now)))
    }

    /// An empty file that the user may write, though not find: for a copy that is made by the user's own hands. It lies
    /// in a directory that nobody can list, under a name that nobody can guess.
    pub fn stage_file(&self) -> Result<PathBuf, Failure> {
        let path = self.staged()?;
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let made = made.and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o666)));
        made.map_err(|error| unwritable(&path, &error))?;
        Ok(path)
    }

    /// A directory of the user's own, for a trial on a restored copy.
    pub fn stage_dir(&self, (uid, gid): (u32, u32)) -> Result<PathBuf, Failure> {
        let path = self.staged()?;
        let made =
            DirBuilder::new().mode(0o700).create(&path).and_then(|()| chown(&path, Some(uid), Some(gid)));
        made.map_err(|error| unwritable(&path, &error))?;
        Ok(path)
    }

    /// Copies a snapshot to where its owner can read it, though neither find nor write it: the snapshot itself stays where
    /// nobody passes.
    pub fn lend(&self, file: &Path) -> Result<Lent, Failure> {
        let lent = Lent(self.staged()?);
        let copy = || {
            let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lent.0)?;
            io::copy(&mut File::open(file)?, &mut to)?;
            to.set_permissions(fs::Permissions::from_mode(0o444))
        };
        copy().map_err(|error| unwritable(&lent.0, &error))?;
        Ok(lent)
    }

    /// Takes back what the user could write.
    pub fn close(&self, file: &Path) -> Result<(), Failure> {
        let ours = fs::Permissions::from_mode(0o600);
        fs::set_permissions(file, ours).map_err(|error| unwritable(file, &error))
    }

    fn staged(&self) -> Result<PathBuf, Failure> {
        let stage = self.stage();
        if !stage.exists() {
            let mode = fs::Permissions::from_mode(0o711);
            let made = DirBuilder::new().mode(0o711).create(&stage);
            // Whatever the umask.
            made.and_then(|()| fs::set_permissions(&stage, mode))
                .map_err(|error| unwritable(&stage, &error))?;
        }
        Ok(stage.join(format!("{}{:032x}{UNFINISHED}", self.mark(), rand::random::<u128>())))
    }

    fn stage(&self) -> PathBuf {
        self.dir.with_file_name(".staging")
    }

    /// What this user's staged files begin with; no user's name has a dot.
    fn mark(&self) -> String {
        format!("{}.", self.dir.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Gives a whole copy its name. The last rename is what makes it count.
    pub fn publish(&self, unfinished: &Path, manifest: Manifest) -> Result<Snapshot, Failure> {
        let version = manifest.version.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        let name = format!("{}-level{}-{version}.sqlite", compact(manifest.taken_at), manifest.level.level);
        let file = self.dir.join(name);
        let json = file.with_extension("json");
        write_beside(&json, &manifest).map_err(|error| unwritable(&json, &error))?;
        let renamed = fs::rename(unfinished, &file).and_then(|()| File::open(&self.dir)?.sync_all());
        renamed.map_err(|error| unwritable(&file, &error))?;
        Ok(Snapshot { file, manifest: Some(manifest), proof: Proof::default() })
    }

    /// Removes what is beyond the count or the age.
    pub fn prune(&self, keep: usize, keep_for: Duration, now: SystemTime) -> Result<(), Failure> {
        for snapshot in expired(&self.list()?, keep, keep_for, now) {
            snapshot.remove().map_err(|error| unwritable(&snapshot.file, &error))?;
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>, Failure> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(&self.dir, &error)),
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>();
        paths.map_err(|error| unreadable(&self.dir, &error))
    }
}

/// Which of these (oldest first) go: never the newest, the newest that is verified, the newest that a user can be brought
/// back to, and the newest that somebody was brought back to in a drill. The last one before something was lost goes by its
/// age alone: however many are taken since, whoever finds out has all that time.
fn expired(snapshots: &[Snapshot], keep: usize, keep_for: Duration, now: SystemTime) -> Vec<&Snapshot> {
    let kinds = [Snapshot::is_verified, Snapshot::is_proven, Snapshot::is_drilled];
    let stays = kinds.map(|is| snapshots.iter().rposition(is));
    let before_a_loss = (0..snapshots.len()).rev().find(|at| {
        let later = snapshots[at + 1..].iter().find_map(|snapshot| snapshot.manifest.as_ref());
        let lost = |taken: &Manifest| {
            later.is_some_and(|later| !later.fingerprint.lost_since(&taken.fingerprint).is_empty())
        };
        snapshots[*at].is_verified() && snapshots[*at].manifest.as_ref().is_some_and(lost)
    });
    let is_expired = |(index, snapshot): &(usize, &Snapshot)| {
        let newer = snapshots.len() - 1 - index;
        let too_old = snapshot
            .taken_at()
            .is_some_and(|taken| now.duration_since(taken).is_ok_and(|age| age > keep_for));
        let too_many = newer >= keep && before_a_loss != Some(*index);
        newer > 0 && !stays.contains(&Some(*index)) && (too_many || too_old)
    };
    snapshots.iter().enumerate().filter(is_expired).map(|(_, snapshot)| snapshot).collect()
}

/// A drill that was killed leaves a directory. No link is followed.
fn discard(path: &Path) -> Result<(), Failure> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { disk::remove(path) };
    removed.map_err(|error| unwritable(path, &error))
}

fn is_unfinished(path: &Path) -> bool {
    path.to_string_lossy().ends_with(UNFINISHED)
}

/// `20261122T060245.123Z`: sorts as the time does, and is a file name everywhere.
pub fn compact(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string().replace(['-', ':'], "")
}

/// Written beside its place and renamed: a reader sees the old one or the new one. Two processes do not meet.
pub fn write_beside(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut beside = path.to_path_buf().into_os_string();
    beside.push(format!(".{}{UNFINISHED}", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(content)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", path.display()))
}

pub fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let reason =
        if error.kind() == io::ErrorKind::StorageFull { Reason::NoSpace } else { Reason::Unreadable };
    Failure::new(reason, format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
