//! From evidence to a verdict: a plain function of its arguments, the clock included. Candidate and control are compared
//! per user and per step, so that a gate that cannot pass is never taken for a bad build (that pinned a fleet for 17
//! days), and what was not seen to work is never a pass.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::gate::evidence::{Build, Evidence, Rehearsed, SeedEvidence, StepEvidence, Trouble};
use crate::outcome::{Grounds, Outcome, Rehearsal, RehearsalStep, Risk, Rollback, Verdict, seconds, utc};

mod binding;
mod difference;
mod file;
mod report;

pub use binding::{Binding, Covered, Present};
pub use file::{load, recent, store};

/// The JSON Schema of the document.
pub const SCHEMA: &str = include_str!("verdict/schema.json");
/// The document's version; a reader refuses any other.
const FORMAT: u32 = 1;
const SOAK_SAFE: Duration = Duration::from_secs(120);
const SOAK_CAUTION: Duration = Duration::from_secs(600);

/// What the operator decided about verdicts.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether evidence from outside a box may pass.
    pub boxed: bool,
    /// How old a backup may be that a restore would use.
    pub backup_age: Duration,
    pub valid_for: Duration,
}

/// The verdict on one build: version 1 of the public document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    pub format: u32,
    pub verdict: Verdict,
    pub grounds: Grounds,
    /// One sentence for whoever asks why.
    pub summary: String,
    pub candidate: Build,
    pub control: Build,
    #[serde(with = "utc")]
    pub made_at: SystemTime,
    #[serde(with = "utc")]
    pub expires_at: SystemTime,
    pub boxed: bool,
    /// Absent where no rehearsal told.
    pub rollback: Option<Rollback>,
    /// Whether instances may be restarted one after another; absent where no rehearsal told.
    pub rolling_restart: Option<bool>,
    pub risk: Risk,
    #[serde(rename = "soak_seconds", with = "seconds")]
    pub soak: Duration,
    /// What differs between the two builds, in words.
    pub differences: Vec<String>,
    pub findings: Vec<Finding>,
    pub trouble: Vec<Trouble>,
    pub seeds: Vec<SeedEvidence>,
    pub bound_to: Binding,
}

/// One place where a rehearsal did not go well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Whose copy.
    pub seed: String,
    pub rehearsal: Rehearsal,
    pub step: RehearsalStep,
    #[serde(flatten)]
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Judges.
pub fn judge(evidence: Evidence, policy: &Policy, bound_to: Binding, now: SystemTime) -> Document {
    let opinions: Vec<_> = evidence.seeds.iter().map(|seed| Opinion::of(seed, &evidence)).collect();
    let rollback = opinions.iter().filter_map(|opinion| opinion.rollback).max();
    let rolling_restart = all(opinions.iter().map(|opinion| opinion.rolling_restart));
    let grounds = grounds(&evidence, &opinions, rollback, policy, now);
    let differences = difference::between(&evidence.seeds);
    let is_safe =
        rollback == Some(Rollback::BinaryOnly) && rolling_restart == Some(true) && differences.is_empty();
    let (risk, soak) = if is_safe { (Risk::Safe, SOAK_SAFE) } else { (Risk::Caution, SOAK_CAUTION) };
    let findings: Vec<_> = evidence.seeds.iter().flat_map(findings).collect();
    Document {
        format: FORMAT,
        verdict: grounds.verdict(),
        grounds,
        summary: summary(grounds, &evidence, &findings, rollback),
        candidate: evidence.candidate,
        control: evidence.control,
        made_at: now,
        expires_at: now + policy.valid_for,
        boxed: evidence.boxed,
        rollback,
        rolling_restart,
        risk,
        soak,
        differences,
        findings,
        trouble: evidence.trouble,
        seeds: evidence.seeds,
        bound_to,
    }
}

/// What the rehearsals on one seed say.
struct Opinion {
    grounds: Grounds,
    rollback: Option<Rollback>,
    rolling_restart: Option<bool>,
}

