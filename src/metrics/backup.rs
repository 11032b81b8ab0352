//! `t3_backup_…` and `t3_restore_…`: how old everybody's snapshots are, and whether they were proven to restore.

use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::{NoLabels, labels};
use super::series::{ByUser, Reading, unix_seconds};
use crate::outcome::{BackupAct, BackupRun, Ended, Flaw, Reason};

labels! {
    pub struct OfActAndOutcome {
        /// what was done
        pub act: BackupAct,
        /// how it ended
        pub outcome: Ended,
    }
}

labels! {
    pub struct OfActAndReason {
        /// what was done
        pub act: BackupAct,
        /// why it failed
        pub reason: Reason,
    }
}

labels! {
    pub struct OfFlaw {
        /// what was found
        pub reason: Flaw,
    }
}

metrics! {
    pub struct Backup {
        /// Acts on snapshots that ended; the series of restores begin with the first one
        runs: ByUser<OfActAndOutcome, Counter> = "t3_backup_runs_total",
        /// Acts on snapshots that failed, by reason; a series begins with the first failure of its kind
        failures: ByUser<OfActAndReason, Counter> = "t3_backup_failures_total",
        /// What failed when it was last tried (1), or once failed and does not any more (0), over restarts of this program;
        /// a series begins with the first failure of its kind
        failing: ByUser<OfActAndReason, Gauge> = "t3_backup_failing",
        /// When the newest snapshot was taken; absent without one
        last_success: ByUser<NoLabels, Reading> = "t3_backup_last_success_timestamp_seconds",
        /// When the newest snapshot was taken that is verified and no copy of an outage: what is newer could be lost; absent without one
        verified: ByUser<NoLabels, Reading> = "t3_backup_verified_timestamp_seconds",
        /// Snapshots that there are
        count: ByUser<NoLabels, Reading> = "t3_backup_snapshots",
        /// Size of the newest snapshot
        size: ByUser<NoLabels, Reading> = "t3_backup_size_bytes",
        /// The schema level of that snapshot: builds of this level open it without migrating it
        level: ByUser<NoLabels, Reading> = "t3_backup_schema_level",
        /// When somebody last logged in to a restored copy and found the history; absent until it was so
        drilled: ByUser<NoLabels, Reading> = "t3_restore_verified_timestamp_seconds",
        /// Snapshots that were found not to restore, by what was found; a series begins with the first of its kind
        verification_failures: ByUser<OfFlaw, Counter> = "t3_restore_verification_failures_total",
        /// Time that the last successful drill took from a snapshot to a loaded history: what a user would wait
        restore: ByUser<NoLabels, Reading> = "t3_restore_duration_seconds",
        /// Age of the data in the last successful drill: what a user would have lost
        rpo: ByUser<NoLabels, Reading> = "t3_restore_rpo_seconds",
        /// How often a snapshot of each user is to be taken; absent where that is only on demand
        interval: Reading = "t3_backup_interval_configured_seconds",
        /// How often each user's newest snapshot is to be drilled; absent where that is only on demand
        drill_interval: Reading = "t3_restore_drill_interval_configured_seconds",
    }
}

/// What there is of one user.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshots {
    pub taken_at: Option<SystemTime>,
    pub verified_taken_at: Option<SystemTime>,
    pub count: usize,
    pub bytes: Option<u64>,
    pub level: Option<u32>,
    pub drilled_at: Option<SystemTime>,
    pub restore: Option<Duration>,
    pub rpo: Option<Duration>,
}

impl Backup {
    pub(super) fn begin(&self, user: &str) {
        // A restore is rare; its series begin with the first one.
        for act in [BackupAct::Take, BackupAct::Verify, BackupAct::Drill] {
            for outcome in [Ended::Ok, Ended::Failed] {
                self.runs.with(user, OfActAndOutcome { act, outcome }, |_| ());
            }
        }
    }

    /// Counts an act that has ended.
    pub fn record(&self, run: &BackupRun) {
        let (user, act) = (run.user.as_str(), run.act);
        self.runs.with(user, OfActAndOutcome { act, outcome: run.ended() }, |runs| {
            runs.inc();
        });
        let Some(failure) = &run.failure else { return };
        self.failures.with(user, OfActAndReason { act, reason: failure.reason }, |failures| {
            failures.inc();
        });
        if let Some(reason) = failure.flaw {
            self.verification_failures.with(user, OfFlaw { reason }, |failures| {
                failures.inc();
            });
        }
    }

    /// States what there is of a user; what is not known any more vanishes.
    #[allow(clippy::cast_precision_loss)] // Exact up to 2^53.
    pub fn state(&self, user: &str, there_is: &Snapshots) {
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
        for (series, value) in [
            (&self.last_success, there_is.taken_at.map(unix_seconds)),
            (&self.verified, there_is.verified_taken_at.map(unix_seconds)),
            (&self.count, Some(there_is.count as f64)),
            (&self.size, there_is.bytes.map(|bytes| bytes as f64)),
            (&self.level, there_is.level.map(f64::from)),
            (&self.drilled, there_is.drilled_at.map(unix_seconds)),
            (&self.restore, seconds(there_is.restore)),
            (&self.rpo, seconds(there_is.rpo)),
        ] {
            series.with(user, NoLabels, |reading| reading.set(value.unwrap_or(f64::NAN)));
        }
    }

    /// States which acts failed when they were last tried.
    pub fn set_failing(&self, user: &str, failed: &[BackupRun]) {
        let reason = |run: &BackupRun| {
            let failure = run.failure.as_ref()?;
            Some(OfActAndReason { act: run.act, reason: failure.reason })
        };
        let now: Vec<_> = failed.iter().filter_map(reason).collect();
        self.failing.each(user, |known, failing| {
            failing.set(i64::from(now.contains(known)));
        });
        for labels in now {
            self.failing.with(user, labels, |failing| {
                failing.set(1);
            });
        }
    }

    /// States how often is wished for; zero is only on demand.
    pub fn set_intervals(&self, take: Duration, drill: Duration) {
        for (reading, interval) in [(&self.interval, take), (&self.drill_interval, drill)] {
            reading.set(if interval.is_zero() { f64::NAN } else { interval.as_secs_f64() });
        }
    }
}
