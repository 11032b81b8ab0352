//! The dispatch as a whole: listeners, workers, the table of routes, and its end.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::front::{Front, OnLogin};
use super::identity::Domains;
use super::keys::Keys;
use super::listener::{self, Listener};
use super::pages::Page;
use super::pairing::Login;
use super::route;
use super::token::Tokens;
use super::trust::{Secret, Trust};
use super::worker::{Accepted, AcceptedStream, Handle, Order};
use super::{BELIEVES_NOBODY, Section};
use crate::inventory::{Inventory, Snapshot};
use crate::metrics::Metrics;
use crate::outcome::Refusal;

/// The dispatch, bound and ready to run.
pub struct Dispatch {
    front: Arc<Front>,
    listeners: Vec<Listener>,
    inventory: watch::Receiver<Snapshot>,
}

impl Dispatch {
    /// Binds the listeners (or takes systemd's); nobody is served yet. Whoever is in `inventory` is in the metrics already.
    pub fn new(
        section: Section,
        keys: &Keys,
        login: Arc<dyn Login>,
        metrics: Arc<Metrics>,
        inventory: watch::Receiver<Snapshot>,
        on_login: OnLogin,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(section.trusts_somebody(), "{BELIEVES_NOBODY}");
        let trust = Trust {
            proxies: section.trusted_proxies.clone(),
            uids: section.trusted_uids.clone().unwrap_or_default(),
            served: std::sync::RwLock::default(),
            secret: keys.edge.as_deref().map(Secret::new),
        };
        let probe_key = keys.probe.as_deref().map(Secret::new);
        let tokens = Tokens::new(&section)?;
        let listeners = listener::open(&section.listen)?;
        metrics.dispatch.start();
        let front = Front::new(section, trust, tokens, probe_key, login, metrics, on_login);
        Ok(Self { front: Arc::new(front), listeners, inventory })
    }

    /// Where clients connect: with port 0 in the configuration, the port that was found.
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(Listener::address).collect()
    }

    /// A TCP address of this machine at which it is reached; `None` with unix sockets alone.
    pub fn loopback(&self) -> Option<SocketAddr> {
        self.addresses().iter().find_map(|address| address.parse().ok()).map(|mut address: SocketAddr| {
            match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
            address
        })
    }

    /// Serves until `stop`, then lets requests finish.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { front, listeners, mut inventory } = self;
        let workers = (0..front.section.worker_count())
            .map(|index| Handle::start(index, Arc::clone(&front)))
            .collect::<Result<Vec<_>, _>>()
            .context("cannot start the dispatch's threads")?;
        let workers = Arc::new(workers);
        take_over(&front, &inventory.borrow_and_update().inventory, workers.len());
        let tasks = TaskTracker::new();
        for listener in listeners {
            tasks.spawn(accept(listener, Arc::clone(&front), Arc::clone(&workers), stop.clone()));
        }
        let (keys, stopped) = (Arc::clone(&front), stop.clone());
        tasks.spawn(async move {
            if let Some(tokens) = &keys.tokens {
                tokens.keep_fresh(&stopped).await;
            }
        });
        tasks.close();
        while let Some(Ok(())) = stop.run_until_cancelled(inventory.changed()).await {
            take_over(&front, &inventory.borrow_and_update().inventory, workers.len());
            wake(&workers);
        }
        stop.cancelled().await;
        tasks.wait().await;
        tracing::info!(connections = front.connections.load(Ordering::Relaxed), "draining");
        front.drain();
        wake(&workers);
        let Some(workers) = Arc::into_inner(workers) else { return Ok(()) };
        tokio::task::spawn_blocking(move || workers.into_iter().for_each(Handle::join))
            .await
            .context("waiting for the dispatch's threads")
    }
}

/// Takes a new inventory into use. Routes of users who stay as they are stay as they are.
fn take_over(front: &Front, inventory: &Inventory, workers: usize) {
    let uids: BTreeSet<u32> = inventory.targets().iter().filter_map(|target| target.uid).collect();
    *front.trust.served.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
        uids.into_iter().collect();
    let domains = Domains::new(&front.section.allowed_domains);
    front.set_table(route::table(inventory, &front.table(), &domains, &front.metrics, workers));
}

fn wake(workers: &[Handle]) {
    for worker in workers {
        let _ = worker.orders.send(Order::Wake);
    }
}

/// Accepts, and gives each connection to the worker that has the fewest.
async fn accept(listener: Listener, front: Arc<Front>, workers: Arc<Vec<Handle>>, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok(accepted) => hand_over(accepted, &front, &workers),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of descriptors, most likely: they come back as connections end.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Who is already in the queue was not refused; with a socket of systemd's, the next process takes them.
    while listener.is_ours()
        && let Some(Ok(accepted)) = listener.accept().now_or_never()
    {
        hand_over(accepted, &front, &workers);
    }
}

fn hand_over(accepted: Accepted, front: &Front, workers: &[Handle]) {
    let Some(worker) = workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed)) else {
        return;
    };
    if front.connections.fetch_add(1, Ordering::Relaxed) >= front.section.max_connections {
        front.connections.fetch_sub(1, Ordering::Relaxed);
        front.metrics.dispatch.refused(Refusal::TooManyConnections);
        turn_away(accepted);
        return;
    }
    worker.load.fetch_add(1, Ordering::Relaxed);
    let _ = worker.orders.send(Order::Serve(Box::new(accepted)));
}

/// One write that fits into any socket buffer, and the end.
fn turn_away(accepted: Accepted) {
    use std::io::Write;
    let mut page = Vec::new();
    Page::refused(Refusal::TooManyConnections).write(&mut page, false, true);
    let _ = match accepted.stream {
        AcceptedStream::Tcp(mut stream) => stream.write(&page),
        AcceptedStream::Unix(mut stream) => stream.write(&page),
    };
}
