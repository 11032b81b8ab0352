//! The operator's listener: who may come in, by which door, and what there is to see.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, header};
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::access::Access;
use self::access::Door;
use crate::backup::Standing;
use crate::board::Board;
use crate::docket::{Candidate, Line};
use crate::enforce;
use crate::history::History;
use crate::inventory::Watch;
use crate::metrics::Metrics;
use crate::pause::PauseFile;
use crate::probe::prober::{Order, Prober};

mod access;
mod candidate;
mod candidates;
mod credentials;
mod events;
mod health;
mod history;
pub mod metrics;
mod page;
pub mod probe;
mod reload;
mod rollout;
mod status;
mod story;
mod user;
mod verdicts;
mod worry;

/// A version in a few words of JSON.
const LARGEST_BODY: usize = 4096;

/// `[operator]`: where pages, metrics and commands are served, and who may use what changes something.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The TCP address. Default `127.0.0.1:9780`. A change needs a restart.
    pub listen: SocketAddr,
    /// A unix socket (0660) on which every caller is trusted. No default; absent, there is none. A change needs a
    /// restart.
    pub socket: Option<PathBuf>,
    /// A file with the bearer token that opens everything, readable by nobody else. No default; absent, no token is
    /// accepted.
    pub token_file: Option<PathBuf>,
    /// Accounts whose connections over loopback are trusted, besides root and our own. Default none.
    pub trusted_uids: Vec<u32>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9780)),
            socket: None,
            token_file: None,
            trusted_uids: Vec::new(),
        }
    }
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        [("socket", &self.socket), ("token_file", &self.token_file)]
            .into_iter()
            .filter_map(|(key, path)| {
                let path = path.as_ref().filter(|path| path.is_relative())?;
                Some((key, format!("'{}' is not an absolute path; begin it with /", path.display())))
            })
            .collect()
    }
}

/// A reload that was asked for: answered with what was taken over, or with what is wrong.
pub type Reload = oneshot::Sender<Result<String, String>>;

/// Everything there is to see, shared by all requests.
#[derive(Clone)]
pub struct Surfaces(Arc<Seen>);

pub struct Seen {
    pub started: SystemTime,
    pub metrics: Arc<Metrics>,
    pub history: Arc<History>,
    pub inventory: Watch,
    pub board: Arc<Mutex<Board>>,
    pub prober: Arc<Mutex<Prober>>,
    pub pauses: Arc<Mutex<PauseFile>>,
    pub reload: mpsc::Sender<Reload>,
    /// Where versions differ, and since when.
    pub differences: Arc<Mutex<Vec<(String, SystemTime)>>>,
    /// How everybody's snapshots stand.
    pub standings: Arc<Mutex<BTreeMap<String, Standing>>>,
    pub credentials: Arc<Mutex<crate::credential::Watch>>,
    /// How the enforcer stands.
    pub enforcer: Arc<Mutex<enforce::Seen>>,
    pub access: Arc<Mutex<Access>>,
    pub turns: probe::Turns,
    /// What is known of candidate builds, the newest verdict first.
    pub candidates: watch::Receiver<Arc<Vec<Candidate>>>,
    /// Builds that wait to be judged.
    pub line: Line,
    /// The configuration as it is now.
    pub config: watch::Receiver<Arc<crate::config::Config>>,
}

impl std::ops::Deref for Surfaces {
    type Target = Seen;

    fn deref(&self) -> &Seen {
        &self.0
    }
}

impl Seen {
    fn access(&self) -> Access {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self, user: &str) -> Option<mpsc::Sender<Order>> {
        self.prober.lock().unwrap_or_else(PoisonError::into_inner).orders(user)
    }
}

/// The doors, opened: bound before anything else is started, so that an address in use is said at once.
pub struct Doors {
    tcp: TcpListener,
    unix: Option<(UnixListener, PathBuf)>,
}

impl Doors {
    pub async fn open(section: &Section) -> anyhow::Result<Self> {
        let tcp = TcpListener::bind(section.listen).await.with_context(|| {
            format!(
                "cannot listen on {}; is t3-prober running already? else change [operator] listen",
                section.listen
            )
        })?;
        let unix = section.socket.as_deref().map(bind).transpose()?;
        Ok(Self { tcp, unix })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until told to stop; requests under way are finished.
    pub fn serve(self, seen: Seen, tasks: &TaskTracker, stop: &CancellationToken) {
        let app = router(Surfaces(Arc::new(seen))).into_make_service_with_connect_info::<Door>();
        let tcp = axum::serve(self.tcp, app.clone()).with_graceful_shutdown(stop.clone().cancelled_owned());
        tasks.spawn(async move {
            if let Err(error) = tcp.await {
                tracing::error!(%error, "the operator's listener ended");
            }
        });
        if let Some((listener, path)) = self.unix {
            let unix = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
            tasks.spawn(async move {
                if let Err(error) = unix.await {
                    tracing::error!(%error, "the operator's socket ended");
                }
                let _ = std::fs::remove_file(path);
            });
        }
    }
}

fn router(surfaces: Surfaces) -> Router {
    let guarded = Router::new()
        .route("/probe", get(probe::probe))
        .route("/history", get(history::history))
        .route("/history/events", get(events::events))
        .route("/history/{id}", get(history::entry))
        .route("/-/reload", post(reload::reload))
        .route("/api/v1/verdicts", get(verdicts::list).post(verdicts::ask))
        .route("/api/v1/verdicts/{version}", get(verdicts::one))
        .route("/api/v1/rollout/{version}", get(rollout::rollout))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .route_layer(axum::middleware::from_fn_with_state(surfaces.clone(), access::require));
    Router::new()
        .route("/", get(status::status))
        .route("/users/{user}", get(user::user))
        .route("/candidates/{version}", get(candidate::candidate))
        .route("/live.js", get(page::script))
        .route("/metrics", get(metrics::metrics))
        .route("/-/healthy", get(health::healthy))
        .route("/-/ready", get(health::ready))
        .merge(guarded)
        .with_state(surfaces)
}

/// A socket that owner and group may use. One that a killed process left behind is replaced, one in use is not.
fn bind(path: &Path) -> anyhow::Result<(UnixListener, PathBuf)> {
    if std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "cannot listen on {}; is t3-prober running already? else change [operator] socket",
            path.display()
        )
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok((listener, path.to_owned()))
}

/// Browsers name text/html; curl and programs do not.
fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}
