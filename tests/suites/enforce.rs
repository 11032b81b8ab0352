//! The enforcer over simulated users, with the real program: a good build reaches all, a bad one nobody for long.

use crate::support::door::section;
use crate::support::fleet::{Fleet, has_message, script_at};
use crate::support::free_port::free_port;
use crate::support::world::{http, wait_for};

const OLD: &str = "0.0.24";
const NEW: &str = "0.0.33";
const USERS: [&str; 3] = ["ann", "bob", "cid"];
/// The gate has a suite of its own; what is asked here is what happens after it.
const PASSES: &str = "gate_command = [\"true\"]\n";

fn fleet(more: &str) -> Fleet {
    Fleet::on(OLD, &USERS, &format!("{PASSES}soak = \"2s\"\n{more}"))
}

#[test]
fn a_good_build_reaches_all_with_every_message() {
    let fleet =
        fleet(&format!("track = \"nightly\"\ntrack_command = [\"sh\", \"-c\", \"echo {NEW} # {{tag}}\"]\n"));
    for user in USERS {
        fleet.write_message(user, "before");
    }
    let said = fleet.enforce(&["--dry-run"]).exits(0);
    assert!(said.contains("canary    ann (from 0.0.24), watched for 2s"), "{said}");
    assert!(said.contains("in all 4s of watching"), "{said}");
    fleet.everybody_is_on(OLD);
    assert!(!fleet.path("installs").join(NEW).exists(), "a dry run does nothing");

    let said = fleet.enforce(&[]).exits(0);
    fleet.everybody_is_on(NEW);
    assert!(said.contains("ann, bob, cid run t3 0.0.33"), "{said}");
    for user in USERS {
        assert!(fleet.has_message(user, "before"), "{user}");
    }
    let last_good = std::fs::read_to_string(fleet.path("installs/last-good")).expect("the file");
    let default = std::fs::read_link(fleet.path("installs/default")).expect("the link");
    assert_eq!((last_good.trim(), default.to_str()), (NEW, Some(NEW)));
    assert!(fleet.journal().is_none());

    let said = fleet.enforce(&[]).exits(0);
    assert!(said.contains("nothing to do: everybody is on t3 0.0.33"), "{said}");
}

/// A build that passes the gate and breaks live: judged bad, and everybody is where they were.
fn is_rolled_back(mutation: &str) -> String {
    let fleet = fleet("");
    fleet.install_broken(NEW, mutation);
    for user in USERS {
        fleet.write_message(user, "before");
    }
    let said = fleet.enforce(&["--to", NEW]).exits(1);
    fleet.everybody_is_on(OLD);
    for user in USERS {
        assert!(fleet.has_message(user, "before"), "{user}: {said}");
        assert_eq!(fleet.world.level(user), 30);
    }
    assert!(fleet.journal().is_none() && fleet.freeze_file().exists());
    let again = fleet.enforce(&["--to", NEW]).exits(3);
    assert!(again.contains("frozen: 0.0.33 was rolled back at"), "{again}");
    std::fs::remove_file(fleet.freeze_file()).expect("thawed");
    said
}

#[test]
fn a_build_that_fails_from_the_third_login_on_is_rolled_back() {
    let said = is_rolled_back("fails-on-third-login");
    assert!(said.contains("t3 0.0.33 is bad: ann fails at exchange"), "{said}");
}

#[test]
fn a_build_that_fails_after_a_while_is_rolled_back() {
    let said = is_rolled_back("fails-later=1");
    assert!(said.contains("t3 0.0.33 is bad: ann fails at"), "{said}");
}

#[test]
fn what_was_written_on_the_bad_build_is_kept_and_shown() {
    let fleet = fleet("");
    fleet.install_broken(NEW, "fails-later=2");
    let mut enforcer =
        fleet.command(&["--to", NEW]).stdout(std::process::Stdio::piped()).spawn().expect("the program");
    wait_for("ann to be watched", || {
        let journal = fleet.journal()?;
        (journal["moves"][0]["step"] == "proven").then_some(())
    });
    fleet.write_message("ann", "on-the-new-build");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut enforcer.stdout.take().expect("a pipe"), &mut said).expect("text");
    assert_eq!(enforcer.wait().expect("an end").code(), Some(1), "{said}");
    fleet.everybody_is_on(OLD);
    assert!(!fleet.has_message("ann", "on-the-new-build"));
    let aside = fleet.aside("ann");
    assert_eq!(aside.len(), 1);
    assert!(
        has_message(&aside[0].join("state.sqlite"), "on-the-new-build"),
        "the newer database is kept whole"
    );
    assert!(said.contains("1 messages, 1 events written since the copy"), "{said}");
}

