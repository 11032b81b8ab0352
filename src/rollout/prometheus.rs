//! The same from a Prometheus that scrapes several hosts: what it counted minute by minute, made into logins. Each
//! minute's count for the build that the user's instance said it ran, at the minute's begin and at its end; what was
//! tried in the minute of the change may have been tried on either, and counts for neither.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use reqwest::Url;
use serde::Deserialize;

use super::{Login, Observed, Section};

/// A minute, and the most of them that are asked for: Prometheus answers 11,000 points a series at most. Where the window
/// is longer than 3 days, its minutes are longer as well.
const MINUTE: u64 = 60;
const MOST: u64 = 10_000;

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
    parsed.join("api/v1/query_range").map_err(|error| format!("{error}; write http://host:9090"))
}

/// Asks.
pub async fn observe(version: &str, section: &Section) -> Result<Observed, NoAnswer> {
    let url = section.prometheus.as_deref().unwrap_or_default();
    let url = base(url).map_err(NoAnswer::Address)?;
    let client = reqwest::Client::builder().no_proxy().timeout(section.timeout).build();
    let client = client.map_err(|error| NoAnswer::Unreachable(url.clone(), error))?;
    let minutes = Minutes::until(SystemTime::now(), section.reach());
    let label = &section.host_label;
    let asker = Asker { client, url, label, minutes };
    // What it was less what it was a minute before: `increase` over a minute sees nothing of a count that moves once a
    // minute, between the last sample of one minute and the first one of the next.
    let moved = |metric: &str| {
        let sum = format!("sum by ({label}, user, outcome) ({metric}");
        format!("{sum}) - {sum} offset {}s) > 0", minutes.each)
    };
    let handshakes = moved("t3_probe_runs_total{kind=\"handshake\",outcome=~\"ok|failed\"}");
    let (well, not) = (moved("t3_dispatch_pairings_total"), moved("t3_dispatch_pairing_failures_total"));
    // Where two builds seem to run, because the end of a series was missed, the one that was seen last does.
    let info = format!("max by ({label}, user, version) (timestamp(t3_instance_info))");
    let mut found = Found { running: asker.ask(&info).await?, ..Found::default() };
    found.tried = asker.ask(&handshakes).await?;
    for (query, is_ok) in [(&well, true), (&not, false)] {
        let real = asker.ask(query).await?.into_iter();
        found.tried.extend(real.map(|series| Series { told: outcome(is_ok).to_owned(), ..series }));
    }
    let logins = found.logins(minutes);
    Ok(super::observe(version, logins, minutes.time(minutes.count), section.window))
}

fn outcome(is_ok: bool) -> &'static str {
    if is_ok { "ok" } else { "failed" }
}

/// The ends of so many minutes, and the begin of the first.
#[derive(Clone, Copy, Debug)]
struct Minutes {
    begin: u64,
    each: u64,
    count: usize,
}

impl Minutes {
    fn until(now: SystemTime, reach: Duration) -> Self {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let reach = reach.as_secs().min(now);
        let each = MINUTE.max(reach.div_ceil(MOST));
        let count = reach / each;
        Self { begin: now - count * each, each, count: usize::try_from(count).unwrap_or_default() }
    }

    fn time(self, index: usize) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.begin + index as u64 * self.each)
    }

    #[allow(clippy::cast_precision_loss)] // Seconds.
    fn index(self, at: f64) -> Option<usize> {
        let index = whole((at - self.begin as f64) / self.each as f64);
        usize::try_from(index).ok().filter(|index| *index <= self.count)
    }
}

/// What Prometheus said of one user: a number at the end of some minutes.
#[derive(Clone, Debug)]
struct Series {
    /// `host/user`.
    who: String,
    /// The version that ran, or how logins ended.
    told: String,
    points: Vec<(usize, f64)>,
}

#[derive(Debug, Default)]
struct Found {
    /// When which build was seen last.
    running: Vec<Series>,
    /// How many logins ended how.
    tried: Vec<Series>,
}

