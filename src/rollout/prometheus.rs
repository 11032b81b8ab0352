//! The same numbers from a Prometheus that scrapes several hosts: each minute's logins count for the build that the
//! user's instance said it ran, at the minute's begin and at its end. What was tried in the minute of the change may
//! have been tried on either, and counts for neither.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::{Observed, OfUser, Section};

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("{0}")]
    Address(String),
    #[error("cannot ask Prometheus at {0}; is it running, and is [rollout] prometheus its address")]
    Unreachable(Url, #[source] reqwest::Error),
    #[error("Prometheus at {0} does not answer as one: {1}")]
    Answer(Url, String),
}

/// The address of the query call. Names and passwords are refused, because addresses are written into logs.
pub fn base(url: &str) -> Result<Url, String> {
    let parsed: Url =
        url.parse().map_err(|error| format!("'{url}' is no address: {error}; write http://host:9090"))?;
    if parsed.scheme() != "http" || parsed.host_str().is_none() {
        return Err("only http is spoken; write http://host:9090".to_owned());
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("a name or password in an address ends up in logs; leave it out".to_owned());
    }
    parsed.join("api/v1/query").map_err(|error| format!("{error}; write http://host:9090"))
}

/// Asks.
pub async fn observe(version: &str, section: &Section) -> Result<Observed, NoAnswer> {
    let url = section.prometheus.as_deref().unwrap_or_default();
    let url = base(url).map_err(NoAnswer::Address)?;
    let client = reqwest::Client::builder().no_proxy().timeout(section.timeout).build();
    let asker = Asker { client: client.map_err(|error| NoAnswer::Unreachable(url.clone(), error))?, url };
    let label = &section.host_label;
    let window = section.window.as_secs();
    // A version is digits, letters, dots and dashes: nothing to escape.
    let info = format!("t3_instance_info{{version=\"{version}\"}}");
    let a_minute_ago = format!("{info} offset 1m");
    let on_it = format!("and on ({label}, user) ({info} and on ({label}, user) {a_minute_ago})");
    let on_others = format!("unless on ({label}, user) ({info} or {a_minute_ago})");
    let logins = |outcome: &str, join: &str| {
        let real = match outcome {
            "ok" => "t3_dispatch_pairings_total",
            _ => "t3_dispatch_pairing_failures_total",
        };
        // What it was less what it was a minute before: `increase` over a minute sees nothing of a count that moves
        // once a minute, between the last sample of one minute and the first one of the next.
        let minute = |metric: &str| {
            let at = |when: &str| format!("sum by ({label}, user) ({metric}{when})");
            format!("clamp_min({} - {}, 0)", at(""), at(" offset 1m"))
        };
        let probes = minute(&format!("t3_probe_runs_total{{kind=\"handshake\",outcome=\"{outcome}\"}}"));
        let real = minute(real);
        // Whoever has no real logins has probes all the same.
        let both = format!("({probes} + on ({label}, user) {real}) or {probes}");
        format!("sum by ({label}, user) (sum_over_time((({both}) {join})[{window}s:1m]))")
    };
    let mut users: BTreeMap<String, OfUser> = BTreeMap::new();
    for is_after in [true, false] {
        for outcome in ["ok", "failed"] {
            let join = if is_after { &on_it } else { &on_others };
            for (who, count) in asker.ask(&logins(outcome, join), label).await? {
                let of_user = users.entry(who).or_default();
                let tally = if is_after { &mut of_user.after } else { &mut of_user.before };
                *(if outcome == "ok" { &mut tally.ok } else { &mut tally.failed }) = whole(count);
            }
        }
    }
    let failing = format!("t3_probe_ok{{kind=\"handshake\"}} == 0 and on ({label}, user) {info}");
    for (who, _) in asker.ask(&failing, label).await? {
        let of_user = users.entry(who).or_default();
        // A counter does not say in which order: in a row are they for certain where none went well.
        of_user.consecutive = if of_user.after.ok == 0 { of_user.after.failed } else { 1 };
    }
    let minutes = format!("max(count_over_time({info}[{window}s:1m]))");
    let in_use = asker.ask(&minutes, label).await?.into_iter().map(|(_, minutes)| minutes).next();
    let in_use = in_use.map(|minutes| Duration::from_secs(whole(minutes) * 60));
    Ok(Observed { users, in_use })
}

struct Asker {
    client: reqwest::Client,
    url: Url,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

impl Asker {
    /// Who, as `host/user`, and how much.
    async fn ask(&self, query: &str, label: &str) -> Result<Vec<(String, f64)>, NoAnswer> {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("query", query);
        let unreachable =
            |error: reqwest::Error| NoAnswer::Unreachable(self.url.clone(), error.without_url());
        let answer = self.client.get(url).send().await.map_err(unreachable)?;
        let garbage = |why: String| NoAnswer::Answer(self.url.clone(), why);
        let status = answer.status();
        let body = answer.bytes().await.map_err(unreachable)?;
        let reply: Reply =
            serde_json::from_slice(&body).map_err(|error| garbage(format!("status {status}, {error}")))?;
        let data = reply.data.ok_or_else(|| garbage(reply.error))?;
        let told = |sample: Sample| {
            let word = |label: &str| sample.metric.get(label).map_or("", String::as_str);
            let who = format!("{}/{}", word(label), word("user"));
            Some((who, sample.value.1.parse().ok()?))
        };
        Ok(data.result.into_iter().filter_map(told).collect())
    }
}

/// Counts come as floating-point numbers.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Counts of logins.
fn whole(count: f64) -> u64 {
    count.max(0.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_password_or_another_protocol_is_refused() {
        for url in ["https://prometheus.example", "ftp://a", "9090", "http://ann:secret@prometheus.example"] {
            let error = base(url).expect_err(url);
            assert!(!error.contains("secret"), "{error}");
        }
        let url = base("http://prometheus.example:9090").expect("an address");
        assert_eq!(url.as_str(), "http://prometheus.example:9090/api/v1/query");
    }
}
