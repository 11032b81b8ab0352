//! Where the sources of the inventory disagree, and whether its last reload succeeded.

use std::time::SystemTime;

use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::labels;
use super::series::{ByLabels, Reading, unix_seconds};

labels! {
    pub struct OfFinding {
        /// what is wrong, in the inventory's words (`t3-prober check` names the places)
        pub finding: &'static str,
    }
}

metrics! {
    pub struct Inventory {
        /// Disagreements between the sources of the inventory, now
        findings: ByLabels<OfFinding, Gauge> = "t3_inventory_findings",
        /// Whether the last attempt to read the inventory succeeded (1); after a failure (0) the last good one is served
        reload_ok: Reading = "t3_prober_inventory_last_reload_successful",
        /// When the inventory was last read with success
        reload_success: Reading = "t3_prober_inventory_last_reload_success_timestamp_seconds",
    }
}

impl Inventory {
    /// Sets how many findings there are of each word; a word that was named before and is not any more becomes 0.
    pub fn set_findings(&self, findings: &[(&'static str, u64)]) {
        for &(finding, count) in findings {
            self.findings.with(OfFinding { finding }, |gauge| {
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            });
        }
        self.findings.each(|known, gauge| {
            if !findings.iter().any(|(finding, _)| *finding == known.finding) {
                gauge.set(0);
            }
        });
    }

    /// Records an attempt to read the inventory, the one at start included.
    pub fn reloaded(&self, ok: bool, at: SystemTime) {
        self.reload_ok.set(f64::from(u8::from(ok)));
        if ok {
            self.reload_success.set(unix_seconds(at));
        }
    }
}
