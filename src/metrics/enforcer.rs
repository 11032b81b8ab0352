//! `t3_enforcer_…`: what the enforcer did, and who was left behind.

use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;

use super::book::metrics;
use super::labels::{NoLabels, labels};
use super::series::{ByLabels, ByUser, Reading, unix_seconds};
use crate::outcome::End;

labels! {
    pub struct OfEnd {
        /// how the run ended
        pub outcome: End,
    }
}

metrics! {
    pub struct Enforcer {
        /// Runs of the enforcer since this program started, by how they ended
        runs: ByLabels<OfEnd, Counter> = "t3_enforcer_runs_total",
        /// When a run of the enforcer last ended, whatever the end; absent until one has
        last_completed: Reading = "t3_enforcer_last_completed_timestamp_seconds",
        /// Since when the user stays on the old build though another one is wanted; absent for everybody else
        deferred_since: ByUser<NoLabels, Reading> = "t3_enforcer_deferred_since_timestamp_seconds",
        /// Whether the enforcer is frozen (1): it begins nothing until an operator removes the freeze file
        frozen: Reading = "t3_enforcer_frozen",
        /// Whether a rollout was begun and has not come to its end (1), because it is under way or because it was killed
        unfinished: Reading = "t3_enforcer_unfinished",
    }
}

impl Enforcer {
    pub(super) fn start(&self) {
        for end in End::ALL {
            self.runs.with(OfEnd { outcome: *end }, |_| ());
        }
    }

    /// Counts a run that ended.
    pub fn ended(&self, end: End) {
        self.runs.with(OfEnd { outcome: end }, |runs| {
            runs.inc();
        });
    }

    /// States how things stand now; `deferred_since` is asked for everybody who is served.
    pub fn state<'a>(
        &self,
        last_completed: Option<SystemTime>,
        frozen: bool,
        unfinished: bool,
        users: impl Iterator<Item = &'a str>,
        deferred_since: impl Fn(&str) -> Option<SystemTime>,
    ) {
        self.last_completed.set(last_completed.map_or(f64::NAN, unix_seconds));
        self.frozen.set(f64::from(u8::from(frozen)));
        self.unfinished.set(f64::from(u8::from(unfinished)));
        for user in users {
            let since = deferred_since(user).map_or(f64::NAN, unix_seconds);
            self.deferred_since.with(user, NoLabels, |reading| reading.set(since));
        }
    }
}