#[test]
fn who_is_busy_is_not_restarted_and_is_moved_once_idle_with_every_message() {
    let fleet = fleet("");
    fleet.busy("bob", true);
    fleet.write_message("bob", "before-the-backup");
    let started = fleet.started("bob");
    let said = fleet.enforce(&["--to", NEW]).exits(0);
    assert!(said.contains("bob stays: at work: 1 turns"), "{said}");
    assert_eq!((fleet.running("ann").as_deref(), fleet.running("bob").as_deref()), (Some(NEW), Some(OLD)));
    assert_eq!((fleet.started("bob"), fleet.linked("bob").as_str()), (started.clone(), OLD));

    // A crash brings back what ran, and touches nothing.
    fleet.kill("bob");
    fleet.start("bob");
    assert_eq!((fleet.running("bob").as_deref(), fleet.world.level("bob")), (Some(OLD), 30));
    fleet.write_message("bob", "after-the-backup");

    let said = fleet.enforce(&["--drain"]).exits(3);
    assert!(said.contains("bob stays: at work"), "{said}");
    fleet.busy("bob", false);
    fleet.enforce(&["--drain"]).exits(0);
    fleet.everybody_is_on(NEW);
    for id in ["before-the-backup", "after-the-backup"] {
        assert!(fleet.has_message("bob", id), "{id}");
    }
}

#[test]
fn who_is_excepted_stays_visibly_until_a_run_that_does_not_except_them() {
    let fleet = fleet("");
    let said = fleet.enforce(&["--to", NEW, "--except", "cid"]).exits(0);
    assert!(said.contains("cid stays: named with --except [excepted]"), "{said}");
    assert_eq!(fleet.running("cid").as_deref(), Some(OLD));
    let said = fleet.enforce(&["--drain"]).exits(0);
    assert!(said.contains("cid stays") && fleet.running("cid").as_deref() == Some(OLD), "{said}");
    fleet.stop("cid");
    let said = fleet.enforce(&["--to", NEW]).exits(0);
    assert!(said.contains("cid: on t3 0.0.33; it was stopped and stays so"), "{said}");
    assert_eq!((fleet.running("cid"), fleet.linked("cid").as_str()), (None, NEW));
    fleet.start("cid");
    fleet.everybody_is_on(NEW);
}

#[test]
fn of_two_enforcers_one_leaves_at_once() {
    let fleet = fleet("");
    let first = fleet.command(&["--to", NEW]).stdout(std::process::Stdio::null()).spawn();
    let mut first = first.expect("the program");
    wait_for("the first to be at work", || fleet.journal());
    let said = fleet.enforce(&["--to", NEW]).exits(3);
    assert!(said.contains("[held: another_at_work]"), "{said}");
    assert_eq!(first.wait().expect("an end").code(), Some(0));
    fleet.everybody_is_on(NEW);
}

#[test]
fn a_gate_that_says_no_or_nothing_changes_nothing() {
    for (gate, exit, word) in
        [("exit 1", 3, "[held: not_passed]"), ("exit 3", 3, "cannot tell"), ("exit 4", 4, "[error]")]
    {
        let fleet = Fleet::on(OLD, &["ann"], &format!("gate_command = [\"sh\", \"-c\", \"{gate}\"]\n"));
        let said = fleet.enforce(&["--to", NEW]).exits(exit);
        assert!(said.contains(word), "{said}");
        fleet.everybody_is_on(OLD);
        assert!(!fleet.path("installs").join(NEW).exists(), "{said}");
    }
}

#[test]
fn a_build_that_fails_for_one_users_data_only_is_rolled_back_for_all() {
    let fleet = fleet("");
    fleet.install_broken(NEW, "fails-for-one-user=/srv/of-cid");
    let folder = fleet.path("srv/of-cid");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut add = std::process::Command::new(fleet.world.t3(OLD));
    add.args(["project", "add"]).arg(&folder).arg("--base-dir").arg(fleet.world.base_dir("cid"));
    assert!(add.stdout(std::process::Stdio::null()).status().expect("t3").success());
    let said = fleet.enforce(&["--to", NEW]).exits(1);
    assert!(said.contains("ann: on t3 0.0.33") && said.contains("t3 0.0.33 is bad: cid fails at"), "{said}");
    assert!(said.contains("ann, bob, cid are where they were"), "{said}");
    fleet.everybody_is_on(OLD);
}

