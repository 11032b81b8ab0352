//! Probes: what is asked of one user's instance, and how the answers become outcomes.
//! A probe returns a `Run`; it knows neither metrics nor history, and one user's trouble never delays another's probe.

use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::time::Instant;
use tracing::Instrument;

use crate::inventory::Target;
use crate::outcome::{Facts, Kind, NotDone, Outcome, Run, Skip, Step, StepResult, Trigger};
use crate::t3::Instance;
use crate::t3::keeper::Limits;
use crate::t3::trace::TraceContext;

mod ages;
pub mod front;
pub mod handshake;
pub mod prober;
pub mod pulse;
pub mod schedule;
pub mod state;
mod tables;
mod task;

/// `[probe]`: how often and how patiently.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// How often every instance is pulsed. Default 5s.
    #[serde(with = "humantime_serde")]
    pub pulse_interval: Duration,
    /// How long a pulse may take in all, retries included. Default 1500ms; at most 80 % of the interval is used.
    #[serde(with = "humantime_serde")]
    pub pulse_timeout: Duration,
    /// How often every user's whole login is tried. Default 10m. Stretched, visibly, when the logins do not fit.
    #[serde(with = "humantime_serde")]
    pub handshake_interval: Duration,
    /// How long one request of a handshake may take. Default 5s.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long one run of t3's command may take before it is killed. Default 15s.
    #[serde(with = "humantime_serde")]
    pub command_timeout: Duration,
    /// How often every instance's database is read, where it changed. Default 1m.
    #[serde(with = "humantime_serde")]
    pub state_interval: Duration,
    /// A TCP listener of the dispatch, where it is asked as the edge would ask. No default; absent, nothing is asked
    /// through it, unless it runs inside `serve`.
    pub front: Option<SocketAddr>,
    /// Accounts that this listener may belong to, besides root and our own. Default none.
    pub front_uids: Vec<u32>,
    /// How often every user's kept session is shown at the dispatch. Default 1m. Every second handshake is a first
    /// visit there.
    #[serde(with = "humantime_serde")]
    pub front_interval: Duration,
    /// How often the running version is read when nothing suggests that it changed. Default 5m.
    #[serde(with = "humantime_serde")]
    pub version_interval: Duration,
    /// How long after its listening socket appeared an instance counts as starting. Default 10s.
    #[serde(with = "humantime_serde")]
    pub start_grace: Duration,
    /// Pulses under way at once. Default 512, with which even a thousand instances that are all silent keep their beat.
    pub concurrent_pulses: usize,
    /// Handshakes under way at once. Default 4; t3's command runs one at a time in any case.
    pub concurrent_handshakes: usize,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            pulse_interval: Duration::from_secs(5),
            pulse_timeout: Duration::from_millis(1500),
            handshake_interval: Duration::from_secs(600),
            request_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(15),
            state_interval: Duration::from_secs(60),
            front: None,
            front_uids: Vec::new(),
            front_interval: Duration::from_secs(60),
            version_interval: Duration::from_secs(300),
            start_grace: Duration::from_secs(10),
            concurrent_pulses: 512,
            concurrent_handshakes: 4,
        }
    }
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let durations = [
            ("pulse_interval", self.pulse_interval),
            ("pulse_timeout", self.pulse_timeout),
            ("handshake_interval", self.handshake_interval),
            ("request_timeout", self.request_timeout),
            ("command_timeout", self.command_timeout),
            ("state_interval", self.state_interval),
            ("front_interval", self.front_interval),
            ("version_interval", self.version_interval),
        ];
        let counts = [
            ("concurrent_pulses", self.concurrent_pulses),
            ("concurrent_handshakes", self.concurrent_handshakes),
        ];
        // A year is longer than anybody means, and short enough to be added to any clock.
        let longest = Duration::from_secs(365 * 24 * 3600);
        let short =
            durations.iter().filter(|(_, value)| *value < Duration::from_millis(1)).map(|(key, _)| *key);
        let long = durations.iter().filter(|(_, value)| *value > longest).map(|(key, _)| *key);
        let none = counts.iter().filter(|(_, value)| *value == 0).map(|(key, _)| *key);
        let short = short.map(|key| (key, "nothing can be done in no time; write 1ms or more".to_owned()));
        let long = long.map(|key| (key, "it would never come round; write less than a year".to_owned()));
        let none = none.map(|key| (key, "with 0 nothing would ever be probed; write 1 or more".to_owned()));
        short.chain(long).chain(none).collect()
    }

    /// A probe never runs into the next one of its kind.
    pub fn pulse_limit(&self) -> Duration {
        self.pulse_timeout.min(self.pulse_interval.mul_f64(0.8))
    }

    /// The same for one request through the dispatch.
    pub fn front_limits(&self) -> Limits {
        let most = self.front_interval.mul_f64(0.8);
        Limits { request: self.request_timeout.min(most), command: self.command_timeout.min(most) }
    }

    /// The same for each part of a handshake.
    pub fn handshake_limits(&self) -> Limits {
        let most = self.handshake_interval.mul_f64(0.8);
        Limits { request: self.request_timeout.min(most), command: self.command_timeout.min(most) }
    }
}

