//! Since when each difference is there, kept over a restart: an old skew must not look new because the service does.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::difference::{Difference, Subject};
use crate::inventory::source_file;
use crate::outcome::utc;

/// When each difference was seen first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since(BTreeMap<Subject, SystemTime>);

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    subject: Subject,
    #[serde(with = "utc")]
    since: SystemTime,
}

impl Since {
    /// Takes over what is different now; answers since when each is. A difference that went and came back is new. Of a
    /// user who is `silent` nothing is known now, so theirs is still the one of before.
    pub fn see(
        &mut self,
        differences: &[Difference],
        silent: impl Fn(&str) -> bool,
        now: SystemTime,
    ) -> Vec<SystemTime> {
        let before = std::mem::take(&mut self.0);
        let since = |difference: &Difference| {
            let subject = difference.subject();
            let since = before.get(&subject).copied().unwrap_or(now);
            (subject, since)
        };
        let seen: Vec<_> = differences.iter().map(since).collect();
        self.0 = seen.iter().cloned().collect();
        let waits = |subject: &Subject| matches!(subject, Subject::Skew(user) if silent(user));
        self.0.extend(before.into_iter().filter(|(subject, _)| waits(subject)));
        seen.into_iter().map(|(_, since)| since).collect()
    }

    /// What is there and was not there before.
    pub fn new_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Subject> {
        self.0.keys().filter(|subject| !before.0.contains_key(subject))
    }

    /// What the file says; nothing where there is none, or none that this version wrote: the differences are then new.
    pub fn load(path: &Path) -> Self {
        let content = source_file::read(path).unwrap_or_default();
        let lines: Vec<Line> = serde_json::from_slice(&content).unwrap_or_default();
        Self(lines.into_iter().map(|line| (line.subject, line.since)).collect())
    }

    /// Replaces the file, whole or not at all.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let lines = self.0.iter().map(|(subject, since)| Line { subject: subject.clone(), since: *since });
        source_file::replace(path, &lines.collect::<Vec<_>>(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outcome::Place;
    use crate::pins::Versions;
    use crate::t3::Mint;
    use crate::t3::version::Version;

    const START: SystemTime = SystemTime::UNIX_EPOCH;
    const MINUTE: Duration = Duration::from_secs(60);

    fn installed(installed: Version, running: &[(&str, Version)]) -> Vec<Difference> {
        let versions = Versions {
            pinned: Ok(Some(Version::new(0, 0, 26))),
            installed: Ok(Some(installed)),
            last_good: Ok(None),
            tracked: None,
        };
        let running: Vec<_> = running
            .iter()
            .map(|(user, version)| crate::pins::Running {
                user: (*user).to_owned(),
                version: version.clone(),
                has_install: false,
            })
            .collect();
        versions.differences(&running, Mint::Cli)
    }

    fn bob_is_skewed() -> Vec<Difference> {
        installed(Version::new(0, 0, 26), &[("bob", Version::new(0, 0, 24))])
    }

    #[test]
    fn a_difference_is_as_old_as_its_subject_and_new_when_it_came_back() {
        let nobody_is_silent = |_: &str| false;
        let mut since = Since::default();
        let skewed = bob_is_skewed();
        assert_eq!(since.see(&skewed, nobody_is_silent, START), [START]);
        let further = installed(Version::new(0, 0, 33), &[("bob", Version::new(0, 0, 24))]);
        assert!(matches!(further[0], Difference::Drift { place: Place::Pinned, .. }));
        let seen = since.see(&further, nobody_is_silent, START + MINUTE);
        assert_eq!(seen, [START + MINUTE, START], "pinned drifts too, bob still");
        let before = since.clone();
        assert!(since.see(&[], nobody_is_silent, START + MINUTE).is_empty());
        assert_eq!(since.new_since(&before).count(), 0);
        let gone: Vec<_> = before.new_since(&since).map(ToString::to_string).collect();
        assert_eq!(gone, ["drift of pinned", "skew of bob"]);
        assert_eq!(since.see(&skewed, nobody_is_silent, START + MINUTE * 2), [START + MINUTE * 2]);
    }

    #[test]
    fn a_difference_is_as_old_after_a_restart_although_its_user_says_nothing_at_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("differences.json");
        let mut before = Since::load(&file);
        before.see(&bob_is_skewed(), |_| false, START);
        before.store(&file).expect("written");

        let mut after = Since::load(&file);
        assert_eq!(after, before);
        assert!(after.see(&[], |user| user == "bob", START + MINUTE).is_empty());
        assert_eq!(after.see(&bob_is_skewed(), |_| false, START + MINUTE * 2), [START]);
        std::fs::write(&file, "[{").expect("written");
        assert_eq!(Since::load(&file), Since::default());
    }
}
