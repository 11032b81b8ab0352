//! Live judgement of a build that users have got: logins since they got it, probed and real, against those before. A
//! plain function of numbers; whatever cannot be told from them holds, and never rolls back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::outcome::{Basis, Decision, seconds};

pub mod prometheus;

/// `[rollout]`: when a build that users have got is promoted or rolled back.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// How long a build has to be in use before it is promoted. Default 10m.
    #[serde(with = "humantime_serde")]
    pub soak: Duration,
    /// How many logins have to be known of before it is promoted, and of the time before for a comparison. Default 3.
    pub minimum_logins: u64,
    /// So many failed logins roll back, where they are a greater share than before. Default 3.
    pub failure_limit: u64,
    /// So many failed logins of one user in a row roll back, where that user was well before. Default 2.
    pub consecutive_limit: u64,
    /// For so long after a user got a build their logins are compared with those of as long before it. Default 1d.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// The Prometheus that knows all hosts, as `http://host:9090`. No default; absent, this host's own history is judged.
    pub prometheus: Option<String>,
    /// The label that tells one host's users from another's. Default `instance`.
    pub host_label: String,
    /// How long Prometheus may take for an answer. Default 30s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            soak: Duration::from_secs(600),
            minimum_logins: 3,
            failure_limit: 3,
            consecutive_limit: 2,
            window: Duration::from_secs(24 * 3600),
            prometheus: None,
            host_label: "instance".to_owned(),
            timeout: Duration::from_secs(30),
        }
    }
}

impl Section {
    /// How far back is looked: whoever got the build a window ago has a whole window before it, and not what is left of
    /// one. What shrinks with time would say that a build is worse than before because a day has passed.
    pub fn reach(&self) -> Duration {
        self.window.saturating_mul(2)
    }

    /// What no single key shows, as (key, sentence).
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        if self.failure_limit == 0 || self.consecutive_limit == 0 {
            let key = if self.failure_limit == 0 { "failure_limit" } else { "consecutive_limit" };
            complaints.push((key, "0 would roll every build back; write 1 or more".to_owned()));
        }
        if self.window < Duration::from_secs(60) {
            complaints
                .push(("window", "too short to see a login before and after; write 1m or more".to_owned()));
        } else if self.soak >= self.window {
            let window = humantime::format_duration(self.window);
            let sentence = format!("nothing is compared any more after the window of {window}; write less");
            complaints.push(("soak", sentence));
        }
        if let Some(url) = &self.prometheus
            && let Err(why) = prometheus::base(url)
        {
            complaints.push(("prometheus", why));
        }
        let is_label = |label: &str| {
            label.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !is_label(&self.host_label) {
            let sentence = format!("'{}' is no name of a label; write one such as instance", self.host_label);
            complaints.push(("host_label", sentence));
        }
        complaints
    }
}

/// Logins that were tried: probes and real ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub ok: u64,
    pub failed: u64,
}

impl Tally {
    pub fn all(self) -> u64 {
        self.ok + self.failed
    }

    #[allow(clippy::cast_precision_loss)] // Nobody tries 2^53 logins.
    fn share(self) -> f64 {
        if self.all() == 0 { 0.0 } else { self.failed as f64 / self.all() as f64 }
    }
}

/// One user's logins on other builds, and on the one in question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfUser {
    pub before: Tally,
    pub after: Tally,
    /// Failures in a row, up to the last login.
    pub consecutive: u64,
}

/// What there is to judge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub users: BTreeMap<String, OfUser>,
    /// How long the first of them has been running the build; `None` where nobody does.
    pub in_use: Option<Duration>,
}

/// The judgement. JSON: the same names; times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    pub version: String,
    pub decision: Decision,
    pub basis: Basis,
    /// One sentence for a person.
    pub detail: String,
    pub before: Tally,
    pub after: Tally,
    #[serde(rename = "in_use_seconds", with = "seconds")]
    pub in_use: Duration,
    pub users: BTreeMap<String, OfUser>,
}

/// One login, or so many in a row that ended alike; where it is none, only what the instance ran was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub at: SystemTime,
    pub is_ok: bool,
    pub count: u64,
    /// What the instance ran, where the login told.
    pub version: Option<String>,
}

/// Sorts logins by what their user ran at the time: a login that does not tell belongs to what was told before it. The
/// time on the build is the last one that is not over, and the time before it is one window long.
pub fn observe(version: &str, mut logins: Vec<Login>, now: SystemTime, window: Duration) -> Observed {
    logins.sort_by_key(|login| login.at);
    let since = running_since(version, &logins);
    let within = |at: SystemTime, end: SystemTime| end.duration_since(at).is_ok_and(|age| age <= window);
    let mut told: BTreeMap<&str, &str> = BTreeMap::new();
    let mut observed = Observed::default();
    for login in &logins {
        let user = login.user.as_str();
        if let Some(version) = &login.version {
            told.insert(user, version);
        }
        let of_user = observed.users.entry(login.user.clone()).or_default();
        let tally = match since.get(user) {
            Some(since) if login.at >= *since => {
                of_user.consecutive = if login.is_ok { 0 } else { of_user.consecutive + login.count };
                &mut of_user.after
            }
            // What was found on the build an earlier time was about that time.
            Some(since) if within(login.at, *since) && within(*since, now) => &mut of_user.before,
            // Whoever has been brought back has no part in how it goes now.
            None if within(login.at, now) && told.get(user) != Some(&version) => &mut of_user.before,
            Some(_) | None => continue,
        };
        if login.is_ok {
            tally.ok += login.count;
        } else {
            tally.failed += login.count;
        }
    }
    observed.in_use = since.into_values().min().map(|since| now.duration_since(since).unwrap_or_default());
    observed
}

