//! Who has a user's database open besides their t3 and this program: a script, a shell, a viewer. It is copied and put
//! back while nobody has it open, so the user stays until it is let go of. Looked for before anything is stopped:
//! found out by then, nobody is cut off for it.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use procfs::process::Process;
use tokio::net::TcpStream;

use crate::t3::Instance;
use crate::t3::state::holders::Files;
use crate::t3::state::server::Server;

/// Whoever is seen so often keeps it open; a command that a user runs is gone by then.
const LOOKS: usize = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The process that keeps a database open, by number and name.
pub async fn holder(instance: &Instance) -> Option<String> {
    let is_running = matches!(Server::of(&instance.database()), Server::Running { .. });
    if !is_running && TcpStream::connect(("127.0.0.1", instance.port)).await.is_ok() {
        // Which process is the t3 that listens cannot be told, and nobody is asked to end that.
        return None;
    }
    let mut same: Option<HashSet<i32>> = None;
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let database = instance.database();
        let found = tokio::task::spawn_blocking(move || found(&database)).await.unwrap_or_default();
        let still = match same {
            None => found,
            Some(before) => before.intersection(&found).copied().collect(),
        };
        if still.is_empty() {
            return None;
        }
        same = Some(still);
    }
    let pid = same?.into_iter().min()?;
    let name = Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.comm);
    Some(format!("process {pid} ({})", name.as_deref().unwrap_or("?")))
}

fn found(database: &Path) -> HashSet<i32> {
    let server = match Server::of(database) {
        Server::Running { pid, .. } => Some(pid),
        _ => None,
    };
    let program =
        |pid: i32| std::fs::metadata(format!("/proc/{pid}/exe")).ok().map(|it| (it.dev(), it.ino()));
    // Snapshots and looks of ours come to their end, and are waited for.
    let ours = std::process::id().try_into().ok().and_then(program);
    let is_ours = |pid: i32| ours.is_some() && program(pid) == ours;
    Files::of(database).holders().filter(|pid| Some(*pid) != server && !is_ours(*pid)).collect()
}
