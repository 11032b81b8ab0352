//! What of the stream of outcomes is worth a row. Probes that end alike, one after the other, are one row with a count;
//! a handshake, a probe that somebody asked for and every change are rows of their own. Pure: times come with the runs.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::outcome::{Ended, Kind, Outcome, Run, Step, Trigger};

use super::{Recorded, Standing};

/// A silence longer than this ends a row: the row would else claim that probes ran all the time.
const GAP: Duration = Duration::from_secs(150);

/// In the year 2255; a thousand numbers a millisecond later is all that a double can tell apart.
const LAST_MILLISECOND: i64 = 9_007_199_254_739;

/// The rows still growing, and since when each user's probes end as they do; of each user one a kind.
#[derive(Default)]
pub struct Fold {
    open: HashMap<String, Vec<Open>>,
    standings: HashMap<String, Vec<Standing>>,
    last_id: i64,
}

struct Open {
    row: Recorded,
    /// Whether the row has grown since it was last handed out.
    grown: bool,
}

impl Fold {
    /// Takes a run in; rows that must be stored now go to `rows`.
    pub fn take(&mut self, run: Run, now: SystemTime, rows: &mut Vec<Recorded>) {
        self.stand(&run);
        let open = self
            .open
            .get_mut(&run.user)
            .map(|kinds| (kinds.iter().position(|open| open.row.run.kind == run.kind), kinds));
        if let Some((Some(at), kinds)) = open {
            let open = &mut kinds[at];
            if open.row.takes_in(&run) {
                open.row.last = run.started;
                open.row.count += 1;
                open.row.slowest = open.row.slowest.max(run.duration);
                open.grown = true;
                return;
            }
            let ended = kinds.swap_remove(at);
            if ended.grown {
                rows.push(ended.row);
            }
        }
        let row = Recorded { id: self.next_id(now), last: run.started, count: 1, slowest: run.duration, run };
        if folds(&row.run) {
            let open = Open { row: row.clone(), grown: false };
            let kinds = self.open.entry(row.run.user.clone()).or_default();
            kinds.reserve_exact(1);
            kinds.push(open);
        }
        rows.push(row);
    }

    /// Hands out every row that has grown, and forgets those that have ended (a user who left, say).
    pub fn grown(&mut self, now: SystemTime, rows: &mut Vec<Recorded>) {
        for kinds in self.open.values_mut() {
            for open in kinds.iter_mut().filter(|open| open.grown) {
                open.grown = false;
                rows.push(open.row.clone());
            }
            kinds.retain(|open| now.duration_since(open.row.last).is_ok_and(|age| age <= GAP));
        }
        self.open.retain(|_, kinds| !kinds.is_empty());
    }

    /// A number never given before: it sorts by time, is safe in JSON's doubles, and needs no database to be given. By
    /// our own clock, since a run may have been timed by another process.
    pub fn next_id(&mut self, now: SystemTime) -> i64 {
        let millis = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let by_time = i64::try_from(millis).unwrap_or(0).min(LAST_MILLISECOND) * 1000;
        self.last_id = by_time.max(self.last_id + 1);
        self.last_id
    }

    /// How this user's probes of this kind stand.
    pub fn standing(&self, user: &str, kind: Kind) -> Option<&Standing> {
        self.standings.get(user)?.iter().find(|standing| standing.kind == kind)
    }

    pub fn standings(&self) -> impl Iterator<Item = &Standing> {
        self.standings.values().flatten()
    }

    /// Joins what an earlier process knew to what was seen since.
    pub fn remember(&mut self, earlier: Standing) {
        let kinds = self.standings.entry(earlier.user.clone()).or_default();
        match kinds.iter_mut().find(|present| present.kind == earlier.kind) {
            None => kinds.push(earlier),
            Some(present) if present.definite.is_none() => {
                present.definite = earlier.definite;
                present.since = earlier.since;
            }
            Some(present) if present.definite == earlier.definite => {
                present.since = present.since.min(earlier.since);
            }
            Some(_) => {}
        }
    }

    fn stand(&mut self, run: &Run) {
        let ended = run.outcome().ended();
        let kinds = self.standings.entry(run.user.clone()).or_default();
        let at = kinds.iter().position(|standing| standing.kind == run.kind).unwrap_or_else(|| {
            kinds.reserve_exact(1);
            kinds.push(Standing {
                user: run.user.clone(),
                kind: run.kind,
                definite: None,
                since: None,
                skipped_since: None,
                last: run.started,
            });
            kinds.len() - 1
        });
        let standing = &mut kinds[at];
        standing.last = run.started;
        if ended == Ended::Skipped {
            standing.skipped_since = standing.skipped_since.or(Some(run.started));
            return;
        }
        standing.skipped_since = None;
        if standing.definite != Some(ended) {
            standing.definite = Some(ended);
            standing.since = Some(run.started);
        }
    }
}

/// Handshakes are few and each is evidence; what was asked for will be looked up by whoever asked.
fn folds(run: &Run) -> bool {
    run.kind != Kind::Handshake && run.trigger != Trigger::Demand
}

/// What two runs must have in common to be one row. The texts of details differ by a number of milliseconds; they do
/// not count.
fn likeness(run: &Run) -> (Outcome, Option<Step>, Option<&str>) {
    (run.outcome(), run.decided_by().map(|step| step.step), run.facts.version.as_deref())
}