impl Opinion {
    fn of(seed: &SeedEvidence, evidence: &Evidence) -> Self {
        let complete = |rehearsal| seed.of(rehearsal).filter(|rehearsed| rehearsed.is_complete());
        let stop = |rehearsal| complete(rehearsal).map(Rehearsed::stopped_at);
        let undecided = |grounds| Self { grounds, rollback: None, rolling_restart: None };
        let (Some(control), Some(candidate)) = (stop(Rehearsal::Control), stop(Rehearsal::Candidate)) else {
            return undecided(Grounds::Incomplete);
        };
        match (control, candidate) {
            (None, None) => {}
            (Some(at), _) if is_skip(at) => return undecided(Grounds::Incomplete),
            (_, Some(at)) if is_skip(at) => return undecided(Grounds::Incomplete),
            (None, Some(_)) => return undecided(Grounds::CandidateFailed),
            (Some(control), Some(candidate)) if control.step == candidate.step => {
                return undecided(Grounds::GateBroken);
            }
            (Some(_), Some(_)) => return undecided(Grounds::ControlFailed),
            (Some(_), None) if is_outrun(seed, evidence) => {
                // Nothing that runs today could be gone back to.
                let rollback = Some(Rollback::Unsafe);
                return Self { grounds: Grounds::ControlOutrun, rollback, rolling_restart: Some(false) };
            }
            (Some(_), None) => return undecided(Grounds::ControlFailed),
        }
        let rollback = match stop(Rehearsal::WayBack) {
            Some(None) => Rollback::BinaryOnly,
            Some(Some(at)) if !is_skip(at) => Rollback::NeedsRestore,
            _ => return undecided(Grounds::Incomplete),
        };
        let rolling_restart = match stop(Rehearsal::Skew) {
            Some(None) => true,
            // The control by itself goes well, so whatever fails here fails because of the candidate's command.
            Some(Some(at)) if !is_skip(at) => false,
            _ => return undecided(Grounds::Incomplete),
        };
        Self { grounds: Grounds::AllPassed, rollback: Some(rollback), rolling_restart: Some(rolling_restart) }
    }
}

fn is_skip(step: &StepEvidence) -> bool {
    matches!(step.outcome, Outcome::Skipped(_))
}

/// The outage itself: this database is ahead of the level that the control brings a database to, and the control is
/// well where it is not.
fn is_outrun(seed: &SeedEvidence, evidence: &Evidence) -> bool {
    let healthy = evidence.seeds.iter().filter_map(|seed| seed.of(Rehearsal::Control));
    let own = healthy.filter(|control| control.passed()).filter_map(|control| control.facts.level).min();
    seed.seed.level.zip(own).is_some_and(|(found, own)| found > own)
}

/// A gate that could not run says so before anything else; one user's failure fails the build for all; and only then
/// does it matter what could not be told.
fn grounds(
    evidence: &Evidence,
    opinions: &[Opinion],
    rollback: Option<Rollback>,
    policy: &Policy,
    now: SystemTime,
) -> Grounds {
    if let Some(trouble) = evidence.trouble.first() {
        return trouble.grounds;
    }
    if policy.boxed && !evidence.boxed {
        return Grounds::NotBoxed;
    }
    let any = |wanted: Grounds| opinions.iter().any(|opinion| opinion.grounds == wanted);
    let worst = [Grounds::CandidateFailed, Grounds::GateBroken, Grounds::ControlFailed, Grounds::Incomplete];
    if let Some(found) = worst.into_iter().find(|grounds| any(*grounds)) {
        return found;
    }
    if opinions.is_empty() {
        return Grounds::Incomplete;
    }
    if rollback == Some(Rollback::NeedsRestore) && !everybody_has_a_backup(evidence, policy, now) {
        return Grounds::NoWayBack;
    }
    if any(Grounds::ControlOutrun) { Grounds::ControlOutrun } else { Grounds::AllPassed }
}

