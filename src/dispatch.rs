//! The users' front door: whoever comes in as a known identity reaches their own t3, logged in, over an unchanged
//! HTTP or WebSocket conversation; everybody else is refused. Who is believed about an identity is configured, never assumed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

mod acceptor;
mod buffers;
mod connection;
mod cookies;
mod errand;
mod forward;
mod frames;
mod framing;
mod front;
mod head;
mod headers;
mod identity;
mod instance;
mod kept;
mod keys;
mod listener;
mod login;
mod names;
mod pages;
mod pairing;
mod patience;
mod plan;
mod response;
mod route;
mod stream;
mod token;
mod trace;
mod transfer;
mod trust;
mod tunnel;
mod worker;

pub use acceptor::Dispatch;
pub use front::LoginNews;
pub use keys::Keys;
pub use login::ThroughT3;

/// What is wrong with a dispatch that [`Section::trusts_somebody`] does not hold of, and the remedy.
const BELIEVES_NOBODY: &str = "the dispatch believes nobody about who a user is, so it would refuse everybody; name the edge in trusted_proxies, its account in trusted_uids, a secret_file, or listen on a unix socket";

/// `[dispatch]`: where users come in, and who is believed about who they are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// Whether `serve` serves users too, in its own process: for a laptop, where nothing is privileged. Default false:
    /// `t3-prober dispatch` does.
    pub inside_serve: bool,
    /// Where clients connect: addresses, or `unix:` and a path (mode 0660). Default `["127.0.0.1:9080"]`. Sockets that
    /// systemd passes are used instead of these. A change needs a restart.
    pub listen: Vec<listener::Listen>,
    /// Addresses and networks of the edge. Peers on this host are never believed by their address. Default none.
    pub trusted_proxies: Vec<trust::Network>,
    /// Accounts of this host that are believed. No default: absent, no local process is believed over TCP.
    pub trusted_uids: Option<Vec<u32>>,
    /// A file with a secret that the edge sends as `X-T3-Dispatch-Secret`. No default; absent, none is accepted.
    pub secret_file: Option<PathBuf>,
    /// Domains whose `name@domain` may come in as `name`. Default none; `["*"]` is every domain, and whoever can get an
    /// account of that name anywhere at the edge comes in.
    pub allowed_domains: Vec<String>,
    /// Prefixes of cookies that belong to the edge and are kept from instances. Default `["authentik_"]`.
    pub edge_cookies: Vec<String>,
    /// A file with the key that marks the prober's own requests, which the prober reads too. No default; absent, every
    /// request is a user's. Inside `serve` one is made up where none is named.
    pub probe_key_file: Option<PathBuf>,
    /// Verified mode: beside the peer's word, the edge's signed token (`X-authentik-jwt`) must name the same user, by a
    /// key of this JWKS file. Read again when it changes. No default; absent, no token is asked for.
    pub jwks_file: Option<PathBuf>,
    /// The same, fetched from this `http://` address every ten minutes. No default.
    pub jwks_url: Option<String>,
    /// The audience (`aud`) a token must be for: the edge's client id. Required with a JWKS.
    pub token_audience: Option<String>,
    /// The issuer (`iss`) a token must be from. Required with a JWKS.
    pub token_issuer: Option<String>,
    /// Threads that serve connections. Default 0: one per core.
    pub workers: usize,
    /// Client connections at most, WebSockets among them. Default 10000.
    pub max_connections: usize,
    /// How long a client connection may be idle between requests; longer than the edge keeps its own. Default `3m`.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long a request's head may take to arrive. Default `10s`.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// How long a connection to an instance may take. Default `2s`.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long an instance may take to begin its answer. Default `10m`.
    #[serde(with = "humantime_serde")]
    pub answer_timeout: Duration,
    /// How long a body may stand still. Default `1m`.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// How long requests may take to finish when the program stops. Default `10s`.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Where `t3-prober dispatch` serves its own `/metrics` and `/-/healthy`. Default `127.0.0.1:9781`.
    pub operator_listen: SocketAddr,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            inside_serve: false,
            listen: vec![listener::Listen::Tcp((Ipv4Addr::LOCALHOST, 9080).into())],
            trusted_proxies: Vec::new(),
            trusted_uids: None,
            secret_file: None,
            allowed_domains: Vec::new(),
            edge_cookies: vec!["authentik_".to_owned()],
            probe_key_file: None,
            jwks_file: None,
            jwks_url: None,
            token_audience: None,
            token_issuer: None,
            workers: 0,
            max_connections: 10_000,
            idle_timeout: Duration::from_secs(180),
            head_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
            operator_listen: (Ipv4Addr::LOCALHOST, 9781).into(),
        }
    }
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        for (key, path) in [
            ("secret_file", &self.secret_file),
            ("probe_key_file", &self.probe_key_file),
            ("jwks_file", &self.jwks_file),
        ] {
            if let Some(path) = path.as_ref().filter(|path| path.is_relative()) {
                complaints
                    .push((key, format!("'{}' is not an absolute path; begin it with /", path.display())));
            }
        }
        if self.jwks_url.as_ref().is_some_and(|url| !url.starts_with("http://")) {
            let sentence = "only http:// can be fetched; for https let a timer write a jwks_file";
            complaints.push(("jwks_url", sentence.to_owned()));
        }
        if self.inside_serve && !self.trusts_somebody() {
            complaints.push(("inside_serve", BELIEVES_NOBODY.to_owned()));
        }
        if self.listen.is_empty() {
            complaints.push(("listen", "it names no address; write one, or leave the key out".to_owned()));
        }
        if self.allowed_domains.iter().any(|domain| domain.is_empty() || domain.contains('@')) {
            complaints.push((
                "allowed_domains",
                "a domain is not a whole identity; write what follows the '@', as example.org".to_owned(),
            ));
        }
        complaints
    }

    /// Whether anybody is believed. Nobody is by default, and a dispatch that believes nobody does not start.
    pub fn trusts_somebody(&self) -> bool {
        !self.trusted_proxies.is_empty()
            || self.trusted_uids.is_some()
            || self.secret_file.is_some()
            || self.listen.iter().any(|listen| matches!(listen, listener::Listen::Unix(_)))
    }

    /// The addresses it listens on.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listen.iter().filter_map(|listen| match listen {
            listener::Listen::Tcp(address) => Some(*address),
            listener::Listen::Unix(_) => None,
        })
    }

    /// The unix sockets it listens on.
    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.listen.iter().filter_map(|listen| match listen {
            listener::Listen::Tcp(_) => None,
            listener::Listen::Unix(path) => Some(path.as_path()),
        })
    }

    /// What would end the program at its start although every key can be read, with the place it is best put right at.
    pub fn obstacles(&self) -> Vec<(&'static str, anyhow::Error)> {
        let nobody = (!self.trusts_somebody()).then(|| anyhow::anyhow!("{BELIEVES_NOBODY}"));
        let nobody = nobody.map(|error| ("dispatch", error));
        let keys = Keys::read(self).err().map(|error| ("dispatch", error));
        let tokens = token::Tokens::new(self).err().map(|error| ("dispatch.jwks", error));
        nobody.into_iter().chain(keys).chain(tokens).collect()
    }

    fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            workers => workers,
        }
    }
}
