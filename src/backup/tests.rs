//! Every way in which a snapshot is taken, damaged, found out and kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tokio_rusqlite::rusqlite::Connection;

use super::manifest::DrillFailure;
use super::*;
use crate::outcome::{Flaw, RestoreStep};
use crate::t3::schema::SchemaLevel;
use crate::{fixtures, writer};

const VERSION: Version = Version::new(0, 0, 24);

/// A user's database and the tree that its snapshots go to.
struct Place {
    dir: tempfile::TempDir,
    database: PathBuf,
    section: Section,
}

impl Place {
    /// `None` where fixtures are left out by name.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let database = fixtures::copy("0.0.24", dir.path())?;
        let section = Section { dir: dir.path().join("backups"), ..Section::default() };
        Some(Self { dir, database, section })
    }

    fn change(&self, sql: &str) {
        change(&self.database, sql);
    }

    fn instance(&self) -> Instance {
        instance(self.dir.path())
    }

    fn take(&self) -> Result<Snapshot, Failure> {
        taken(&self.section, &self.instance(), Some(&VERSION), SystemTime::now())
    }

    fn tree(&self) -> Tree {
        Tree::new(&self.section, "ann")
    }
}

/// Our own hands, which no box is needed for here.
pub fn ourselves() -> Ourselves {
    Ourselves { boxing: crate::t3::boxed::Boxing { bwrap: String::new(), expose: Vec::new() } }
}

/// By our own hands, from a test with or without a runtime.
pub fn taken(
    section: &Section,
    instance: &Instance,
    version: Option<&Version>,
    now: SystemTime,
) -> Result<Snapshot, Failure> {
    waited(take(section, instance, &ourselves(), version, now))
}

fn waited<T: Send>(work: impl Future<Output = T> + Send) -> T {
    let working = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(work)
    };
    std::thread::scope(|scope| scope.spawn(working).join()).expect("no panic")
}

fn verified(snapshot: &Snapshot) -> Result<(), Defect> {
    waited(verify(snapshot, &ourselves())).expect("it could be looked at")
}

fn proven(snapshot: &mut Snapshot, now: SystemTime) -> Result<(), Defect> {
    waited(prove(snapshot, &ourselves(), now)).expect("a record")
}

fn instance(base_dir: &Path) -> Instance {
    let uid = nix::unistd::geteuid().as_raw();
    Instance { name: "ann".to_owned(), port: 1, base_dir: base_dir.to_path_buf(), uid }
}

fn change(database: &Path, sql: &str) {
    let connection = Connection::open(database).expect("the database opens");
    connection.execute_batch(sql).expect(sql);
    connection.close().expect("a clean close");
}

/// The flaw that a verification finds.
fn flaw(snapshot: &Snapshot) -> Option<Flaw> {
    verified(snapshot).err().map(|defect| defect.flaw)
}

#[test]
fn a_snapshot_of_a_stopped_database_is_whole_and_leaves_the_original_alone() {
    let Some(place) = Place::new() else { return };
    let before = fs::read(&place.database).expect("the database");
    let snapshot = place.take().expect("a snapshot");
    assert!(fs::read(&place.database).expect("the database") == before);
    let beside = fs::read_dir(place.database.parent().expect("a parent")).expect("the directory").count();
    assert_eq!(beside, 1, "neither -wal nor -shm appeared");
    let manifest = snapshot.manifest.clone().expect("a manifest");
    assert_eq!((manifest.level.level, manifest.fingerprint.last_sequence), (SchemaLevel(30), 193));
    assert!(snapshot.name().ends_with("-level30-0.0.24"), "{}", snapshot.name());
    assert_eq!(fs::metadata(&snapshot.file).expect("it").permissions().mode() & 0o7777, 0o600);
    assert_eq!(verified(&snapshot), Ok(()));
    assert_eq!(place.tree().list().expect("a list"), [snapshot]);
}

#[test]
fn the_databases_of_every_recorded_version_are_taken_and_verified() {
    for (version, level, events) in [("0.0.24", 30, 193), ("0.0.26", 32, 193), ("0.0.33", 40, 302)] {
        let dir = tempfile::tempdir().expect("a directory");
        let Some(_) = fixtures::copy(version, dir.path()) else { return };
        let section = Section { dir: dir.path().join("backups"), ..Section::default() };
        let ran = version.parse().expect("a version");
        let snapshot = taken(&section, &instance(dir.path()), Some(&ran), SystemTime::now());
        let mut snapshot = snapshot.expect(version);
        assert_eq!(proven(&mut snapshot, SystemTime::now()), Ok(()), "{version}");
        assert!(snapshot.is_proven(), "{version}");
        let manifest = snapshot.manifest.expect("a manifest");
        assert_eq!((manifest.level.level, manifest.fingerprint.last_sequence), (SchemaLevel(level), events));
    }
}

