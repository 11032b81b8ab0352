//! Tests of the spool: what is taken, what is refused, and that both are bounded.

use super::*;
use crate::outcome::{Facts, Kind, Outcome, StepResult, Trigger};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
}

fn run(user: &str, outcome: Outcome) -> Run {
    Run {
        user: user.to_owned(),
        kind: Kind::Handshake,
        trigger: Trigger::Demand,
        started: at(2),
        duration: Duration::from_millis(4),
        steps: vec![StepResult {
            step: Step::Reach,
            outcome,
            duration: Duration::from_millis(2),
            detail: None,
        }],
        facts: Facts::default(),
        trace_id: "a".repeat(32),
    }
}

fn login(user: &str) -> Event {
    Event::Login {
        user: user.to_owned(),
        endpoint: Endpoint::BrowserSession,
        duration: Duration::from_millis(120),
        at: at(0),
    }
}

fn spool(limits: Limits) -> (tempfile::TempDir, Spool) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("spool");
    fs::create_dir(&path).expect("made");
    (directory, Spool::new(path, limits))
}

/// The refusals of one round, and how many events it brought.
fn refusals(spool: &mut Spool) -> (Vec<SpoolRefusal>, usize) {
    let taken = spool.take().expect("taken");
    let refused: Vec<_> = taken.iter().filter_map(|one| one.as_ref().err().map(|no| no.reason)).collect();
    let events = taken.len() - refused.len();
    (refused, events)
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("read")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn events_of_several_processes_are_taken_once_and_oldest_first() {
    let (_directory, mut spool) = spool(Limits::default());
    let other = Spool::new(spool.directory.clone(), Limits::default());
    let events = [
        login("ann"),
        Event::LoginFailed {
            user: "bob".to_owned(),
            step: Step::Exchange,
            reason: Reason::AuthStore,
            at: at(1),
        },
        Event::Run(run("cid", Outcome::Failed(Reason::Refused))),
        login("bob"),
    ];
    for (n, event) in events.iter().enumerate() {
        assert_eq!(serde_json::to_value(event).expect("written")["event"], event.word());
        if n % 2 == 0 { &spool } else { &other }.put(event).expect("put");
    }
    let taken: Vec<_> = spool.take().expect("taken").into_iter().collect::<Result<_, _>>().expect("accepted");
    assert_eq!(taken, events);
    assert!(spool.take().expect("taken").is_empty());
    assert!(names(&spool.directory).is_empty());
}

#[test]
fn an_event_is_json_with_its_word_beside_its_fields() {
    insta::assert_snapshot!(serde_json::to_string(&login("ann")).expect("written"), @r#"{"event":"login","user":"ann","endpoint":"browser_session","duration_seconds":0.12,"at":"2026-01-01T00:00:00.000Z"}"#);
}

#[test]
fn a_half_written_file_is_left_until_it_is_whole_or_its_writer_is_long_dead() {
    let (_directory, mut spool) = spool(Limits::default());
    let half = spool.directory.join(".half.json");
    fs::write(&half, "{\"event\": \"logi").expect("written");
    assert!(spool.take().expect("taken").is_empty());
    assert!(half.exists());
    let file = OpenOptions::new().write(true).open(&half).expect("opened");
    file.set_modified(SystemTime::now() - ABANDONED * 2).expect("aged");
    assert!(spool.take().expect("taken").is_empty());
    assert!(!half.exists());
}

#[test]
fn a_flood_is_bounded_by_number_and_by_bytes_and_the_writer_is_told() {
    let (_directory, spool) = spool(Limits { files: 10, ..Limits::default() });
    for _ in 0..10 {
        spool.put(&login("ann")).expect("room");
    }
    let error = spool.put(&login("ann")).expect_err("full");
    assert!(error.to_string().contains("is full (10 files"), "{error}");
    assert_eq!(names(&spool.directory).len(), 10);

    let small = Spool::new(spool.directory.clone(), Limits { bytes: 1200, ..Limits::default() });
    assert!(matches!(small.put(&login("ann")), Err(PutError::Full { .. })));
    let tiny = Spool::new(spool.directory.clone(), Limits { file_bytes: 20, ..Limits::default() });
    assert!(matches!(tiny.put(&login("ann")), Err(PutError::TooLarge(20))));
}

#[test]
fn a_flood_past_the_bounds_is_worked_off_in_rounds() {
    let (_directory, mut spool) = spool(Limits { files: 10, ..Limits::default() });
    let writer = Spool::new(spool.directory.clone(), Limits::default());
    for _ in 0..50 {
        writer.put(&login("ann")).expect("put");
    }
    let rounds: Vec<usize> = (0..3).map(|_| spool.take().expect("taken").len()).collect();
    assert_eq!(rounds, [20, 20, 10]);
}

#[test]
fn a_file_of_a_uid_that_may_not_report_is_refused_and_kept_for_a_look() {
    let stranger = nix::unistd::geteuid().as_raw() + 1;
    let (_directory, mut spool) = spool(Limits { accepted_uids: vec![stranger], ..Limits::default() });
    spool.put(&login("ann")).expect("put");
    assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::ForeignOwner], 0));
    assert_eq!(names(&spool.refused()).len(), 1);
    assert_eq!(refusals(&mut spool), (vec![], 0), "said once");
}

