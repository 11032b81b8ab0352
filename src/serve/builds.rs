//! Everything that the service does about builds of t3: verdicts taken in, builds judged in the background, builds in use
//! watched. They share what is known, what is in line, and what places and instances name.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gating::{Gating, Tracked};
use super::rollouts::Rollouts;
use super::verdicts::{Known, Verdicts};
use super::versions::Named;
use crate::board::Board;
use crate::config::Config;
use crate::docket::Line;
use crate::history::History;
use crate::inventory::Watch;
use crate::metrics::Metrics;

/// What the others see of it.
pub struct Builds {
    pub candidates: Known,
    pub line: Line,
    pub tracked: Tracked,
    pub named: Named,
}

/// What it is done with.
pub struct Means {
    pub config: watch::Receiver<Arc<Config>>,
    /// The file that a gate in the background reads its configuration from.
    pub source: PathBuf,
    pub metrics: Arc<Metrics>,
    pub history: Arc<History>,
    pub inventory: Watch,
    pub board: Arc<Mutex<Board>>,
}

impl Builds {
    /// Begins all of it.
    pub fn begin(means: Means, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let Means { config, source, metrics, history, inventory, board } = means;
        let known = watch::Sender::default();
        let builds = Self {
            candidates: known.subscribe(),
            line: Line::default(),
            tracked: Tracked::default(),
            named: Named::default(),
        };
        let gating = Arc::new(Gating {
            config: config.clone(),
            source,
            metrics: metrics.clone(),
            line: builds.line.clone(),
            known: builds.candidates.clone(),
            tracked: builds.tracked.clone(),
            pace: Arc::default(),
        });
        let rollouts = Rollouts {
            config: config.clone(),
            history: history.clone(),
            board: board.clone(),
            metrics: metrics.clone(),
        };
        let named = builds.named.clone();
        let verdicts = Verdicts { config, metrics, history, inventory, board, named, known };
        tasks.spawn(verdicts.watch(stop.clone()));
        tasks.spawn(gating.clone().judge(stop.clone()));
        tasks.spawn(gating.track(stop.clone()));
        tasks.spawn(rollouts.watch(stop.clone()));
        builds
    }
}
