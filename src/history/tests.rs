//! Tests of the whole history, through its handle.

use super::*;
use crate::outcome::{Facts, Outcome, Step, StepResult, Trigger};

/// So many seconds after an arbitrary moment.
pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
}

pub(crate) fn run(user: &str, kind: Kind, started: SystemTime, outcome: Outcome) -> Run {
    let step = |step, outcome| StepResult { step, outcome, duration: Duration::from_millis(2), detail: None };
    let n = started.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Run {
        user: user.to_owned(),
        kind,
        trigger: Trigger::Schedule,
        started,
        duration: Duration::from_millis(4),
        steps: vec![step(Step::Reach, Outcome::Ok), step(Step::Contract, outcome)],
        facts: Facts { version: Some("0.0.24".to_owned()), ..Facts::default() },
        trace_id: format!("{n:032x}"),
    }
}

pub(crate) fn pulse(user: &str, started: SystemTime, outcome: Outcome) -> Run {
    run(user, Kind::Pulse, started, outcome)
}

/// Waits for a condition, for at most 20 seconds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("temporary directory") }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("history.sqlite")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.directory.path())
            .expect("directory read")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    async fn open(&self) -> History {
        History::open(&self.file(), &Section::default()).await
    }

    /// A history that holds these runs and was closed.
    async fn holding(&self, runs: Vec<Run>) {
        let history = self.open().await;
        for run in runs {
            history.record(run);
        }
        close(&history).await;
    }
}

async fn close(history: &History) {
    history.close(Duration::from_secs(20)).await.expect("written in time");
}

async fn all(history: &History) -> Vec<Recorded> {
    history.reader().runs(Filter::default()).await.expect("read").rows
}

async fn written(history: &History, rows: u64) {
    until("the rows are written", async || history.counts().written >= rows).await;
}

fn now_in_millis() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).expect("fits"))
}

fn ago(days: u64) -> SystemTime {
    now_in_millis() - Duration::from_secs(days * 24 * 3600)
}

#[tokio::test]
async fn a_run_comes_back_with_its_whole_story_by_id_and_by_trace_id() {
    let place = Place::new();
    let history = place.open().await;
    let mut told = run("ann", Kind::Handshake, now_in_millis(), Outcome::Failed(outcome::Reason::AuthStore));
    told.steps[1].detail = Some("answered 500 twice".to_owned());
    told.facts.cli_cpu = vec![(outcome::Verb::SessionIssue, Duration::from_millis(1200))];
    history.record(told.clone());
    written(&history, 1).await;

    let found = history.reader().by_trace(&told.trace_id).await.expect("read").expect("there");
    assert_eq!(found.run, told);
    assert_eq!(history.reader().get(found.id).await.expect("read"), Some(found.clone()));
    let json = serde_json::to_value(&found).expect("written");
    assert_eq!(
        (&json["count"], &json["user"], &json["reason"]),
        (&1.into(), &"ann".into(), &"auth_store".into())
    );
    assert_eq!(history.reader().get(found.id + 1).await.expect("read"), None);
    assert_eq!(history.reader().by_trace(&"f".repeat(32)).await.expect("read"), None);
    close(&history).await;
}

#[tokio::test]
async fn filters_narrow_and_pages_follow_each_other_without_gap_or_repetition() {
    let place = Place::new();
    let history = place.open().await;
    let start = ago(1);
    let time = |n: u64| start + Duration::from_secs(n);
    for n in 0..25 {
        let outcome = if n % 5 == 0 { Outcome::Failed(outcome::Reason::Locked) } else { Outcome::Ok };
        history.record(run(if n % 2 == 0 { "ann" } else { "bob" }, Kind::Handshake, time(n), outcome));
    }
    history.record(pulse("ann", time(30), Outcome::Ok));
    written(&history, 26).await;
    let count = async |filter: Filter| history.reader().runs(filter).await.expect("read").rows.len();

    assert_eq!(count(Filter { user: Some("bob".to_owned()), ..Filter::default() }).await, 12);
    assert_eq!(count(Filter { kind: Some(Kind::Pulse), ..Filter::default() }).await, 1);
    assert_eq!(count(Filter { outcome: Some(Ended::Failed), ..Filter::default() }).await, 5);
    assert_eq!(count(Filter { from: Some(time(20)), until: Some(time(25)), ..Filter::default() }).await, 5);

    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page =
            history.reader().runs(Filter { before, limit: 10, ..Filter::default() }).await.expect("read");
        seen.extend(page.rows.iter().map(|row| row.run.started));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let mut expected: Vec<_> = (0..25).chain([30]).map(time).collect();
    expected.reverse();
    assert_eq!(seen, expected);
    close(&history).await;
}

#[tokio::test]
async fn a_row_of_pulses_holds_its_full_count_after_a_shut_down() {
    let place = Place::new();
    let start = now_in_millis() - Duration::from_secs(60);
    place
        .holding((0..12).map(|n| pulse("ann", start + Duration::from_secs(5 * n), Outcome::Ok)).collect())
        .await;
    let history = place.open().await;
    let rows = all(&history).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].count, rows[0].run.started, rows[0].last),
        (12, start, start + Duration::from_secs(55))
    );
    close(&history).await;
}

