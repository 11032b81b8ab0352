//! Acting as a user: a child of our own binary that becomes them. It has a deadline, and whatever it leaves running,
//! in its process group or far from it, is killed. What it answers comes from the user's side and is not trusted.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use procfs::Current;
use procfs::process::Process;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::account::Account;
use super::child::{Errand, Task};
use crate::config::Config;
use crate::inventory::Admitted;
use crate::outcome::{Failure, NotDone, Reason};
use crate::t3::access::wire::{End, Reply};
use crate::t3::cli::Verb;
use crate::t3::guard::Commands;
use crate::t3::http::Client;
use crate::t3::{self, Instance};

/// More than anything a child has to say.
const LARGEST_ANSWER: u64 = 256 * 1024;

/// The children of this process, and how to get rid of them.
pub struct Children {
    live: Mutex<HashSet<i32>>,
}

/// One user, as whom children act.
pub struct AsUser<'a> {
    account: Account,
    home: PathBuf,
    instance: Instance,
    t3: &'a t3::Section,
    /// Where programs are found, whoever called us: a path from the caller would choose what runs as the user.
    path: &'a str,
    children: &'a Children,
    cpu: Mutex<Vec<(Verb, Duration)>>,
}

/// A time since the machine started, as the kernel keeps it of each process.
#[derive(Clone, Copy, Debug)]
pub struct Ticks(u64);

impl Ticks {
    pub fn now() -> Self {
        let uptime = procfs::Uptime::current().map_or(Duration::ZERO, |uptime| uptime.uptime_duration());
        let hundredths = uptime.as_secs() * 100 + u64::from(uptime.subsec_millis() / 10);
        Self(hundredths * procfs::ticks_per_second() / 100)
    }
}

/// A running child; dropped, it is killed with its group.
struct Running<'a> {
    pid: i32,
    children: &'a Children,
}

impl Children {
    /// From now on what our children leave behind becomes our child, also what has left its group and session.
    pub fn new() -> Result<Self, String> {
        prctl::set_child_subreaper(true)
            .map_err(|errno| format!("cannot adopt what children leave: {errno}"))?;
        Ok(Self { live: Mutex::default() })
    }

