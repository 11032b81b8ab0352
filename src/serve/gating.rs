//! Builds judged in the background, one at a time and last in line for the machine: those that somebody asked for, and
//! those that a followed tag brings. Never beside an upgrade or a restore: these move the ground that the gate stands on.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::lock;
use super::verdicts::Known;
use crate::config::Config;
use crate::docket::Line;
use crate::enforce;
use crate::gate::track::Pace;
use crate::metrics::Metrics;
use crate::outcome::Verdict;
use crate::t3::boxed::{first_line, on_path};
use crate::t3::version::Version;
use crate::verdict;

/// How often the lock of upgrades and restores is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Verdicts that are looked at for the limit; no sensible one is higher.
const MOST: usize = 50;
/// A verdict that the gate has written is known by then.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// What a followed tag stands for.
pub type Tracked = Arc<Mutex<Option<(String, Version)>>>;

/// Judges what is in line, and puts there what a tag brings.
pub struct Gating {
    pub config: watch::Receiver<Arc<Config>>,
    /// The file that the gate reads its configuration from.
    pub source: PathBuf,
    pub metrics: Arc<Metrics>,
    pub line: Line,
    pub known: Known,
    pub tracked: Tracked,
    pub pace: Arc<Mutex<Pace>>,
}

impl Gating {
    /// Judges until it is told to stop; what is being judged then is given up.
    pub async fn judge(self: Arc<Self>, stop: CancellationToken) {
        while let Some(version) = stop.run_until_cancelled(self.line.next()).await {
            self.say();
            let Some(done) = stop.run_until_cancelled(self.run(&version)).await else { return };
            self.line.done(!done);
            self.say();
            if done {
                let verdict = self.verdict(&version).await;
                let section = &self.config.borrow().gate.track;
                lock(&self.pace).ended(section, &version, verdict, SystemTime::now());
            }
        }
    }

    /// Asks what the tag stands for, again and again.
    pub async fn track(self: Arc<Self>, stop: CancellationToken) {
        // What an earlier process rehearsed counts for the limit.
        let state_dir = self.config.borrow().state_dir.clone();
        for document in verdict::recent(&state_dir, MOST).iter().rev() {
            lock(&self.pace).began(document.made_at);
        }
        let mut said = None;
        loop {
            let config = self.config.borrow().clone();
            if let Some(tag) = &config.gate.track.tag {
                let Some(found) = stop.run_until_cancelled(resolve(&config, tag)).await else { return };
                match found {
                    Ok(version) => {
                        said = None;
                        *lock(&self.tracked) = Some((tag.clone(), version.clone()));
                        self.offer(&config, tag, &version);
                    }
                    // Said once: a registry that is away for a night is not a line every ten minutes.
                    Err(why) if said.as_ref() != Some(&why) => {
                        tracing::warn!(
                            tag,
                            why,
                            "what the followed tag stands for cannot be told; the last answer is kept"
                        );
                        said = Some(why);
                    }
                    Err(_) => {}
                }
            } else {
                *lock(&self.tracked) = None;
            }
            if stop.run_until_cancelled(sleep(config.gate.track.every)).await.is_none() {
                return;
            }
        }
    }

    /// Puts the build in line where it has not been judged and its turn has come.
    fn offer(&self, config: &Config, tag: &str, version: &Version) {
        let now = SystemTime::now();
        let is_judged = self.known.borrow().iter().any(|candidate| {
            candidate.document.candidate.version == version.to_string()
                && candidate.elsewhere_at(now).is_none()
                && matches!(candidate.document.verdict, Verdict::Pass | Verdict::Fail)
        });
        let mut pace = lock(&self.pace);
        if is_judged || self.line.has(version) || !pace.allows(&config.gate.track, version, now) {
            return;
        }
        if self.line.ask(version).is_ok() {
            pace.began(now);
            tracing::info!(tag, %version, "the followed tag has brought a build; it is rehearsed in the background");
        }
    }

    /// Runs the gate, and waits before it and gives it up where something else changes the host; `false`: once more.
    async fn run(&self, version: &Version) -> bool {
        let config = self.config.borrow().clone();
        while enforce::lock::is_busy(&config.state_dir) {
            sleep(LOOK).await;
        }
        let mut gate = match self.start(version) {
            Ok(gate) => gate,
            Err(error) => {
                tracing::error!(%error, %version, "the gate cannot be started");
                return true;
            }
        };
        loop {
            match timeout(LOOK, gate.wait()).await {
                Ok(Ok(status)) => {
                    tracing::info!(%version, code = status.code(), "the gate has ended");
                    return true;
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, %version, "the gate cannot be waited for");
                    return true;
                }
                Err(_) if enforce::lock::is_busy(&config.state_dir) => {
                    tracing::info!(%version, "an upgrade or a restore begins; the gate is given up and comes again");
                    // Its boxes die with it.
                    let _ = gate.kill().await;
                    return false;
                }
                Err(_) => {}
            }
        }
    }

    /// A process of its own, so that it can come after everything else: users' work, and the probes.
    fn start(&self, version: &Version) -> std::io::Result<Child> {
        let mut words: Vec<String> = Vec::new();
        let last = [&["nice", "-n", "19"][..], &["ionice", "-c", "3"]];
        for wrapper in last.into_iter().filter(|wrapper| on_path(wrapper[0]).is_some()) {
            words.extend(wrapper.iter().map(|word| (*word).to_owned()));
        }
        words.push(std::env::current_exe()?.to_string_lossy().into_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if self.source.exists() {
            command.arg("--config").arg(&self.source);
        }
        command.args(["gate", "--json"]).arg(version.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn()
    }

    /// The verdict that the run has left, once it is known.
    async fn verdict(&self, version: &Version) -> Option<Verdict> {
        let deadline = Instant::now() + KNOWN_WITHIN;
        let mut known = self.known.clone();
        let began = SystemTime::now().checked_sub(KNOWN_WITHIN)?;
        loop {
            let candidates = known.borrow_and_update().clone();
            let of_version = candidates.iter().find(|candidate| {
                candidate.document.candidate.version == version.to_string()
                    && candidate.document.made_at >= began
            });
            if let Some(candidate) = of_version {
                return Some(candidate.document.verdict);
            }
            if !matches!(tokio::time::timeout_at(deadline, known.changed()).await, Ok(Ok(()))) {
                return None;
            }
        }
    }

    fn say(&self) {
        let line = self.line.now();
        let waiting = u32::try_from(line.waiting.len()).unwrap_or(u32::MAX);
        self.metrics.verdicts.gate(line.running.is_some(), waiting);
    }
}

/// Runs the configured command and reads the version it prints.
async fn resolve(config: &Config, tag: &str) -> Result<Version, String> {
    let section = &config.gate.track;
    let words: Vec<_> = section.command.iter().map(|word| word.replace("{tag}", tag)).collect();
    let (program, arguments) = words.split_first().ok_or("no command is configured")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    // It has the network, so it gets nothing else; npm wants a place for its cache.
    command.args(arguments).env_clear().env("PATH", path).env("HOME", config.state_dir.join("gate"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(section.timeout, command.output()).await;
    let limit = humantime::format_duration(section.timeout);
    let output = output.map_err(|_| format!("{program} did not end within {limit}"))?;
    let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} ended with {}: {}", output.status, first_line(&output.stderr)));
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    last.parse().map_err(|error| format!("{program} prints no version: {error}"))
}