/// Where a target's t3 is reached, and whose its listener must be: where instances run as oneself, our own.
pub fn instance_of(target: &Target) -> Instance {
    Instance {
        name: target.user.to_string(),
        port: target.port.get(),
        base_dir: target.base_dir.clone(),
        uid: target.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
    }
}

/// A detail as it may stand in a log, on a terminal and in the history: part of it is an instance's own words.
fn legible(detail: &str) -> String {
    const LONGEST: usize = 600;
    detail.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A run while it is being made: each step is timed, and a planned step that was never come to is a skip.
pub struct Steps<'a> {
    kind: Kind,
    trigger: Trigger,
    instance: &'a Instance,
    plan: &'static [Step],
    started: SystemTime,
    clock: Instant,
    results: Vec<StepResult>,
    pub facts: Facts,
}

impl<'a> Steps<'a> {
    pub fn begin(kind: Kind, trigger: Trigger, instance: &'a Instance, plan: &'static [Step]) -> Self {
        Self {
            kind,
            trigger,
            instance,
            plan,
            started: SystemTime::now(),
            clock: Instant::now(),
            results: Vec::with_capacity(plan.len()),
            facts: Facts::default(),
        }
    }

    /// Does one step; `None` when it did not succeed.
    pub async fn take<T>(&mut self, step: Step, work: impl Future<Output = Result<T, NotDone>>) -> Option<T> {
        let clock = Instant::now();
        let span = tracing::info_span!("step", otel.name = step.as_str(), outcome = tracing::field::Empty);
        let result = work.instrument(span.clone()).await;
        let (outcome, detail) = match &result {
            Ok(_) => (Outcome::Ok, None),
            Err(why) => (why.outcome(), Some(legible(why.detail()))),
        };
        span.record("outcome", tracing::field::display(outcome));
        self.results.push(StepResult { step, outcome, duration: clock.elapsed(), detail });
        result.ok()
    }

    /// Adds to the step just taken what its success does not say.
    pub fn remark(&mut self, remark: String) {
        if let Some(result) = self.results.last_mut() {
            result.detail = Some(remark);
        }
    }

    /// Whether a step has been done with success.
    pub fn succeeded(&self, step: Step) -> bool {
        self.results.iter().any(|result| result.step == step && result.outcome.is_ok())
    }

    /// The finished run.
    pub fn end(mut self, trace: &TraceContext) -> Run {
        let duration = self.clock.elapsed();
        for step in self.plan {
            if !self.results.iter().any(|result| result.step == *step) {
                let outcome = Outcome::Skipped(Skip::EarlierStep);
                self.results.push(StepResult {
                    step: *step,
                    outcome,
                    duration: Duration::ZERO,
                    detail: None,
                });
            }
        }
        self.results.sort_by_key(|result| result.step);
        Run {
            user: self.instance.name.clone(),
            kind: self.kind,
            trigger: self.trigger,
            started: self.started,
            duration,
            steps: self.results,
            facts: self.facts,
            trace_id: trace.trace_id(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_instances_keep_their_beat_when_all_are_silent() {
        let section = Section::default();
        let at_once = u32::try_from(section.concurrent_pulses).expect("a small number");
        assert!(section.pulse_limit() * 1000 <= section.pulse_interval * at_once);
    }

    #[test]
    fn an_instances_own_words_neither_steer_a_terminal_nor_fill_the_history() {
        assert_eq!(legible("a\n\x1b[31mred\u{9b}"), "a  [31mred ");
        assert_eq!(legible(&"é".repeat(100_000)).chars().count(), 600);
    }
}