#[tokio::test]
async fn what_is_older_than_kept_goes_but_the_last_failure_of_each_user_and_kind_stays() {
    let place = Place::new();
    let failed = Outcome::Failed(outcome::Reason::AuthStore);
    place
        .holding(vec![
            run("ann", Kind::Handshake, ago(80), failed),
            run("ann", Kind::Handshake, ago(70), failed),
            run("ann", Kind::Handshake, ago(60), Outcome::Ok),
            run("bob", Kind::Pulse, ago(50), failed),
            run("bob", Kind::Handshake, ago(10), Outcome::Ok),
        ])
        .await;
    let history = place.open().await;
    let mut kept: Vec<_> = all(&history).await.into_iter().map(|row| row.run.started).collect();
    kept.sort_unstable();
    assert_eq!(
        kept,
        [ago(70), ago(50), ago(10)].map(|time| kept
            .iter()
            .copied()
            .find(|k| close_to(*k, time))
            .expect("kept"))
    );
    let failures = history.reader().last_failures().await.expect("read");
    let failures: Vec<_> = failures.iter().map(|row| (row.run.user.as_str(), row.run.kind)).collect();
    assert_eq!(failures, [("ann", Kind::Handshake), ("bob", Kind::Pulse)]);
    close(&history).await;
}

fn close_to(one: SystemTime, other: SystemTime) -> bool {
    let apart = one.duration_since(other).or_else(|_| other.duration_since(one)).expect("apart");
    apart < Duration::from_secs(3600)
}

#[tokio::test]
async fn since_when_a_user_fails_is_known_across_a_restart() {
    let place = Place::new();
    let start = now_in_millis() - Duration::from_secs(600);
    let failed =
        |seconds, reason| pulse("ann", start + Duration::from_secs(seconds), Outcome::Failed(reason));
    place.holding(vec![pulse("ann", start, Outcome::Ok), failed(5, outcome::Reason::Refused)]).await;

    let history = place.open().await;
    history.record(failed(300, outcome::Reason::AuthStore));
    written(&history, 1).await;
    let since = since_when_failing(&history, "ann").await;
    assert_eq!(since, Some(start + Duration::from_secs(5)));

    history.record(pulse("ann", start + Duration::from_secs(305), Outcome::Ok));
    written(&history, 2).await;
    assert_eq!(since_when_failing(&history, "ann").await, None);
    assert_eq!(since_when_failing(&history, "bob").await, None);
    close(&history).await;
}

#[tokio::test]
async fn events_are_kept_and_found_by_user_and_kind() {
    let place = Place::new();
    let history = place.open().await;
    let event = |user: Option<&str>, kind| Event {
        at: now_in_millis(),
        user: user.map(str::to_owned),
        kind,
        subject: "0.0.26".to_owned(),
        outcome: "pass".to_owned(),
        detail: serde_json::json!({"rollback": "needs_restore"}),
    };
    history.record_event(event(None, EventKind::Verdict));
    history.record_event(event(Some("ann"), EventKind::Login));
    history.record_event(event(Some("bob"), EventKind::Login));
    written(&history, 3).await;
    let count = async |filter: EventFilter| history.reader().events(filter).await.expect("read").rows.len();
    assert_eq!(count(EventFilter::default()).await, 3);
    assert_eq!(count(EventFilter { kind: Some(EventKind::Login), ..EventFilter::default() }).await, 2);
    let ann = EventFilter { user: Some("ann".to_owned()), ..EventFilter::default() };
    assert_eq!(history.reader().events(ann).await.expect("read").rows[0].detail["rollback"], "needs_restore");

    let first =
        history.reader().events(EventFilter { limit: 2, ..EventFilter::default() }).await.expect("read");
    let rest = EventFilter { before: first.next, limit: 2, ..EventFilter::default() };
    let rest = history.reader().events(rest).await.expect("read");
    assert_eq!((first.rows.len(), rest.rows.len(), rest.next), (2, 1, None));
    close(&history).await;
}

#[tokio::test]
async fn a_word_that_another_version_wrote_costs_only_its_own_row() {
    let place = Place::new();
    place
        .holding(vec![
            run("ann", Kind::Handshake, now_in_millis(), Outcome::Ok),
            run("bob", Kind::Handshake, now_in_millis(), Outcome::Ok),
        ])
        .await;
    let db = tokio_rusqlite::rusqlite::Connection::open(place.file()).expect("opened");
    db.execute("UPDATE run SET kind = 'telepathy' WHERE user = 'ann'", []).expect("changed");
    drop(db);
    let history = place.open().await;
    let page = history.reader().runs(Filter::default()).await.expect("read");
    assert_eq!((page.rows.len(), page.unknown), (1, 1));
    close(&history).await;
}

#[tokio::test]
async fn the_history_is_not_readable_for_everybody() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let history = place.open().await;
    let mode = std::fs::metadata(place.file()).expect("file").permissions().mode();
    assert_eq!(mode & 0o7, 0, "mode {mode:o}");
    close(&history).await;
}

mod trouble;

/// Since when the user's pulses fail; `None` while they do not.
async fn since_when_failing(history: &History, user: &str) -> Option<SystemTime> {
    let standings = history.reader().standings().await.expect("read");
    let standing = standings.iter().find(|standing| standing.user == user && standing.kind == Kind::Pulse)?;
    standing.since.filter(|_| standing.definite == Some(Ended::Failed))
}