impl Found {
    /// One after another; whoever has never said what they run is not known of.
    fn logins(&self, minutes: Minutes) -> Vec<Login> {
        let mut builds: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
        for Series { who, told, points } in self.running.iter().filter(|series| !series.told.is_empty()) {
            let seen = builds.entry(who).or_insert_with(|| vec![("", 0.0); minutes.count + 1]);
            for (index, at) in points {
                if seen[*index].1 < *at {
                    seen[*index] = (told, *at);
                }
            }
        }
        let mut tried: BTreeMap<(&str, usize), [u64; 2]> = BTreeMap::new();
        for Series { who, told, points } in &self.tried {
            for (index, count) in points {
                let [failed, ok] = tried.entry((who, *index)).or_default();
                *(if told == outcome(true) { ok } else { failed }) += whole(*count);
            }
        }
        let mut logins = Vec::new();
        for (who, seen) in builds {
            let mut told = "";
            for (index, (now, _)) in seen.into_iter().enumerate() {
                let login = |is_ok: bool, count: u64, version: Option<&str>| Login {
                    user: who.to_owned(),
                    at: minutes.time(index),
                    is_ok,
                    count,
                    version: version.map(str::to_owned),
                };
                // What is not told goes on: a host that is not scraped has brought nobody back, and what failed on it did.
                let is_changed = now != told && !now.is_empty();
                if is_changed {
                    logins.push(login(false, 0, Some(now)));
                    told = now;
                }
                if is_changed || index == 0 {
                    continue;
                }
                // In which order is not known: in a row are those for certain that nothing went well beside.
                let counts = tried.get(&(who, index)).copied().unwrap_or_default();
                for (is_ok, count) in [false, true].into_iter().zip(counts).filter(|(_, count)| *count > 0) {
                    logins.push(login(is_ok, count, None));
                }
            }
        }
        logins
    }
}

struct Asker<'a> {
    client: reqwest::Client,
    url: Url,
    label: &'a str,
    minutes: Minutes,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Matrix>,
}

#[derive(Deserialize)]
struct Matrix {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

impl Asker<'_> {
    async fn ask(&self, query: &str) -> Result<Vec<Series>, NoAnswer> {
        let (mut url, minutes) = (self.url.clone(), self.minutes);
        let end = minutes.begin + minutes.count as u64 * minutes.each;
        url.query_pairs_mut()
            .append_pair("query", query)
            .append_pair("start", &minutes.begin.to_string())
            .append_pair("end", &end.to_string())
            .append_pair("step", &minutes.each.to_string());
        let unreachable =
            |error: reqwest::Error| NoAnswer::Unreachable(self.url.clone(), error.without_url());
        let answer = self.client.get(url).send().await.map_err(unreachable)?;
        let garbage = |why: String| NoAnswer::Answer(self.url.clone(), why);
        let status = answer.status();
        let body = answer.bytes().await.map_err(unreachable)?;
        let reply: Reply =
            serde_json::from_slice(&body).map_err(|error| garbage(format!("status {status}, {error}")))?;
        let data = reply.data.ok_or_else(|| garbage(reply.error))?;
        Ok(data.result.into_iter().map(|matrix| self.series(matrix)).collect())
    }

