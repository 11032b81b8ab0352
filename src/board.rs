//! What is known right now of every user: the last run of each kind, and since when it has been so.
//! Metrics count and history remembers; this is what the status page shows.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::outcome::{Ended, Kind, Outcome, Run, Step, StepResult};

/// All users.
#[derive(Debug, Default)]
pub struct Board {
    users: BTreeMap<String, Standing>,
    /// How it stood when this program ended the last time; each is taken into account once.
    remembered: BTreeMap<(String, Kind), Before>,
}

/// What was so before a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    /// Whether the runs that could tell were well, and since when.
    pub definite: Option<(Ended, SystemTime)>,
    /// Since when runs have been skipped, where the last one was.
    pub skipped: Option<SystemTime>,
}

/// One user.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// By kind, the cheapest first; a vector, since a node of a tree has room for eleven and a fleet has many users.
    kinds: Vec<Last>,
    /// The newest result of each step, whichever run it is of: not every handshake goes the same way.
    steps: BTreeMap<Step, StepResult>,
}

/// The last run of one kind.
#[derive(Clone, Debug)]
pub struct Last {
    pub run: Run,
    /// Since when runs of this kind have been well, or failing whatever the reason, or skipped. A skip in between does
    /// not make a failure a new one.
    pub since: SystemTime,
    definite: Option<(Ended, SystemTime)>,
}

/// What a run changed, when it changed something.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    pub before: Option<Outcome>,
    pub after: Outcome,
}

impl Board {
    /// Keeps exactly these users.
    pub fn serve<'a>(&mut self, users: impl Iterator<Item = &'a str>) {
        let mut kept = BTreeMap::new();
        for user in users {
            kept.insert(user.to_owned(), self.users.remove(user).unwrap_or_default());
        }
        self.users = kept;
    }

    /// Takes in a run; answers whether it ended otherwise than the one before. Runs of users who are gone are dropped.
    pub fn record(&mut self, run: &Run) -> Option<Turn> {
        let standing = self.users.get_mut(&run.user)?;
        let after = run.outcome();
        let before = standing.last(run.kind);
        let known = match before {
            Some(last) => {
                let skipped = last.run.outcome().ended() == Ended::Skipped;
                Before { definite: last.definite, skipped: skipped.then_some(last.since) }
            }
            None => self.remembered.remove(&(run.user.clone(), run.kind)).unwrap_or_default(),
        };
        let (since, definite) = match after.ended() {
            Ended::Skipped => (known.skipped.unwrap_or(run.started), known.definite),
            ended => {
                let same = known.definite.filter(|(before, _)| *before == ended);
                let since = same.map_or(run.started, |(_, since)| since);
                (since, Some((ended, since)))
            }
        };
        let before = before.map(|last| last.run.outcome());
        if let (Kind::Handshake, Some(failed)) = (run.kind, run.decided_by()) {
            // What an earlier one did beyond this point says nothing of now.
            standing.steps.retain(|step, _| *step <= failed.step || *step >= Step::Revoke);
        }
        standing.steps.extend(run.steps.iter().map(|result| (result.step, result.clone())));
        standing.replace(Last { run: run.clone(), since, definite });
        (before != Some(after)).then_some(Turn { before, after })
    }

    /// Tells how it stood before the first run of this process.
    pub fn remember(&mut self, user: String, kind: Kind, before: Before) {
        self.remembered.insert((user, kind), before);
    }

    pub fn users(&self) -> impl Iterator<Item = (&str, &Standing)> {
        self.users.iter().map(|(name, standing)| (name.as_str(), standing))
    }
}

impl Standing {
    pub fn last(&self, kind: Kind) -> Option<&Last> {
        self.kinds.iter().find(|last| last.run.kind == kind)
    }

    pub fn lasts(&self) -> impl Iterator<Item = &Last> {
        self.kinds.iter()
    }

    /// The failure to speak of first: of the kinds that fail, the cheapest one has seen it last.
    pub fn failing(&self) -> Option<(&Last, &StepResult)> {
        self.kinds.iter().find_map(|last| {
            let step = last.run.decided_by()?;
            (step.outcome.ended() == Ended::Failed).then_some((last, step))
        })
    }

    /// The newest result of a step, whichever kind of probe did it.
    pub fn step(&self, step: Step) -> Option<&StepResult> {
        self.steps.get(&step)
    }

    fn replace(&mut self, last: Last) {
        match self.kinds.binary_search_by_key(&last.run.kind, |known| known.run.kind) {
            Ok(at) => self.kinds[at] = last,
            Err(at) => {
                self.kinds.reserve_exact(1);
                self.kinds.insert(at, last);
            }
        }
    }