    fn watch(&self, pid: i32) -> Running<'_> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Running { pid, children: self }
    }

    /// Kills whatever ended children have left running.
    pub async fn sweep(&self) {
        self.sweep_those(|_| true).await;
    }

    /// The same, of one account's children that began at this time or later, and of nobody else's: this process has
    /// other work, and what its other children started is not to be touched.
    pub async fn sweep_of(&self, uid: u32, began: Ticks) {
        let is_theirs = |stray: &Process| {
            let later = stray.stat().is_ok_and(|stat| stat.starttime >= began.0);
            later && stray.uid().is_ok_and(|owner| owner == uid)
        };
        self.sweep_those(is_theirs).await;
    }

    async fn sweep_those(&self, is_meant: impl Fn(&Process) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let mut strays = self.strays();
            strays.retain(|stray| Process::new(stray.as_raw()).is_ok_and(|process| is_meant(&process)));
            for stray in &strays {
                let _ = kill(*stray, Signal::SIGKILL);
                let _ = waitpid(*stray, Some(WaitPidFlag::WNOHANG));
            }
            if strays.is_empty() || Instant::now() >= deadline {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn strays(&self) -> Vec<Pid> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let tasks = Process::myself().and_then(|process| process.tasks());
        let children =
            tasks.into_iter().flatten().flatten().filter_map(|task| task.children().ok()).flatten();
        children
            .filter_map(|pid| i32::try_from(pid).ok())
            .filter(|pid| !live.contains(pid))
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        self.children.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}

impl<'a> AsUser<'a> {
    pub fn new(admitted: &Admitted, config: &'a Config, children: &'a Children) -> Self {
        let account = Account { name: admitted.user.to_string(), uid: admitted.uid, gid: admitted.gid };
        let instance = Instance {
            name: account.name.clone(),
            port: admitted.port.get(),
            base_dir: admitted.base_dir.clone(),
            uid: account.uid,
        };
        Self::of(account, admitted.home.clone(), instance, config, children)
    }

    /// An account without data, for what is nobody's.
    pub fn nobody(account: Account, config: &'a Config, children: &'a Children) -> Self {
        let nowhere = PathBuf::from("/nonexistent");
        let instance =
            Instance { name: account.name.clone(), port: 0, base_dir: nowhere.clone(), uid: account.uid };
        Self::of(account, nowhere, instance, config, children)
    }

    fn of(
        account: Account,
        home: PathBuf,
        instance: Instance,
        config: &'a Config,
        children: &'a Children,
    ) -> Self {
        let (t3, path) = (&config.t3, config.helper.path.as_str());
        Self { account, home, instance, t3, path, children, cpu: Mutex::default() }
    }

    /// The user's instance; its listener must be theirs.
    pub fn instance(&self) -> Instance {
        self.instance.clone()
    }

    pub fn account(&self) -> (u32, u32) {
        (self.account.uid, self.account.gid)
    }

    /// Kills whatever ended children of this account have left running since.
    pub async fn sweep(&self, since: Ticks) {
        self.children.sweep_of(self.account.uid, since).await;
    }

    /// Has a child do it as the user.
    pub async fn perform(&self, task: Task, limit: Duration) -> Result<Value, NotDone> {
        let errand =
            Errand { account: self.account.clone(), instance: self.instance(), t3: self.t3.clone(), task };
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::new(Reason::Helper, format!("cannot act as {}: {error}", self.account.name))
        };
        let errand = serde_json::to_vec(&errand).map_err(|error| cannot(&error))?;
        let answer = match timeout(limit, self.converse(&errand)).await {
            Ok(answer) => answer.map_err(|error| cannot(&error))?,
            Err(_) => {
                let limit = humantime::format_duration(limit);
                let what = format!("what was done as {} still ran after {limit}, killed", self.account.name);
                return Err(Failure::new(Reason::Timeout, what).into());
            }
        };
        let reply: Reply =
            serde_json::from_slice(&answer).map_err(|_| cannot(&"the child gave no whole answer"))?;
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner).extend(reply.cpu);
        match reply.end {
            End::Ok { value } => Ok(value),
            End::Failed { reason, detail } => Err(Failure::new(reason, plain(&detail)).into()),
            End::Skipped { skip, detail } => Err(NotDone::skipped(skip, plain(&detail))),
            End::Refused { detail } => Err(cannot(&plain(&detail)).into()),
        }
    }

    async fn converse(&self, errand: &[u8]) -> std::io::Result<Vec<u8>> {
        let user = self.account.name.as_str();
        let mut child = Command::new("/proc/self/exe");
        child
            .arg0("t3-prober")
            .args(["helper", "as-user"])
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true);
        child.env_clear().env("PATH", self.path).env("HOME", &self.home).env("LANG", "C.UTF-8");
        child.env("USER", user).env("LOGNAME", user);
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = child.spawn()?;
        let running = child.id().and_then(|id| i32::try_from(id).ok()).map(|pid| self.children.watch(pid));
        let mut answer = Vec::new();
        // Open until the child has ended: it is the leash.
        let mut leash = child.stdin.take();
        if let (Some(stdin), Some(stdout)) = (&mut leash, child.stdout.take()) {
            stdin.write_all(&[errand, b"\n"].concat()).await?;
            stdout.take(LARGEST_ANSWER).read_to_end(&mut answer).await?;
        }
        child.wait().await?;
        drop((running, leash));
        Ok(answer)
    }
}

impl Commands for AsUser<'_> {
    async fn run(
        &self,
        _client: &mut Client<'_>,
        verb: Verb,
        flags: &[&str],
        limit: Duration,
    ) -> Result<String, NotDone> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        // The version of the command may have to be asked of it first; a locked database is tried again.
        let printed = self.perform(Task::Command { verb, flags, limit }, limit * 3).await?;
        match printed {
            Value::String(printed) => Ok(printed),
            _ => Err(Failure::new(Reason::CliGarbage, "the child answered no text").into()),
        }
    }

    fn take_cpu(&self) -> Vec<(Verb, Duration)> {
        std::mem::take(&mut *self.cpu.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A text that the user's side may have written, fit for a log.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}
