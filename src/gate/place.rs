//! Where one run of the gate works: a directory that a lock marks as alive. A run that was killed leaves it behind
//! without its lock; the next run ends what still works in it and removes it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, geteuid};

use super::hands::Account;
use crate::t3::boxed;

const LOCK: &str = "alive";
/// Where an installation keeps a place that users can pass through, though not look into.
const HOST: &str = "/var/lib/t3-prober-gate";

/// Where runs of the gate work: as configured, else the host's place where there is one that we may use.
pub fn root(dir: Option<&Path>, state_dir: &Path) -> PathBuf {
    let usable = |dir: &Path| nix::unistd::access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    match dir {
        Some(dir) => dir.to_path_buf(),
        None if usable(Path::new(HOST)) => PathBuf::from(HOST),
        None => state_dir.join("gate"),
    }
}

pub struct Place {
    dir: PathBuf,
    _alive: Flock<File>,
}

impl Place {
    /// Makes one in `all`, after removing those of runs that were killed. Others may pass through it, knowing its name,
    /// and list nothing.
    pub fn new(all: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(all)?;
        for entry in fs::read_dir(all)? {
            sweep(&entry?.path());
        }
        let dir = all.join(format!("{:032x}", rand::random::<u128>()));
        make(&dir, 0o711)?;
        let file = File::create(dir.join(LOCK))?;
        let alive = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| io::Error::from(error))?;
        Ok(Self { dir: dir.canonicalize()?, _alive: alive })
    }

    /// An empty file that only its owner can read.
    pub fn file_for(&self, account: Account) -> io::Result<PathBuf> {
        let path = self.dir.join(format!("seed-{:016x}.sqlite", rand::random::<u64>()));
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        give(&path, account)?;
        Ok(path)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that may still be written; none where no file can be made any more.
    pub fn free(&self) -> io::Result<u64> {
        let system = nix::sys::statvfs::statvfs(&self.dir)?;
        let files = system.files() == 0 || system.files_available() > 0;
        Ok(if files { system.blocks_available() * system.fragment_size() } else { 0 })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = remove(&self.dir);
    }
}

/// Makes the directory of one rehearsal or one install, with what belongs in it; nobody else can look into it yet.
pub fn furnish(room: &Path, account: Account) -> io::Result<()> {
    make(room, 0o700)?;
    for inner in INNER {
        make(&room.join(inner), 0o700)?;
    }
    boxed::furnish(room, (account.uid, account.gid))?;
    for shown in ["bin", "etc"] {
        fs::set_permissions(room.join(shown), Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(room.join("etc/passwd"), Permissions::from_mode(0o644))
}

/// Gives it to whoever works in it. Nothing of ours is done in it after that, but removing it.
pub fn hand_over(room: &Path, account: Account) -> io::Result<()> {
    let copy = room.join("base/userdata/state.sqlite");
    let copy = copy.exists().then_some(copy);
    // From the inside out: what is not ours any more we may not pass through.
    let inner = INNER.iter().rev().map(|inner| room.join(inner));
    copy.into_iter().chain(inner).chain([room.to_path_buf()]).try_for_each(|path| give(&path, account))
}

/// What whoever works in a room may write to.
const INNER: [&str; 5] = ["base", "base/userdata", "home", "work", "driver"];

/// Removes a room that was handed over.
pub fn remove(room: &Path) -> io::Result<()> {
    reclaim(room)?;
    fs::remove_dir_all(room)
}

/// Takes it back from the top down: whoever owned it cannot exchange what lies in a directory that is ours already, so no
/// link of theirs is followed, and no right to look into what is not ours is needed.
fn reclaim(path: &Path) -> io::Result<()> {
    give(path, Account::ours())?;
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    fs::read_dir(path)?.try_for_each(|entry| reclaim(&entry?.path()))
}

/// A directory of ours with that mode, whatever the umask.
pub fn make(dir: &Path, mode: u32) -> io::Result<()> {
    let made = DirBuilder::new().mode(mode).create(dir);
    made.or_else(|error| if is_our_dir(dir) { Ok(()) } else { Err(error) })?;
    fs::set_permissions(dir, Permissions::from_mode(mode))
}

fn is_our_dir(dir: &Path) -> bool {
    let ours = |metadata: fs::Metadata| metadata.is_dir() && metadata.uid() == geteuid().as_raw();
    fs::symlink_metadata(dir).is_ok_and(ours)
}

pub fn give(path: &Path, account: Account) -> io::Result<()> {
    if fs::symlink_metadata(path)?.uid() == account.uid {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid))
}

/// Removes the directory of a run that is no more; a living one holds its lock.
fn sweep(dir: &Path) {
    // Another account has runs of its own in the same place.
    if !is_our_dir(dir) {
        return;
    }
    // A directory without the file is one that was being made, or was half removed.
    let alive = match File::open(dir.join(LOCK)) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err(),
        Err(_) => is_young(dir),
    };
    if !alive {
        end_what_works_in(dir);
        let _ = remove(dir);
    }
}

fn is_young(dir: &Path) -> bool {
    let age = fs::metadata(dir).and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
    age.is_ok_and(|age| age.is_ok_and(|age| age.as_secs() < 60))
}

/// A box dies with its gate; without a box the build outlives it. Its command line names the directory, whose name is
/// nobody else's.
fn end_what_works_in(dir: &Path) {
    let dir = dir.to_string_lossy().into_owned();
    let names_it = |process: &procfs::process::Process| {
        process.cmdline().is_ok_and(|words| words.iter().any(|word| word.contains(&dir)))
    };
    for process in procfs::process::all_processes().into_iter().flatten().flatten().filter(names_it) {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}
