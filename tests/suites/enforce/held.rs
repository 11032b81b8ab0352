//! Another process has a user's database open: nothing can be copied or put back, and nobody is left without t3 for it.

use std::process::Command;

use super::{NEW, OLD, PASSES};
use crate::support::fleet::Fleet;
use crate::support::held::Held;
use crate::support::world::wait_for;

/// The same level as `OLD`'s: its database is not changed.
const LIKE_OLD: &str = "0.0.25";

fn fleet(users: &[&str], soak: &str) -> Fleet {
    Fleet::on(OLD, users, &format!("{PASSES}soak = \"{soak}\"\n"))
        .changed("stop_timeout = \"20s\"", "stop_timeout = \"3s\"")
}

/// A process that has a user's database open and does nothing with it.
fn holder(fleet: &Fleet, user: &str) -> Held {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 9<\"$1\"; exec sleep 600", "sh"]).arg(fleet.world.database(user));
    let holder = Held(shell.spawn().expect("a shell"));
    let fd = format!("/proc/{}/fd/9", holder.0.id());
    wait_for("the database to be open", || std::fs::metadata(&fd).ok());
    holder
}

fn is_proven(fleet: &Fleet, user: &str) -> Option<()> {
    (fleet.step(user)? == "proven").then_some(())
}

#[test]
fn before_the_upgrade_that_user_stays_untouched_until_it_lets_go() {
    let fleet = fleet(&["ann", "bob"], "1s");
    let holder = holder(&fleet, "ann");
    let started = fleet.started("ann");
    let said = fleet.enforce(&["--to", NEW]).exits(0);
    assert!(
        said.contains("ann stays: process ") && said.contains(" (sleep) has the database open"),
        "{said}"
    );
    assert!(said.contains("[held]") && fleet.standing()["deferred"][0]["why"] == "held", "{said}");
    assert_eq!((fleet.running("bob").as_deref(), fleet.linked("ann").as_str()), (Some(NEW), OLD), "{said}");
    assert_eq!(fleet.started("ann"), started, "ann was not restarted");
    drop(holder);
    fleet.enforce(&["--drain"]).exits(0);
    fleet.everybody_is_on(NEW);
}

#[test]
fn while_they_are_stopped_that_user_runs_the_old_build_again_and_the_others_are_moved() {
    let fleet = fleet(&["ann", "bob"], "1s");
    std::fs::write(fleet.path("stop-takes"), "1").expect("written");
    let mut held = None;
    let stopping = || fleet.path("stopping").exists().then_some(());
    let said = fleet.disturbed(&["--to", NEW], stopping, |_| held = Some(holder(&fleet, "ann"))).exits(0);
    assert!(said.contains("ann stays: the instance has not stopped: process "), "{said}");
    assert!(said.contains("bob run t3 0.0.33"), "{said}");
    assert_eq!((fleet.running("ann").as_deref(), fleet.linked("ann").as_str()), (Some(OLD), OLD), "{said}");
    assert_eq!(fleet.running("bob").as_deref(), Some(NEW), "{said}");
    assert!(fleet.journal().is_none() && fleet.standing()["deferred"][0]["why"] == "held");
    drop(held);
    fleet.enforce(&["--drain"]).exits(0);
    fleet.everybody_is_on(NEW);
}

#[test]
fn a_run_that_carries_on_after_a_kill_says_so_as_well() {
    let fleet = fleet(&["ann", "bob"], "1s");
    std::fs::write(fleet.path("stop-takes"), "1").expect("written");
    let mut enforcer = Held(fleet.command(&["--to", NEW]).spawn().expect("the program"));
    wait_for("ann to be stopped", || fleet.path("stopping").exists().then_some(()));
    let held = holder(&fleet, "ann");
    enforcer.0.kill().expect("killed");
    let said = fleet.enforce(&[]).exits(0);
    assert!(said.contains("it is carried on") && said.contains("ann stays: "), "{said}");
    assert_eq!((fleet.running("ann").as_deref(), fleet.running("bob").as_deref()), (Some(OLD), Some(NEW)));
    assert!(fleet.journal().is_none() && fleet.standing()["deferred"][0]["why"] == "held", "{said}");
    drop(held);
    fleet.enforce(&["--drain"]).exits(0);
    fleet.everybody_is_on(NEW);
}

#[test]
fn on_the_way_back_the_new_build_runs_on_its_own_database_until_it_lets_go() {
    let fleet = fleet(&["ann", "bob"], "4s");
    fleet.write_message("ann", "before");
    fleet.install_broken(NEW, "fails-for-one-user=/srv/of-bob");
    fleet.add_project("bob", OLD, "srv/of-bob");
    let mut held = None;
    let said = fleet
        .disturbed(&["--to", NEW], || is_proven(&fleet, "ann"), |_| held = Some(holder(&fleet, "ann")))
        .exits(6);
    assert!(
        said.contains("not everybody could be brought back: ann: the instance has not stopped"),
        "{said}"
    );
    assert!(said.contains("t3 0.0.33 runs meanwhile"), "{said}");
    assert_eq!((fleet.running("ann").as_deref(), fleet.linked("ann").as_str()), (Some(NEW), NEW), "{said}");
    assert_eq!((fleet.running("bob").as_deref(), fleet.linked("bob").as_str()), (Some(OLD), OLD), "{said}");
    drop(held);
    fleet.enforce(&[]).exits(1);
    fleet.everybody_is_on(OLD);
    assert!(fleet.has_message("ann", "before") && fleet.journal().is_none());
}

#[test]
fn on_the_way_back_an_unchanged_database_is_in_nobodys_way() {
    let fleet = fleet(&["ann"], "30s");
    fleet.install_broken(LIKE_OLD, "fails-later=3");
    let mut held = None;
    let said = fleet
        .disturbed(&["--to", LIKE_OLD], || is_proven(&fleet, "ann"), |_| held = Some(holder(&fleet, "ann")))
        .exits(1);
    assert!(said.contains("ann: back on t3 0.0.24; the database was not changed"), "{said}");
    fleet.everybody_is_on(OLD);
    assert!(fleet.journal().is_none(), "{said}");
}