#[test]
fn fifty_snapshots_under_a_steady_writer_are_all_whole_and_no_write_is_refused() {
    let Some(place) = Place::new() else { return };
    let writer = writer::Writer::start(&place.database, Duration::from_millis(1));
    let mut last = 0;
    for _ in 0..50 {
        let mut snapshot = place.take().expect("a snapshot");
        assert_eq!(proven(&mut snapshot, SystemTime::now()), Ok(()));
        let sequence = snapshot.manifest.expect("a manifest").fingerprint.last_sequence;
        assert!(sequence >= last, "every snapshot is at least as new as the one before");
        last = sequence;
    }
    let writes = writer.finish().expect("no write was refused");
    assert!(last > 193 && !writes.is_empty());
    let live = Connection::open(&place.database).expect("the live database");
    let ask = |sql: &str| live.query_row(sql, [], |row| row.get::<_, String>(0)).expect(sql);
    assert_eq!(ask("PRAGMA integrity_check"), "ok");
    let events = ask("SELECT CAST(count(*) AS TEXT) FROM orchestration_events");
    // One that the writer makes when it opens.
    assert_eq!(events, (193 + 1 + writes.len()).to_string(), "every write is there");
    assert_eq!(place.tree().list().expect("a list").len(), place.section.keep);
}

#[test]
fn a_live_database_is_taken_with_its_wal() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = dir.path().join("userdata/state.sqlite");
    fs::create_dir(dir.path().join("userdata")).expect("a directory");
    let server = Connection::open(&database).expect("opens");
    server.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).expect("WAL");
    server
        .execute_batch(
            "CREATE TABLE effect_sql_migrations (migration_id INTEGER PRIMARY KEY, name TEXT);
             INSERT INTO effect_sql_migrations VALUES (30, 'ProjectionThreadShellArchiveIndexes')",
        )
        .expect("tables");
    assert_eq!(fs::metadata(&database).expect("it").len(), 4096, "everything is in the WAL");
    let section = Section { dir: dir.path().join("backups"), ..Section::default() };
    let snapshot = taken(&section, &instance(dir.path()), None, SystemTime::now()).expect("a snapshot");
    assert!(snapshot.name().ends_with("-level30-unknown"), "{}", snapshot.name());
    assert_eq!(flaw(&snapshot), None);
}

#[test]
fn every_kind_of_damage_has_its_own_word() {
    let Some(place) = Place::new() else { return };
    place.change(
        "INSERT INTO orchestration_events (event_id, aggregate_kind, stream_id, stream_version, event_type, occurred_at,
             actor_kind, payload_json, metadata_json)
         VALUES ('long', 'thread', 'long', 1, 'thread.message-sent', '', 'client', hex(zeroblob(20000)), '{}');
         CREATE TABLE scratch (content); INSERT INTO scratch SELECT zeroblob(3000) FROM orchestration_events LIMIT 50;
         DROP TABLE scratch",
    );
    let snapshot = place.take().expect("a snapshot");
    assert_eq!(flaw(&snapshot), None);
    let whole = fs::read(&snapshot.file).expect("the snapshot");
    let connection = Connection::open(&place.database).expect("the original");
    let page = |condition: &str| -> usize {
        let sql = format!("SELECT pageno FROM dbstat WHERE {condition} ORDER BY pageno LIMIT 1");
        let page: u32 = connection.query_row(&sql, [], |row| row.get(0)).expect(condition);
        (page as usize - 1) * 4096
    };
    let number = |at: usize| u32::from_be_bytes(whole[at..at + 4].try_into().expect("four bytes")) as usize;
    let flipped = |byte: usize| {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x40;
        damaged
    };
    let leaf = page("name = 'projection_thread_messages' AND pagetype = 'leaf'");
    let overflow = page("name = 'orchestration_events' AND pagetype = 'overflow'");
    let index = page("name = 'idx_orch_events_command_id' AND pagetype = 'leaf'");
    let trunk = (number(32) - 1) * 4096;
    let text = whole.windows(16).position(|part| part == b"Add pagination t").expect("a title");
    // The first cell of the index: its last byte belongs to the row number.
    let cell = index + usize::from(u16::from_be_bytes([whole[index + 8], whole[index + 9]]));
    let damages = [
        (Flaw::Empty, Vec::new()),
        (Flaw::Truncated, whole[..whole.len() - 4096 * 10].to_vec()),
        (Flaw::Truncated, whole[..60].to_vec()),
        (Flaw::Header, flipped(3)),
        (Flaw::Header, flipped(17)),
        (Flaw::Header, flipped(27)),
        (Flaw::Header, flipped(29)),
        (Flaw::Header, flipped(56)),
        (Flaw::Page, flipped(leaf)),
        (Flaw::Page, flipped(leaf + 3)),
        (Flaw::Freelist, flipped(trunk + 5)),
        (Flaw::Freelist, flipped(trunk + 9)),
        (Flaw::Overflow, flipped(overflow + 1)),
        (Flaw::Overflow, flipped(overflow + 3)),
        (Flaw::Altered, flipped(text + 2)),
        (Flaw::Index, flipped(cell + 10)),
    ];
    for (number, (expected, content)) in damages.into_iter().enumerate() {
        fs::write(&snapshot.file, content).expect("the damage");
        let found = verified(&snapshot).expect_err(expected.as_str());
        assert_eq!(found.flaw, expected, "damage {number}: {found}");
    }
}

