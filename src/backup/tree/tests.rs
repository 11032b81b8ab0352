//! What is listed and what is let go.

use super::*;
use crate::backup::manifest::{DrillFailure, Drilled, Verified};
use crate::backup::standing::Standing;
use crate::backup::{Section, due};
use crate::outcome::{BackupAct, Flaw, RestoreStep};
use crate::t3::schema::SchemaLevel;
use crate::t3::state::Level;
use crate::t3::state::fingerprint::Fingerprint;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A snapshot of so many days ago; `verified`: what the verification found.
fn snapshot(now: SystemTime, days: u32, verified: Option<Option<Flaw>>) -> Snapshot {
    let manifest = Manifest {
        user: "ann".to_owned(),
        taken_at: now - DAY * days,
        took: Duration::ZERO,
        version: None,
        level: Level { level: SchemaLevel(30), name: String::new() },
        fingerprint: Fingerprint::default(),
        bytes: 0,
        sha256: String::new(),
        header: String::new(),
    };
    let verified = verified.map(|flaw| Verified { at: now, flaw, detail: None });
    Snapshot {
        file: format!("{days}.sqlite").into(),
        manifest: Some(manifest),
        proof: Proof { verified, drilled: None },
    }
}

fn gone(snapshots: &[Snapshot], keep: usize, days: u32, now: SystemTime) -> Vec<String> {
    expired(snapshots, keep, DAY * days, now).iter().map(|snapshot| snapshot.name()).collect()
}

#[test]
fn what_is_beyond_the_count_or_the_age_goes() {
    let now = SystemTime::now();
    let all: Vec<_> = [40, 5, 3, 1, 0].map(|days| snapshot(now, days, Some(None))).into();
    assert_eq!(gone(&all, 10, 30, now), ["40"]);
    assert_eq!(gone(&all, 2, 30, now), ["40", "5", "3"]);
    assert_eq!(gone(&all, 10, 2, now), ["40", "5", "3"]);
}

#[test]
fn the_newest_verified_snapshot_stays_however_old_it_is() {
    let now = SystemTime::now();
    let good = Some(None);
    let bad = Some(Some(Flaw::Page));
    let all = [
        snapshot(now, 90, good),
        snapshot(now, 80, good),
        snapshot(now, 70, bad),
        snapshot(now, 60, None),
        snapshot(now, 50, bad),
    ];
    assert_eq!(gone(&all, 1, 30, now), ["90", "70", "60"]);
    assert_eq!(gone(&all[2..], 1, 30, now), ["70", "60"], "and the newest of all stays");
}

#[test]
fn the_newest_snapshot_that_somebody_was_brought_back_to_stays_as_well() {
    let now = SystemTime::now();
    let mut all = [90, 80, 70, 60].map(|days| snapshot(now, days, Some(None)));
    for (index, failure) in [(0, None), (1, None), (2, Some(RestoreStep::Prove))] {
        let failure =
            failure.map(|step| DrillFailure { step, reason: Reason::AuthStore, detail: String::new() });
        all[index].proof.drilled = Some(Drilled {
            at: now,
            version: None,
            restore: DAY,
            overhead: DAY,
            rpo: DAY,
            boxed: true,
            failure,
        });
    }
    assert_eq!(gone(&all, 1, 30, now), ["90", "70"]);
}

#[test]
fn the_last_snapshot_before_a_loss_goes_by_its_age_alone() {
    let now = SystemTime::now();
    let mut all = [40, 9, 8, 3, 2, 1, 0].map(|days| snapshot(now, days, Some(None)));
    for (snapshot, events) in all.iter_mut().zip([90, 100, 110, 4, 5, 6, 7]) {
        snapshot.manifest.as_mut().expect("one").fingerprint.last_sequence = events;
    }
    assert_eq!(gone(&all, 2, 30, now), ["40", "9", "3", "2"]);
    assert_eq!(gone(&all, 2, 7, now), ["40", "9", "8", "3", "2"]);
}

#[test]
fn a_snapshot_from_the_future_is_neither_the_newest_nor_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let section = Section { dir: dir.path().to_owned(), ..Section::default() };
    let (tree, now) = (Tree::new(&section, "ann"), SystemTime::now());
    fs::create_dir(&tree.dir).expect("the tree");
    let mut names = [now - DAY, now, now + 400 * DAY].map(|taken| compact(taken) + "-level30");
    for name in &names {
        fs::write(tree.path(&format!("{name}.sqlite")), "").expect("a snapshot");
    }
    names.rotate_left(2);
    let listed = tree.list().expect("listed");
    assert_eq!(listed.iter().map(Snapshot::name).collect::<Vec<_>>(), names);
    let alone = snapshot(now + 400 * DAY, 0, Some(None));
    assert_eq!(due(&section, &[alone], now), Some(BackupAct::Take));
}

#[test]
fn the_database_as_it_was_in_an_outage_is_not_one_that_t3_could_use() {
    let taken = |version: Option<&str>, level| {
        let mut snapshot = snapshot(SystemTime::now(), 0, Some(None));
        if let Some(manifest) = &mut snapshot.manifest {
            manifest.version = version.map(|version| version.parse().expect("a version"));
            manifest.level.level = SchemaLevel(level);
        }
        snapshot.was_usable()
    };
    assert!(!taken(Some("0.0.24"), 32), "a newer t3 had migrated it");
    assert!(taken(Some("0.0.24"), 30));
    assert!(taken(Some("0.0.26"), 30), "t3 migrates it when it starts");
    assert!(taken(None, 32), "nobody knows which version ran");
}

#[test]
fn a_copy_of_an_outage_is_nothing_to_go_back_to_and_supersedes_nothing() {
    let now = SystemTime::now();
    let of = |days, level| {
        let mut snapshot = snapshot(now, days, Some(None));
        let manifest = snapshot.manifest.as_mut().expect("one");
        manifest.version = Some("0.0.24".parse().expect("a version"));
        manifest.level.level = SchemaLevel(level);
        snapshot
    };
    let all = [of(80, 30), of(70, 30), of(60, 32), of(50, 32)];
    assert_eq!(all.each_ref().map(Snapshot::is_proven), [true, true, false, false]);
    assert_eq!(gone(&all, 1, 30, now), ["80", "60"], "the last one before the outage stays");
    let standing = Standing::of(&all, Vec::new());
    let levels = (standing.newest.map(|newest| newest.level), standing.proven.map(|proven| proven.level));
    assert_eq!(levels, (Some(32), Some(30)));
    assert_eq!(standing.opened_by, SchemaLevel(30).versions());
    let section = Section { interval: Duration::ZERO, ..Section::default() };
    assert_eq!(due(&section, &all, now), None, "no drill of it");
    assert_eq!(due(&section, &all[..2], now), Some(BackupAct::Drill));
}
