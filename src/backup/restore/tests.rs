//! A restore that succeeds, and one that fails at each step.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio_rusqlite::rusqlite::Connection;

use super::*;
use crate::backup::take;
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
        let snapshot = take(&section, &instance, Some(&VERSION), now).expect("a snapshot");
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
        let restore = Restore {
            section: &self.section,
            instance: &self.instance,
            snapshot: &self.snapshot,
            version: Some(VERSION),
            now: self.now,
        };
        restore.run(async |_| login).await
    }

    /// A restore that fails and leaves everything as it was.
    async fn fails_at(&mut self, step: RestoreStep) -> NotRestored {
        let before = self.content();
        let failed = self
            .restore(Err(Failure::new(Reason::AuthStore, "nobody can log in")))
            .await
            .expect_err("a failure");
        assert_eq!(failed.step, step, "{failed}");
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
    assert!(matches!(world.fails_at(RestoreStep::Prove).await.former, Former::Back));

    world.section.start_command = vec!["false".to_owned()];
    assert!(matches!(world.fails_at(RestoreStep::Start).await.former, Former::BackButDown(_)));
    world.section.start_command.clear();

    let userdata = world.userdata();
    let Names { copy, aside } = world.names();
    world.stop_runs(&format!("rm {}", userdata.join(copy).display()));
    assert!(matches!(world.fails_at(RestoreStep::Place).await.former, Former::Back));

    world.stop_runs(&format!("rmdir {}", userdata.join(&aside).display()));
    assert!(matches!(world.fails_at(RestoreStep::PutAside).await.former, Former::Back));

    world.section.stop_command = vec!["false".to_owned()];
    world.fails_at(RestoreStep::Stop).await;

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
    world.snapshot = take(&world.section, &newer, None, later).expect("a snapshot");
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

#[test]
fn the_plan_says_what_would_be_lost_and_offers_the_repair_that_loses_nothing() {
    let Some(world) = World::new() else { return };
    let now = world.now + Duration::from_secs(3600);
    let plan = |world: &World| {
        Plan::of(&world.section, &world.instance, &world.snapshot, Some(&VERSION), now).expect("a plan")
    };
    let first = plan(&world).to_string();
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
    let second = plan(&world);
    assert!(
        second.to_string().starts_with("First choice: t3-prober backup restore ann --auth-only --yes"),
        "{second}"
    );
}
