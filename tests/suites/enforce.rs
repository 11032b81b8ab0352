//! The enforcer over simulated users, with the real program: a good build reaches all, a bad one nobody for long.

use crate::support::fleet::{Fleet, has_message};
use crate::support::world::wait_for;

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
