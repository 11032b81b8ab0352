//! Stopping and starting a user's instance with the configured commands, or by whoever is asked to, and knowing when it
//! has stopped and started: t3 takes up to a minute to stop, and accepts connections before it answers them
//! (CONTRACT §9).

use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use procfs::process::Process;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Section;
use crate::outcome::{Failure, Reason};
use crate::t3::Instance;
use crate::t3::http::{Client, Proof};
use crate::t3::session;
use crate::t3::state::holders::Files;
use crate::t3::state::server::Server;
use crate::t3::trace::TraceContext;

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A connection accepted while t3 starts is never answered (CONTRACT §9): each try is short and opens its own.
const TRY: Duration = Duration::from_millis(250);

/// How long an operator has to stop or to start an instance by hand.
const BY_HAND: Duration = Duration::from_secs(600);

/// Whoever stops and starts an instance for which no command is configured: the person at the terminal.
#[derive(Clone)]
pub struct ByHand<'a> {
    /// Tells them what they have to do.
    pub ask: &'a (dyn Fn(&str) + Sync),
    /// Cancelled when they want no more of it.
    pub given_up: CancellationToken,
}

pub struct Service<'a> {
    pub section: &'a Section,
    pub instance: &'a Instance,
    /// Absent, an instance without commands stays as it is.
    pub by_hand: Option<ByHand<'a>>,
}

