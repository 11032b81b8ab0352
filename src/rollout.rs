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
    /// How many logins have to be known of before it is promoted. Default 3.
    pub minimum_logins: u64,
    /// So many failed logins roll back, where they are a greater share than before. Default 3.
    pub failure_limit: u64,
    /// So many failed logins of one user in a row roll back, where that user was well before. Default 2.
    pub consecutive_limit: u64,
    /// How far back is looked, for the time before as well. Default 1d.
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

/// One login, or so many in a row that ended alike.
#[derive(Clone, Debug)]
pub struct Login {
    pub user: String,
    pub at: SystemTime,
    pub is_ok: bool,
    pub count: u64,
    /// What the instance ran, where the login told.
    pub version: Option<String>,
}

/// Sorts logins by what their user ran at the time: a login that does not tell belongs to what was told before it. The
/// time on the build is the last one that is not over.
pub fn observe(version: &str, mut logins: Vec<Login>, now: SystemTime) -> Observed {
    logins.sort_by_key(|login| login.at);
    let mut running: BTreeMap<String, (String, SystemTime)> = BTreeMap::new();
    let mut observed = Observed::default();
    for login in logins {
        let of_user = observed.users.entry(login.user.clone()).or_default();
        if let Some(told) = &login.version
            && running.get(&login.user).is_none_or(|(known, _)| known != told)
        {
            // What was found on the build an earlier time was about that time.
            if told == version {
                of_user.before = add(of_user.before, of_user.after);
                (of_user.after, of_user.consecutive) = (Tally::default(), 0);
            }
            running.insert(login.user.clone(), (told.clone(), login.at));
        }
        let is_on_it = running.get(&login.user).is_some_and(|(told, _)| told == version);
        let tally = if is_on_it { &mut of_user.after } else { &mut of_user.before };
        if login.is_ok {
            tally.ok += login.count;
        } else {
            tally.failed += login.count;
        }
        if is_on_it {
            of_user.consecutive = if login.is_ok { 0 } else { of_user.consecutive + login.count };
        }
    }
    // Whoever has been brought back has no part in how it goes now.
    let on_it: Vec<_> = running.into_iter().filter(|(_, (told, _))| told == version).collect();
    for (user, of_user) in &mut observed.users {
        if !on_it.iter().any(|(name, _)| name == user) {
            (of_user.after, of_user.consecutive) = (Tally::default(), 0);
        }
    }
    let first = on_it.into_iter().map(|(_, (_, since))| since).min();
    observed.in_use = first.map(|since| now.duration_since(since).unwrap_or_default());
    observed
}

fn add(one: Tally, other: Tally) -> Tally {
    Tally { ok: one.ok + other.ok, failed: one.failed + other.failed }
}

/// Judges.
pub fn judge(version: &str, observed: Observed, section: &Section) -> Judgement {
    let sum = |of: fn(&OfUser) -> Tally| observed.users.values().map(of).fold(Tally::default(), add);
    let (before, after) = (sum(|user| user.before), sum(|user| user.after));
    let in_use = observed.in_use.unwrap_or_default();
    let (basis, detail) = basis(&observed, before, after, section);
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

fn basis(observed: &Observed, before: Tally, after: Tally, section: &Section) -> (Basis, String) {
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
    let (failed, all) = (after.failed, after.all());
    let beyond = failed >= section.failure_limit;
    if beyond && after.share() > before.share() && before.ok > 0 {
        let (was, had) = (before.failed, before.all());
        return (
            Basis::FailureLimit,
            format!("{failed} of {all} logins failed, before it were {was} of {had}"),
        );
    }
    if beyond || !stuck.is_empty() {
        let basis = if before.all() == 0 { Basis::NothingBefore } else { Basis::AsBadBefore };
        let (was, had) = (before.failed, before.all());
        return (basis, format!("{failed} of {all} logins failed, before it were {was} of {had}"));
    }
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
