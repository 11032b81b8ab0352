//! A restore that succeeds, and one that fails at each step.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio_rusqlite::rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::backup::tests::{ourselves, taken};
use crate::{fixtures, writer};

const VERSION: Version = Version::new(0, 0, 24);

/// An instance that is stopped, with a WAL that a kill left behind, and an older snapshot of it.
struct World {
    dir: tempfile::TempDir,
    section: Section,
    instance: Instance,
    snapshot: Snapshot,
    now: SystemTime,
}

impl World {
    /// `None` where fixtures are left out by name.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let database = fixtures::copy("0.0.24", dir.path())?;
        fs::set_permissions(&database, fs::Permissions::from_mode(0o644)).expect("mode");
        let section = Section {
            dir: dir.path().join("backups"),
            stop_timeout: Duration::from_millis(200),
            start_timeout: Duration::from_millis(200),
            stop_command: vec!["true".to_owned()],
            ..Section::default()
        };
        let now = SystemTime::now();
        // Nobody listens on the port once it is given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("a port").port();
        let uid = nix::unistd::geteuid().as_raw();
        let instance = Instance { name: "ann".to_owned(), port, base_dir: dir.path().to_path_buf(), uid };
        let snapshot = taken(&section, &instance, Some(&VERSION), now).expect("a snapshot");
        let server = writer::open(&database);
        let later = [database.clone(), database.with_file_name("state.sqlite-wal")].map(|path| {
            let content = fs::read(&path).expect("a file of the server");
            (path, content)
        });
        drop(server);
        for (path, content) in later {
            fs::write(path, content).expect("as a kill leaves it");
        }
        Some(Self { dir, section, instance, snapshot, now })
    }

    fn userdata(&self) -> PathBuf {
        self.dir.path().join("userdata")
    }

    /// Every file below the user's directory with its content; empty directories do not count.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    walk(&path, files);
                } else {
                    files.insert(path.clone(), fs::read(&path).expect("it"));
                }
            }
        }
        let mut files = BTreeMap::new();
        walk(&self.userdata(), &mut files);
        files
    }

    fn names(&self) -> Names {
        Names::at(self.now)
    }

    fn stop_runs(&mut self, script: &str) {
        self.section.stop_command = ["sh", "-c", script].map(str::to_owned).to_vec();
    }

    async fn restore(&mut self, login: Result<(), Failure>) -> Result<Restored, NotRestored> {
        self.wanted().run(&ourselves(), async |_| login).await
    }

    fn wanted(&self) -> Restore<'_> {
        let Self { section, instance, snapshot, .. } = self;
        Restore { section, instance, snapshot, version: Some(VERSION), now: self.now, by_hand: None }
    }

    /// A restore that fails and leaves everything as it was, with the copy aside where it may have been in use.
    async fn fails_at(&mut self, step: RestoreStep) -> NotRestored {
        let before = self.content();
        let failed = self
            .restore(Err(Failure::new(Reason::AuthStore, "nobody can log in")))
            .await
            .expect_err("a failure");
        assert_eq!(failed.step, step, "{failed}");
        if let Former::Back { since: Some(since) } | Former::BackButDown { since: Some(since), .. } =
            &failed.former
        {
            assert!(step >= RestoreStep::Start, "{failed}");
            let used = fs::read(since.join("state.sqlite")).expect("the copy");
            assert!(used == fs::read(&self.snapshot.file).expect("the snapshot"), "{failed}");
            fs::remove_dir_all(since).expect("removed");
        }
        assert!(self.content() == before, "something changed: {failed}");
        failed
    }
}

#[tokio::test]
async fn a_restore_puts_the_snapshot_in_place_and_the_former_state_aside_as_a_whole() {
    let Some(mut world) = World::new() else { return };
    let before = world.content();
    let restored = world.restore(Ok(())).await.expect("restored");
    let aside = restored.aside.expect("the former state");
    let database = world.instance.database();
    assert!(fs::read(&database).expect("it") == fs::read(&world.snapshot.file).expect("the snapshot"));
    assert_eq!(fs::metadata(&database).expect("it").permissions().mode() & 0o7777, 0o644, "the mode is kept");
    assert!(
        !world.userdata().join("state.sqlite-wal").exists()
            && !world.userdata().join("state.sqlite-shm").exists()
    );
    for (path, content) in before {
        let moved = aside.join(path.file_name().expect("a name"));
        assert!(fs::read(&moved).expect("put aside") == content, "{}", moved.display());
    }
    let former = Connection::open(aside.join("state.sqlite")).expect("opens");
    let newest: i64 =
        former.query_row("SELECT max(sequence) FROM orchestration_events", [], |row| row.get(0)).expect("it");
    assert_eq!(newest, 194, "with what was only in its WAL");
}

