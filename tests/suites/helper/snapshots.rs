//! Snapshots and drills of users' data by root, who never reads or runs anything of theirs itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use serde_json::{Value, json};

use super::{World, ended, failed};

pub fn snapshot(user: &str) -> Value {
    json!({ "verb": "snapshot", "user": user, "limit": { "secs": 60, "nanos": 0 } })
}

pub fn verify(user: &str) -> Value {
    json!({ "verb": "verify", "user": user, "limit": { "secs": 60, "nanos": 0 } })
}

/// As root's timer runs it.
fn backup(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(&world.host.program);
    command.arg("--config").arg(world.host.path("config.toml")).arg("backup").args(args);
    let output = command.output().expect("the program runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn roots_timer_reads_and_drills_as_the_owner_and_the_tree_is_closed_to_everybody_else() {
    let Some(world) = World::new() else { return };
    let (code, said) = backup(&world, &["due"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("verified") && said.contains("with t3 0.0.24 ("), "{said}");

    let name = &world.ann.name;
    let strangers: Vec<_> = world
        .ann
        .files()
        .into_iter()
        .filter(|(path, _)| path.metadata().is_ok_and(|found| found.uid() != world.ann.uid))
        .collect();
    assert_eq!(strangers, [], "taking a snapshot left files that are not the owner's");
    let tree = world.host.path("backups").join(name);
    for entry in fs::read_dir(&tree).expect("the tree").flatten() {
        let found = entry.metadata().expect("a file");
        assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600), "{:?}", entry.path());
    }
    let staging = world.host.path("backups/.staging");
    assert_eq!(fs::read_dir(&staging).expect("the staging").count(), 0, "nothing is left of the trial");
    let shut = [format!("ls {}", tree.display()), format!("ls {}", staging.display())];
    for command in shut {
        assert!(!world.ann.shell(&command).status.success(), "{command}");
    }
    let standing = format!("cat {}.json", tree.display());
    let read = world.prober.shell(&standing).stdout;
    let read: Value = serde_json::from_slice(&read).expect("how the user stands");
    assert_eq!((&read["count"], &read["proven"]["level"]), (&json!(1), &json!(30)), "{read}");
    assert!(read["drilled"].is_object() && read["failing"] == json!([]), "{read}");
}

#[test]
fn what_is_in_a_snapshot_is_read_by_its_owner_and_never_by_root() {
    let Some(world) = World::new() else { return };
    let (code, said) = backup(&world, &["take"]);
    assert!(code == Some(0) && said.contains("verified"), "{said}");
    // Root passes everywhere, so where this is noticed it was not root who read.
    let staging = world.host.path("backups/.staging");
    let open_to = |mode| fs::set_permissions(&staging, fs::Permissions::from_mode(mode)).expect("a mode");
    open_to(0o700);
    for act in ["verify", "drill"] {
        let (code, said) = backup(&world, &[act]);
        assert!(code == Some(1) && said.contains("reading the snapshot as its owner"), "{said}");
    }
    let (_, said) = backup(&world, &["list"]);
    assert!(said.contains(", verified"), "that it could not be read says nothing against it: {said}");
    open_to(0o711);
    let (code, said) = backup(&world, &["verify"]);
    assert!(code == Some(0) && said.contains("verified"), "{said}");
    assert_eq!(fs::read_dir(&staging).expect("the staging").count(), 0, "the copy is gone");

    // And it is found out all the same.
    let tree = fs::read_dir(world.host.path("backups").join(&world.ann.name)).expect("the tree").flatten();
    let mut snapshots = tree.map(|entry| entry.path());
    let snapshot = snapshots.find(|path| path.extension().is_some_and(|is| is == "sqlite")).expect("one");
    let mut content = fs::read(&snapshot).expect("a snapshot");
    let middle = content.len() / 8192 * 4096;
    content[middle..middle + 4096].fill(0x5a);
    fs::write(&snapshot, content).expect("the damage");
    let (code, said) = backup(&world, &["verify"]);
    assert!(code == Some(1) && said.contains("does not restore: ") && !said.contains("[altered]"), "{said}");
}