/// Since when users have been running the build, those who do.
fn running_since<'a>(version: &str, logins: &'a [Login]) -> BTreeMap<&'a str, SystemTime> {
    let mut running: BTreeMap<&str, (&str, SystemTime)> = BTreeMap::new();
    for login in logins {
        if let Some(told) = login.version.as_deref()
            && running.get(login.user.as_str()).is_none_or(|(known, _)| *known != told)
        {
            running.insert(&login.user, (told, login.at));
        }
    }
    running
        .into_iter()
        .filter(|(_, (told, _))| *told == version)
        .map(|(user, (_, since))| (user, since))
        .collect()
}

fn add(one: Tally, other: Tally) -> Tally {
    Tally { ok: one.ok + other.ok, failed: one.failed + other.failed }
}

/// Judges.
pub fn judge(version: &str, observed: Observed, section: &Section) -> Judgement {
    let sum = |of: fn(&OfUser) -> Tally| observed.users.values().map(of).fold(Tally::default(), add);
    let (before, after) = (sum(|user| user.before), sum(|user| user.after));
    let in_use = observed.in_use.unwrap_or_default();
    let (basis, detail) = basis(&observed, after, section);
    Judgement {
        version: version.to_owned(),
        decision: basis.decision(),
        basis,
        detail,
        before,
        after,
        in_use,
        users: observed.users,
    }
}

/// What cannot be judged, because the numbers cannot be read.
pub fn unreadable(version: &str, detail: String) -> Judgement {
    let nothing = judge(version, Observed::default(), &Section::default());
    Judgement { decision: Basis::Unreadable.decision(), basis: Basis::Unreadable, detail, ..nothing }
}

fn basis(observed: &Observed, after: Tally, section: &Section) -> (Basis, String) {
    let Some(in_use) = observed.in_use else {
        return (Basis::NotInUse, "nobody was seen to run it".to_owned());
    };
    let again = |(_, of_user): &(&String, &OfUser)| of_user.consecutive >= section.consecutive_limit;
    let mut stuck: Vec<_> = observed.users.iter().filter(again).collect();
    stuck.sort_by_key(|(_, of_user)| std::cmp::Reverse(of_user.consecutive));
    // Somebody who could not log in before either says nothing of the build.
    if let Some((user, of_user)) =
        stuck.iter().find(|(_, of_user)| of_user.before.share() < 0.5 && of_user.before.ok > 0)
    {
        let times = of_user.consecutive;
        return (
            Basis::ConsecutiveLimit,
            format!("the last {times} logins of {user} failed, and they went well before"),
        );
    }
    // Whoever has nothing before it is no evidence against the build: their failures may be older than it.
    let compared = |of_user: &&OfUser| of_user.after.all() == 0 || of_user.before.all() > 0;
    let sum = |of: fn(&OfUser) -> Tally| {
        observed.users.values().filter(compared).map(of).fold(Tally::default(), add)
    };
    let (was, is) = (sum(|user| user.before), sum(|user| user.after));
    let is_known = was.all() >= section.minimum_logins.max(1);
    let beyond = is.failed >= section.failure_limit;
    let of_all = |is: Tally, was: Tally| {
        let (failed, all, failed_before, before) = (is.failed, is.all(), was.failed, was.all());
        format!("{failed} of {all} logins failed, before it were {failed_before} of {before}")
    };
    if beyond && is_known && is.share() > was.share() && was.ok > 0 {
        return (Basis::FailureLimit, of_all(is, was));
    }
    if after.failed >= section.failure_limit || !stuck.is_empty() {
        let as_bad = beyond || stuck.iter().any(|(_, of_user)| of_user.before.all() > 0);
        let basis = if is_known && as_bad { Basis::AsBadBefore } else { Basis::NothingBefore };
        return (basis, of_all(after, was));
    }
    let all = after.all();
    if all < section.minimum_logins {
        let wanted = section.minimum_logins;
        return (Basis::TooLittle, format!("{all} logins were tried on it, {wanted} have to be"));
    }
    if in_use < section.soak {
        let short = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
        let (is, soak) = (short(in_use), short(section.soak));
        return (Basis::Soaking, format!("it is in use for {is}, it has to be for {soak}"));
    }
    (Basis::AsGood, format!("{} of {all} logins went well", after.ok))
}

#[cfg(test)]
mod tests;
