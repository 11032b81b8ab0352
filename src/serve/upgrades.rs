//! What the enforcer did and how it stands, whoever ran it: in metrics, on the status page and in the history.

use std::path::Path;

use crate::board::Board;
use crate::enforce::Seen;
use crate::history;
use crate::metrics::Metrics;
use crate::outcome::EventKind;
use crate::spool::Upgrade;

/// Looks at the files that it leaves, and says in metrics what they say.
pub fn look(state_dir: &Path, metrics: &Metrics, board: &Board) -> Seen {
    let seen = Seen::load(state_dir);
    let deferred = &seen.standing.deferred;
    metrics.enforcer.state(
        seen.standing.last.as_ref().map(|last| last.at),
        seen.frozen.is_some(),
        seen.under_way,
        board.users().map(|(user, _)| user),
        |user| deferred.iter().find(|deferred| deferred.user == user).map(|deferred| deferred.since),
    );
    seen
}

/// A run that ended, as the history keeps it.
pub fn event(upgrade: Upgrade) -> history::Event {
    let Upgrade { target, end, hold, detail, moved, at, duration } = upgrade;
    let detail = serde_json::json!({
        "hold": hold, "detail": detail, "users": moved, "duration_seconds": duration.as_secs_f64(),
    });
    history::Event {
        at,
        user: None,
        kind: EventKind::Upgrade,
        subject: target.unwrap_or_default(),
        outcome: end.to_string(),
        detail,
    }
}
