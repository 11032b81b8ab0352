//! How the enforcer stands, for whoever did not see it run: how the last run ended, who was left behind and since when.
//! The enforcer writes it whole at each end; `serve` reads it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::freeze::Freeze;
use super::journal::{Ledger, write};
use super::{lock, plan};
use crate::outcome::{Deferral, End, Stage, utc};
use crate::t3::version::Version;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// What a run is at; where none is at work, it ended without a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_work: Option<AtWork>,
    pub last: Option<Last>,
    pub deferred: Vec<Deferred>,
}

/// A run that has not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtWork {
    #[serde(with = "utc")]
    pub began: SystemTime,
    pub stage: Stage,
    /// When it came to this stage.
    #[serde(with = "utc")]
    pub since: SystemTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Version>,
}

/// The end of the last run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    #[serde(with = "utc")]
    pub at: SystemTime,
    pub end: End,
    /// One sentence for a person.
    pub detail: String,
}

/// A user who was left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    pub user: String,
    #[serde(with = "utc")]
    pub since: SystemTime,
    pub why: Deferral,
    pub detail: String,
}

/// The same as it is now, with what the other files say.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub standing: Standing,
    /// Whether a rollout was begun and has not ended.
    pub under_way: bool,
    /// Whether the run that said last what it is at is still there.
    pub alive: bool,
    /// Why nothing is begun, and how that is ended.
    pub frozen: Option<String>,
    /// Why builds were rolled back here, by version.
    pub broken: BTreeMap<String, String>,
}

impl Standing {
    pub fn load(dir: &Path) -> Self {
        let text = fs::read(dir.join("standing.json")).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub fn store(&self, dir: &Path) -> std::io::Result<()> {
        write(&dir.join("standing.json"), self)
    }

    /// Takes over who is left behind now; who was already keeps the time.
    pub fn defer(&mut self, deferred: &[plan::Deferred], now: SystemTime) {
        let before = std::mem::take(&mut self.deferred);
        let since =
            |user: &str| before.iter().find(|known| known.user == user).map_or(now, |known| known.since);
        self.deferred = deferred
            .iter()
            .map(|plan::Deferred { user, why, detail }| Deferred {
                since: since(user),
                user: user.clone(),
                why: *why,
                detail: detail.clone(),
            })
            .collect();
    }
}

impl AtWork {
    /// What is known of a run that did not say how it ended.
    pub fn epitaph(&self) -> String {
        let at = humantime::format_rfc3339_seconds;
        format!(
            "the run that began at {} ended without a word while it was {}, since {}: it was killed, or its machine went down",
            at(self.began),
            self.stage.doing(),
            at(self.since)
        )
    }
}

impl Seen {
    pub fn load(state_dir: &Path) -> Self {
        let dir = super::dir(state_dir);
        let freeze = Freeze::new(&dir);
        let remedy = |why: String| format!("{why}; remove {} when it is understood", freeze.file().display());
        let standing = Standing::load(&dir);
        Self {
            alive: standing.at_work.is_some() && lock::is_held(&dir),
            standing,
            under_way: Ledger::exists(&dir),
            frozen: freeze.reason().map(remedy),
            broken: freeze.broken().into_iter().map(|(version, broke)| (version, broke.why)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn deferred(user: &str) -> plan::Deferred {
        plan::Deferred { user: user.to_owned(), why: Deferral::Busy, detail: "1 turn".to_owned() }
    }

    #[test]
    fn who_is_left_behind_again_keeps_the_time_and_who_was_moved_is_forgotten() {
        let (first, later) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        let mut standing = Standing::default();
        standing.defer(&[deferred("ann"), deferred("bob")], first);
        standing.defer(&[deferred("ann"), deferred("cid")], later);
        let since: Vec<_> = standing.deferred.iter().map(|it| (it.user.as_str(), it.since)).collect();
        assert_eq!(since, [("ann", first), ("cid", later)]);
        let dir = tempfile::tempdir().expect("a directory");
        standing.store(dir.path()).expect("written");
        assert_eq!(Standing::load(dir.path()), standing);
    }
}
