//! Running t3's command: one at a time, with a hard deadline, killed as a group, its errors read from where t3 puts
//! them (CONTRACT §2). Each call is a whole Node start, so its CPU time is kept.

use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Instance;
pub use crate::outcome::Verb;
use crate::outcome::{Failure, Reason};

/// More than any answer of t3; what comes after it is not read.
const LARGEST_OUTPUT: u64 = 1 << 20;
/// "database is locked" is immediate and normal under contention (CONTRACT §14.7).
const LOCK_RETRIES: u32 = 3;

/// t3's own words. Never built from input: an unknown first word starts a server (CONTRACT §2.1).
fn words(verb: Verb) -> &'static [&'static str] {
    match verb {
        Verb::Version => &["--version"],
        Verb::PairingCreate => &["auth", "pairing", "create"],
        Verb::SessionIssue => &["auth", "session", "issue"],
        Verb::ProjectAdd => &["project", "add"],
    }
}

fn spoken(verb: Verb) -> String {
    format!("t3 {}", words(verb).join(" "))
}

/// The one place that starts t3's command.
pub struct Cli {
    one_at_a_time: Semaphore,
    cpu: Mutex<Vec<(Verb, Duration)>>,
}

impl Default for Cli {
    fn default() -> Self {
        Self { one_at_a_time: Semaphore::new(1), cpu: Mutex::new(Vec::new()) }
    }
}

impl Cli {
    /// CPU time of every call since this was last asked, by verb.
    pub fn take_cpu(&self) -> Vec<(Verb, Duration)> {
        self.cpu.lock().map(|mut cpu| std::mem::take(&mut *cpu)).unwrap_or_default()
    }

    /// Runs a verb against an instance's base directory and answers what it printed.
    ///
    /// `limit` bounds each attempt; a locked database is tried again with jitter.
    pub async fn run(
        &self,
        program: &[String],
        verb: Verb,
        instance: &Instance,
        flags: &[&str],
        limit: Duration,
    ) -> Result<String, Failure> {
        let base_dir = instance.base_dir.to_string_lossy();
        let mut args = words(verb).to_vec();
        args.extend(["--base-dir", &base_dir]);
        args.extend(flags);
        let mut attempt = 0;
        loop {
            let result = self.start(program, verb, &args, Some(instance.port), limit).await;
            match result {
                Err(Failure { reason: Reason::Locked, .. }) if attempt < LOCK_RETRIES => {
                    attempt += 1;
                    let jitter = Duration::from_millis(rand::random_range(50..250));
                    tokio::time::sleep(jitter * attempt).await;
                }
                result => return result,
            }
        }
    }

    /// Runs somebody's wrapper around a verb, as it is, and answers what it printed.
    pub async fn run_wrapper(
        &self,
        program: &[String],
        verb: Verb,
        port: u16,
        limit: Duration,
    ) -> Result<String, Failure> {
        self.start(program, verb, &[], Some(port), limit).await
    }

    /// `t3 --version`: touches no files (CONTRACT §2.1).
    pub async fn version(&self, program: &[String], limit: Duration) -> Result<String, Failure> {
        self.start(program, Verb::Version, words(Verb::Version), None, limit).await
    }

    async fn start(
        &self,
        program: &[String],
        verb: Verb,
        args: &[&str],
        port: Option<u16>,
        limit: Duration,
    ) -> Result<String, Failure> {
        let _turn = self.one_at_a_time.acquire().await;
        let before = children_cpu();
        let result = run_to_end(program, args, port, limit).await;
        if let Ok(mut cpu) = self.cpu.lock() {
            cpu.push((verb, children_cpu().saturating_sub(before)));
        }
        result
            .map_err(|failure| Failure::new(failure.reason, format!("{}: {}", spoken(verb), failure.detail)))
    }
}

/// Parses the JSON answer of a call made with `--json`.
pub fn json<T: DeserializeOwned>(verb: Verb, stdout: &str) -> Result<T, Failure> {
    serde_json::from_str(stdout.trim()).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        Failure::new(
            Reason::CliGarbage,
            format!("{}: exit 0, but the output is not the documented JSON at {place}", spoken(verb)),
        )
    })
}

/// A child and everything it started, killed when this is dropped.
pub struct Group(Option<Pid>);

