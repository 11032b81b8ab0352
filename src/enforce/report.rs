//! What a run says: the plan beforehand, the end afterwards, where `serve`, the next run and people find it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::journal::{Journal, Move};
use super::plan::{Deferred, Found, Plan, Wanted, soak_of};
use super::run::{Run, SOAK};
use super::standing::{Last, Standing};
use super::{Report, dir};
use crate::outcome::{End, Hold, MoveStep};
use crate::spool::{self, Event, Spool, Upgrade};
use crate::t3::version::Version;

impl Run<'_> {
    /// What a run that was killed left, and what the next one would do.
    pub(super) fn told_unfinished(&self, journal: &Journal) -> Report {
        for entry in &journal.moves {
            (self.say)(&format!("{}: {} (from t3 {})", entry.user, entry.step.meaning(), entry.from));
        }
        let detail = match (&journal.back, self.request.back) {
            (None, true) => format!("{}; this one would bring them back", left(journal)),
            _ => left(journal),
        };
        Report::dry(journal.target.clone(), detail, Vec::new())
    }

    /// The plan and how long it takes.
    pub(super) fn told(&self, wanted: &Wanted, plan: &Plan, users: &[Found]) -> Report {
        let say = self.say;
        let target = &plan.target;
        say(&format!("wanted    {wanted}"));
        for Found { user, linked, running, .. } in users {
            let version =
                |version: &Option<Version>| version.as_ref().map_or("?".to_owned(), ToString::to_string);
            say(&format!("found     {user}: runs {}, linked to {}", version(running), version(linked)));
        }
        let document = self.document(target);
        let verdict = match &document {
            Some(document) => format!("a kept one says pass: {}", document.summary),
            None => "none is kept, the gate runs first".to_owned(),
        };
        say(&format!("verdict   {verdict}"));
        let installed = self.moves.links.build(target).join("bin/t3").exists();
        say(&format!("install   {}", if installed { "it is installed" } else { "it is installed first" }));
        say(&format!("backup    everybody's state, {} users", self.targets.len()));
        let soak = self.config.enforce.soak.or(document.map(|document| document.soak)).unwrap_or(SOAK);
        for (number, group) in plan.groups().into_iter().enumerate() {
            let who: Vec<_> = group.iter().map(|(user, from)| format!("{user} (from {from})")).collect();
            let watched = humantime::format_duration(soak_of(number, soak));
            let name = if number == 0 { "canary   ".to_owned() } else { format!("group {number}  ") };
            say(&format!("{name} {}, watched for {watched}", who.join(", ")));
        }
        for (user, from) in &plan.stopped {
            say(&format!("stopped   {user} (from {from}): copied and linked, not started"));
        }
        for deferred in &plan.deferred {
            say(&format!("stays     {deferred}"));
        }
        let soaks = plan.soaks(soak);
        let groups = u32::try_from(plan.groups().len()).unwrap_or(u32::MAX);
        let longest =
            (self.moves.service.stop_timeout + self.moves.service.start_timeout).saturating_mul(groups);
        let detail = format!(
            "dry run: nothing was done; it would take {} of watching and at most {} for stops and starts, {} in all, beside gate, install and backups",
            humantime::format_duration(soaks),
            humantime::format_duration(longest),
            humantime::format_duration(soaks + longest)
        );
        Report::dry(target.clone(), detail, plan.deferred.clone())
    }
}

impl Report {
    fn dry(target: Version, detail: String, deferred: Vec<Deferred>) -> Self {
        Self { end: End::NothingToDo, hold: None, target: Some(target), detail, moved: Vec::new(), deferred }
    }
}

/// What a rollout that has not ended leaves behind, and what becomes of it.
pub fn left(journal: &Journal) -> String {
    let Journal { target, moves, back, .. } = journal;
    let at = |entry: &Move| match entry.step {
        MoveStep::Proven => format!("{} on t3 {target}", entry.user),
        MoveStep::Back => format!("{} back on t3 {}", entry.user, entry.from),
        step => format!("{} at '{step}' between t3 {} and {target}", entry.user, entry.from),
    };
    let users: Vec<_> = moves.iter().map(at).collect();
    let users = if users.is_empty() { "nobody moved yet".to_owned() } else { users.join(", ") };
    match back {
        Some(why) => format!(
            "the way back from t3 {target} ({why}) is not finished: {users}; the next run of t3-prober enforce goes on with it"
        ),
        None => format!(
            "the rollout of t3 {target} is not finished: {users}; the next run of t3-prober enforce goes on with it, and t3-prober enforce --back brings everybody back"
        ),
    }
}

/// Leaves the end where `serve` and the next run find it.
pub fn tell(report: &Report, state_dir: &Path, took: Duration) {
    let (dir, now) = (dir(state_dir), SystemTime::now());
    let mut standing = Standing::load(&dir);
    if matches!(report.end, End::Done | End::NothingToDo) || report.hold == Some(Hold::NobodyIdle) {
        standing.defer(&report.deferred, now);
    } else if report.end == End::RolledBack {
        standing.deferred.clear();
    }
    standing.at_work = None;
    standing.last = Some(Last { at: now, end: report.end, detail: report.detail.clone() });
    if let Err(error) = standing.store(&dir) {
        tracing::error!(%error, "the end of this run is not on the status page");
    }
    count(report, state_dir, took);
}

/// Leaves the end in the metrics and in the history alone: how things stand is said by whoever is at work.
pub fn count(report: &Report, state_dir: &Path, took: Duration) {
    let spool = state_dir.join("spool");
    if !spool.is_dir() {
        return;
    }
    let event = Event::Upgrade(Upgrade {
        target: report.target.as_ref().map(ToString::to_string),
        end: report.end,
        hold: report.hold,
        detail: report.detail.clone(),
        moved: report.moved.clone(),
        at: SystemTime::now(),
        duration: took,
    });
    if let Err(error) = Spool::new(spool, spool::Limits::default()).put(&event) {
        tracing::warn!(%error, "the end of this run is not in the metrics");
    }
}
