//! Whether a server runs on a base directory and since when, as its `server-runtime.json` says. The file is removed on
//! a clean exit and stale after a kill, so its process is looked at (CONTRACT §8, §14.21).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use procfs::process::Process;
use serde::Deserialize;

use crate::outcome::utc;

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
        let path = database.with_file_name("server-runtime.json");
        let read = || {
            let runtime: Runtime = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            Some((runtime, std::fs::metadata(&path).ok()?.uid()))
        };
        let Some((runtime, owner)) = read() else { return Self::Unknown };
        if is_that_server(runtime.pid, owner, runtime.started_at) {
            Self::Running { pid: runtime.pid, since: runtime.started_at }
        } else {
            Self::Killed
        }
    }
}

fn is_that_server(pid: i32, owner: u32, since: SystemTime) -> bool {
    let look = || {
        let process = Process::new(pid).ok()?;
        let stat = process.stat().ok()?;
        let began = procfs::boot_time_secs().ok()? + stat.starttime / procfs::ticks_per_second();
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(began);
        Some(stat.state != 'Z' && process.uid().ok()? == owner && began <= since + SLACK)
    };
    look().unwrap_or(false)
}