#[test]
fn a_link_in_the_databases_place_brings_nobody_elses_data_into_the_tree() {
    let Some(mut world) = World::new() else { return };
    let mut bob = world.host.user();
    bob.serve(&world.host.path("installs/0.0.24"));
    world.host.configure();
    world.ann.stop();
    fs::remove_dir_all(world.ann.base_dir().join("userdata")).expect("gone");
    fs::create_dir(world.ann.base_dir().join("userdata")).expect("a directory");
    std::os::unix::fs::chown(world.ann.base_dir().join("userdata"), Some(world.ann.uid), Some(world.ann.gid))
        .expect("owner");
    symlink(bob.database(), world.ann.database()).expect("a link");
    let name = world.ann.name.clone();
    let (code, said) = backup(&world, &["take", &name]);
    assert!(code == Some(1) && said.contains("[unreadable]"), "{said}");
    // And where bob is careless.
    for open in [bob.home.clone(), bob.base_dir(), bob.base_dir().join("userdata")] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).expect("mode");
    }
    fs::set_permissions(bob.database(), fs::Permissions::from_mode(0o644)).expect("mode");
    let (code, said) = backup(&world, &["take", &name]);
    assert!(code == Some(1) && said.contains("[wrong_owner]"), "{said}");
    failed(&world.ask(&snapshot(&name)), "wrong_owner");
    let tree = fs::read_dir(world.host.path("backups").join(&name)).expect("the tree").flatten();
    assert!(tree.map(|entry| entry.file_name()).all(|name| name == ".lock"), "something was taken");
    assert_eq!(fs::read_dir(world.host.path("backups/.staging")).expect("the staging").count(), 0);
}

#[test]
fn after_the_outage_root_looks_and_repairs_as_the_owner_and_could_not_read_the_database_itself() {
    let Some(world) = World::new() else { return };
    let (code, said) = backup(&world, &["take"]);
    assert_eq!(code, Some(0), "{said}");
    let newer = world.host.install("0.0.26", &[]);
    let mut mint = world.ann.command(newer.join("bin/t3"));
    mint.args(["auth", "pairing", "create", "--base-dir"]).arg(world.ann.base_dir());
    assert!(mint.output().expect("t3 runs").status.success());
    assert_eq!(world.ann.level(), 32);
    let sealed = |path: std::path::PathBuf| fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    sealed(world.ann.database()).expect("mode");

    // Root without the right to open what is not its own.
    let restore = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all,+setuid,+setgid,+chown,+kill", "--"]).arg(&world.host.program);
        command.arg("--config").arg(world.host.path("config.toml")).args(["backup", "restore"]).args(args);
        let output = command.output().expect("setpriv runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    };
    let name = &world.ann.name;
    let (code, said) = restore(&[name, "--auth-only"]);
    assert!(code == Some(0) && said.contains("t3 0.0.24 needs 30") && said.contains("dry run"), "{said}");
    assert_eq!(world.ann.level(), 32, "a dry run changed something");
    let (code, said) = restore(&[name, "--auth-only", "--yes"]);
    assert!(code == Some(0) && said.contains("repaired; somebody logged in"), "{said}");
    assert_eq!(world.ann.level(), 30);
    let (code, said) = restore(&[name]);
    assert!(code == Some(0) && said.contains("now      level 30") && said.contains("dry run"), "{said}");
}

#[test]
fn over_the_socket_a_snapshot_is_taken_and_verified_without_any_right_but_to_become_the_user() {
    let Some(world) = World::new() else { return };
    let name = &world.ann.name;
    let answer = world.ask(&verify(name));
    assert_eq!(ended(&answer), "skipped", "there is none yet: {answer}");
    let answer = world.ask(&snapshot(name));
    assert_eq!((ended(&answer), &answer["value"]["act"]), ("ok", &json!("verify")), "{answer}");
    let (code, said) = backup(&world, &["list", name]);
    assert!(code == Some(0) && said.contains("level30-0.0.24") && said.contains("verified"), "{said}");
    assert_eq!(ended(&world.ask(&verify(name))), "ok");
}
