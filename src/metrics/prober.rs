//! `t3_prober_…`: this program about itself.

use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::Build;
use super::book::metrics;
use super::labels::{NoLabels, labels};
use super::series::{ByLabels, ByUser, CounterReading, Info, Reading, Total, unix_seconds};
use crate::outcome::{Facts, Verb};

labels! {
    pub struct OfVerb {
        /// the t3 command that ran
        pub verb: Verb,
    }
}

labels! {
    pub struct OfEvent {
        /// what the other process reported
        pub event: &'static str,
    }
}

labels! {
    pub struct BuildFacts {
        /// the version of t3-prober
        pub version: &'static str,
        /// the source revision it was built from; empty where the build did not say
        pub revision: Option<&'static str>,
    }
}

metrics! {
    pub struct Prober {
        /// The running program
        build: Info<BuildFacts> = "t3_prober_build_info",
        /// CPU time of the t3 commands that probes started; in steady state none is
        cli_cpu: ByLabels<OfVerb, Total> = "t3_prober_cli_cpu_seconds_total",
        /// Sessions of earlier probes that could not be revoked yet
        sessions_left: ByUser<NoLabels, Gauge> = "t3_prober_probe_sessions_left",
        /// Time between two handshakes of a user: as configured, or longer where not all of them fit
        handshake_interval: Reading = "t3_prober_handshake_interval_seconds",
        /// Time between two handshakes of a user, as configured
        handshake_interval_configured: Reading = "t3_prober_handshake_interval_configured_seconds",
        /// Whether the last attempt to read the config succeeded (1); after a failure (0) the last good one is in force
        config_ok: Reading = "t3_prober_config_last_reload_successful",
        /// When the config was last read with success
        config_success: Reading = "t3_prober_config_last_reload_success_timestamp_seconds",
        /// Outcomes that were never written to the history; the probes themselves go on
        history_lost: CounterReading = "t3_prober_history_lost_total",
        /// Attempts to open or write the history that failed
        history_errors: CounterReading = "t3_prober_history_errors_total",
        /// Size of the history's database
        history_size: Reading = "t3_prober_history_size_bytes",
        /// Events of other processes taken in from the spool
        spool_events: ByLabels<OfEvent, Counter> = "t3_prober_spool_events_total",
        /// Files in the spool that were no event and were put aside
        spool_rejected: Counter = "t3_prober_spool_rejected_total",
    }
}

impl Prober {
    pub(super) fn start(&self, build: Build) {
        self.build.state(vec![BuildFacts { version: build.version, revision: build.revision }]);
    }

    pub(super) fn learn(&self, user: &str, facts: &Facts) {
        for &(verb, cpu) in &facts.cli_cpu {
            self.cli_cpu.with(OfVerb { verb }, |total| {
                total.inc_by(cpu.as_secs_f64());
            });
        }
        if let Some(left) = facts.sessions_left {
            self.sessions_left.with(user, NoLabels, |gauge| {
                gauge.set(i64::try_from(left).unwrap_or(i64::MAX));
            });
        }
    }

    /// Records an attempt to read the config, the one at start included.
    pub fn config_reloaded(&self, ok: bool, at: SystemTime) {
        self.config_ok.set(f64::from(u8::from(ok)));
        if ok {
            self.config_success.set(unix_seconds(at));
        }
    }

    /// States the interval that is in force now, and the one that was wished for.
    pub fn set_handshake_interval(&self, interval: Duration, configured: Duration) {
        self.handshake_interval.set(interval.as_secs_f64());
        self.handshake_interval_configured.set(configured.as_secs_f64());
    }

    /// States what the history's writer has counted.
    #[allow(clippy::cast_precision_loss)] // Exact up to 2^53.
    pub fn set_history(&self, lost: u64, errors: u64, bytes: u64) {
        self.history_lost.set(lost as f64);
        self.history_errors.set(errors as f64);
        self.history_size.set(bytes as f64);
    }

    /// Counts an event taken in from the spool, by the spool's word for it.
    pub fn spool_event(&self, event: &'static str) {
        self.spool_events.with(OfEvent { event }, |events| {
            events.inc();
        });
    }

    pub fn spool_rejected(&self) {
        self.spool_rejected.inc();
    }
}
