//! Which builds to rehearse before anybody asks, and how often: what a dist-tag stands for, no more than a few in a
//! while, and one that could not be judged later and later.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::outcome::Verdict;
use crate::t3::version::Version;

/// However often a build could not be judged: after this long it is tried again.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(24 * 3600);

/// `[gate.track]`: following a dist-tag. Where there is a `[helper]`, `serve` may neither make boxes nor reach a registry:
/// `t3-prober gate --due` follows it then, by `t3-prober-gate.timer`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The tag whose builds are rehearsed in the background. No default; absent, none is followed. What users get is
    /// `[enforce] track`'s to say: the same tag here has the verdict ready before the enforcer asks.
    pub tag: Option<String>,
    /// The command that prints the version which `{tag}` stands for. Default: npm's view.
    pub command: Vec<String>,
    /// How long the command may take. Default 1m.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How often it is asked, where `serve` does. Default 10m.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// No more builds than this are rehearsed by themselves within `per`. Default 5.
    pub most: usize,
    /// The time that `most` is about. Default 6h.
    #[serde(with = "humantime_serde")]
    pub per: Duration,
    /// How long a build rests that could not be judged; twice as long each further time, at most a day. Default 30m.
    #[serde(with = "humantime_serde")]
    pub back_off: Duration,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            tag: None,
            command: ["npm", "view", "t3@{tag}", "version"].map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(60),
            every: Duration::from_secs(600),
            most: 5,
            per: Duration::from_secs(6 * 3600),
            back_off: Duration::from_secs(1800),
        }
    }
}

impl Section {
    /// What no single key shows, in one sentence.
    pub fn complaint(&self) -> Option<String> {
        let tag_is_word = |tag: &String| {
            let harmless = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !tag.is_empty() && !tag.starts_with('-') && tag.chars().all(harmless)
        };
        if let Some(tag) = self.tag.as_ref().filter(|tag| !tag_is_word(tag)) {
            return Some(format!("'{tag}' is no dist-tag; write a word such as latest or nightly"));
        }
        if !self.command.iter().any(|word| word.contains("{tag}")) {
            return Some("its command asks for nothing in particular; it needs {tag} in it".to_owned());
        }
        if self.every < Duration::from_secs(1) || self.timeout.is_zero() {
            return Some("it would ask without a pause; write 1s or more for every and timeout".to_owned());
        }
        (self.most == 0).then(|| "most = 0 would never rehearse anything; leave tag out instead".to_owned())
    }
}

/// How often builds were rehearsed by themselves; the clock is given to it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pace {
    begun: VecDeque<SystemTime>,
    /// How often a build could not be judged, and until when it rests.
    resting: HashMap<Version, (u32, SystemTime)>,
}

impl Pace {
    /// Whether this build may be rehearsed now.
    pub fn allows(&mut self, section: &Section, version: &Version, now: SystemTime) -> bool {
        let recent = |begun: &SystemTime| now.duration_since(*begun).is_ok_and(|age| age < section.per);
        self.begun.retain(recent);
        let rests = self.resting.get(version).is_some_and(|(_, until)| now < *until);
        self.begun.len() < section.most && !rests
    }

    /// A build is being rehearsed from now on.
    pub fn began(&mut self, now: SystemTime) {
        self.begun.push_back(now);
    }

    /// How that ended; `None` where there is no verdict.
    pub fn ended(&mut self, section: &Section, version: &Version, verdict: Option<Verdict>, now: SystemTime) {
        if matches!(verdict, Some(Verdict::Pass | Verdict::Fail)) {
            self.resting.remove(version);
            return;
        }
        let times = self.resting.get(version).map_or(0, |(times, _)| *times);
        let rest = section.back_off.saturating_mul(1 << times.min(10)).min(LONGEST_BACK_OFF);
        self.resting.insert(version.clone(), (times + 1, now + rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(minutes: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + MINUTE * minutes
    }

    #[test]
    fn no_more_builds_than_the_limit_begin_within_its_time() {
        let (section, mut pace) = (Section::default(), Pace::default());
        for patch in 0..5 {
            assert!(pace.allows(&section, &Version::new(0, 0, patch), at(1)));
            pace.began(at(1));
        }
        assert!(!pace.allows(&section, &Version::new(0, 0, 9), at(360)));
        assert!(pace.allows(&section, &Version::new(0, 0, 9), at(361)));
    }

    #[test]
    fn a_build_that_could_not_be_judged_rests_longer_each_time_and_others_do_not() {
        let (section, mut pace) = (Section::default(), Pace::default());
        let (one, other) = (Version::new(0, 0, 26), Version::new(0, 0, 33));
        pace.ended(&section, &one, Some(Verdict::Inconclusive), at(0));
        assert!(!pace.allows(&section, &one, at(29)) && pace.allows(&section, &other, at(0)));
        assert!(pace.allows(&section, &one, at(30)));
        pace.ended(&section, &one, None, at(30));
        assert!(!pace.allows(&section, &one, at(89)) && pace.allows(&section, &one, at(90)));
        pace.ended(&section, &one, Some(Verdict::Pass), at(90));
        pace.ended(&section, &one, Some(Verdict::Error), at(100));
        assert!(pace.allows(&section, &one, at(130)), "a verdict ends the count");
        for minutes in 0..40 {
            pace.ended(&section, &one, None, at(minutes));
        }
        assert!(pace.allows(&section, &one, at(40 + 24 * 60)));
    }

    #[test]
    fn a_tag_is_one_word_that_no_command_takes_for_an_option() {
        for (tag, is_good) in
            [("nightly", true), ("next-1.x", true), ("--tag", false), ("a b", false), ("", false)]
        {
            let section = Section { tag: Some(tag.to_owned()), ..Section::default() };
            assert_eq!(section.complaint().is_none(), is_good, "{tag:?}");
        }
    }
}
