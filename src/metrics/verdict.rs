//! `t3_verdict_…`: what the gate found of candidate builds, whether that still counts, and how long nothing has passed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::labels;
use super::series::{ByLabels, Info, Number, Reading, unix_seconds};
use crate::outcome::{Grounds, Reason, Rehearsal, RehearsalStep, Rollback, Verdict};

labels! {
    pub struct OfVersion {
        /// the version that was judged
        pub version: Arc<str>,
    }
}

labels! {
    pub struct OfWord {
        /// the verdict
        pub verdict: Verdict,
    }
}

labels! {
    pub struct VerdictFacts {
        /// the version that was judged
        pub version: Arc<str>,
        /// the newest verdict about it
        pub verdict: Verdict,
        /// why the verdict is what it is
        pub grounds: Grounds,
        /// how to go back from it; empty where no rehearsal told
        pub rollback: Option<Rollback>,
    }
}

labels! {
    pub struct RefusalFacts {
        /// the version that did not pass
        pub version: Arc<str>,
        /// the verdict about it
        pub verdict: Verdict,
        /// why it did not pass
        pub grounds: Grounds,
        /// the step of a rehearsal that decided; empty where none was come to
        pub step: Option<RehearsalStep>,
        /// the reason of that step's failure
        pub reason: Option<Reason>,
    }
}

labels! {
    pub struct OfRehearsal {
        /// the version that was judged
        pub version: Arc<str>,
        /// what was rehearsed
        pub rehearsal: Rehearsal,
    }
}

metrics! {
    pub struct Verdicts {
        /// The newest verdict about each of the versions that matter: pinned, installed, last good, tracked, running, and the two judged last
        info: Info<VerdictFacts> = "t3_verdict_info",
        /// Whether the verdict is about the present situation (1); an expired one, or one about other users, schemas or bytes, is not (0)
        holds: ByLabels<OfVersion, Gauge> = "t3_verdict_holds",
        /// When the verdict was made
        timestamp: ByLabels<OfVersion, Number> = "t3_verdict_timestamp_seconds",
        /// When the verdict ends to be valid
        expires: ByLabels<OfVersion, Number> = "t3_verdict_expires_timestamp_seconds",
        /// How long each rehearsal took for the verdict, by the slowest user
        rehearsal: ByLabels<OfRehearsal, Number> = "t3_verdict_rehearsal_duration_seconds",
        /// The newest verdict that is no pass, and what decided it
        refusal: Info<RefusalFacts> = "t3_verdict_last_refusal_info",
        /// Verdicts that were made
        runs: ByLabels<OfWord, Counter> = "t3_verdict_runs_total",
        /// Verdicts in a row, whatever they were about, that were no pass; a gate that cannot pass looks like this
        nonpass: Reading = "t3_verdict_consecutive_nonpass",
        /// Whether this program rehearses a build at the moment (1)
        running: Reading = "t3_verdict_gate_running",
        /// Versions that wait to be judged
        waiting: Reading = "t3_verdict_gate_waiting",
    }
}

/// One verdict, as it is exported.
#[derive(Clone, Debug)]
pub struct Judged<'a> {
    pub version: &'a str,
    pub verdict: Verdict,
    pub grounds: Grounds,
    pub rollback: Option<Rollback>,
    pub holds: bool,
    pub made_at: SystemTime,
    pub expires_at: SystemTime,
    /// The slowest of each.
    pub rehearsals: Vec<(Rehearsal, Duration)>,
}

/// What decided a verdict that is no pass.
#[derive(Clone, Debug)]
pub struct Refused<'a> {
    pub version: &'a str,
    pub verdict: Verdict,
    pub grounds: Grounds,
    pub step: Option<RehearsalStep>,
    pub reason: Option<Reason>,
}

impl Verdicts {
    pub(super) fn start(&self) {
        for verdict in Verdict::ALL {
            self.runs.with(OfWord { verdict: *verdict }, |_| ());
        }
        self.gate(false, 0);
    }

    /// Counts a verdict that was made.
    pub fn made(&self, verdict: Verdict) {
        self.runs.with(OfWord { verdict }, |runs| {
            runs.inc();
        });
    }

    /// States how many verdicts in a row were no pass.
    #[allow(clippy::cast_precision_loss)] // Nobody refuses 2^53 builds.
    pub fn set_streak(&self, nonpass: u64) {
        self.nonpass.set(nonpass as f64);
    }

    /// States what the gate of this program does.
    pub fn gate(&self, running: bool, waiting: u32) {
        self.running.set(f64::from(u8::from(running)));
        self.waiting.set(f64::from(waiting));
    }

    /// States the verdicts that matter; what was stated before and is not named any more vanishes.
    pub fn state(&self, verdicts: &[Judged<'_>], refusal: Option<&Refused<'_>>) {
        let stays = |series: &str| verdicts.iter().any(|judged| judged.version == series);
        self.holds.retain(|series| stays(&series.version));
        self.timestamp.retain(|series| stays(&series.version));
        self.expires.retain(|series| stays(&series.version));
        self.rehearsal.retain(|series| {
            let same = verdicts.iter().find(|judged| *judged.version == *series.version);
            same.is_some_and(|judged| judged.rehearsals.iter().any(|(one, _)| *one == series.rehearsal))
        });
        for judged in verdicts {
            let version: Arc<str> = judged.version.into();
            self.holds.with(OfVersion { version: Arc::clone(&version) }, |gauge| {
                gauge.set(i64::from(judged.holds));
            });
            for (times, time) in [(&self.timestamp, judged.made_at), (&self.expires, judged.expires_at)] {
                times.with(OfVersion { version: Arc::clone(&version) }, |gauge| {
                    gauge.set(unix_seconds(time));
                });
            }
            for (rehearsal, took) in &judged.rehearsals {
                let labels = OfRehearsal { version: Arc::clone(&version), rehearsal: *rehearsal };
                self.rehearsal.with(labels, |gauge| {
                    gauge.set(took.as_secs_f64());
                });
            }
        }
        let facts = verdicts.iter().map(|judged| VerdictFacts {
            version: judged.version.into(),
            verdict: judged.verdict,
            grounds: judged.grounds,
            rollback: judged.rollback,
        });
        self.info.state(facts.collect());
        let refusal = refusal.map(|refused| RefusalFacts {
            version: refused.version.into(),
            verdict: refused.verdict,
            grounds: refused.grounds,
            step: refused.step,
            reason: refused.reason,
        });
        self.refusal.state(refusal.into_iter().collect());
    }
}
