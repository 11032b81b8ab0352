//! How a build does that users have got: the logins of this host from its history, or those of all hosts from Prometheus.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use crate::config::Config;
use crate::history::{EventFilter, Filter, ReadError, Reader};
use crate::outcome::{Ended, EventKind, Kind};
use crate::rollout::{self, Judgement, Login, prometheus};
use crate::t3::version::Version;

/// 500 rows each; far more than there are to look back on.
const PAGES: usize = 200;
/// How long our own service may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The judgement, by whoever has the history: the service itself.
pub async fn judged(config: &Config, version: &Version, history: &Reader) -> Judgement {
    if config.rollout.prometheus.is_some() {
        return by_prometheus(config, version).await;
    }
    let (name, section, now) = (version.to_string(), &config.rollout, SystemTime::now());
    let from = now.checked_sub(section.reach()).unwrap_or(SystemTime::UNIX_EPOCH);
    match logins(history, from).await {
        Ok(logins) => rollout::judge(&name, rollout::observe(&name, logins, now, section.window), section),
        Err(error) => rollout::unreadable(&name, error.to_string()),
    }
}

/// The judgement, by whoever has no history: from Prometheus, or asked of the service of this host.
pub async fn asked(config: &Config, version: &Version) -> anyhow::Result<Judgement> {
    use anyhow::Context;
    if config.rollout.prometheus.is_some() {
        return Ok(by_prometheus(config, version).await);
    }
    let address = address(config);
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
    let answer = client.get(format!("http://{address}/api/v1/rollout/{version}")).send().await;
    let answer = answer
        .with_context(|| format!("cannot ask the service at {address}; is `t3-prober serve` running"))?;
    let status = answer.status();
    anyhow::ensure!(
        status.is_success(),
        "the service at {address} answers {status}; run this as root, as the service's account, or as one of [operator] trusted_uids"
    );
    answer.json().await.with_context(|| format!("the service at {address} does not answer as one"))
}

/// Where the service of this host is asked.
pub fn address(config: &Config) -> SocketAddr {
    let mut address: SocketAddr = config.operator.listen;
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    address
}

async fn by_prometheus(config: &Config, version: &Version) -> Judgement {
    let (name, section) = (version.to_string(), &config.rollout);
    match prometheus::observe(&name, section).await {
        Ok(observed) => rollout::judge(&name, observed, section),
        Err(error) => rollout::unreadable(&name, format!("{:#}", anyhow::Error::new(error))),
    }
}

/// Whole logins only: a pulse is no login.
async fn logins(history: &Reader, from: SystemTime) -> Result<Vec<Login>, ReadError> {
    let mut logins = Vec::new();
    let mut filter = Filter { kind: Some(Kind::Handshake), from: Some(from), ..Filter::default() };
    for _ in 0..PAGES {
        let page = history.runs(filter.clone()).await?;
        for row in page.rows {
            let is_ok = match row.run.outcome().ended() {
                Ended::Ok => true,
                Ended::Failed => false,
                Ended::Skipped => continue,
            };
            let (user, at, version) = (row.run.user, row.run.started, row.run.facts.version);
            logins.push(Login { user, at, is_ok, count: row.count, version });
        }
        filter.before = page.next;
        if page.next.is_none() {
            break;
        }
    }
    let mut filter = EventFilter { kind: Some(EventKind::Login), from: Some(from), ..EventFilter::default() };
    for _ in 0..PAGES {
        let page = history.events(filter.clone()).await?;
        for event in page.rows {
            let is_ok = event.outcome == Ended::Ok.as_str();
            if let Some(user) = event.user {
                logins.push(Login { user, at: event.at, is_ok, count: 1, version: None });
            }
        }
        filter.before = page.next;
        if page.next.is_none() {
            break;
        }
    }
    Ok(logins)
}
