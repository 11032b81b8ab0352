//! The comparison rules, as tables over what the rehearsals of one and of several users can say.

use std::path::Path;

use super::file::NotKept;
use super::*;
use crate::gate::evidence::{Facts, Rehearsed, Seed};
use crate::outcome::{Elsewhere, Reason, Skip};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How a rehearsal ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Well,
    At(RehearsalStep),
    Skipped,
    Missing,
}

use End::{At, Missing, Skipped, Well};
use RehearsalStep::{Exchange, Session};

const ENDS: [End; 5] = [Well, At(Exchange), At(Session), Skipped, Missing];

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

fn rehearsed(rehearsal: Rehearsal, end: End, level: u32) -> Option<Rehearsed> {
    let step = |step: &RehearsalStep| {
        let step = *step;
        let outcome = match end {
            At(failed) if failed == step => Outcome::Failed(Reason::AuthStore),
            At(failed) if failed < step => Outcome::Skipped(Skip::EarlierStep),
            Skipped if step == Session => Outcome::Skipped(Skip::VersionUnknown),
            _ => Outcome::Ok,
        };
        StepEvidence { step, outcome, duration: Duration::from_millis(1), detail: None }
    };
    let facts = Facts { level: Some(level), ..Facts::default() };
    (end != Missing).then(|| Rehearsed {
        rehearsal,
        duration: Duration::from_millis(2),
        steps: rehearsal.steps().iter().map(step).collect(),
        facts,
    })
}

/// Control at level 30, candidate at 32; the ends in the order control, candidate, way back, skew.
fn seed(name: &str, ends: [End; 4]) -> SeedEvidence {
    let levels = [30, 32, 32, 32];
    let rehearsals = Rehearsal::ALL.iter().zip(ends).zip(levels);
    SeedEvidence {
        seed: Seed {
            name: name.to_owned(),
            user: (!name.starts_with('<')).then(|| name.to_owned()),
            level: Some(30),
            bytes: 4096,
            taken_at: now() - DAY / 2,
            is_backup: true,
        },
        rehearsals: rehearsals.filter_map(|((which, end), level)| rehearsed(*which, end, level)).collect(),
    }
}

fn build(version: &str) -> Build {
    Build {
        name: version.to_owned(),
        version: version.to_owned(),
        integrity: format!("sha256:{}", "0".repeat(64)),
    }
}

fn evidence(seeds: Vec<SeedEvidence>) -> Evidence {
    Evidence { candidate: build("0.0.26"), control: build("0.0.24"), boxed: true, seeds, trouble: Vec::new() }
}

fn policy() -> Policy {
    Policy { boxed: true, backup_age: DAY, valid_for: 7 * DAY }
}

fn binding(evidence: &Evidence) -> Binding {
    let users = evidence.seeds.iter().filter_map(|seed| Covered::of(&seed.seed)).collect();
    Binding { program: "0.1.0".to_owned(), config: "sha256:c".to_owned(), users }
}

fn judged(evidence: Evidence) -> Document {
    let bound_to = binding(&evidence);
    judge(evidence, &policy(), bound_to, now())
}

fn of(seeds: Vec<SeedEvidence>) -> Document {
    judged(evidence(seeds))
}

const GOOD: [End; 4] = [Well, Well, Well, Well];

fn present() -> Present {
    Present {
        now: now(),
        program: "0.1.0".to_owned(),
        config: "sha256:c".to_owned(),
        users: Ok(vec![("ann".to_owned(), Some(30))]),
        installed: None,
    }
}

