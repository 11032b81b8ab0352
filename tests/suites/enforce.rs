//! The enforcer over simulated users, with the real program: a good build reaches all, a bad one nobody for long.

use crate::support::fleet::{Fleet, script_at};
use crate::support::world::wait_for;

mod accounts;
mod broken;
mod disk;
mod gate;
mod held;
mod killed;
mod logins;
mod offline;
mod silent;

const OLD: &str = "0.0.24";
const NEW: &str = "0.0.33";
const USERS: [&str; 3] = ["ann", "bob", "cid"];
/// The gate has a suite of its own, and `gate` asks both together; what is asked here is what happens after it.
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
    assert!(said.contains("4s of watching and at most 2m for stops and starts, 2m 4s in all"), "{said}");
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

    let since = || fleet.standing()["deferred"][0]["since"].clone();
    let first = since();
    assert!(first.is_string(), "{}", fleet.standing());
    let said = fleet.enforce(&["--drain"]).exits(3);
    assert!(said.contains("bob stays: at work") && said.contains("[waiting: nobody_idle]"), "{said}");
    assert_eq!(since(), first, "however often nobody is idle");
    let waits = || (fleet.standing()["at_work"]["stage"] == "waiting").then_some(());
    fleet.disturbed(&["--drain", "--wait", "5m"], waits, |_| fleet.busy("bob", false)).exits(0);
    assert!(fleet.standing()["deferred"].as_array().is_some_and(Vec::is_empty), "{}", fleet.standing());
    fleet.everybody_is_on(NEW);
    for id in ["before-the-backup", "after-the-backup"] {
        assert!(fleet.has_message("bob", id), "{id}");
    }
}

#[test]
fn who_stays_and_is_killed_during_a_soak_comes_back_on_what_they_ran() {
    let fleet = fleet("").changed("soak = \"2s\"", "soak = \"10s\"");
    fleet.busy("bob", true);
    fleet.write_message("bob", "before");
    let rows = fleet.rows("bob");
    let enforcer = fleet.command(&["--to", NEW]).stdout(std::process::Stdio::piped()).spawn();
    let enforcer = enforcer.expect("the program");
    wait_for("ann to be watched", || (fleet.journal()?["moves"][0]["step"] == "proven").then_some(()));
    fleet.kill("bob");
    assert_eq!(fleet.running("bob"), None);
    fleet.start("bob");
    assert!(fleet.journal().is_some_and(|journal| journal["groups"] == 0), "ann is watched still");
    let is_as_before = || {
        let found = (fleet.running("bob"), fleet.linked("bob"), fleet.world.level("bob"), fleet.rows("bob"));
        assert_eq!(found, (Some(OLD.to_owned()), OLD.to_owned(), 30, rows.clone()));
    };
    is_as_before();
    let ended = enforcer.wait_with_output().expect("an end");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!((fleet.running("ann").as_deref(), fleet.running("cid").as_deref()), (Some(NEW), Some(NEW)));
    is_as_before();
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
fn of_two_enforcers_one_leaves_at_once_and_says_so() {
    let fleet = fleet("");
    let serving = fleet.world.serve();
    let first = fleet.command(&["--to", NEW]).stdout(std::process::Stdio::null()).spawn();
    let mut first = first.expect("the program");
    wait_for("the first to be at work", || fleet.journal());
    let said = fleet.enforce(&["--to", NEW]).exits(3);
    assert!(said.contains("[held: another_at_work]"), "{said}");
    serving.until_metric("t3_enforcer_runs_total{outcome=\"held\"}", |value| value == 1.0);
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
    assert!(page.contains("cid has stayed for") && page.contains("ann, bob run t3 0.0.26"), "{page}");
    serving.until_metric("t3_enforcer_runs_total{outcome=\"done\"}", |value| value == 1.0);
    wait_for("both ends in the history", || {
        let events = serving.history("/history/events?kind=upgrade");
        let end = |event: &serde_json::Value| format!("{} {}", event["subject"], event["outcome"]);
        let ends: Vec<_> = events.iter().map(end).collect();
        (ends == [r#""0.0.26" "done""#, r#""0.0.33" "rolled_back""#]).then_some(())
    });
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