#[tokio::test]
async fn a_restore_that_fails_at_any_step_leaves_the_former_state_in_its_place() {
    let Some(mut world) = World::new() else { return };
    assert!(matches!(world.fails_at(RestoreStep::Prove).await.former, Former::Back { since: Some(_) }));

    world.section.start_command = vec!["false".to_owned()];
    assert!(matches!(world.fails_at(RestoreStep::Start).await.former, Former::BackButDown { .. }));
    world.section.start_command.clear();

    let userdata = world.userdata();
    let Names { copy, aside } = world.names();
    world.stop_runs(&format!("rm {}", userdata.join(copy).display()));
    assert!(matches!(world.fails_at(RestoreStep::Place).await.former, Former::Back { since: None }));

    world.stop_runs(&format!("rmdir {}", userdata.join(&aside).display()));
    assert!(matches!(world.fails_at(RestoreStep::PutAside).await.former, Former::Back { since: None }));

    let elsewhere = world.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    let swapped = userdata.join(&aside);
    world.stop_runs(&format!("rmdir {0}; ln -s {1} {0}", swapped.display(), elsewhere.display()));
    assert!(matches!(world.restore(Ok(())).await.expect_err("a link").former, Former::Back { since: None }));
    assert_eq!(fs::read_dir(&elsewhere).expect("it").count(), 0, "what is put aside follows no link");
    fs::remove_file(swapped).expect("the link");

    world.section.stop_command = vec!["false".to_owned()];
    let listener = std::net::TcpListener::bind(("127.0.0.1", world.instance.port)).expect("the port");
    world.fails_at(RestoreStep::Stop).await;
    drop(listener);

    fs::write(userdata.join(&aside), "in the way").expect("a file");
    assert!(matches!(world.fails_at(RestoreStep::Copy).await.former, Former::Untouched));
    fs::remove_file(userdata.join(&aside)).expect("gone");

    world.instance.uid += 1;
    let failed = world.fails_at(RestoreStep::Check).await;
    assert_eq!(failed.failure.reason, Reason::WrongOwner);
    world.instance.uid -= 1;

    let mut damaged = fs::read(&world.snapshot.file).expect("the snapshot");
    damaged.truncate(8192);
    fs::write(&world.snapshot.file, damaged).expect("damage");
    assert!(matches!(world.fails_at(RestoreStep::Verify).await.former, Former::Untouched));
}

#[tokio::test]
async fn a_command_that_cannot_stop_what_is_stopped_already_is_no_obstacle() {
    let Some(mut world) = World::new() else { return };
    world.section.stop_command = vec!["false".to_owned()];
    let failed = world.fails_at(RestoreStep::Prove).await;
    assert!(matches!(failed.former, Former::Back { .. }), "{failed}");
    world.now += Duration::from_secs(1);
    world.restore(Ok(())).await.expect("restored");
}