impl Service<'_> {
    /// Stops the instance and waits until nobody has the database open.
    pub async fn stop(&self) -> Result<(), Failure> {
        let server = Server::of(&self.instance.database());
        if self.section.stop_command.is_empty() {
            return self.stopped_by_hand().await;
        }
        let deadline = Instant::now() + self.section.stop_timeout;
        let mut stopping = pin!(self.run("stop", &self.section.stop_command, self.section.stop_timeout));
        let stopped = loop {
            match timeout(LOOK_AGAIN, &mut stopping).await {
                Ok(done) => break done,
                Err(_) => reap(&server),
            }
        };
        match stopped {
            Ok(()) => self.until_stopped(deadline, "").await,
            // A command that stops what is stopped already may well fail.
            Err(_) if self.is_stopped().await => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn stopped_by_hand(&self) -> Result<(), Failure> {
        const REMEDY: &str = "; stop it, or set `[backup] stop_command` and `start_command`";
        let Some(sign) = self.sign_of_life().await else { return Ok(()) };
        let Some(by_hand) = &self.by_hand else {
            return self.until_stopped(Instant::now() + self.section.stop_timeout, REMEDY).await;
        };
        let (user, limit) = (&self.instance.name, humantime::format_duration(BY_HAND));
        (by_hand.ask)(&format!(
            "{user}: stop the instance now, there is no `[backup] stop_command`: {sign}; waiting {limit}"
        ));
        by_hand.wait(self.until_stopped(Instant::now() + BY_HAND, REMEDY)).await
    }

    async fn until_stopped(&self, deadline: Instant, remedy: &str) -> Result<(), Failure> {
        while let Some(sign) = self.sign_of_life().await {
            if Instant::now() >= deadline {
                let what = format!("the instance has not stopped: {sign}{remedy}");
                return Err(Failure::new(Reason::Timeout, what));
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Starts the instance and waits until it answers.
    pub async fn start(&self) -> Result<(), Failure> {
        if !self.section.start_command.is_empty() {
            self.run("start", &self.section.start_command, self.section.start_timeout).await?;
            return answers(self.instance, self.section.start_timeout).await;
        }
        let Some(by_hand) = &self.by_hand else { return Ok(()) };
        let (user, limit) = (&self.instance.name, humantime::format_duration(BY_HAND));
        (by_hand.ask)(&format!(
            "{user}: start the instance now, there is no `[backup] start_command`; waiting {limit} for its answer"
        ));
        by_hand.wait(answers(self.instance, BY_HAND)).await
    }

    /// The same after something failed and the former state is back: nobody is waited for.
    pub async fn start_again(&self) -> Result<(), Failure> {
        match &self.by_hand {
            Some(by_hand) if self.section.start_command.is_empty() => {
                let user = &self.instance.name;
                (by_hand.ask)(&format!(
                    "{user}: start the instance again, there is no `[backup] start_command`"
                ));
                Ok(())
            }
            _ => self.start().await,
        }
    }

    /// Whether something listens on the instance's port.
    pub async fn is_up(&self) -> bool {
        tokio::net::TcpStream::connect(("127.0.0.1", self.instance.port)).await.is_ok()
    }

    async fn is_stopped(&self) -> bool {
        self.sign_of_life().await.is_none()
    }

    /// What shows that the instance is not stopped.
    async fn sign_of_life(&self) -> Option<String> {
        let port = self.instance.port;
        if self.is_up().await {
            return Some(format!("port {port} is still open"));
        }
        if let Server::Running { pid, .. } = Server::of(&self.instance.database()) {
            return Some(format!("its process {pid} still runs"));
        }
        let files = Files::of(&self.instance.database());
        let holder = tokio::task::spawn_blocking(move || files.holders().next()).await.ok().flatten();
        holder.map(|pid| format!("process {pid} still has the database open"))
    }

    async fn run(&self, verb: &str, command: &[String], limit: Duration) -> Result<(), Failure> {
        let shown = command.join(" ");
        let failed = |what: String| {
            Failure::new(Reason::CliFailed, format!("cannot {verb} the instance: `{shown}` {what}"))
        };
        let Some((program, args)) = command.split_first() else { return Ok(()) };
        let args = args.iter().map(|arg| arg.replace("{user}", &self.instance.name));
        let mut child = Command::new(program.replace("{user}", &self.instance.name));
        // Its messages are for the operator; whatever it leaves running must not hold a pipe of ours.
        child.args(args).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        // Ctrl-C at our terminal is for us: what is being stopped or started is finished all the same.
        child.process_group(0);
        match timeout(limit, child.status()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(format!("ended with {status}"))),
            // Nothing was asked of the instance yet: whatever it runs is not at fault.
            Ok(Err(error)) => {
                let Failure { detail, .. } = failed(format!("could not be started: {error}"));
                Err(Failure::new(Reason::CliMissing, detail))
            }
            Err(_) => Err(failed(format!("did not end within {}", humantime::format_duration(limit)))),
        }
    }
}

impl ByHand<'_> {
    pub fn goes_on(&self) -> Result<(), Failure> {
        if self.given_up.is_cancelled() { Err(given_up()) } else { Ok(()) }
    }

    async fn wait(&self, done: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
        tokio::select! {
            done = done => done,
            () = self.given_up.cancelled() => Err(given_up()),
        }
    }

    /// Once more, for what has to be done now that it was given up.
    pub fn anew(&self) -> Self {
        Self { ask: self.ask, given_up: CancellationToken::new() }
    }
}

fn given_up() -> Failure {
    Failure::new(Reason::Timeout, "it was given up")
}

/// A server that a script started may have been adopted by us, as everything is that a user's child leaves behind. To
/// whoever asks for it by its number it has not ended until we have taken note of its end.
fn reap(server: &Server) {
    if let Server::Running { pid, .. } = server {
        let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
    }
}

/// Waits until the instance answers the session call.
pub async fn answers(instance: &Instance, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let trace = TraceContext::unsampled();
    let mut client = Client::new(instance, &trace);
    loop {
        client.reconnect();
        match session::read(&mut client, Proof::Nobody, TRY).await {
            Ok(_) => return Ok(()),
            Err(failure) if Instant::now() >= deadline => {
                let limit = humantime::format_duration(limit);
                let detail = format!("the instance does not answer within {limit}: {}", failure.detail);
                return Err(Failure::new(failure.reason, detail));
            }
            Err(_) => sleep(LOOK_AGAIN).await,
        }
    }
}

/// Whether we run below the instance's own process, as an agent of its user does: stopping it would stop us half-way.
pub fn is_our_ancestor(instance: &Instance) -> bool {
    let Server::Running { pid, .. } = Server::of(&instance.database()) else { return false };
    let mut process = Process::myself().and_then(|process| process.stat()).ok();
    while let Some(stat) = process {
        if stat.pid == pid {
            return true;
        }
        process = Process::new(stat.ppid).and_then(|parent| parent.stat()).ok().filter(|_| stat.ppid > 1);
    }
    false
}
