//! The demo's service manager: a script that stops and starts an instance for a restore. What it starts is nobody's
//! child, so whoever was started anew is stopped by it too.

use std::fmt::Write;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(5);

/// One instance, as it is started.
pub struct Unit<'a> {
    pub user: &'a str,
    pub t3: PathBuf,
    pub port: u16,
    pub base_dir: PathBuf,
}

/// Writes the script; `stop USER` and `start USER` are its commands.
pub fn write(dir: &Path, units: &[Unit<'_>]) -> io::Result<PathBuf> {
    let mut script = "#!/bin/sh\ncase $2 in\n".to_owned();
    for Unit { user, t3, port, base_dir } in units {
        let _ =
            writeln!(script, "{user}) t3='{}' port={port} base='{}' ;;", t3.display(), base_dir.display());
    }
    script.push_str(
        r#"esac
case $1 in
stop) kill "$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$base/userdata/server-runtime.json")" ;;
start) setsid "$t3" serve --host 127.0.0.1 --port "$port" --base-dir "$base" >/dev/null 2>&1 & ;;
esac
"#,
    );
    let path = script_in(dir);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
    file.write_all(script.as_bytes())?;
    Ok(path)
}

/// Stops a user's instance, whoever started it; that there is none is no trouble.
pub async fn stop(dir: &Path, user: &str) {
    let mut stop = Command::new(script_in(dir));
    stop.args(["stop", user]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = tokio::time::timeout(PATIENCE, stop.status()).await;
}

fn script_in(dir: &Path) -> PathBuf {
    dir.join("supervisor")
}
