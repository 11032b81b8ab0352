//! The enforcer: from "a new build exists" to "all users run it" or "all users are where they were". What is decided is
//! in plain functions (`plan`, `canary`); what is done is in the journal before it is done; every end is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::outcome::{Deferral, End, Failure, Hold};
use crate::t3::version::Version;

mod attempt;
mod canary;
mod candidate;
mod command;
mod freeze;
mod holders;
mod interrupt;
mod journal;
mod links;
pub mod lock;
mod moves;
mod plan;
mod progress;
mod proof;
mod ready;
mod report;
mod rollout;
mod run;
mod standing;
mod witness;

pub use attempt::{never_began, run};
pub use standing::Seen;

/// A rollout that takes longer than this for one user is a slip of the pen.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// `[enforce]`: how builds are brought to users, and back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The dist-tag that is followed where `[pins]` names no version. No default; absent and without a pin there is
    /// nothing to do.
    pub track: Option<String>,
    /// The command that prints the version which `{tag}` stands for. Default: npm's view.
    pub track_command: Vec<String>,
    /// The command that judges `{version}` beside `{last_good}`; exit 0 is a pass. Default none: this program's own
    /// `gate`.
    pub gate_command: Vec<String>,
    /// How long the gate may take. Default 2h.
    #[serde(with = "humantime_serde")]
    pub gate_timeout: Duration,
    /// The command that stops a user's instance and returns when it has stopped; `{user}` is replaced. Default: systemd.
    pub stop_command: Vec<String>,
    /// The command that starts a user's instance through the user's link; `{user}` is replaced. Default: systemd.
    pub start_command: Vec<String>,
    /// How long the first user is watched; every further group half as long. No default; absent, what the verdict says,
    /// else 10m.
    #[serde(with = "humantime_serde")]
    pub soak: Option<Duration>,
    /// How often everybody who was moved is logged in to while a build is watched. Default 15s.
    #[serde(with = "humantime_serde")]
    pub login_interval: Duration,
    /// Users who are moved first, where they are idle. Default none: the order of the dispatch table.
    pub canaries: Vec<String>,
}

impl Default for Section {
    fn default() -> Self {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            track: None,
            track_command: words(&["npm", "view", "t3@{tag}", "version"]),
            gate_command: Vec::new(),
            gate_timeout: Duration::from_secs(2 * 3600),
            stop_command: words(&["systemctl", "stop", "t3-serve@{user}.service"]),
            start_command: words(&["systemctl", "start", "t3-serve@{user}.service"]),
            soak: None,
            login_interval: Duration::from_secs(15),
            canaries: Vec::new(),
        }
    }
}

impl Section {
    /// What no single key shows, as (key, sentence).
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        let limits = [("gate_timeout", self.gate_timeout), ("login_interval", self.login_interval)];
        let none = limits.iter().filter(|(_, limit)| limit.is_zero());
        complaints.extend(
            none.map(|(key, _)| (*key, "nothing can be done in no time; write 1s or more".to_owned())),
        );
        let spans = [("soak", self.soak), ("login_interval", Some(self.login_interval))];
        let endless = spans.iter().filter(|(_, span)| span.is_some_and(|span| span > LONGEST));
        complaints.extend(
            endless.map(|(key, _)| (*key, "nobody is watched for that long; write 7d or less".to_owned())),
        );
        let needed = [
            ("track_command", &self.track_command, "{tag}"),
            ("stop_command", &self.stop_command, "{user}"),
            ("start_command", &self.start_command, "{user}"),
        ];
        for (key, command, word) in needed {
            if !command.iter().any(|argument| argument.contains(word)) {
                complaints.push((key, format!("it does the same for everybody; it needs {word} in it")));
            }
        }
        complaints
    }
}

/// What is asked of one run.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// This version and no other, for this run.
    pub to: Option<Version>,
    /// Only bring those who were left behind to the build that is proven here.
    pub drain: bool,
    /// How long to wait for somebody who is busy.
    pub wait: Duration,
    /// Users who stay.
    pub except: Vec<String>,
    /// Whether a build without a way back may be given to users.
    pub forward_fix: bool,
    /// Bring everybody back whom an unfinished rollout has moved.
    pub back: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Report {
    pub end: End,
    /// Where it holds, why.
    pub hold: Option<Hold>,
    pub target: Option<Version>,
    /// One sentence for a person.
    pub detail: String,
    /// Who was moved, or brought back.
    pub moved: Vec<String>,
    pub deferred: Vec<plan::Deferred>,
}

/// Why a run ended before its end.
#[derive(Debug)]
enum Stop {
    Held(Hold, String),
    Failed(Failure),
    /// It was told to.
    Interrupted,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Report {
    fn stopped(stop: Stop, target: Option<Version>) -> Self {
        let (end, hold, detail) = match stop {
            Stop::Held(hold, detail) => (End::Held, Some(hold), detail),
            Stop::Failed(failure) => (End::Error, None, failure.to_string()),
            Stop::Interrupted => (End::Interrupted, None, "told to stop".to_owned()),
        };
        Self { end, hold, target, detail, moved: Vec::new(), deferred: Vec::new() }
    }

    /// Nobody could be moved. Who is busy will be idle by themselves; about everybody else somebody has to decide.
    fn nobody_idle(target: Version, deferred: Vec<plan::Deferred>) -> Self {
        let who: Vec<_> = deferred.iter().map(ToString::to_string).collect();
        let by_themselves = |it: &plan::Deferred| matches!(it.why, Deferral::Busy | Deferral::Excepted);
        Self {
            end: if deferred.iter().all(by_themselves) { End::Waiting } else { End::Held },
            hold: Some(Hold::NobodyIdle),
            target: Some(target),
            detail: who.join("; "),
            moved: Vec::new(),
            deferred,
        }
    }

    fn interrupted(detail: String, target: Option<Version>) -> Self {
        Self { detail, ..Self::stopped(Stop::Interrupted, target) }
    }
}

/// Where the enforcer keeps its own files.
pub fn dir(state_dir: &Path) -> PathBuf {
    state_dir.join("enforce")
}
