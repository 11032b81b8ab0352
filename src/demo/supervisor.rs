//! The demo's service manager: a script that stops and starts an instance through its user's link, as `t3-serve@` does.
//! What it starts is nobody's child, so at the end whatever runs below the demo's directory is stopped.

use std::fmt::Write;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Writes the script; `stop USER` and `start USER` are its commands.
pub fn write(dir: &Path, ports: &[(&str, u16)]) -> io::Result<PathBuf> {
    let mut script = format!("#!/bin/sh\ndir='{}' base=\"$dir/home/$2/.t3\"\ncase $2 in\n", dir.display());
    for (user, port) in ports {
        let _ = writeln!(script, "{user}) port={port} ;;");
    }
    script.push_str(
        r#"*) exit 64 ;;
esac
# A process that has ended and was not waited for has a state of its own.
runs() {
  pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$base/userdata/server-runtime.json" 2>/dev/null)
  [ -n "$pid" ] && grep -q '^State:[[:space:]]*[^ZX]' "/proc/$pid/status" 2>/dev/null
}
case $1 in
stop)
  ! runs || kill "$pid"
  while runs; do sleep 0.05; done ;;
start)
  runs || setsid "$dir/installs/users/$2/bin/t3" serve --host 127.0.0.1 --port "$port" --base-dir "$base" \
    >>"$dir/$2.log" 2>&1 </dev/null & ;;
esac
"#,
    );
    let path = script_in(dir);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
    file.write_all(script.as_bytes())?;
    Ok(path)
}

/// Stops whatever runs with something below this directory, whoever started it.
pub async fn stop_all(dir: &Path) {
    let (began, mut signal) = (Instant::now(), Signal::SIGTERM);
    loop {
        let running = below(dir);
        if running.is_empty() || began.elapsed() > 2 * PATIENCE {
            return;
        }
        if began.elapsed() > PATIENCE {
            signal = Signal::SIGKILL;
        }
        for pid in running {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Our own program at work below this directory, and the script: nobody's editor or pager that has a file of it open.
fn below(dir: &Path) -> Vec<i32> {
    let Ok(own) = std::env::current_exe() else { return Vec::new() };
    let (prefix, script) = (format!("{}/", dir.display()), script_in(dir).display().to_string());
    let is_of_it = |process: &Process| {
        let Ok(line) = process.cmdline() else { return false };
        let is_ours = process.exe().is_ok_and(|program| program == own);
        line.contains(&script) || (is_ours && line.iter().any(|word| word.contains(&prefix)))
    };
    let ourselves = i32::try_from(std::process::id()).unwrap_or_default();
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let found = processes.flatten().filter(|process| process.pid != ourselves && is_of_it(process));
    found.map(|process| process.pid).collect()
}

fn script_in(dir: &Path) -> PathBuf {
    dir.join("supervisor")
}
