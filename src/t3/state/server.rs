//! Whether a server runs on a base directory and since when, as its `server-runtime.json` says. The file is removed on
//! a clean exit and stale after a kill, so its process is looked at (CONTRACT §8, §14.21).

use std::path::Path;
use std::time::{Duration, SystemTime};

use procfs::process::Process;
use serde::Deserialize;

use super::super::small_file;
use super::holders::Files;
use crate::outcome::utc;

/// t3 writes about a hundred bytes.
const LONGEST: u64 = 16 * 1024;

/// A server writes the file about a second after its process began; one that began later has only inherited the pid.
const SLACK: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    Running {
        pid: i32,
        since: SystemTime,
    },
    /// The file is there, its process is not.
    Killed,
    /// No such file, or one that cannot be read: stopped, or nobody can tell.
    Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    pid: i32,
    #[serde(with = "utc")]
    started_at: SystemTime,
}

impl Server {
    /// The server of the base directory that this database lies in.
    pub fn of(database: &Path) -> Self {
        let read = || {
            let file = small_file::read(&database.with_file_name("server-runtime.json"), LONGEST)?;
            Some((serde_json::from_str::<Runtime>(&file.text).ok()?, file.uid))
        };
        let Some((runtime, owner)) = read() else { return Self::Unknown };
        if is_that_server(&runtime, owner, database) {
            Self::Running { pid: runtime.pid, since: runtime.started_at }
        } else {
            Self::Killed
        }
    }
}

fn is_that_server(runtime: &Runtime, owner: u32, database: &Path) -> bool {
    let look = || {
        let process = Process::new(runtime.pid).ok()?;
        let stat = process.stat().ok()?;
        if stat.state == 'Z' || process.uid().ok()? != owner {
            return Some(false);
        }
        let began = procfs::boot_time_secs().ok()? + stat.starttime / procfs::ticks_per_second();
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(began);
        // A clock that was set forward since moves the begin of every process behind what was written then; what has the
        // database open is its server whatever the clock says.
        Some(began <= runtime.started_at + SLACK || Files::of(database).are_open_in(runtime.pid))
    };
    look().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_forward_makes_no_running_server_a_killed_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let database = dir.path().join("state.sqlite");
        std::fs::write(&database, "").expect("a file");
        // Long before our own process began, as it looks after the clock was set.
        let runtime = format!(r#"{{"pid":{},"startedAt":"2020-01-01T00:00:00.000Z"}}"#, std::process::id());
        std::fs::write(dir.path().join("server-runtime.json"), runtime).expect("server-runtime.json");
        assert_eq!(Server::of(&database), Server::Killed, "another process has got its number");
        let open = std::fs::File::open(&database).expect("the database");
        assert!(matches!(Server::of(&database), Server::Running { .. }));
        drop(open);
    }
}
