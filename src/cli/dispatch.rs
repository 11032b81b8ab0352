//! `t3-prober dispatch`: the proxy alone, in a process of its own, with its own small operator listener.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::dispatch::{Dispatch, Keys, LoginNews, ThroughT3};
use crate::inventory::{Snapshot, Watch};
use crate::metrics::{Build, Metrics, Served};
use crate::spool::Spool;

pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let keys = Keys::read(&config.dispatch)?;
    let metrics = Arc::new(Metrics::of_dispatch(Build::THIS));
    let inventory = Watch::start(config.inventory.clone()).await;
    let login = Arc::new(ThroughT3::new(config.helper.access(&config.t3, &config.state_dir)));
    let spool = Spool::new(config.state_dir.join("spool"), crate::spool::Limits::default());
    let at = config.dispatch.operator_listen;
    let mut changes = inventory.subscribe();
    let first = changes.borrow_and_update().clone();
    admit(&metrics, &first);
    let (admitted, served) = watch::channel(first);
    let dispatch = Dispatch::new(
        config.dispatch,
        &keys,
        login,
        Arc::clone(&metrics),
        served,
        Box::new(move |news| tell(&spool, news)),
    )?;
    let operator = tokio::net::TcpListener::bind(at)
        .await
        .with_context(|| format!("cannot listen on {at}; change [dispatch] operator_listen"))?;
    tracing::info!(
        listen = dispatch.addresses().join(" "),
        operator = %operator.local_addr().context("the operator listener has no address")?,
        "users can come in"
    );
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(inventory.clone().run(stop.clone()));
    tasks.spawn(serve_operator(operator, Arc::clone(&metrics), stop.clone()));
    tasks.close();
    let serving = dispatch.run(stop.clone());
    tokio::pin!(serving);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let result = loop {
        tokio::select! {
            result = &mut serving => break result,
            Ok(()) = changes.changed() => {
                let snapshot = changes.borrow_and_update().clone();
                admit(&metrics, &snapshot);
                admitted.send_replace(snapshot);
            }
            _ = signals.reload.recv() => {
                inventory.reload_now().await;
            }
            _ = signals.terminate.recv() => stop_now(&stop),
            _ = signals.interrupt.recv() => stop_now(&stop),
        }
    };
    stop.cancel();
    tasks.wait().await;
    result.map(|()| ExitCode::SUCCESS)
}

fn stop_now(stop: &CancellationToken) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            reload: listen(SignalKind::hangup())?,
        })
    }
}

/// Says who is served from now on.
fn admit(metrics: &Metrics, snapshot: &Snapshot) {
    let targets = snapshot.inventory.targets().iter();
    let served: Vec<_> = targets
        .map(|target| Served {
            user: target.user.as_str(),
            identity: &target.identity,
            port: target.port.get(),
        })
        .collect();
    metrics.set_users(&served);
}

/// A real login is the same evidence as a handshake of the probe's: `serve` is told.
fn tell(spool: &Spool, news: LoginNews<'_>) {
    if let Err(error) = spool.put(&news.event(SystemTime::now())) {
        tracing::debug!(%error, "nobody is told of a login");
    }
}

async fn serve_operator(listener: tokio::net::TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    let app = Router::new()
        .route("/metrics", get(exposition))
        .route("/-/healthy", get(async || "ok\n"))
        .with_state(metrics);
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        stop.cancelled().await;
        // A last scrape of what the drain counts is not waited for.
        tokio::time::sleep(Duration::from_millis(10)).await;
    });
    if let Err(error) = serving.await {
        tracing::error!(%error, "the operator listener broke");
    }
}

async fn exposition(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> Response {
    crate::operator::metrics::answer(&metrics, &headers)
}
