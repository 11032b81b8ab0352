//! The verdicts of the small world.

use std::time::Duration;

use super::noon;
use crate::metrics::{Judged, Metrics, Refused};
use crate::outcome::{Decision, Grounds, Reason, Rehearsal, RehearsalStep, Rollback, Verdict};

/// A build that passed and one that did not.
pub fn record(metrics: &Metrics) {
    let passed = Judged {
        version: "0.0.26",
        verdict: Verdict::Pass,
        grounds: Grounds::AllPassed,
        rollback: Some(Rollback::NeedsRestore),
        holds: true,
        made_at: noon(),
        expires_at: noon() + Duration::from_secs(7 * 24 * 3600),
        rehearsals: vec![
            (Rehearsal::Control, Duration::from_secs(34)),
            (Rehearsal::Candidate, Duration::from_secs(35)),
        ],
    };
    let (verdict, grounds) = (Verdict::Fail, Grounds::CandidateFailed);
    let (version, holds, rehearsals) = ("0.0.33", false, Vec::new());
    let failed = Judged { version, verdict, grounds, rollback: None, holds, rehearsals, ..passed.clone() };
    let (step, reason) = (Some(RehearsalStep::Exchange), Some(Reason::NoCookie));
    let refused = Refused { version, verdict, grounds, step, reason };
    metrics.verdicts.state(&[failed, passed], Some(&refused));
    metrics.verdicts.made(verdict);
    metrics.verdicts.set_streak(1);
    metrics.verdicts.gate(true, 2);
    metrics.rollout.state(&[("0.0.26".to_owned(), Decision::Hold)]);
}