fn everybody_has_a_backup(evidence: &Evidence, policy: &Policy, now: SystemTime) -> bool {
    let users = evidence.seeds.iter().filter(|seed| seed.seed.user.is_some());
    let fresh = |taken: SystemTime| now.duration_since(taken).unwrap_or_default() <= policy.backup_age;
    users.map(|seed| &seed.seed).all(|seed| seed.is_backup && fresh(seed.taken_at))
}

/// True where all are; absent where nobody says.
fn all(answers: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    answers.flatten().reduce(|one, other| one && other)
}

fn findings(seed: &SeedEvidence) -> Vec<Finding> {
    let finding = |rehearsed: &Rehearsed| {
        let at = rehearsed.stopped_at()?;
        Some(Finding {
            seed: seed.seed.name.clone(),
            rehearsal: rehearsed.rehearsal,
            step: at.step,
            outcome: at.outcome,
            detail: at.detail.clone(),
        })
    };
    seed.rehearsals.iter().filter_map(finding).collect()
}

fn summary(
    grounds: Grounds,
    evidence: &Evidence,
    findings: &[Finding],
    rollback: Option<Rollback>,
) -> String {
    let (candidate, control) = (shown(&evidence.candidate), shown(&evidence.control));
    let place = |rehearsal: Rehearsal| {
        let passed_by_control = |seed: &str| {
            let of_seed = evidence.seeds.iter().find(|evidence| evidence.seed.name == seed);
            of_seed.and_then(|seed| seed.of(Rehearsal::Control)).is_some_and(Rehearsed::passed)
        };
        let decides = |finding: &&Finding| {
            finding.rehearsal == rehearsal
                && (grounds != Grounds::CandidateFailed || passed_by_control(&finding.seed))
        };
        findings
            .iter()
            .find(decides)
            .map(|finding| {
                let detail = finding.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
                let also = findings.iter().filter(decides).filter(|other| other.seed != finding.seed).count();
                let also = if also == 0 { String::new() } else { format!(" and {also} more") };
                let data = if finding.seed.starts_with('<') {
                    "a fresh database".to_owned()
                } else {
                    format!("the data of {}", finding.seed)
                };
                format!("{} on {data}{also}: {}{detail}", finding.step, finding.outcome)
            })
            .unwrap_or_default()
    };
    let trouble = || evidence.trouble.first().map(|trouble| trouble.detail.clone()).unwrap_or_default();
    match grounds {
        Grounds::AllPassed => match rollback {
            Some(Rollback::BinaryOnly) => {
                format!("{candidate} does everything that {control} does, and {control} can be gone back to")
            }
            _ => format!("{candidate} does everything that {control} does; going back needs a restore"),
        },
        Grounds::ControlOutrun => {
            format!(
                "{candidate} works where {control} cannot any more, because the database is ahead of it; there is no way back"
            )
        }
        Grounds::CandidateFailed => {
            format!("{candidate} fails where {control} does not: {}", place(Rehearsal::Candidate))
        }
        Grounds::GateBroken => {
            format!(
                "{candidate} and {control} fail alike, so it is not the build: {}",
                place(Rehearsal::Control)
            )
        }
        Grounds::ControlFailed => {
            format!("the known-good {control} fails, so nothing can be told: {}", place(Rehearsal::Control))
        }
        Grounds::Incomplete => format!("not every step of {candidate} and {control} was come to"),
        Grounds::NotBoxed => format!(
            "{candidate} was rehearsed without a box; install bubblewrap, or set `[gate] require_box = false`"
        ),
        Grounds::NoWayBack => format!(
            "{candidate} works, but going back needs a restore and not every user has a fresh verified backup; run `t3-prober backup take`"
        ),
        Grounds::NoSpace
        | Grounds::NoCandidate
        | Grounds::NoControl
        | Grounds::NoSeed
        | Grounds::NoBox
        | Grounds::Deadline
        | Grounds::OutOfMemory => trouble(),
    }
}

fn shown(build: &Build) -> String {
    format!("t3 {}", if build.version.is_empty() { &build.name } else { &build.version })
}

#[cfg(test)]
mod tests;