#[test]
fn what_is_not_this_users_history_has_its_own_word() {
    let Some(place) = Place::new() else { return };
    let snapshot = place.take().expect("a snapshot");
    let replace = |sql: &str| {
        let other = place.dir.path().join("other.sqlite");
        let _ = fs::remove_file(&other);
        if sql.starts_with("PRAGMA") || sql.starts_with("CREATE") {
            change(&other, sql);
        } else {
            fs::copy(&place.database, &other).expect("a copy");
            change(&other, sql);
        }
        fs::write(&snapshot.file, fs::read(&other).expect("it")).expect("the snapshot is replaced");
        flaw(&snapshot)
    };
    assert_eq!(replace("PRAGMA journal_mode = wal"), Some(Flaw::WithoutWal));
    assert_eq!(replace("CREATE TABLE moz_places (url TEXT)"), Some(Flaw::OtherProgram));
    let level = |level, name| format!("INSERT INTO effect_sql_migrations VALUES ({level}, '', '{name}')");
    assert_eq!(replace(&level(99, "FromTheFuture")), Some(Flaw::LevelNewer));
    assert_eq!(replace(&level(31, "SomethingElse")), Some(Flaw::LevelForeign));
    assert_eq!(replace(&level(31, "AuthAuthorizationScopes")), Some(Flaw::LevelDiffers));
    assert_eq!(replace("DELETE FROM effect_sql_migrations WHERE migration_id > 20"), Some(Flaw::LevelOlder));
    assert_eq!(replace("DELETE FROM orchestration_events WHERE sequence > 190"), Some(Flaw::HistoryMissing));
    assert_eq!(replace("DELETE FROM auth_sessions"), Some(Flaw::Altered));
    let orphan = "CREATE TABLE effect_sql_migrations (migration_id INTEGER, name TEXT);
        INSERT INTO effect_sql_migrations VALUES (30, 'ProjectionThreadShellArchiveIndexes');
        CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (a REFERENCES a);
        PRAGMA foreign_keys = off; INSERT INTO b VALUES (7)";
    assert_eq!(replace(orphan), Some(Flaw::ForeignKey));
}

#[test]
fn a_main_file_from_which_the_wal_was_left_is_found_by_what_it_lacks() {
    let Some(place) = Place::new() else { return };
    let server = writer::open(&place.database);
    let snapshot = place.take().expect("a snapshot");
    fs::copy(&place.database, &snapshot.file).expect("the main file alone");
    assert_eq!(flaw(&snapshot), Some(Flaw::HistoryMissing));
    drop(server);
}

#[test]
fn a_file_that_others_may_write_or_that_cannot_be_read_proves_nothing() {
    let Some(place) = Place::new() else { return };
    let mut snapshot = place.take().expect("a snapshot");
    fs::set_permissions(&snapshot.file, fs::Permissions::from_mode(0o666)).expect("mode");
    assert_eq!(flaw(&snapshot), Some(Flaw::WrongOwner));
    fs::set_permissions(&snapshot.file, fs::Permissions::from_mode(0o600)).expect("mode");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&snapshot.file, Some(65534), None).expect("another owner");
        assert_eq!(flaw(&snapshot), Some(Flaw::WrongOwner));
        std::os::unix::fs::chown(&snapshot.file, Some(0), None).expect("our own");
    }
    fs::write(snapshot.file.with_extension("json"), "{").expect("half a manifest");
    let listed = place.tree().list().expect("a list").remove(0);
    assert_eq!(flaw(&listed), Some(Flaw::Manifest));
    snapshot.file = place.section.dir.join("none/none.sqlite");
    assert_eq!(flaw(&snapshot), Some(Flaw::Unreadable));
}

