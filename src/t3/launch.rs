//! A trial run of t3 on a copy: its own base directory, home and port, nothing of a user's environment, no telemetry
//! (CONTRACT §11). Nothing here touches a live instance.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::cli::{self, Group};
use super::http::{Client, Proof};
use super::trace::TraceContext;
use super::{Instance, session};
use crate::outcome::{Failure, Reason};

/// A connection accepted while t3 starts is never answered (CONTRACT §9): each try is short and opens its own.
const TRY: Duration = Duration::from_millis(250);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// More than a server says between its start and the error that ends it.
const LAST_WORDS: usize = 64 * 1024;

/// A directory that a trial run lives in: base directory, home and working directory. Whoever made it removes it.
pub struct Scratch {
    dir: PathBuf,
    pub instance: Instance,
}

/// A running `t3 serve`, killed with everything it started when this is dropped.
pub struct Trial {
    child: Child,
    group: Group,
    log: PathBuf,
}

impl Scratch {
    /// One in that directory, with whatever lies in it, for a server on a port that is free at this moment.
    pub fn within(dir: &Path, name: &str) -> io::Result<Self> {
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

    /// Starts t3 on it, bound to `host`: the cookie's name depends on that (CONTRACT §4).
    pub fn start(&self, program: &[String], host: &str) -> Result<Trial, Failure> {
        let missing = |what: String| Failure::new(Reason::CliMissing, what);
        let (command, leading) =
            program.split_first().ok_or_else(|| missing("no t3 command is configured".to_owned()))?;
        let port = self.instance.port.to_string();
        // What it prints holds a live owner credential (CONTRACT §9).
        let log = self.dir.join("log");
        let output = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&log);
        let output = output.map_err(|error| missing(format!("cannot write {}: {error}", log.display())))?;
        let mut child = Command::new(command);
        child
            .args(leading)
            .args(["serve", "--no-browser", "--host", host, "--port", &port, "--base-dir"])
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
            .stdout(output)
            .stderr(Stdio::null());
        let child = child.spawn().map_err(|error| missing(format!("cannot start {command}: {error}")))?;
        Ok(Trial { group: Group::of(&child), child, log })
    }
}

impl Trial {
    /// Waits until it answers the session call; says at once when it ended instead.
    pub async fn ready(&mut self, instance: &Instance, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let trace = TraceContext::unsampled();
        let mut client = Client::new(instance, &trace);
        loop {
            client.reconnect();
            let Err(failure) = session::read(&mut client, Proof::Nobody, TRY).await else { return Ok(()) };
            if let Some(crashed) = self.ended() {
                return Err(crashed);
            }
            if Instant::now() >= deadline {
                let limit = humantime::format_duration(limit);
                let detail = format!("no answer {limit} after the start: {}", failure.detail);
                let reason = if failure.reason == Reason::Refused { Reason::Timeout } else { failure.reason };
                return Err(Failure::new(reason, detail));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// How it ended, where it has ended by itself.
    pub fn ended(&mut self) -> Option<Failure> {
        let status = self.child.try_wait().ok().flatten()?;
        self.group.reaped();
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(LAST_WORDS)..]).into_owned();
        let said = cli::failed(status.code(), &log, "");
        Some(Failure::new(Reason::Crashed, format!("the server ended by itself: {}", said.detail)))
    }

    /// The same for one that may be about to end: its port closes first, and the process is gone a moment later.
    pub async fn ended_within(&mut self, limit: Duration) -> Option<Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= deadline {
                return ended;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Stops it as a supervisor would, and waits; answers its exit status, `None` where a signal ended it.
    pub async fn stop(mut self, limit: Duration) -> Result<Option<i32>, Failure> {
        match self.boxed() {
            Some(server) => {
                let _ = kill(server, Signal::SIGTERM);
            }
            None => self.group.terminate(),
        }
        let ended = timeout(limit, self.child.wait()).await;
        match ended {
            Ok(status) => {
                self.group.reaped();
                Ok(status.ok().and_then(|status| status.code()))
            }
            Err(_) => Err(Failure::new(
                Reason::Timeout,
                format!("t3 still ran {} after SIGTERM, killed", humantime::format_duration(limit)),
            )),
        }
    }

    /// The server itself, where it runs in a bubblewrap: that one takes a SIGTERM for itself and kills what is in it.
    fn boxed(&self) -> Option<Pid> {
        let mut pid = i32::try_from(self.child.id()?).ok()?;
        let mut is_boxed = false;
        while Process::new(pid).and_then(|process| process.stat()).is_ok_and(|stat| stat.comm == "bwrap") {
            let tasks = Process::new(pid).and_then(|process| process.tasks()).ok()?;
            let children = tasks.flatten().filter_map(|task| task.children().ok()).flatten();
            pid = i32::try_from(children.min()?).ok()?;
            is_boxed = true;
        }
        is_boxed.then(|| Pid::from_raw(pid))
    }
}