#[test]
fn candidate_and_control_are_compared_step_by_step() {
    let table = [
        ([Well, Well], Grounds::AllPassed),
        ([Well, At(Exchange)], Grounds::CandidateFailed),
        ([Well, At(Session)], Grounds::CandidateFailed),
        ([Well, Skipped], Grounds::Incomplete),
        ([Well, Missing], Grounds::Incomplete),
        ([At(Exchange), Well], Grounds::ControlFailed),
        ([At(Exchange), At(Exchange)], Grounds::GateBroken),
        ([At(Exchange), At(Session)], Grounds::ControlFailed),
        ([At(Session), At(Exchange)], Grounds::ControlFailed),
        ([At(Exchange), Skipped], Grounds::Incomplete),
        ([Skipped, At(Exchange)], Grounds::Incomplete),
        ([Skipped, Well], Grounds::Incomplete),
        ([Missing, Well], Grounds::Incomplete),
        ([Missing, At(Exchange)], Grounds::Incomplete),
    ];
    for ([control, candidate], grounds) in table {
        let found = of(vec![seed("ann", [control, candidate, Well, Well])]);
        assert_eq!(found.grounds, grounds, "{control:?} {candidate:?}");
        assert_eq!(found.verdict, grounds.verdict());
    }
}

#[test]
fn whatever_two_users_rehearsals_say_a_pass_has_seen_everything_and_a_fail_a_healthy_control() {
    let chains = || {
        ENDS.iter().flat_map(|control| ENDS.iter().map(move |candidate| [*control, *candidate])).flat_map(
            |[control, candidate]| {
                let after = [
                    [Well, Well],
                    [At(Exchange), Well],
                    [Well, At(Exchange)],
                    [Skipped, Well],
                    [Well, Missing],
                ];
                after.map(|[back, skew]| [control, candidate, back, skew])
            },
        )
    };
    let mut seen = std::collections::HashSet::new();
    for first in chains() {
        for second in chains() {
            let found = of(vec![seed("ann", first), seed("bob", second)]);
            seen.insert(found.grounds);
            let has_failed = |ends: &[End; 4]| ends[0] == Well && matches!(ends[1], At(_));
            let is_complete = |ends: &[End; 4]| {
                ends[..2] == [Well, Well] && ends[2..].iter().all(|end| matches!(end, Well | At(_)))
            };
            let context = format!("{first:?} {second:?}");
            assert_eq!(found.verdict == Verdict::Fail, [first, second].iter().any(has_failed), "{context}");
            assert_eq!(found.verdict == Verdict::Pass, [first, second].iter().all(is_complete), "{context}");
            if found.verdict == Verdict::Pass {
                let back = [first, second].iter().all(|ends| ends[2] == Well);
                let rolling = [first, second].iter().all(|ends| ends[3] == Well);
                let expected = if back { Rollback::BinaryOnly } else { Rollback::NeedsRestore };
                assert_eq!(found.rollback, Some(expected), "{context}");
                assert_eq!(found.rolling_restart, Some(rolling), "{context}");
            }
        }
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

#[test]
fn whatever_kept_the_gate_from_running_is_an_error_even_beside_a_failure() {
    for grounds in Grounds::ALL.iter().filter(|grounds| grounds.verdict() == Verdict::Error) {
        let mut evidence = evidence(vec![seed("ann", [Well, At(Exchange), Missing, Missing])]);
        let detail = "the disk is full".to_owned();
        evidence.trouble = vec![Trouble { grounds: *grounds, seed: None, rehearsal: None, detail }];
        let found = judged(evidence);
        assert_eq!((found.verdict, found.grounds), (Verdict::Error, *grounds));
        assert_eq!(found.summary, "the disk is full");
    }
}

#[test]
fn no_evidence_is_no_pass() {
    assert_eq!(of(Vec::new()).verdict, Verdict::Inconclusive);
    for which in 0..4 {
        let mut short = seed("ann", GOOD);
        short.rehearsals[which].steps.pop();
        assert_eq!(of(vec![short]).grounds, Grounds::Incomplete, "{which}");
    }
}

#[test]
fn without_a_box_nothing_is_believed_unless_the_operator_says_so() {
    for ends in [GOOD, [Well, At(Exchange), Missing, Missing]] {
        let unboxed = Evidence { boxed: false, ..evidence(vec![seed("ann", ends)]) };
        let bound = binding(&unboxed);
        assert_eq!(judged(unboxed.clone()).grounds, Grounds::NotBoxed);
        let lenient = Policy { boxed: false, ..policy() };
        assert_ne!(judge(unboxed, &lenient, bound, now()).grounds, Grounds::NotBoxed);
    }
}

#[test]
fn a_pass_that_needs_a_restore_needs_a_fresh_verified_backup_of_everybody() {
    let needs = [Well, Well, At(Exchange), Well];
    let without = |change: fn(&mut Seed)| {
        let mut bob = seed("bob", needs);
        change(&mut bob.seed);
        of(vec![seed("<fresh>", needs), seed("ann", needs), bob]).grounds
    };
    assert_eq!(without(|_| ()), Grounds::AllPassed);
    assert_eq!(without(|seed| seed.is_backup = false), Grounds::NoWayBack);
    assert_eq!(without(|seed| seed.taken_at = now() - 2 * DAY), Grounds::NoWayBack);
    let mut simple = seed("ann", GOOD);
    simple.seed.is_backup = false;
    assert_eq!(of(vec![simple]).grounds, Grounds::AllPassed, "the binary alone can be gone back to");
}

#[test]
fn a_control_that_only_fails_where_the_database_is_ahead_of_it_is_the_outage_and_no_obstacle() {
    let mut ahead = seed("ann", [At(Exchange), Well, Missing, Missing]);
    ahead.seed.level = Some(32);
    let found = of(vec![seed("<fresh>", GOOD), ahead.clone()]);
    assert_eq!((found.verdict, found.grounds), (Verdict::Pass, Grounds::ControlOutrun));
    assert_eq!((found.rollback, found.rolling_restart), (Some(Rollback::Unsafe), Some(false)));
    // Where nothing shows a healthy control, its failure may have any cause.
    assert_eq!(of(vec![ahead.clone()]).grounds, Grounds::ControlFailed);
    ahead.seed.level = Some(30);
    assert_eq!(of(vec![seed("<fresh>", GOOD), ahead]).grounds, Grounds::ControlFailed);
}

#[test]
fn a_failure_names_the_user_whose_data_breaks_the_build() {
    let found = of(vec![
        seed("ann", GOOD),
        seed("bob", [At(Exchange), At(Exchange), Missing, Missing]),
        seed("cid", [Well, At(Session), Missing, Missing]),
    ]);
    assert_eq!(found.verdict, Verdict::Fail);
    assert_eq!(
        found.summary,
        "t3 0.0.26 fails where t3 0.0.24 does not: session on the data of cid: failed(auth_store)"
    );
}

#[test]
fn differences_are_told_in_words_once_and_make_the_soak_long() {
    let with = |facts: [Facts; 2], sessions| {
        let mut seed = seed("ann", GOOD);
        for (rehearsed, facts) in seed.rehearsals.iter_mut().zip(facts) {
            rehearsed.facts = facts;
        }
        seed.rehearsals[3].facts.sessions = sessions;
        seed
    };
    let old = Facts {
        level: Some(30),
        exchange: Some("/api/auth/bootstrap".to_owned()),
        cookie_on_loopback: Some("t3_session".to_owned()),
        ..Facts::default()
    };
    let new = Facts {
        level: Some(32),
        exchange: Some("/api/auth/browser-session".to_owned()),
        cookie_on_loopback: Some("t3_session_<port>_<hash>".to_owned()),
        ..Facts::default()
    };
    let one = with([old.clone(), new], Some((3, 0)));
    let found = of(vec![one.clone(), one]);
    assert_eq!(
        found.differences,
        [
            "exchange endpoint /api/auth/bootstrap → /api/auth/browser-session",
            "cookie on loopback t3_session → t3_session_<port>_<hash>",
            "schema 30 → 32: drops sessions"
        ]
    );
    assert_eq!((found.risk, found.soak), (Risk::Caution, Duration::from_secs(600)));
    let same = of(vec![with([old.clone(), old], Some((3, 3)))]);
    assert_eq!(same.differences, [""; 0]);
    assert_eq!((same.risk, same.soak), (Risk::Safe, Duration::from_secs(120)));
}

#[test]
fn a_verdict_is_about_its_own_situation_only() {
    let document = of(vec![seed("<fresh>", GOOD), seed("ann", GOOD)]);
    let elsewhere = |change: &dyn Fn(&mut Present)| {
        let mut present = present();
        change(&mut present);
        document.elsewhere(&present).map(|(word, _)| word)
    };
    assert_eq!(elsewhere(&|_| ()), None);
    assert_eq!(elsewhere(&|present| present.now += 7 * DAY), Some(Elsewhere::Expired));
    assert_eq!(elsewhere(&|present| present.program = "0.2.0".to_owned()), Some(Elsewhere::OtherProgram));
    assert_eq!(elsewhere(&|present| present.config = "sha256:d".to_owned()), Some(Elsewhere::OtherConfig));
    assert_eq!(
        elsewhere(&|present| present.installed = Some("sha256:e".to_owned())),
        Some(Elsewhere::OtherBuild)
    );
    assert_eq!(
        elsewhere(&|present| present.users.as_mut().expect("users").push(("bob".to_owned(), None))),
        Some(Elsewhere::NotCovered)
    );
    let level = |level| move |present: &mut Present| present.users.as_mut().expect("users")[0].1 = level;
    assert_eq!(elsewhere(&level(Some(32))), Some(Elsewhere::LevelDiffers));
    assert_eq!(elsewhere(&level(None)), None, "a level that cannot be read differs from none");
    assert_eq!(
        elsewhere(&|present| present.users = Err("no such file".to_owned())),
        Some(Elsewhere::CannotTell),
        "nobody known is not nobody left out"
    );
    let mut long = document.clone();
    long.expires_at = now() + 30 * DAY;
    let later = Present { now: now() + 7 * DAY, ..present() };
    assert_eq!(long.elsewhere(&later).map(|(word, _)| word), Some(Elsewhere::SeedOld));
}

#[test]
fn what_is_no_judgement_of_a_build_does_not_depend_on_whose_data_it_was_made_with() {
    for seeds in [Vec::new(), vec![seed("ann", [At(Session), At(Session), Missing, Missing])]] {
        let document = of(seeds);
        assert_eq!(document.verdict, Verdict::Inconclusive);
        let more = Ok(vec![("ann".to_owned(), Some(32)), ("bob".to_owned(), None)]);
        for users in [more, Err("no such file".to_owned())] {
            assert_eq!(document.elsewhere(&Present { users, ..present() }), None);
        }
        let changed = Present { config: "sha256:d".to_owned(), ..present() };
        assert_eq!(document.elsewhere(&changed).map(|(word, _)| word), Some(Elsewhere::OtherConfig));
    }
}

#[test]
fn a_document_reads_back_as_it_was_written_and_every_other_format_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let document = of(vec![seed("ann", [Well, At(Session), Missing, Missing])]);
    let path = store(dir.path(), &document).expect("stored");
    assert_eq!(load(dir.path(), "0.0.26").expect("loaded"), document);
    assert_eq!(recent(dir.path(), 9), [document]);
    let text = std::fs::read_to_string(&path).expect("text").replace("\"format\": 1", "\"format\": 2");
    std::fs::write(&path, text).expect("written");
    assert!(matches!(load(dir.path(), "0.0.26"), Err(NotKept::Garbage { .. })));
    assert!(matches!(load(dir.path(), "0.0.27"), Err(NotKept::Missing(_))));
    assert!(matches!(load(dir.path(), "../verdicts/0.0.26"), Err(NotKept::NotAName(_))));
}

#[test]
fn the_report_says_what_why_and_where() {
    let needs_restore = || seed("ann", [Well, Well, At(Exchange), Well]);
    let bob = seed("bob", [Well, At(Session), Missing, Missing]);
    insta::assert_snapshot!("fail", of(vec![needs_restore(), bob]).report());
    insta::assert_snapshot!("pass", of(vec![needs_restore()]).report());
}

mod schema;
mod torn;