#[test]
fn a_directory_that_is_not_ours_alone_is_refused_and_an_unreadable_one_is_no_empty_one() {
    let Some(place) = Place::new() else { return };
    let dir = place.section.dir.join("ann");
    fs::create_dir_all(&dir).expect("the directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("mode");
    assert_eq!(place.take().expect_err("others may write").reason, Reason::WrongOwner);
    fs::remove_dir(&dir).expect("gone");
    fs::write(&dir, "").expect("a file in its place");
    assert_eq!(place.tree().list().expect_err("unreadable").reason, Reason::Unreadable);
}

#[test]
fn touching_a_file_refreshes_nothing() {
    let Some(place) = Place::new() else { return };
    let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
    taken(&place.section, &place.instance(), None, yesterday).expect("a snapshot");
    let snapshot = place.tree().list().expect("a list").remove(0);
    let touch = |path: &Path| {
        fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now())).expect("touch");
    };
    touch(&snapshot.file);
    touch(&snapshot.file.with_extension("json"));
    let listed = place.tree().list().expect("a list");
    let age = SystemTime::now().duration_since(listed[0].taken_at().expect("a time")).expect("the past");
    assert!(age >= Duration::from_secs(24 * 3600 - 1));
    assert_eq!(due(&place.section, &listed, SystemTime::now()), Some(BackupAct::Take));
}

#[test]
fn what_a_killed_take_left_never_counts_and_the_next_take_sweeps_it_up() {
    let Some(place) = Place::new() else { return };
    let first = place.take().expect("a snapshot");
    let dir = place.section.dir.join("ann");
    fs::write(dir.join("20260101T000000.000Z.tmp"), "half a copy").expect("a half-written copy");
    fs::write(dir.join("20260101T000000.000Z-level30-0.0.24.json"), "{}").expect("a manifest without data");
    assert_eq!(place.tree().list().expect("a list"), [first]);
    assert_eq!(place.tree().half_written().expect("a list").len(), 1);
    place.take().expect("another snapshot");
    assert_eq!(place.tree().half_written().expect("a list"), Vec::<PathBuf>::new());
    assert!(!dir.join("20260101T000000.000Z-level30-0.0.24.json").exists());
}

#[test]
fn another_users_database_behind_a_symlink_is_not_taken() {
    let Some(place) = Place::new() else { return };
    let stranger = Instance { uid: place.instance().uid + 1, ..place.instance() };
    let refused = taken(&place.section, &stranger, None, SystemTime::now()).expect_err("not theirs");
    assert_eq!(refused.reason, Reason::WrongOwner);
    assert_eq!(place.tree().list().expect("a list"), []);
    assert_eq!(place.tree().half_written().expect("a list"), Vec::<PathBuf>::new());
}

#[test]
fn two_takes_of_one_user_do_not_meet() {
    let Some(place) = Place::new() else { return };
    let turn = place.tree().prepare().expect("a turn");
    assert_eq!(place.take().expect_err("the other one is at work").reason, Reason::Locked);
    drop(turn);
    place.take().expect("a snapshot");
}

#[test]
fn a_snapshot_that_is_read_is_not_removed_meanwhile() {
    let Some(mut place) = Place::new() else { return };
    place.section.keep = 1;
    let old = place.take().expect("a snapshot");
    let reading = old.in_use().expect("nobody removes it");
    let take = || place.take().expect("another snapshot");
    let newer = take();
    assert_eq!(place.tree().list().expect("a list"), [old, newer]);
    drop(reading);
    let newest = take();
    assert_eq!(place.tree().list().expect("a list"), [newest]);
}