impl Recorded {
    fn takes_in(&self, run: &Run) -> bool {
        folds(run)
            && likeness(&self.run) == likeness(run)
            && run.started.duration_since(self.last).is_ok_and(|gap| gap <= GAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::{at, pulse, run};
    use crate::outcome::{Reason, Skip};

    fn take(fold: &mut Fold, run: Run, rows: &mut Vec<Recorded>) {
        let now = run.started;
        fold.take(run, now, rows);
    }

    fn rows(runs: Vec<Run>) -> Vec<Recorded> {
        let mut fold = Fold::default();
        let mut rows = Vec::new();
        for run in runs {
            take(&mut fold, run, &mut rows);
        }
        rows
    }

    #[test]
    fn pulses_that_end_alike_are_one_row_that_grows_and_a_change_begins_another() {
        let mut fold = Fold::default();
        let mut stored = Vec::new();
        for n in 0..10 {
            take(&mut fold, pulse("ann", at(n * 5), Outcome::Ok), &mut stored);
        }
        assert_eq!(stored.len(), 1, "nine of ten are only counted");
        take(&mut fold, pulse("ann", at(50), Outcome::Failed(Reason::AuthStore)), &mut stored);

        assert_eq!(stored.len(), 3, "the grown row once more, and the failure");
        assert_eq!(stored[1].id, stored[0].id);
        assert_eq!((stored[1].count, stored[1].run.started, stored[1].last), (10, at(0), at(45)));
        assert_eq!(stored[2].run.outcome(), Outcome::Failed(Reason::AuthStore));
    }

    #[test]
    fn another_reason_another_version_and_another_user_are_rows_of_their_own() {
        let mut newer = pulse("ann", at(10), Outcome::Failed(Reason::Locked));
        newer.facts.version = Some("0.0.99".to_owned());
        let runs = vec![
            pulse("ann", at(0), Outcome::Failed(Reason::AuthStore)),
            pulse("ann", at(5), Outcome::Failed(Reason::Locked)),
            newer,
            pulse("bob", at(10), Outcome::Failed(Reason::Locked)),
        ];
        assert_eq!(rows(runs).len(), 4);
    }

    #[test]
    fn every_handshake_and_everything_asked_for_is_a_row_of_its_own() {
        let asked = |seconds| Run { trigger: Trigger::Demand, ..pulse("ann", at(seconds), Outcome::Ok) };
        let handshake = |seconds| run("ann", Kind::Handshake, at(seconds), Outcome::Ok);
        assert_eq!(rows(vec![handshake(0), handshake(5), asked(6), asked(7)]).len(), 4);
    }

    #[test]
    fn a_silence_ends_a_row_so_that_it_never_claims_probes_that_did_not_run() {
        let later = at(0) + GAP + Duration::from_secs(1);
        assert_eq!(rows(vec![pulse("ann", at(0), Outcome::Ok), pulse("ann", later, Outcome::Ok)]).len(), 2);
    }

    #[test]
    fn a_clock_that_jumps_back_begins_a_row_and_numbers_still_rise() {
        let rows = rows(vec![pulse("ann", at(1000), Outcome::Ok), pulse("ann", at(10), Outcome::Ok)]);
        assert_eq!(rows.len(), 2);
        assert!(rows[1].id > rows[0].id);
    }

    #[test]
    fn a_row_that_grew_is_handed_out_once_and_forgotten_when_its_user_has_gone() {
        let mut fold = Fold::default();
        let mut stored = Vec::new();
        take(&mut fold, pulse("ann", at(0), Outcome::Ok), &mut stored);
        take(&mut fold, pulse("ann", at(5), Outcome::Ok), &mut stored);
        stored.clear();
        fold.grown(at(6), &mut stored);
        assert_eq!(stored.iter().map(|row| row.count).collect::<Vec<_>>(), [2]);
        stored.clear();
        fold.grown(at(5) + GAP + GAP, &mut stored);
        assert!(stored.is_empty());
        assert!(fold.open.is_empty());
    }

    #[test]
    fn a_failure_stands_since_its_first_run_through_skips_and_changing_reasons() {
        let mut fold = Fold::default();
        let mut sink = Vec::new();
        for (seconds, outcome) in [
            (0, Outcome::Ok),
            (5, Outcome::Failed(Reason::Refused)),
            (10, Outcome::Skipped(Skip::Starting)),
            (15, Outcome::Failed(Reason::AuthStore)),
            (20, Outcome::Skipped(Skip::NotRunning)),
            (25, Outcome::Skipped(Skip::NotRunning)),
        ] {
            take(&mut fold, pulse("ann", at(seconds), outcome), &mut sink);
        }
        let standing = fold.standing("ann", Kind::Pulse).expect("ann was probed");
        assert_eq!((standing.definite, standing.since), (Some(Ended::Failed), Some(at(5))));
        assert_eq!((standing.skipped_since, standing.last), (Some(at(20)), at(25)));
    }

    #[test]
    fn an_outage_that_was_under_way_before_a_restart_keeps_its_beginning() {
        let mut fold = Fold::default();
        let mut sink = Vec::new();
        take(&mut fold, pulse("ann", at(100), Outcome::Failed(Reason::AuthStore)), &mut sink);
        let earlier = |definite| Standing {
            user: "ann".to_owned(),
            kind: Kind::Pulse,
            definite: Some(definite),
            since: Some(at(1)),
            skipped_since: None,
            last: at(50),
        };
        fold.remember(earlier(Ended::Ok));
        assert_eq!(fold.standing("ann", Kind::Pulse).and_then(|s| s.since), Some(at(100)));
        fold.remember(earlier(Ended::Failed));
        assert_eq!(fold.standing("ann", Kind::Pulse).and_then(|s| s.since), Some(at(1)));
    }
}
