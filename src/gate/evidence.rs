//! What rehearsals found, as values: nothing here judges, and nothing here is missing without a word that says so.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::outcome::{Grounds, Outcome, Rehearsal, RehearsalStep, seconds, utc};

/// More than any detail that says something.
const LONGEST_TEXT: usize = 600;

/// Everything one run of the gate found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub candidate: Build,
    pub control: Build,
    /// Whether every rehearsal was in a box.
    pub boxed: bool,
    pub seeds: Vec<SeedEvidence>,
    /// Why the gate could not do all that it should.
    pub trouble: Vec<Trouble>,
}

/// One build of t3.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// What was asked for, a version or a path.
    pub name: String,
    /// The version it says it is; empty where it could not be asked.
    pub version: String,
    /// `sha256:…` over the package's files, or over the program where there is no package; empty where there is none.
    pub integrity: String,
}

/// What stopped the gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub grounds: Grounds,
    /// Whose copy; absent where it is about all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsal>,
    pub detail: String,
}

/// The rehearsals on copies of one database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedEvidence {
    pub seed: Seed,
    pub rehearsals: Vec<Rehearsed>,
}

/// What came of the rehearsals on one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chained {
    pub seed: SeedEvidence,
    /// Why not all was done.
    pub trouble: Vec<Trouble>,
}

/// One database that is rehearsed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// The user's name, `fresh` in angle brackets for no database at all, or the file's name.
    pub name: String,
    /// Whose data it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Absent on a fresh one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u32>,
    pub bytes: u64,
    #[serde(with = "utc")]
    pub taken_at: SystemTime,
    /// Whether it is a verified backup that a restore could use.
    pub is_backup: bool,
}

/// One rehearsal, from its first step to its last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rehearsed {
    pub rehearsal: Rehearsal,
    #[serde(rename = "duration_seconds", with = "seconds")]
    pub duration: Duration,
    /// Every step that belongs to it; what was never come to is skipped.
    pub steps: Vec<StepEvidence>,
    pub facts: Facts,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepEvidence {
    pub step: RehearsalStep,
    #[serde(flatten)]
    pub outcome: Outcome,
    #[serde(rename = "duration_seconds", with = "seconds")]
    pub duration: Duration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a build showed of its contract: absent where it was not come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub version: Option<String>,
    /// The path of the exchange that answered.
    pub exchange: Option<String>,
    /// The path of the WebSocket ticket call that answered.
    pub ticket: Option<String>,
    /// The cookie's name as bound in the box, and as bound to loopback; port and hash replaced by words.
    pub cookie: Option<String>,
    pub cookie_on_loopback: Option<String>,
    /// The level after the first start.
    pub level: Option<u32>,
    /// How much longer the first start took than the second, which migrates nothing.
    pub migration_seconds: Option<f64>,
    /// Sessions in the database before and after the candidate's command worked on it.
    pub sessions: Option<(u64, u64)>,
}

impl SeedEvidence {
    pub fn of(&self, rehearsal: Rehearsal) -> Option<&Rehearsed> {
        self.rehearsals.iter().find(|rehearsed| rehearsed.rehearsal == rehearsal)
    }
}

impl Rehearsed {
    /// Its texts come from beside a build, and end up on terminals and pages.
    pub fn make_plain(&mut self) {
        let facts = &mut self.facts;
        let told = [
            &mut facts.version,
            &mut facts.exchange,
            &mut facts.ticket,
            &mut facts.cookie,
            &mut facts.cookie_on_loopback,
        ];
        let details = self.steps.iter_mut().map(|step| &mut step.detail);
        for text in details.chain(told).flatten() {
            *text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_TEXT).collect();
        }
    }

    pub fn passed(&self) -> bool {
        self.is_complete() && self.steps.iter().all(|step| step.outcome.is_ok())
    }

    /// Whether it says something about each of its steps.
    pub fn is_complete(&self) -> bool {
        let told = |step: &RehearsalStep| self.steps.iter().any(|evidence| evidence.step == *step);
        self.rehearsal.steps().iter().all(told)
    }

    /// The first step that failed; else the first that was skipped.
    pub fn stopped_at(&self) -> Option<&StepEvidence> {
        let failed = self.steps.iter().find(|step| matches!(step.outcome, Outcome::Failed(_)));
        failed.or_else(|| self.steps.iter().find(|step| !step.outcome.is_ok()))
    }
}