#[test]
fn a_build_that_fails_behind_the_dispatch_only_is_rolled_back() {
    let (port, operator) = (free_port(), free_port());
    let fleet = fleet("");
    let key = fleet.path("probe.key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").expect("a key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let fleet =
        fleet.configured(&format!("{}probe_key_file = \"{}\"\n", section(port, operator), key.display()));
    let text = std::fs::read_to_string(fleet.path("config.toml")).expect("the configuration");
    let text = text.replace("[probe]\n", &format!("[probe]\nfront = \"127.0.0.1:{port}\"\n"));
    std::fs::write(fleet.path("config.toml"), text).expect("written");
    let mut dispatch =
        fleet.world.command(&["dispatch"]).stderr(std::process::Stdio::null()).spawn().expect("it");
    wait_for("the dispatch", || {
        http(operator, "GET", "/-/healthy", &[]).ok().filter(|answer| answer.status == 200)
    });
    fleet.install_broken(NEW, "fails-behind-proxy");
    let said = fleet.enforce(&["--to", NEW]);
    dispatch.kill().expect("killed");
    dispatch.wait().expect("reaped");
    let said = said.exits(1);
    assert!(said.contains("t3 0.0.33 is bad: ann fails at front"), "{said}");
    fleet.everybody_is_on(OLD);
}

/// Kills the enforcer with SIGKILL as soon as the journal holds `sign`; answers whether it was still at work.
fn killed_at(fleet: &Fleet, sign: impl Fn(&serde_json::Value) -> bool) -> bool {
    let mut enforcer = fleet
        .command(&["--to", NEW])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program");
    wait_for("the step or the end", || {
        let there = fleet.journal().is_some_and(|journal| sign(&journal));
        (there || enforcer.try_wait().expect("a child").is_some()).then_some(())
    });
    enforcer.kill().expect("killed");
    enforcer.wait().expect("reaped").code().is_none()
}

/// Somebody has come as far as this step, or farther: the next one may follow within a millisecond.
fn at(steps: &'static [&'static str]) -> impl Fn(&serde_json::Value) -> bool {
    move |journal| {
        let there = |entry: &serde_json::Value| steps.iter().any(|step| entry["step"] == *step);
        journal["moves"].as_array().is_some_and(|moves| moves.iter().any(there))
    }
}

/// At each step of the way to a good build: killed there, the next run brings everybody to it.
#[test]
fn killed_on_the_way_forward_the_next_run_goes_on_to_the_end() {
    let fleet = Fleet::on(OLD, &["ann", "bob"], &format!("{PASSES}soak = \"1s\"\n"));
    fleet.write_message("ann", "before");
    let mut killed = 0;
    const WAY: &[&str] = &["stopping", "copied", "linked", "proven"];
    for step in 0..WAY.len() {
        killed += u32::from(killed_at(&fleet, at(&WAY[step..])));
    }
    killed += u32::from(killed_at(&fleet, |journal| journal["groups"] == 1));
    assert!(killed >= 3, "it was never hit in the middle: {killed}");
    fleet.enforce(&["--to", NEW]).exits(0);
    fleet.everybody_is_on(NEW);
    assert!(fleet.has_message("ann", "before") && fleet.journal().is_none());
    assert!(fleet.aside("ann").is_empty(), "nothing was put aside");
}

/// At each step of the way back from a bad build: killed there, the next run brings everybody back.
#[test]
fn killed_on_the_way_back_the_next_run_goes_on_to_the_end() {
    let fleet = Fleet::on(OLD, &["ann", "bob"], &format!("{PASSES}soak = \"2s\"\n"));
    fleet.install_broken(NEW, "fails-on-third-login=6");
    fleet.write_message("ann", "before");
    let mut killed = 0;
    const WAY: &[&str] = &["returning", "unlinked", "back"];
    for step in 0..2 {
        killed += u32::from(killed_at(&fleet, at(&WAY[step..])));
    }
    killed += u32::from(killed_at(&fleet, |journal| {
        journal["moves"]
            .as_array()
            .is_some_and(|moves| moves.iter().any(|entry| entry["restoring"].is_string()))
    }));
    assert!(killed >= 2, "it was never hit in the middle: {killed}");
    let said = fleet.enforce(&["--to", NEW]);
    assert!(said.exit == 1 || said.exit == 3, "{}", said.text);
    fleet.everybody_is_on(OLD);
    assert_eq!(fleet.world.level("ann"), 30);
    assert!(fleet.has_message("ann", "before") && fleet.journal().is_none() && fleet.freeze_file().exists());
}

