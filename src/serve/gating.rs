//! Builds judged in the background, one at a time and last in line for the machine: those that somebody asked for, and
//! those that a followed tag brings. With a helper we have no right to boxes, and `gate --due` judges what we hand it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::lock;
use super::verdicts::Known;
use crate::config::Config;
use crate::docket::{Line, aside, tray};
use crate::gate::track::Pace;
use crate::metrics::Metrics;
use crate::outcome::Verdict;
use crate::t3::version::Version;
use crate::verdict;

/// How often it is looked at what was handed over.
const LOOK: Duration = Duration::from_secs(1);
/// What a tag was found to stand for is read this often, where others find it out.
const GLANCE: Duration = Duration::from_secs(10);
/// A gate takes minutes, and may wait for an upgrade before that.
const UNHEARD: Duration = Duration::from_secs(3600);
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
            let mut every = config.gate.track.every;
            if config.helper.is_used() {
                let known = tray::remembered(&config.state_dir);
                let followed = known.filter(|known| config.gate.track.tag.as_ref() == Some(&known.tag));
                *lock(&self.tracked) = followed.map(|known| (known.tag, known.version));
                every = every.min(GLANCE);
            } else if let Some(tag) = &config.gate.track.tag {
                let Some(found) = stop.run_until_cancelled(aside::resolve(&config, tag)).await else {
                    return;
                };
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
            if stop.run_until_cancelled(sleep(every)).await.is_none() {
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

    /// `false`: once more.
    async fn run(&self, version: &Version) -> bool {
        let config = self.config.borrow().clone();
        if config.helper.is_used() {
            hand_over(&config, version).await;
            return true;
        }
        aside::judge(&config, &self.source, version).await
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

/// Has it judged by whoever may make boxes, and waits until that is done.
async fn hand_over(config: &Config, version: &Version) {
    if let Err(error) = tray::ask(&config.state_dir, version) {
        tracing::error!(%error, %version, "the build cannot be handed to the gate");
        return;
    }
    let patience = Instant::now() + UNHEARD;
    let mut is_said = false;
    while tray::has(&config.state_dir, version) {
        if !is_said && Instant::now() >= patience {
            is_said = true;
            tracing::warn!(
                %version,
                "the build still waits to be judged by `t3-prober gate --due`; is t3-prober-gate.path enabled"
            );
        }
        sleep(LOOK).await;
    }
}
