//! What the small world shows of the enforcer.

use super::noon;
use crate::metrics::Metrics;
use crate::outcome::End;

pub(super) fn record(metrics: &Metrics) {
    metrics.enforcer.ended(End::Done);
    let deferred = |user: &str| (user == "bob").then(noon);
    metrics.enforcer.state(Some(noon()), false, false, ["ann", "bob"].into_iter(), deferred);
}
