//! What a probe returns: its steps, what they taught, and which of them decided.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Ended, Endpoint, Kind, Outcome, SessionKind, Step, Trigger, Verb};

/// One step of a probe. JSON: `step`, `outcome`, `reason`, `duration_seconds`, `detail`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    pub step: Step,
    #[serde(flatten)]
    pub outcome: Outcome,
    #[serde(rename = "duration_seconds", with = "super::seconds")]
    pub duration: Duration,
    /// For people: what exactly happened. Absent where `ok` says it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a probe learned about the instance on its way. JSON: the same names, absent where nothing was learned;
/// `cli_cpu_seconds` is a list of `{"verb", "seconds"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// `serverVersion` of the descriptor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The session cookie's name as the instance announces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The exchange endpoint that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// CPU time of each t3 command this probe started, by verb.
    #[serde(rename = "cli_cpu_seconds", with = "super::json::cpu", skip_serializing_if = "Vec::is_empty")]
    pub cli_cpu: Vec<(Verb, Duration)>,
    /// Sessions of earlier probes that could still not be revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_left: Option<u64>,
    /// What the database says, where it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Box<StateFacts>>,
}

/// What a user's database says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFacts {
    pub level: u32,
    /// The name that the level was applied under.
    pub level_name: String,
    /// The level that the running version brings; absent where version or level is not known.
    pub expected_level: Option<u32>,
    /// Whether stopping the instance now would cut somebody off.
    pub busy: bool,
    /// Threads in a turn, requests waiting for approval, provider processes.
    pub turns: u64,
    pub approvals: u64,
    pub providers: u64,
    /// Live sessions by who made them; every kind is there.
    pub sessions: Vec<(SessionKind, u64)>,
    /// Pairing links that could still be used.
    pub links: u64,
    /// All rows of the two authentication tables, which t3 never prunes.
    pub session_rows: u64,
    pub link_rows: u64,
    pub main_bytes: u64,
    pub wal_bytes: u64,
    pub events: u64,
    pub messages: u64,
    pub last_sequence: u64,
}

/// One probe of one user, from its first step to its last.
///
/// Its JSON is public (`probe --json`, the history, the spool): `user`, `kind`, `trigger`, `started` (RFC 3339, UTC,
/// milliseconds), `duration_seconds`, `outcome`, and where that is not `ok` `reason`, `step` and `detail` of the step
/// that decided it; then `steps`, `facts`, `trace_id`. What follows from `steps` is written and never read back.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Run {
    pub user: String,
    pub kind: Kind,
    pub trigger: Trigger,
    #[serde(with = "super::utc")]
    pub started: SystemTime,
    #[serde(rename = "duration_seconds", with = "super::seconds")]
    pub duration: Duration,
    pub steps: Vec<StepResult>,
    #[serde(default)]
    pub facts: Facts,
    /// The W3C trace id the probe's requests carried, 32 hex digits.
    pub trace_id: String,
}

impl Run {
    /// The first failure; else, where something due was not done, the first skip; else ok.
    pub fn outcome(&self) -> Outcome {
        let first = |wanted: Ended| self.steps.iter().map(|step| step.outcome).find(|o| o.ended() == wanted);
        first(Ended::Failed).or_else(|| first(Ended::Skipped)).unwrap_or(Outcome::Ok)
    }

    /// The step that decided the outcome; `None` when all is well.
    pub fn decided_by(&self) -> Option<&StepResult> {
        let outcome = self.outcome();
        (!outcome.is_ok()).then(|| self.steps.iter().find(|step| step.outcome == outcome)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Reason, Skip};

    fn step(step: Step, outcome: Outcome) -> StepResult {
        StepResult { step, outcome, duration: Duration::from_millis(1), detail: None }
    }

    fn run(steps: Vec<StepResult>) -> Run {
        Run {
            user: "ann".to_owned(),
            kind: Kind::Handshake,
            trigger: Trigger::Schedule,
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::from_millis(2),
            steps,
            facts: Facts::default(),
            trace_id: "0".repeat(32),
        }
    }

    #[test]
    fn a_failure_decides_the_outcome_even_after_a_skip() {
        let run = run(vec![
            step(Step::Mint, Outcome::Skipped(Skip::VersionSkew)),
            step(Step::Revoke, Outcome::Failed(Reason::Locked)),
        ]);
        assert_eq!(run.outcome(), Outcome::Failed(Reason::Locked));
        assert_eq!(run.decided_by().map(|step| step.step), Some(Step::Revoke));
        assert_eq!(run.outcome().to_string(), "failed(locked)");
    }

    #[test]
    fn a_skip_is_never_ok() {
        let run = run(vec![
            step(Step::Reach, Outcome::Ok),
            step(Step::Mint, Outcome::Skipped(Skip::VersionUnknown)),
        ]);
        assert_eq!(run.outcome().ended(), Ended::Skipped);
    }
}
