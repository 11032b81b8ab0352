//! `t3_rollout_…`: how the builds do that users have got.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::labels;
use super::series::ByLabels;
use crate::outcome::Decision;

labels! {
    pub struct OfDecision {
        /// a version that users run
        pub version: Arc<str>,
        /// what to do with it
        pub decision: Decision,
    }
}

metrics! {
    pub struct Rollout {
        /// What is to be done with each version that users run (1), by the logins since they got it
        decision: ByLabels<OfDecision, Gauge> = "t3_rollout_decision",
    }
}

impl Rollout {
    /// States the judgement of each version in use; what is not in use any more vanishes.
    pub fn state(&self, judged: &[(String, Decision)]) {
        self.decision.retain(|series| judged.iter().any(|(version, _)| **version == *series.version));
        for (version, found) in judged {
            for decision in Decision::ALL {
                let labels = OfDecision { version: version.as_str().into(), decision: *decision };
                self.decision.with(labels, |gauge| {
                    gauge.set(i64::from(decision == found));
                });
            }
        }
    }
}