#[test]
fn what_is_no_file_of_its_own_is_refused_unread_and_holds_nothing_up() {
    let (_directory, mut spool) = spool(Limits::default());
    let outside = tempfile::tempdir().expect("temporary directory");
    let event = serde_json::to_string(&login("ann")).expect("written");
    let (target, pointed_at) = (outside.path().join("target.json"), outside.path().join("pointed-at.json"));
    fs::write(&target, &event).expect("written");
    fs::write(&pointed_at, &event).expect("written");
    std::os::unix::fs::symlink(&pointed_at, spool.directory.join("1.json")).expect("linked");
    fs::hard_link(&target, spool.directory.join("2.json")).expect("linked");
    nix::unistd::mkfifo(&spool.directory.join("3.json"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    fs::create_dir(spool.directory.join("4.json")).expect("made");
    spool.put(&login("bob")).expect("put");

    assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::NotAFile; 4], 1));
    assert_eq!(refusals(&mut spool), (vec![], 0), "said once");
    assert_eq!(names(&spool.directory), ["4.json"], "a directory is left to people");
    assert_eq!(fs::read_to_string(&target).expect("untouched"), event);
}

#[test]
fn garbage_is_refused_without_quoting_it_and_only_the_newest_are_kept() {
    let (_directory, mut spool) = spool(Limits::default());
    fs::write(spool.directory.join("1.json"), r#"{"event": "hunter2"}"#).expect("written");
    let refusal = spool.take().expect("taken").remove(0).expect_err("refused");
    assert_eq!(refusal.reason, SpoolRefusal::Garbage);
    assert!(!refusal.to_string().contains("hunter2"), "{refusal}");
    for n in 0..REFUSED_KEPT + 8 {
        fs::write(spool.directory.join(format!("{n}.json")), "").expect("written");
        assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::Garbage], 0));
    }
    assert_eq!(names(&spool.refused()).len(), REFUSED_KEPT);
}

#[test]
fn a_file_larger_than_any_event_is_refused_and_not_kept() {
    let (_directory, mut spool) = spool(Limits { file_bytes: 500, ..Limits::default() });
    fs::write(spool.directory.join("1.json"), vec![b' '; 501]).expect("written");
    assert_eq!(refusals(&mut spool), (vec![SpoolRefusal::TooLarge], 0));
    assert!(names(&spool.directory).is_empty());
}

#[test]
fn an_event_is_readable_for_the_group_and_nobody_else() {
    let (_directory, spool) = spool(Limits::default());
    spool.put(&login("ann")).expect("put");
    let name = names(&spool.directory).remove(0);
    let mode = fs::metadata(spool.directory.join(name)).expect("file").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn a_missing_directory_is_an_error_with_a_remedy_for_both_sides() {
    let (_directory, spool) = spool(Limits::default());
    let mut spool = Spool::new(spool.directory.join("missing"), Limits::default());
    assert!(spool.take().is_err());
    let error = spool.put(&login("ann")).expect_err("no directory");
    assert!(error.to_string().contains("check that it exists and is writable"), "{error}");
}
