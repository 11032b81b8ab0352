//! The stand-in t3 as a process: a command that ends, or a server that is started and stopped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::support::raw_http;

/// Far beyond what anything here takes; who is not done by then hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// Where a run happens: a home of its own for every recording.
pub struct Site {
    pub home: PathBuf,
}

impl Site {
    fn command(&self, version: &str, args: &[String]) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            // The recorded modes are those under the usual umask, whatever the one of the test run is.
            .args([
                "-c",
                "umask 022; exec \"$@\"",
                "sh",
                env!("CARGO_BIN_EXE_t3-prober"),
                "sim",
                "t3",
                "--as",
                version,
                "--",
            ])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("SHELL", "/bin/sh")
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end: exit code, stdout, stderr.
    pub async fn run(&self, version: &str, args: &[String]) -> anyhow::Result<(Option<i32>, String, String)> {
        let output = tokio::time::timeout(DEADLINE, self.command(version, args).output())
            .await
            .with_context(|| format!("t3 {} did not end within {DEADLINE:?}", args.join(" ")))??;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// Starts a server; it is [`Server::ready`] when it answers.
    pub fn start(&self, version: &str, args: &[String], port: u16) -> anyhow::Result<Server> {
        let (stdout, stderr) = (self.home.join("server.stdout"), self.home.join("server.stderr"));
        let child = self
            .command(version, args)
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .context("starting the server")?;
        Ok(Server { child, port, stdout, stderr, read: 0 })
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    port: u16,
    stdout: PathBuf,
    stderr: PathBuf,
    /// How much of stdout has been taken.
    read: usize,
}

impl Server {
    /// Waits until the server answers 200 and has said `last`; the caller compares what it has said by then.
    pub async fn ready(&mut self, last: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if self.answers().await && String::from_utf8_lossy(&fs::read(&self.stdout)?).contains(last) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}: {}", self.whole_log());
            }
            if Instant::now() > deadline {
                bail!(
                    "the server did not answer 200 and say {last:?} within {DEADLINE:?}: {}",
                    self.whole_log()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A connection accepted while the server starts is never answered: each try has a new one and little time.
    async fn answers(&self) -> bool {
        let headers = [("Host".to_owned(), format!("127.0.0.1:{}", self.port))];
        let asked = raw_http::exchange(self.port, "GET", "/", &headers, None);
        let answer = tokio::time::timeout(Duration::from_millis(250), asked).await;
        matches!(answer, Ok(Ok(response)) if response.status == 200)
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What stdout has got since it was last taken.
    pub fn take_log(&mut self) -> anyhow::Result<String> {
        let whole = fs::read(&self.stdout)?;
        let new = String::from_utf8_lossy(&whole[self.read..]).into_owned();
        self.read = whole.len();
        Ok(new)
    }

    pub fn stderr(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.stderr)?)
    }

    fn whole_log(&self) -> String {
        let show = |file: &Path| fs::read_to_string(file).unwrap_or_default();
        format!("{}{}", show(&self.stdout), show(&self.stderr))
    }

    /// Sends SIGTERM and waits.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let id = self.child.id().context("the server has ended before it was stopped")?;
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM)?;
        let ended = tokio::time::timeout(DEADLINE, self.child.wait());
        Ok(ended
            .await
            .with_context(|| format!("the server did not end within {DEADLINE:?} of SIGTERM"))??)
    }
}
