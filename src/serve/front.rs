//! The front door as far as the service has to do with it: the dispatch that runs inside it, where it is told to, and
//! the way in that the probes take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::dispatch::{Dispatch, Keys, ThroughT3};
use crate::inventory::Snapshot;
use crate::metrics::Metrics;
use crate::spool::Event;
use crate::t3::door::Door;

pub struct Front {
    keys: Keys,
    /// The users' listener of this process.
    own: Option<SocketAddr>,
    /// Tells our own dispatch who is served, after the metrics have been told.
    served: watch::Sender<Snapshot>,
    drain: Duration,
}

impl Front {
    /// Starts the dispatch where it is to run in this process; `logins` takes what it has seen of them.
    pub fn open(
        config: &Config,
        metrics: &Arc<Metrics>,
        logins: mpsc::Sender<Event>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let section = &config.dispatch;
        let (served, changes) = watch::channel(Snapshot::default());
        if !section.inside_serve {
            // Another process's secrets may be closed to us; they are needed only where its door is probed.
            let keys = config.probe.front.map_or_else(|| Ok(Keys::default()), |_| Keys::read(section))?;
            return Ok(Self { keys, own: None, served, drain: Duration::ZERO });
        }
        let keys = Keys::read(section)?.with_a_probe_key();
        let login = Arc::new(ThroughT3::new(config.helper.access(&config.t3, &config.state_dir)));
        let dispatch = Dispatch::new(
            section.clone(),
            &keys,
            login,
            metrics.clone(),
            changes,
            Box::new(move |news| {
                if logins.try_send(news.event(SystemTime::now())).is_err() {
                    tracing::debug!("a login is not in the history: too many at once");
                }
            }),
        )?;
        let own = dispatch.loopback();
        tracing::info!(listen = dispatch.addresses().join(" "), "users can come in");
        let stop = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = dispatch.run(stop).await {
                tracing::error!(error = format!("{error:#}"), "the dispatch ended, and users cannot come in");
            }
        });
        Ok(Self { keys, own, served, drain: section.drain_timeout })
    }

    /// The way in for the probes, where one is configured or known.
    pub fn door(&self, config: &Config) -> anyhow::Result<Option<Door>> {
        let Some(address) = config.probe.front.or(self.own) else { return Ok(None) };
        self.keys.door(address, &config.probe.front_uids).map(Some)
    }

    pub fn serve(&self, snapshot: Snapshot) {
        self.served.send_replace(snapshot);
    }

    /// How long our own dispatch may take to end.
    pub fn drain(&self) -> Duration {
        self.drain
    }
}