#[tokio::test]
async fn a_former_state_that_somebody_else_has_put_back_is_not_taken_for_the_copy() {
    let Some(world) = World::new() else { return };
    let (before, names) = (world.content(), world.names());
    let login = async |instance: &Instance| {
        let place = Place::open(instance)?;
        place.clear().and_then(|()| place.bring_back(&names.aside, "since")).expect("brought back");
        Err(Failure::new(Reason::AuthStore, "nobody can log in"))
    };
    let failed = world.wanted().run(&ourselves(), login).await.expect_err("nobody can log in");
    assert!(matches!(failed.former, Former::Lost { .. }), "{failed}");
    assert!(failed.to_string().contains("no former state lies in "), "{failed}");
    let mut after = world.content();
    after.retain(|path, _| before.contains_key(path));
    assert!(after == before, "it is all there is");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_nobody_starts_by_hand_gets_its_former_state_back() {
    let Some(mut world) = World::new() else { return };
    let before = world.content();
    let asked = std::sync::Mutex::new(Vec::new());
    let ask = |what: &str| asked.lock().expect("whole").push(what.to_owned());
    world.section.stop_command.clear();
    let restore =
        Restore { by_hand: Some(ByHand { ask: &ask, given_up: CancellationToken::new() }), ..world.wanted() };
    let failed = restore.run(&ourselves(), async |_| unreachable!("it does not run")).await;
    let failed = failed.expect_err("nobody starts it");
    assert_eq!(failed.step, RestoreStep::Start, "{failed}");
    assert!(failed.failure.detail.contains("does not answer within 10m"), "{failed}");
    let Former::Back { since: Some(since) } = &failed.former else { panic!("{failed}") };
    fs::remove_dir_all(since).expect("the copy");
    assert!(world.content() == before, "{failed}");
    let asked = asked.into_inner().expect("whole");
    assert!(
        asked.len() == 2
            && asked[0].contains("start the instance now")
            && asked[1].contains("start the instance again"),
        "it is stopped already: {asked:?}"
    );
}

#[tokio::test]
async fn what_a_killed_restore_left_half_done_is_undone_wherever_it_was_cut_off() {
    let Some(world) = World::new() else { return };
    let before = world.content();
    let tree = Tree::new(&world.section, "ann");
    let place = Place::open(&world.instance).expect("the directory");
    let names = world.names();
    let main_moved =
        || fs::rename(place.shown("state.sqlite"), place.shown(&names.aside).join("state.sqlite"));
    let all_moved = || place.put_aside(&names.aside);
    let placed = || all_moved().and_then(|()| place.put_in_place(&names.copy));
    let cases: [(RestoreStep, &dyn Fn() -> std::io::Result<()>); 7] = [
        (RestoreStep::Copy, &|| Ok(())),
        (RestoreStep::Stop, &|| Ok(())),
        (RestoreStep::PutAside, &main_moved),
        (RestoreStep::PutAside, &all_moved),
        (RestoreStep::Place, &all_moved),
        (RestoreStep::Place, &placed),
        (RestoreStep::Prove, &placed),
    ];
    for (step, moves) in cases {
        let mut journal =
            Journal::begin(&tree, world.snapshot.name(), names.clone(), true, world.now).expect("a journal");
        place.bring(&world.snapshot.file, &names.copy).expect("a copy");
        place.make_aside(&names.aside).expect("a directory");
        journal.reach(step).expect("written");
        moves().expect("moved");
        drop(journal);
        // As a version wrote it that did not say whether there was a database.
        let text = fs::read_to_string(tree.path(".restore")).expect("the journal");
        let without = text.replace(",\n  \"had\": true", "");
        assert_ne!(text, without);
        fs::write(tree.path(".restore"), without).expect("written");

        let cut_off = Journal::read(&tree).expect("readable").expect("a journal");
        assert_eq!((cut_off.step, &cut_off.names), (step, &names));
        cut_off.undo(&world.section, &world.instance, world.now, None).await.expect("undone");

        assert_eq!(Journal::read(&tree).expect("readable"), None, "{step}");
        // What the killed run had put in place is not deleted: nobody knows who has written it since.
        let since =
            world.userdata().join(format!("aside-{}-cut-off", crate::backup::tree::compact(world.now)));
        assert!(!since.exists() || step >= RestoreStep::Place, "{step}");
        let _ = fs::remove_dir_all(since);
        assert!(world.content() == before, "cut off at {step}");
    }
}

#[tokio::test]
async fn an_instance_that_does_not_stop_is_not_restored_over() {
    let Some(mut world) = World::new() else { return };
    let listener = std::net::TcpListener::bind(("127.0.0.1", world.instance.port)).expect("the port");
    let failed = world.fails_at(RestoreStep::Stop).await;
    assert!(matches!(failed.former, Former::Untouched), "{failed}");
    assert!(failed.failure.detail.contains("is still open"), "{failed}");
    drop(listener);
    let holder = fs::File::open(world.instance.database()).expect("the database");
    let failed = world.fails_at(RestoreStep::Stop).await;
    assert!(failed.failure.detail.contains("still has the database open"), "{failed}");
    drop(holder);
    world.restore(Ok(())).await.expect("restored");
}

#[tokio::test]
async fn a_restore_from_inside_the_instance_is_refused_with_the_command_that_does_it_from_outside() {
    let Some(mut world) = World::new() else { return };
    let us = std::process::id();
    // Our own process is the instance: whoever looks from here looks from inside.
    let started = humantime::format_rfc3339_millis(SystemTime::now());
    let runtime = format!(r#"{{"version":1,"pid":{us},"startedAt":"{started}"}}"#);
    fs::write(world.userdata().join("server-runtime.json"), runtime).expect("server-runtime.json");
    let refused = world.fails_at(RestoreStep::Check).await;
    assert_eq!(refused.failure.reason, Reason::Inside, "{refused}");
    let command =
        format!("systemd-run --pipe t3-prober backup restore ann --from {} --yes", world.snapshot.name());
    assert!(refused.to_string().contains(&command), "{refused}");
}

#[tokio::test]
async fn what_is_not_the_users_own_directory_or_file_is_not_touched() {
    let Some(mut world) = World::new() else { return };
    let (userdata, elsewhere) = (world.userdata(), world.dir.path().join("elsewhere"));
    fs::rename(&userdata, &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, &userdata).expect("a symlink");
    let failed = world.fails_at(RestoreStep::Check).await;
    assert!(failed.failure.detail.contains("userdata"), "{failed}");
    fs::remove_file(&userdata).expect("gone");
    fs::rename(&elsewhere, &userdata).expect("back");
    let database = world.instance.database();
    fs::rename(&database, world.dir.path().join("real.sqlite")).expect("moved");
    std::os::unix::fs::symlink(world.dir.path().join("real.sqlite"), &database).expect("a symlink");
    let failed = world.fails_at(RestoreStep::Check).await;
    assert_eq!(failed.failure.reason, Reason::WrongOwner);
}

#[tokio::test]
async fn a_snapshot_that_the_running_version_cannot_use_is_refused() {
    let Some(mut world) = World::new() else { return };
    let other = world.dir.path().join("newer");
    if fixtures::copy("0.0.26", &other).is_none() {
        return;
    }
    let newer = Instance { base_dir: other, ..world.instance.clone() };
    let later = world.now + Duration::from_secs(1);
    world.snapshot = taken(&world.section, &newer, None, later).expect("a snapshot");
    let failed = world.fails_at(RestoreStep::Check).await;
    assert_eq!(failed.failure.reason, Reason::SchemaAhead);
}

#[tokio::test]
async fn a_database_that_is_gone_can_be_restored() {
    let Some(mut world) = World::new() else { return };
    for path in world.content().into_keys() {
        fs::remove_file(path).expect("gone");
    }
    assert_eq!(world.restore(Ok(())).await.expect("restored").aside, None);
    assert_eq!(world.content().into_keys().collect::<Vec<_>>(), [world.instance.database()]);
}

#[tokio::test]
async fn the_plan_says_what_would_be_lost_and_offers_the_repair_that_loses_nothing() {
    let Some(world) = World::new() else { return };
    let now = world.now + Duration::from_secs(3600);
    let plan = async |world: &World| {
        let World { section, instance, snapshot, .. } = world;
        Plan::of(section, instance, &ourselves(), snapshot, Some(&VERSION), now).await.expect("a plan")
    };
    let first = plan(&world).await.to_string();
    assert!(first.starts_with("Restore ann from "), "{first}");
    assert!(first.contains("1h ago, level 30") && first.contains("1 messages, 1 events, from 20"), "{first}");

    let connection = Connection::open(world.instance.database()).expect("opens");
    connection
        .execute_batch(
            "INSERT INTO effect_sql_migrations (migration_id, name) VALUES (31, 'AuthAuthorizationScopes');
             INSERT INTO effect_sql_migrations (migration_id, name) VALUES (32, 'AuthPairingProofKeyThumbprint')",
        )
        .expect("migrated");
    connection.close().expect("a clean close");
    let second = plan(&world).await;
    assert!(
        second.to_string().starts_with("First choice: t3-prober backup restore ann --auth-only --yes"),
        "{second}"
    );
}