    /// The newest value that any run learned.
    pub fn fact<'a, T>(&'a self, read: impl Fn(&'a Run) -> Option<T>) -> Option<T> {
        let mut lasts: Vec<_> = self.kinds.iter().collect();
        lasts.sort_by_key(|last| std::cmp::Reverse(last.run.started));
        lasts.into_iter().find_map(|last| read(&last.run))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outcome::{Facts, Reason, Skip, Trigger};

    fn run(kind: Kind, at: u64, outcome: Outcome) -> Run {
        Run {
            user: "ann".to_owned(),
            kind,
            trigger: Trigger::Schedule,
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
            duration: Duration::from_millis(3),
            steps: vec![StepResult {
                step: Step::Contract,
                outcome,
                duration: Duration::from_millis(3),
                detail: None,
            }],
            facts: Facts { version: Some(format!("0.0.{at}")), ..Facts::default() },
            trace_id: "0".repeat(32),
        }
    }

    fn board() -> Board {
        let mut board = Board::default();
        board.serve(["ann"].into_iter());
        board
    }

    #[test]
    fn a_failure_lasts_whatever_its_reasons_and_through_a_skip() {
        let mut board = board();
        let broken = Outcome::Failed(Reason::AuthStore);
        assert!(board.record(&run(Kind::Pulse, 5, Outcome::Ok)).is_some());
        assert_eq!(
            board.record(&run(Kind::Pulse, 10, broken)),
            Some(Turn { before: Some(Outcome::Ok), after: broken })
        );
        assert_eq!(board.record(&run(Kind::Pulse, 15, broken)), None);
        for (at, outcome, since) in [
            (20, Outcome::Failed(Reason::Timeout), 10),
            (25, Outcome::Skipped(Skip::Starting), 25),
            (30, Outcome::Skipped(Skip::Starting), 25),
            (35, Outcome::Failed(Reason::Refused), 10),
            (40, Outcome::Ok, 40),
        ] {
            assert!(board.record(&run(Kind::Pulse, at, outcome)).is_some() || at == 30);
            assert_eq!(since_when(&board), Duration::from_secs(since), "at {at}");
        }
    }

    #[test]
    fn what_stood_so_before_a_restart_stands_since_then() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let failing = Before { definite: Some((Ended::Failed, at(3))), skipped: None };
        for (outcome, since) in [(Outcome::Failed(Reason::Refused), 3), (Outcome::Ok, 100)] {
            let mut board = board();
            board.remember("ann".to_owned(), Kind::Pulse, failing);
            board.record(&run(Kind::Pulse, 100, outcome));
            assert_eq!(since_when(&board), Duration::from_secs(since));
        }
    }

    fn named<'a>(board: &'a Board, user: &str) -> Option<&'a Standing> {
        board.users().find(|(name, _)| *name == user).map(|(_, standing)| standing)
    }

    fn since_when(board: &Board) -> Duration {
        let (_, standing) = board.users().next().expect("a user");
        let since = standing.last(Kind::Pulse).expect("a pulse").since;
        since.duration_since(SystemTime::UNIX_EPOCH).expect("after the epoch")
    }

    #[test]
    fn a_user_who_is_gone_is_forgotten_and_one_who_stays_is_not() {
        let mut board = board();
        board.record(&run(Kind::Pulse, 5, Outcome::Ok));
        board.serve(["ann", "bob"].into_iter());
        assert!(named(&board, "ann").is_some_and(|standing| standing.last(Kind::Pulse).is_some()));
        board.serve(["bob"].into_iter());
        assert!(named(&board, "ann").is_none());
        assert_eq!(board.record(&run(Kind::Pulse, 10, Outcome::Ok)), None);
    }

    #[test]
    fn a_step_keeps_its_result_while_other_runs_go_without_it() {
        let mut board = board();
        let mut first = run(Kind::Handshake, 5, Outcome::Ok);
        first.steps[0].step = Step::Mint;
        board.record(&first);
        let mut second = run(Kind::Handshake, 10, Outcome::Failed(Reason::Status));
        second.steps[0].step = Step::Front;
        board.record(&second);
        let (_, standing) = board.users().next().expect("ann");
        assert_eq!(standing.step(Step::Mint).map(|result| result.outcome), Some(Outcome::Ok));
        let front = standing.step(Step::Front).map(|result| result.outcome);
        assert_eq!(front, Some(Outcome::Failed(Reason::Status)));
        assert!(standing.step(Step::Exchange).is_none());
        let mut third = run(Kind::Handshake, 15, Outcome::Failed(Reason::Status));
        third.steps[0].step = Step::Version;
        board.record(&third);
        let (_, standing) = board.users().next().expect("ann");
        assert!(standing.step(Step::Mint).is_none(), "what comes after a failure is not known any more");
    }

    #[test]
    fn the_newest_fact_wins_whichever_probe_learned_it() {
        let mut board = board();
        board.record(&run(Kind::Handshake, 20, Outcome::Ok));
        board.record(&run(Kind::Pulse, 10, Outcome::Ok));
        let version =
            named(&board, "ann").and_then(|standing| standing.fact(|run| run.facts.version.as_deref()));
        assert_eq!(version, Some("0.0.20"));
    }
}
