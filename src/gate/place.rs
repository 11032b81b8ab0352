//! Where one run of the gate works: a directory that a lock marks as alive. A run that was killed leaves it behind
//! without its lock; the next run ends what still works in it and removes it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::t3::boxed;

const LOCK: &str = "alive";

pub struct Place {
    dir: PathBuf,
    _alive: Flock<File>,
}

impl Place {
    /// Makes one below `state_dir`, after removing those of runs that were killed.
    pub fn new(state_dir: &Path) -> io::Result<Self> {
        let all = state_dir.join("gate");
        DirBuilder::new().recursive(true).mode(0o700).create(&all)?;
        for entry in fs::read_dir(&all)? {
            sweep(&entry?.path());
        }
        let dir = all.join(format!("{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        let file = File::create(dir.join(LOCK))?;
        let alive = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| io::Error::from(error))?;
        Ok(Self { dir: dir.canonicalize()?, _alive: alive })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that may still be written.
    pub fn free(&self) -> io::Result<u64> {
        let system = nix::sys::statvfs::statvfs(&self.dir)?;
        Ok(system.blocks_available() * system.fragment_size())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Makes the directory of one rehearsal or one install, with what belongs in it.
pub fn furnish(room: &Path) -> io::Result<()> {
    for inner in ["base/userdata", "home", "work", "driver"] {
        fs::create_dir_all(room.join(inner))?;
    }
    boxed::furnish(room)
}

/// Removes the directory of a run that is no more; a living one holds its lock.
fn sweep(dir: &Path) {
    // A directory without the file is one that was being made, or was half removed.
    let alive = match File::open(dir.join(LOCK)) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err(),
        Err(_) => is_young(dir),
    };
    if !alive {
        end_what_works_in(dir);
        let _ = fs::remove_dir_all(dir);
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
