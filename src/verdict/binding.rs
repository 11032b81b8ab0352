//! What a verdict is about, and when it has become about something else.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Document;
use crate::gate::evidence::Seed;
use crate::outcome::{Elsewhere, Verdict, utc};

/// A copy older than this says nothing about a user's data of today.
const SEED_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a verdict is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The version of this program.
    pub program: String,
    /// `sha256:…` of the parts of the configuration that the gate reads.
    pub config: String,
    /// The users whose data was rehearsed.
    pub users: Vec<Covered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    pub user: String,
    pub level: Option<u32>,
    #[serde(with = "utc")]
    pub taken_at: SystemTime,
}

impl Covered {
    /// Of a copy that is a user's.
    pub fn of(seed: &Seed) -> Option<Self> {
        Some(Self { user: seed.user.clone()?, level: seed.level, taken_at: seed.taken_at })
    }
}

/// The situation in which a verdict is asked for.
#[derive(Clone, Debug)]
pub struct Present {
    pub now: SystemTime,
    pub program: String,
    pub config: String,
    /// Everybody who is served, and the level of their database where it can be read; the error says why it is not known
    /// who they are.
    pub users: Result<Vec<(String, Option<u32>)>, String>,
    /// The integrity of the installed build of this version, where there is one.
    pub installed: Option<String>,
}

impl Document {
    /// Why this verdict is not about the present situation, with a sentence; `None` where it is.
    pub fn elsewhere(&self, present: &Present) -> Option<(Elsewhere, String)> {
        let bound = &self.bound_to;
        if let Some(expired) = self.expired(present.now) {
            return Some(expired);
        }
        if bound.program != present.program {
            let (then, now) = (&bound.program, &present.program);
            return Some((
                Elsewhere::OtherProgram,
                format!("t3-prober {then} made it, this is t3-prober {now}"),
            ));
        }
        if bound.config != present.config {
            return Some((
                Elsewhere::OtherConfig,
                "[gate] or [t3] of the configuration has changed".to_owned(),
            ));
        }
        if let Some(installed) = &present.installed
            && *installed != self.candidate.integrity
        {
            return Some((
                Elsewhere::OtherBuild,
                format!("the installed build is {installed}, the rehearsed one {}", self.candidate.integrity),
            ));
        }
        if !matches!(self.verdict, Verdict::Pass | Verdict::Fail) {
            // It says that nothing is known of the build, and whose data that was found on does not matter.
            return None;
        }
        match &present.users {
            Ok(users) => users.iter().find_map(|(user, level)| self.uncovered(user, *level, present.now)),
            Err(why) => Some((Elsewhere::CannotTell, format!("it cannot be told who is served: {why}"))),
        }
    }

    /// Whether its time is over.
    pub fn expired(&self, now: SystemTime) -> Option<(Elsewhere, String)> {
        let since = humantime::format_rfc3339_seconds(self.expires_at);
        (now >= self.expires_at).then(|| (Elsewhere::Expired, format!("it was valid until {since}")))
    }

    fn uncovered(&self, user: &str, level: Option<u32>, now: SystemTime) -> Option<(Elsewhere, String)> {
        let Some(covered) = self.bound_to.users.iter().find(|covered| covered.user == user) else {
            return Some((Elsewhere::NotCovered, format!("the data of {user} was not rehearsed")));
        };
        if let (Some(live), Some(then)) = (level, covered.level)
            && live != then
        {
            return Some((
                Elsewhere::LevelDiffers,
                format!("the database of {user} is at level {live}, the copy was at {then}"),
            ));
        }
        let is_old = now.duration_since(covered.taken_at).is_ok_and(|age| age > SEED_AGE);
        is_old.then(|| (Elsewhere::SeedOld, format!("the copy of {user}'s data is older than 7 days")))
    }
}
