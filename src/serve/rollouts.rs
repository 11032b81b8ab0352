//! How the builds do that users run: judged once a minute, and said in the metrics.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::board::Board;
use crate::config::Config;
use crate::docket::live;
use crate::history::History;
use crate::metrics::Metrics;
use crate::t3::version::Version;

const LOOK: Duration = Duration::from_secs(60);

/// What is judged, and where it is told.
pub struct Rollouts {
    pub config: watch::Receiver<Arc<Config>>,
    pub history: Arc<History>,
    pub board: Arc<Mutex<Board>>,
    pub metrics: Arc<Metrics>,
}

impl Rollouts {
    /// Looks until it is told to stop.
    pub async fn watch(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let config = self.config.borrow().clone();
            let mut judged = Vec::new();
            for version in self.running() {
                let judgement = live::judged(&config, &version, self.history.reader()).await;
                judged.push((judgement.version, judgement.decision));
            }
            self.metrics.rollout.state(&judged);
        }
    }

    /// The versions that instances said they run when they were asked last.
    fn running(&self) -> BTreeSet<Version> {
        let board = lock(&self.board);
        let version = |standing: &crate::board::Standing| -> Option<Version> {
            standing.fact(|run| run.facts.version.as_deref()?.parse().ok())
        };
        board.users().filter_map(|(_, standing)| version(standing)).collect()
    }
}
