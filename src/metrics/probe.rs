//! `t3_probe_…`: what the probes of each user found.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::labels;
use super::series::{ByLabels, ByUser, Number, Seconds, unix_seconds};
use crate::outcome::{Ended, Kind, Outcome, Reason, Run, Skip, Step, Trigger};

labels! {
    pub struct OfKind {
        /// the kind of probe
        pub kind: Kind,
    }
}

labels! {
    pub struct OfKindAndOutcome {
        /// the kind of probe
        pub kind: Kind,
        /// how the probe ended
        pub outcome: Ended,
    }
}

labels! {
    pub struct OfStep {
        /// the step of a probe
        pub step: Step,
    }
}

labels! {
    pub struct OfStepAndReason {
        /// the step that failed
        pub step: Step,
        /// why it failed
        pub reason: Reason,
    }
}

labels! {
    pub struct OfFailure {
        /// the kind of probe
        pub kind: Kind,
        /// the step that decided it
        pub step: Step,
        /// why it failed
        pub reason: Reason,
    }
}

labels! {
    pub struct OfSkip {
        /// the kind of probe
        pub kind: Kind,
        /// the step that decided it
        pub step: Step,
        /// why it was not done
        pub reason: Skip,
    }
}

metrics! {
    pub struct Probe {
        /// Probes that ran, by how they ended
        runs: ByUser<OfKindAndOutcome, Counter> = "t3_probe_runs_total",
        /// Steps that failed, by reason; a series begins with the first failure of its kind
        failures: ByUser<OfStepAndReason, Counter> = "t3_probe_failures_total",
        /// Time a step took, over all users, whether it succeeded or failed; a skipped step takes none
        step_duration: ByLabels<OfStep, Seconds> = "t3_probe_step_duration_seconds",
        /// Time the step took when it was last done, whether it succeeded or failed
        last_step_duration: ByUser<OfStep, Number> = "t3_probe_last_step_duration_seconds",
        /// Whether the last probe that could tell was well (1) or found a failure (0); absent until one could tell, and
        /// left as it is by a skipped probe
        ok: ByUser<OfKind, Gauge> = "t3_probe_ok",
        /// Whether the last probe was skipped (1), so that nothing is known since the one before
        skipped: ByUser<OfKind, Gauge> = "t3_probe_skipped",
        /// What the last probe that could tell found wrong (1), or once found and does not any more (0); left as it is
        /// by a skipped probe, and a series begins with the first failure of its kind
        failing: ByUser<OfFailure, Gauge> = "t3_probe_failing",
        /// Why the last probe was skipped (1), or once was and is not any more (0); a series begins with the first skip
        /// of its kind
        skipping: ByUser<OfSkip, Gauge> = "t3_probe_skipping",
        /// When the last probe ended, whatever it found
        last_run: ByUser<OfKind, Number> = "t3_probe_last_run_timestamp_seconds",
        /// When the last probe that was well ended; absent until there was one
        last_success: ByUser<OfKind, Number> = "t3_probe_last_success_timestamp_seconds",
    }
}

impl Probe {
    /// The series that are there before anything has happened, so that a rate over the first failure is right.
    pub(super) fn start(&self) {
        for &step in Step::ALL {
            self.step_duration.with(OfStep { step }, |_| ());
        }
    }

    pub(super) fn begin(&self, user: &str) {
        for &kind in Kind::ALL {
            for &outcome in Ended::ALL {
                self.runs.with(user, OfKindAndOutcome { kind, outcome }, |_| ());
            }
        }
    }

    pub(super) fn record(&self, run: &Run) {
        let (user, kind) = (run.user.as_str(), run.kind);
        let ended_at = unix_seconds(run.started + run.duration);
        let outcome = run.outcome().ended();
        let has_story = self.has_story(run);
        self.runs.with(user, OfKindAndOutcome { kind, outcome }, |runs| {
            runs.inc();
        });
        self.last_run.with(user, OfKind { kind }, |at| {
            at.set(ended_at);
        });
        self.skipped.with(user, OfKind { kind }, |skipped| {
            skipped.set(i64::from(outcome == Ended::Skipped));
        });
        if outcome != Ended::Skipped {
            self.ok.with(user, OfKind { kind }, |ok| {
                ok.set(i64::from(outcome == Ended::Ok));
            });
        }
        if outcome == Ended::Ok {
            self.last_success.with(user, OfKind { kind }, |at| {
                at.set(ended_at);
            });
        }
        self.record_decision(run);
        self.record_steps(run, has_story);
    }

    /// Whether an exemplar of this run leads somewhere: of probes that end alike, one after the other, the history keeps
    /// the first.
    fn has_story(&self, run: &Run) -> bool {
        let of_kind = OfKind { kind: run.kind };
        let mut before = None;
        self.ok.each(&run.user, |labels, ok| {
            if *labels == of_kind {
                before = Some(if ok.get() == 1 { Ended::Ok } else { Ended::Failed });
            }
        });
        self.skipped.each(&run.user, |labels, skipped| {
            if *labels == of_kind && skipped.get() == 1 {
                before = Some(Ended::Skipped);
            }
        });
        run.kind == Kind::Handshake || run.trigger == Trigger::Demand || before != Some(run.outcome().ended())
    }

    /// Which step decided the probe and why. The one that decided the probe before is set to 0 and not removed: an
    /// alert must be able to tell an end from a gap in the data.
    fn record_decision(&self, run: &Run) {
        let (user, kind) = (run.user.as_str(), run.kind);
        let decided = run.decided_by().map(|decided| (decided.step, decided.outcome));
        let failure = match decided {
            Some((step, Outcome::Failed(reason))) => Some(OfFailure { kind, step, reason }),
            _ => None,
        };
        let skip = match decided {
            Some((step, Outcome::Skipped(reason))) => Some(OfSkip { kind, step, reason }),
            _ => None,
        };
        if skip.is_none() {
            self.failing.each(user, |other, failing| {
                if other.kind == kind && Some(other) != failure.as_ref() {
                    failing.set(0);
                }
            });
        }
        self.skipping.each(user, |other, skipping| {
            if other.kind == kind && Some(other) != skip.as_ref() {
                skipping.set(0);
            }
        });
        if let Some(failure) = failure {
            self.failing.with(user, failure, |failing| {
                failing.set(1);
            });
        }
        if let Some(skip) = skip {
            self.skipping.with(user, skip, |skipping| {
                skipping.set(1);
            });
        }
    }

    fn record_steps(&self, run: &Run, has_story: bool) {
        let trace_id =
            (has_story && !run.trace_id.is_empty()).then(|| Arc::<str>::from(run.trace_id.as_str()));
        let mut ended_at = run.started;
        for &crate::outcome::StepResult { step, outcome, duration, .. } in &run.steps {
            ended_at += duration;
            if outcome.ended() == Ended::Skipped {
                continue;
            }
            self.step_duration.with(OfStep { step }, |durations| {
                durations.observe(duration, trace_id.clone(), ended_at);
            });
            self.last_step_duration.with(&run.user, OfStep { step }, |last| {
                last.set(duration.as_secs_f64());
            });
            if let Outcome::Failed(reason) = outcome {
                self.failures.with(&run.user, OfStepAndReason { step, reason }, |failures| {
                    failures.inc();
                });
            }
        }
    }
}
