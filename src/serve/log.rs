//! What the log says of probes: it is read by people, so only what changed.

use crate::board::Turn;
use crate::outcome::{Ended, Outcome, Run};

/// One line when an outcome changes: the log is read by people.
pub fn turn(run: &Run, turn: &Turn) {
    let (user, kind, outcome) = (&run.user, run.kind, turn.after);
    let step = run.decided_by();
    let detail = step.and_then(|step| step.detail.as_deref()).unwrap_or_default();
    let step = step.map(|step| step.step.as_str()).unwrap_or_default();
    match (turn.before.map(Outcome::ended), outcome.ended()) {
        (_, Ended::Failed) => {
            tracing::error!(user, %kind, step, %outcome, detail, trace_id = run.trace_id, "a probe fails");
        }
        (_, Ended::Skipped) => tracing::warn!(user, %kind, step, %outcome, detail, "a probe cannot tell"),
        (None, Ended::Ok) => tracing::debug!(user, %kind, "a probe is well"),
        (Some(_), Ended::Ok) => tracing::info!(user, %kind, "a probe is well again"),
    }
}
