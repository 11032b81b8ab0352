//! One command of the gate, run to its end within its limits by whoever may run it: killed with everything below it when
//! it exceeds them and when this is dropped. Should we be killed ourselves, it ends by its leash.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::outcome::Grounds;

const WATCH_EVERY: Duration = Duration::from_millis(200);
/// The evidence of a rehearsal is a tenth of it; what an installer says beyond that interests nobody.
const LARGEST_ANSWER: u64 = 96 * 1024;
const LARGEST_COMPLAINT: u64 = 16 * 1024;

/// What is to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub words: Vec<String>,
    /// All of its environment.
    pub env: BTreeMap<String, String>,
    /// One line on its stdin, which stays open for as long as we wait: see `leash`.
    pub input: String,
    pub limits: Limits,
    /// What it means where it cannot be run.
    pub grounds: Grounds,
}

/// What it may use.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    pub memory: u64,
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

/// How it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ran {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    /// The first line that it wrote to stderr, shortened.
    pub complaint: String,
}

/// Why there is no end that says anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stopped {
    pub grounds: Grounds,
    pub detail: String,
}

impl Job {
    pub fn new(words: Vec<String>, limits: Limits, grounds: Grounds) -> Self {
        Self { words, env: BTreeMap::new(), input: String::new(), limits, grounds }
    }

    /// Runs it as whoever we are.
    pub async fn carry_out(&self) -> Result<Ran, Stopped> {
        let mut child = self.start().map_err(|error| self.broken(&format!("cannot start a box: {error}")))?;
        let mut tree = Tree(child.id().and_then(|id| i32::try_from(id).ok()));
        let ended = converse(&mut child, self.input.as_bytes());
        tokio::pin!(ended);
        let deadline = sleep_until(Instant::now() + self.limits.deadline);
        tokio::pin!(deadline);
        let mut watch = interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                ran = &mut ended => {
                    // Its number may be somebody else's from here on.
                    tree.0 = None;
                    return ran.map_err(|error| self.broken(&format!("cannot wait for a box: {error}")));
                }
                () = &mut deadline => {
                    let limit = humantime::format_duration(self.limits.deadline);
                    let detail = format!("it did not end within {limit}, killed");
                    return Err(Stopped { grounds: Grounds::Deadline, detail });
                }
                _ = watch.tick() => {
                    let used = tree.memory();
                    if used > self.limits.memory {
                        let (used, limit) = (used >> 20, self.limits.memory >> 20);
                        let detail = format!("it used {used} MiB of memory, the limit is {limit} MiB, killed");
                        return Err(Stopped { grounds: Grounds::OutOfMemory, detail });
                    }
                }
            }
        }
    }

    pub fn broken(&self, detail: &str) -> Stopped {
        Stopped { grounds: self.grounds, detail: detail.to_owned() }
    }

    fn start(&self) -> std::io::Result<Child> {
        let program = self.words.first().map_or("", String::as_str);
        let mut command = Command::new(program);
        command.args(self.words.iter().skip(1)).env_clear().envs(&self.env).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn()
    }
}

impl Ran {
    /// `exit 1`, or what else ended it.
    pub fn status(&self) -> String {
        self.code.map_or_else(|| "a signal".to_owned(), |code| format!("exit {code}"))
    }
}

async fn converse(child: &mut Child, input: &[u8]) -> std::io::Result<Ran> {
    let mut leash = child.stdin.take();
    if let Some(stdin) = &mut leash {
        // A box that ends before it reads says on stderr why.
        let _ = stdin.write_all(&[input, b"\n"].concat()).await;
    }
    let (stdout, stderr) = tokio::try_join!(
        beginning(child.stdout.take(), LARGEST_ANSWER),
        beginning(child.stderr.take(), LARGEST_COMPLAINT)
    )?;
    let status = child.wait().await?;
    drop(leash);
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    Ok(Ran { code: status.code(), stdout, complaint: first_line(&stderr) })
}

/// What a pipe says at first; the rest is taken in, and forgotten.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(most).read_to_end(&mut text).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(text)
}

/// A process and everything below it, killed when this is dropped.
struct Tree(Option<i32>);

impl Tree {
    fn processes(&self) -> Vec<Process> {
        let mut found: Vec<Process> = self.0.and_then(|pid| Process::new(pid).ok()).into_iter().collect();
        let mut next = 0;
        while let Some(process) = found.get(next) {
            let tasks = process.tasks().into_iter().flatten().flatten();
            let children: Vec<_> = tasks.filter_map(|task| task.children().ok()).flatten().collect();
            found.extend(children.into_iter().filter_map(|pid| Process::new(i32::try_from(pid).ok()?).ok()));
            next += 1;
        }
        found
    }

    /// Resident bytes, summed: what is shared counts for each that shares it.
    fn memory(&self) -> u64 {
        let pages = |process: &Process| process.statm().map_or(0, |memory| memory.resident);
        self.processes().iter().map(pages).sum::<u64>() * procfs::page_size()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Without a box nothing dies with its parent, so all are looked up before the first one is killed.
        for process in self.processes() {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

/// The first line that says something, shortened.
pub fn first_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
    line.chars().take(240).collect()
}