impl Group {
    /// Of a child that was started with `process_group(0)`.
    pub fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGTERM);
        }
    }

    /// The child is reaped: its group id may be somebody else's from now on.
    pub fn reaped(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

async fn run_to_end(
    program: &[String],
    args: &[&str],
    port: Option<u16>,
    limit: Duration,
) -> Result<String, Failure> {
    let Some((command, leading)) = program.split_first() else {
        return Err(Failure::new(Reason::CliMissing, "no t3 command is configured"));
    };
    let mut child = Command::new(command);
    child.args(leading).args(args).env_clear().process_group(0).kill_on_drop(true);
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Only what a Node program needs; no token of ours and no T3CODE_* that would move its state (CONTRACT §2.3).
    for name in ["PATH", "HOME", "LANG"] {
        if let Some(value) = std::env::var_os(name) {
            child.env(name, value);
        }
    }
    if let Some(port) = port {
        // Without it every `auth` command binds port 3773 for a moment (CONTRACT §2.2).
        child.env("T3CODE_PORT", port.to_string());
    }
    let mut child = child
        .spawn()
        .map_err(|error| Failure::new(Reason::CliMissing, format!("cannot start {command}: {error}")))?;
    let mut group = Group::of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let finished = async { tokio::join!(child.wait(), read(stdout), read(stderr)) };
    let Ok((status, stdout, stderr)) = timeout(limit, finished).await else {
        let limit = humantime::format_duration(limit);
        return Err(Failure::new(Reason::Timeout, format!("still running after {limit}, killed")));
    };
    group.reaped();
    let status =
        status.map_err(|error| Failure::new(Reason::CliFailed, format!("cannot wait for it: {error}")))?;
    if status.success() { Ok(stdout) } else { Err(failed(status.code(), &stdout, &stderr)) }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = (&mut pipe).take(LARGEST_OUTPUT).read_to_end(&mut bytes).await;
        // What is beyond the limit is read and dropped: a child whose pipe is full never ends.
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Errors are on stdout, nested; the root cause is the last `[cause]:` line. Usage errors are on stderr (CONTRACT §2.1).
pub(super) fn failed(code: Option<i32>, stdout: &str, stderr: &str) -> Failure {
    let cause = stdout.lines().rev().find_map(|line| line.trim().strip_prefix("[cause]:"));
    let error = || stdout.lines().find(|line| line.contains("ERROR"));
    let usage = || stderr.lines().rev().find(|line| !line.trim().is_empty());
    let message = cause.or_else(error).or_else(usage).unwrap_or("no output").trim();
    let reason = if message.contains("database is locked") {
        Reason::Locked
    } else if message.contains("no column named")
        || message.contains("no such table")
        || message.contains("no such column")
    {
        Reason::AuthStore
    } else {
        Reason::CliFailed
    };
    let code = code.map_or_else(|| "killed by a signal".to_owned(), |code| format!("exit {code}"));
    Failure::new(reason, format!("{code}: {}", redact(message)))
}

/// Shortens a foreign message to one line and blanks every word that could be a credential or a token, also one that
/// stands inside a URL or a piece of JSON.
fn redact(message: &str) -> String {
    let secret = |word: &str| {
        let credential =
            word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        credential || word.len() >= 40
    };
    let part_of_a_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut blanked = String::with_capacity(line.len());
    for piece in line.split_inclusive(|c| !part_of_a_word(c)) {
        let word = piece.trim_end_matches(|c| !part_of_a_word(c));
        blanked.push_str(if secret(word.trim_matches('.')) { "***" } else { word });
        blanked.push_str(&piece[word.len()..]);
    }
    blanked.chars().take(240).collect()
}

fn children_cpu() -> Duration {
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or(Duration::ZERO, |usage| {
        let time = |value: nix::sys::time::TimeVal| {
            let (seconds, micros) = (u64::try_from(value.tv_sec()), u64::try_from(value.tv_usec()));
            Duration::from_secs(seconds.unwrap_or(0)) + Duration::from_micros(micros.unwrap_or(0))
        };
        time(usage.user_time()) + time(usage.system_time())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn the_last_cause_on_stdout_is_the_reason() {
        let script = "echo '[06:14:05.784] ERROR (#5): Outer'; echo '  [cause]: Middle'; echo '    [cause]: Error: database is locked'; exit 1";
        let failure =
            run_to_end(&shell(script), &[], None, Duration::from_secs(10)).await.expect_err("exit 1");
        assert_eq!(failure, Failure::new(Reason::Locked, "exit 1: Error: database is locked"));
    }

    #[tokio::test]
    async fn a_hung_command_is_killed_with_everything_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let failure =
            run_to_end(&shell(&script), &[], None, Duration::from_millis(500)).await.expect_err("killed");
        assert_eq!(failure.reason, Reason::Timeout);
        let pid: i32 = std::fs::read_to_string(pid_file).expect("the pid").trim().parse().expect("a number");
        let gone = || {
            procfs::process::Process::new(pid).and_then(|p| p.stat()).map_or(true, |stat| stat.state == 'Z')
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(std::time::Instant::now() < deadline, "the grandchild {pid} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_named() {
        let failure = run_to_end(&["/no/such/t3".to_owned()], &[], None, Duration::from_secs(1))
            .await
            .expect_err("missing");
        assert_eq!(failure.reason, Reason::CliMissing);
        assert!(failure.detail.contains("/no/such/t3"), "{failure}");
    }

    #[tokio::test]
    async fn the_environment_is_scrubbed_but_for_what_node_needs() {
        let output = run_to_end(&shell("env"), &[], Some(41773), Duration::from_secs(10)).await.expect("env");
        let mut names: Vec<_> = output
            .lines()
            .filter_map(|line| line.split('=').next())
            .filter(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name))
            .collect();
        names.sort_unstable();
        assert!(names.iter().all(|name| ["HOME", "LANG", "PATH", "T3CODE_PORT"].contains(name)), "{names:?}");
        assert!(output.contains("T3CODE_PORT=41773"));
    }

    #[test]
    fn a_secret_in_an_error_message_is_blanked() {
        let token = "A".repeat(60);
        assert_eq!(
            redact(&format!("cannot store 'L7MMR9DLS382' and {token}\n twice")),
            "cannot store '***' and *** twice"
        );
        assert_eq!(
            redact("see http://127.0.0.1:3773/pair#token=L7MMR9DLS382, {\"credential\":\"L7MMR9DLS382\"}."),
            "see http://127.0.0.1:3773/pair#token=***, {\"credential\":\"***\"}."
        );
    }
}