#[test]
fn run_below_an_instance_it_refuses_and_prints_the_command_to_run_from_outside() {
    let fleet = Fleet::on(OLD, &["ann"], PASSES);
    // The instance is our shell's own process, as it is for an agent that a user's server has started.
    let script = fleet.path("agent");
    let (program, config) = (crate::support::world::PROGRAM, fleet.path("config.toml"));
    script_at(
        &script,
        &format!(
            "#!/bin/sh\nserver=$$\nsed -i \"s/\\\"pid\\\":[0-9]*/\\\"pid\\\":$server/\" \"$1\"\n\
             {program} --config {} enforce --to {NEW} --except ann\nexit $?\n",
            config.display()
        ),
    );
    let runtime = fleet.world.base_dir("ann").join("userdata/server-runtime.json");
    let before = std::fs::read_to_string(&runtime).expect("a running instance");
    let output = std::process::Command::new(&script).arg(&runtime).output().expect("the agent");
    std::fs::write(&runtime, before).expect("as it was");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("systemd-run --pipe t3-prober --config") && said.contains("[held: inside]"),
        "{said}"
    );
    fleet.everybody_is_on(OLD);
}

#[test]
fn every_end_is_in_the_metrics_in_the_history_and_on_the_page() {
    let fleet = fleet("");
    let serving = fleet.world.serve();
    fleet.install_broken(NEW, "fails-on-third-login");
    fleet.enforce(&["--to", NEW]).exits(1);
    serving.until_metric("t3_enforcer_runs_total{outcome=\"rolled_back\"}", |value| value == 1.0);
    serving.until_metric("t3_enforcer_frozen", |value| value == 1.0);
    std::fs::remove_file(fleet.freeze_file()).expect("thawed");
    fleet.busy("cid", true);
    fleet.enforce(&["--to", "0.0.26"]).exits(0);
    serving.until_metric("t3_enforcer_deferred_since_timestamp_seconds{user=\"cid\"}", |value| value > 1e9);
    serving.until_metric("t3_enforcer_frozen", |value| value == 0.0);
    let page = serving.page("/").body;
    assert!(page.contains("cid stays since") && page.contains("ann, bob run t3 0.0.26"), "{page}");
    serving.until_metric("t3_enforcer_runs_total{outcome=\"done\"}", |value| value == 1.0);
    wait_for("both ends in the history", || {
        let events = serving.history("/history/events?kind=upgrade");
        let end = |event: &serde_json::Value| format!("{} {}", event["subject"], event["outcome"]);
        let ends: Vec<_> = events.iter().map(end).collect();
        (ends == [r#""0.0.26" "done""#, r#""0.0.33" "rolled_back""#]).then_some(())
    });
}

/// A file system of a few pages; `None` where this account may not mount one.
struct Small(std::path::PathBuf);

impl Small {
    fn at(path: std::path::PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&path).expect("a directory");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"]).arg(&path);
        let mounted = mount.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then_some(Self(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_full_at_the_backup_ends_it_before_anything_was_changed() {
    let fleet = Fleet::on(OLD, &["ann"], PASSES);
    let Some(_small) = Small::at(fleet.path("backups")) else { return };
    let started = fleet.started("ann");
    let said = fleet.enforce(&["--to", NEW]).exits(4);
    assert!(said.contains("nothing was changed: no backup of ann") && said.contains("[no_space]"), "{said}");
    fleet.everybody_is_on(OLD);
    assert_eq!(fleet.started("ann"), started, "ann was not restarted");
    assert!(fleet.journal().is_none());
}

#[test]
fn after_the_outage_the_way_forward_is_taken_only_when_it_is_asked_for() {
    let fleet = fleet("");
    for user in USERS {
        fleet.write_message(user, "before");
        // A newer command mints on the database of a running older one: nobody can log in any more.
        fleet.world.foreign_mint(user, NEW);
    }
    let said = fleet.enforce(&["--to", NEW]).exits(3);
    assert!(said.contains("schema_ahead"), "{said}");
    assert!(USERS.iter().all(|user| fleet.running(user).as_deref() == Some(OLD)), "{said}");
    let said = fleet.enforce(&["--to", NEW, "--forward-fix"]).exits(0);
    fleet.everybody_is_on(NEW);
    assert!(said.contains("ann, bob, cid run t3 0.0.33"), "{said}");
    for user in USERS {
        assert!(fleet.has_message(user, "before"), "{user}");
    }
}