#[test]
fn what_is_no_database_of_t3_is_not_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let section = Section { dir: dir.path().join("backups"), ..Section::default() };
    let database = dir.path().join("userdata/state.sqlite");
    fs::create_dir(dir.path().join("userdata")).expect("a directory");
    let attempt = || {
        taken(&section, &instance(dir.path()), None, SystemTime::now()).expect_err("nothing to take").reason
    };
    assert_eq!(attempt(), Reason::Unreadable);
    fs::write(&database, "not a database, but long enough to be mistaken for one").expect("garbage");
    assert_eq!(attempt(), Reason::Corrupt);
    fs::remove_file(&database).expect("gone");
    change(&database, "CREATE TABLE moz_places (url TEXT)");
    assert_eq!(attempt(), Reason::SchemaForeign);
    assert_eq!(Tree::new(&section, "ann").half_written().expect("a list"), Vec::<PathBuf>::new());
}

#[test]
fn a_copy_that_takes_too_long_is_given_up_and_leaves_nothing() {
    let Some(mut place) = Place::new() else { return };
    place.change("CREATE TABLE large AS SELECT zeroblob(2000000) AS content");
    place.section.take_timeout = Duration::ZERO;
    assert_eq!(place.take().expect_err("given up").reason, Reason::Timeout);
    assert_eq!(place.tree().half_written().expect("a list"), Vec::<PathBuf>::new());
}

#[test]
fn first_a_snapshot_is_due_then_its_verification_then_its_drill() {
    let Some(place) = Place::new() else { return };
    let section = &place.section;
    let now = SystemTime::now();
    let listed = || place.tree().list().expect("a list");
    assert_eq!(due(section, &listed(), now), Some(BackupAct::Take));
    let mut snapshot = place.take().expect("a snapshot");
    let now = SystemTime::now();
    assert_eq!(due(section, &listed(), now), Some(BackupAct::Verify));
    proven(&mut snapshot, now).expect("whole");
    assert_eq!(due(section, &listed(), now), Some(BackupAct::Drill));
    let drilled = Drilled {
        at: now,
        version: Some(VERSION),
        restore: Duration::from_secs(2),
        overhead: Duration::ZERO,
        rpo: Duration::ZERO,
        boxed: false,
        failure: None,
    };
    snapshot.record(|proof| proof.drilled = Some(drilled)).expect("a record");
    assert_eq!(due(section, &listed(), now), None);
    assert_eq!(
        due(section, &listed(), now + section.interval + Duration::from_secs(1)),
        Some(BackupAct::Take)
    );
    snapshot
        .record(|proof| {
            let failure =
                DrillFailure { step: RestoreStep::Start, reason: Reason::Timeout, detail: String::new() };
            proof.drilled.as_mut().expect("the drill").failure = Some(failure);
        })
        .expect("a record");
    assert_eq!(due(section, &listed(), now), None);
    assert_eq!(
        due(section, &listed(), now + AGAIN),
        Some(BackupAct::Drill),
        "a failed drill does not wait a day"
    );
    let damaged = Verified { at: now, flaw: Some(Flaw::Page), detail: None };
    snapshot.record(|proof| proof.verified = Some(damaged)).expect("a record");
    assert_eq!(due(section, &listed(), now), None);
    assert_eq!(due(section, &listed(), now + AGAIN), Some(BackupAct::Take), "nor does another snapshot");
    let only_on_demand =
        Section { interval: Duration::ZERO, drill_interval: Duration::ZERO, ..section.clone() };
    assert_eq!(due(&only_on_demand, &listed(), now + 2 * section.keep_for), None);
}

/// A file system of half a megabyte; `None` where tests that need root are left out by name.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let left_out = std::env::var("T3_PROBER_LEAVE_OUT").unwrap_or_default();
        if left_out.split(',').any(|name| name.trim() == "root") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(dir.path());
        let mounted = mount.status().is_ok_and(|status| status.success());
        assert!(mounted, "mounting needs root; leave out what needs it with T3_PROBER_LEAVE_OUT=root");
        Some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn without_twice_the_room_nothing_is_begun_and_a_disk_that_fills_up_leaves_nothing_behind() {
    let Some(small) = Small::mount() else { return };
    let Some(mut place) = Place::new() else { return };
    place.section.dir = small.0.path().join("backups");
    let refused = place.take().expect_err("too small");
    assert_eq!(refused.reason, Reason::NoSpace);
    assert!(refused.detail.contains("twice the database"), "{refused}");
    assert_eq!(place.tree().half_written().expect("a list"), Vec::<PathBuf>::new());

    let into = small.0.path().join("copy.tmp");
    let full = copy(&place.database, &into, Duration::from_secs(60)).expect_err("full half-way");
    assert_eq!(full.reason, Reason::NoSpace, "{full}");
    assert!(!into.exists());
}
