//! Whether a build that runs is bad: a plain function of what the probes of the moved users said, in order. One failure
//! asks for a second look at once; two in a row, or too many in all, are a build that breaks.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::outcome::{Kind, Outcome, Run, Skip, Step};

/// Failures of one user's probes of one kind in a row that prove it.
const IN_A_ROW: u32 = 2;
/// Failures of one user in all: a build that fails every other time is broken as well.
const IN_ALL: u32 = 3;

/// What the probes said since the first user was moved.
#[derive(Debug, Default)]
pub struct Watch {
    in_a_row: BTreeMap<(String, Kind), u32>,
    in_all: BTreeMap<String, u32>,
}

/// What follows from one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    Well,
    /// It cannot be told; never a proof.
    Unknown,
    /// It failed, and has to be looked at again at once.
    LookAgain,
    Bad(Why),
}

/// Why a build is judged bad: who could not do what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    pub user: String,
    /// Where the enforcer's own probe failed; absent where others' logins are the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// The word of the reason.
    pub reason: String,
    pub detail: String,
}

impl Watch {
    /// Takes in one probe of a user who was moved and whose login was proven.
    pub fn see(&mut self, run: &Run) -> Opinion {
        let outcome = run.outcome();
        let key = (run.user.clone(), run.kind);
        match outcome {
            Outcome::Ok => {
                self.in_a_row.remove(&key);
                return Opinion::Well;
            }
            // An instance that was up and is starting has ended by itself in between.
            Outcome::Failed(_) | Outcome::Skipped(Skip::Starting) => {}
            Outcome::Skipped(_) => return Opinion::Unknown,
        }
        let in_a_row = self.in_a_row.entry(key).or_default();
        *in_a_row += 1;
        let in_all = self.in_all.entry(run.user.clone()).or_default();
        *in_all += 1;
        if *in_a_row >= IN_A_ROW || *in_all >= IN_ALL {
            Opinion::Bad(Why::of(run))
        } else {
            Opinion::LookAgain
        }
    }
}

impl Why {
    /// What decided a run that was not well.
    pub fn of(run: &Run) -> Self {
        let step = run.decided_by();
        Self {
            user: run.user.clone(),
            step: Some(step.map_or(Step::Reach, |step| step.step)),
            reason: run.outcome().reason().unwrap_or_default().to_owned(),
            detail: step.and_then(|step| step.detail.clone()).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "{} fails at {step}: {} [{}]", self.user, self.detail, self.reason),
            None => write!(f, "{} [{}]", self.detail, self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::outcome::{Facts, Reason, StepResult, Trigger};

    fn run(user: &str, kind: Kind, outcome: Outcome) -> Run {
        let step = StepResult { step: Step::Exchange, outcome, duration: Duration::ZERO, detail: None };
        Run {
            user: user.to_owned(),
            kind,
            trigger: Trigger::Demand,
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            steps: vec![step],
            facts: Facts::default(),
            trace_id: "0".repeat(32),
        }
    }

    const BROKEN: Outcome = Outcome::Failed(Reason::AuthStore);

    #[test]
    fn one_failure_is_looked_at_again_and_a_second_in_a_row_is_a_bad_build() {
        let mut watch = Watch::default();
        assert_eq!(watch.see(&run("ann", Kind::Handshake, BROKEN)), Opinion::LookAgain);
        let Opinion::Bad(why) = watch.see(&run("ann", Kind::Handshake, BROKEN)) else { panic!("bad") };
        assert_eq!(why.to_string(), "ann fails at exchange:  [auth_store]");
    }

    #[test]
    fn a_failure_that_does_not_come_again_is_forgiven_but_not_for_ever() {
        let mut watch = Watch::default();
        for _ in 0..2 {
            assert_eq!(watch.see(&run("ann", Kind::Handshake, BROKEN)), Opinion::LookAgain);
            assert_eq!(watch.see(&run("ann", Kind::Handshake, Outcome::Ok)), Opinion::Well);
        }
        assert!(matches!(watch.see(&run("ann", Kind::Handshake, BROKEN)), Opinion::Bad(_)));
    }

    #[test]
    fn two_users_or_two_kinds_are_not_in_a_row() {
        let mut watch = Watch::default();
        assert_eq!(watch.see(&run("ann", Kind::Handshake, BROKEN)), Opinion::LookAgain);
        assert_eq!(watch.see(&run("bob", Kind::Handshake, BROKEN)), Opinion::LookAgain);
        assert_eq!(watch.see(&run("ann", Kind::Pulse, BROKEN)), Opinion::LookAgain);
    }

    #[test]
    fn an_instance_that_starts_anew_has_crashed_and_any_other_skip_proves_nothing() {
        let mut watch = Watch::default();
        let starting = run("ann", Kind::Pulse, Outcome::Skipped(Skip::Starting));
        assert_eq!(watch.see(&starting), Opinion::LookAgain);
        assert!(matches!(watch.see(&starting), Opinion::Bad(_)));
        let skew = run("bob", Kind::Handshake, Outcome::Skipped(Skip::VersionSkew));
        assert_eq!((watch.see(&skew), watch.see(&skew)), (Opinion::Unknown, Opinion::Unknown));
    }
}
