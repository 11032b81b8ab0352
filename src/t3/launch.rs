//! A trial run of t3 on a copy: its own base directory, home and port, nothing of a user's environment, no telemetry
//! (CONTRACT §11). Nothing here touches a live instance.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Instance;
use super::cli::Group;
use crate::outcome::{Failure, Reason};

/// A directory that a trial run lives in: base directory, home and working directory, gone when this is dropped.
pub struct Scratch {
    dir: PathBuf,
    pub instance: Instance,
}

/// A running `t3 serve`, killed with everything it started when this is dropped.
pub struct Trial {
    child: Child,
    group: Group,
}

impl Scratch {
    /// Makes an empty one at `dir`, for a server on a port that is free at this moment.
    pub fn new(dir: &Path, name: &str) -> io::Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let uid = nix::unistd::geteuid().as_raw();
        let instance = Instance { name: name.to_owned(), port, base_dir: dir.join("base"), uid };
        let scratch = Self { dir: dir.to_path_buf(), instance };
        for inner in ["base/userdata", "home", "work"] {
            fs::create_dir_all(dir.join(inner))?;
        }
        fs::write(dir.join("base/userdata/settings.json"), r#"{"enableProviderUpdateChecks":false}"#)?;
        Ok(scratch)
    }

    /// Where something of the trial itself may be kept.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts t3 on it, bound to loopback.
    pub fn start(&self, program: &[String]) -> Result<Trial, Failure> {
        let missing = |what: String| Failure::new(Reason::CliMissing, what);
        let (command, leading) =
            program.split_first().ok_or_else(|| missing("no t3 command is configured".to_owned()))?;
        let port = self.instance.port.to_string();
        let mut child = Command::new(command);
        child
            .args(leading)
            .args(["serve", "--no-browser", "--host", "127.0.0.1", "--port", &port, "--base-dir"])
            .arg(&self.instance.base_dir)
            .arg(self.dir.join("work"))
            .current_dir(self.dir.join("work"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.join("home"))
            .env("SHELL", "/bin/sh")
            .env("T3CODE_PORT", &port)
            .env("T3CODE_TELEMETRY_ENABLED", "false")
            .env("T3CODE_RELAY_CLIENT_OTLP_TRACES_URL", "http://off.invalid")
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            // What it prints holds a live owner credential (CONTRACT §9).
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = child.spawn().map_err(|error| missing(format!("cannot start {command}: {error}")))?;
        Ok(Trial { group: Group::of(&child), child })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Trial {
    /// The exit status, where it has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        self.group.reaped();
        Some(status.to_string())
    }

    /// Stops it as a supervisor would, and waits.
    pub async fn stop(mut self, limit: Duration) -> Result<(), Failure> {
        self.group.terminate();
        let ended = timeout(limit, self.child.wait()).await;
        match ended {
            Ok(_) => {
                self.group.reaped();
                Ok(())
            }
            Err(_) => Err(Failure::new(
                Reason::Timeout,
                format!("t3 still ran {} after SIGTERM, killed", humantime::format_duration(limit)),
            )),
        }
    }
}