    fn series(&self, Matrix { metric, values }: Matrix) -> Series {
        let word = |label: &str| metric.get(label).map_or("", String::as_str);
        let point = |(at, value): (f64, String)| Some((self.minutes.index(at)?, value.parse::<f64>().ok()?));
        Series {
            who: format!("{}/{}", word(self.label), word("user")),
            told: metric.get("version").or(metric.get("outcome")).cloned().unwrap_or_default(),
            points: values.into_iter().filter_map(point).collect(),
        }
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
    use crate::outcome::Basis;

    #[test]
    fn an_address_with_a_password_or_another_protocol_is_refused() {
        for url in ["https://prometheus.example", "ftp://a", "9090", "http://ann:secret@prometheus.example"] {
            let error = base(url).expect_err(url);
            assert!(!error.contains("secret"), "{error}");
        }
        let url = base("http://prometheus.example:9090").expect("an address");
        assert_eq!(url.as_str(), "http://prometheus.example:9090/api/v1/query_range");
    }

    const NOW: u64 = 1_000_000;
    const HOUR: Minutes = Minutes { begin: NOW - 3600, each: MINUTE, count: 60 };

    fn series(told: &str, points: impl Iterator<Item = (usize, f64)>) -> Series {
        Series { who: "a/ann".to_owned(), told: told.to_owned(), points: points.collect() }
    }

    /// A build that was seen at the end of each of these minutes.
    #[allow(clippy::cast_precision_loss)] // Minutes.
    fn ran(version: &str, minutes: std::ops::RangeInclusive<usize>) -> Series {
        series(version, minutes.map(|minute| (minute, (NOW as f64) - 3600.0 + minute as f64 * 60.0)))
    }

    /// One login in each of these minutes.
    fn tried(told: &str, minutes: std::ops::RangeInclusive<usize>) -> Series {
        series(told, minutes.map(|minute| (minute, 1.0)))
    }

    fn judged(running: Vec<Series>, tried: Vec<Series>) -> super::super::Judgement {
        let section = Section::default();
        let logins = Found { running, tried }.logins(HOUR);
        let observed = super::super::observe("0.0.33", logins, HOUR.time(HOUR.count), section.window);
        super::super::judge("0.0.33", observed, &section)
    }

    #[test]
    fn a_second_try_is_not_judged_by_the_first() {
        let running = vec![
            ran("0.0.26", 0..=9),
            ran("0.0.33", 10..=19),
            ran("0.0.26", 20..=44),
            ran("0.0.33", 45..=60),
        ];
        let logins = vec![tried("ok", 0..=9), tried("failed", 10..=19), tried("ok", 20..=60)];
        let judged = judged(running, logins);
        let of_user = &judged.users["a/ann"];
        // Of the minute of a change nothing counts.
        assert_eq!((of_user.after.ok, of_user.after.failed, of_user.consecutive), (15, 0, 0));
        assert_eq!((of_user.before.ok, of_user.before.failed), (9 + 24, 9));
        assert_eq!((judged.basis, judged.in_use), (Basis::AsGood, Duration::from_secs(15 * 60)));
    }

    #[test]
    fn two_short_times_are_not_one_long_one() {
        let running = vec![ran("0.0.33", 0..=9), ran("0.0.26", 10..=54), ran("0.0.33", 55..=60)];
        let judged = judged(running, vec![tried("ok", 0..=60)]);
        assert_eq!((judged.basis, judged.in_use), (Basis::Soaking, Duration::from_secs(300)));
    }

    #[test]
    fn who_was_brought_back_does_not_run_it_and_who_is_not_seen_any_more_does() {
        let failed = || vec![tried("ok", 0..=29), tried("failed", 30..=60)];
        let back = vec![ran("0.0.26", 0..=29), ran("0.0.33", 30..=58), ran("0.0.26", 59..=60)];
        assert_eq!(judged(back, failed()).basis, Basis::NotInUse);
        let gone = vec![ran("0.0.26", 0..=29), ran("0.0.33", 30..=58)];
        assert_eq!(judged(gone, failed()).basis, Basis::ConsecutiveLimit);
    }

    #[test]
    fn what_was_not_seen_for_a_while_went_on_meanwhile() {
        let running = vec![ran("0.0.26", 0..=29), ran("0.0.33", 30..=40), ran("0.0.33", 50..=60)];
        let judged = judged(running, vec![tried("ok", 0..=60)]);
        assert_eq!((judged.in_use, judged.after.ok), (Duration::from_secs(30 * 60), 30));
    }

    #[test]
    fn of_two_builds_the_one_that_was_seen_last_runs() {
        let (mut old, new) = (ran("0.0.26", 0..=30), ran("0.0.33", 31..=60));
        // For five minutes Prometheus goes on with a series whose end it has missed.
        let last = old.points[30].1;
        old.points.extend((31..=35).map(|minute| (minute, last)));
        let judged = judged(vec![new, old], vec![tried("ok", 0..=60)]);
        assert_eq!((judged.in_use, judged.after.ok), (Duration::from_secs(29 * 60), 29));
    }

    #[test]
    fn failures_are_in_a_row_since_the_last_minute_in_which_a_login_went_well() {
        let running = || vec![ran("0.0.26", 0..=29), ran("0.0.33", 30..=60)];
        let mixed = vec![tried("ok", 0..=57), tried("failed", 40..=40), tried("failed", 57..=58)];
        let one = judged(running(), mixed.clone());
        assert_eq!((one.users["a/ann"].consecutive, one.after.failed), (1, 3));
        let two = judged(running(), [mixed, vec![tried("failed", 60..=60)]].concat());
        assert_eq!((two.users["a/ann"].consecutive, two.basis), (2, Basis::ConsecutiveLimit));
    }

    #[test]
    fn a_long_window_has_longer_minutes_instead_of_more_than_prometheus_answers() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let day = Duration::from_secs(24 * 3600);
        for (days, each) in [(2, 60), (6, 60), (30, 260), (700, 6048)] {
            let minutes = Minutes::until(now, day * days);
            assert_eq!(minutes.each, each);
            assert!(minutes.count <= 10_000 && minutes.time(minutes.count) == now, "{minutes:?}");
            assert!(now.duration_since(minutes.time(0)).expect("before") >= day * days - day / 10);
        }
    }
}
