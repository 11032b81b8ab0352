//! Restores that are killed half-way, and what the next run makes of them.

use super::{Supervised, add_project, events, messages, ok, run, world};
use crate::support::world::{World, replace, wait_for};

/// Replaces one of the two commands by one that kills the program that runs it.
fn deadly(world: &World, key: &str) -> String {
    instead(world, key, "kill -9 $PPID")
}

/// Replaces one of the two commands by another one; answers the configuration as it was.
fn instead(world: &World, key: &str, script: &str) -> String {
    let path = world.path("config.toml");
    let config = std::fs::read_to_string(&path).expect("the configuration");
    let deadly = |line: &str| match line.starts_with(key) {
        true => format!("{key} = [\"sh\", \"-c\", \"{script}\"]"),
        false => line.to_owned(),
    };
    replace(&path, &config.lines().map(|line| deadly(line) + "\n").collect::<String>());
    config
}

#[test]
fn a_restore_that_is_killed_before_anything_was_moved_is_done_by_the_next_run() {
    let Some(world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    let config = deadly(&world, "stop_command");
    assert_eq!(run(&world, &["backup", "restore", "ann", "--yes"]).exit, -1, "killed");
    replace(&world.path("config.toml"), &config);
    assert!(ok(&world, &["backup", "list", "ann"]).contains("a restore was cut off at stop"));
    assert_eq!(world.probe("ann").exit, 0, "the instance was never stopped");
    let _supervised = Supervised(&world, "ann");
    let said = ok(&world, &["backup", "restore", "ann", "--yes"]);
    assert!(said.contains("cut off at stop") && said.contains("restored; somebody logged in"), "{said}");
    assert_eq!(world.probe("ann").exit, 0);
    assert!(!ok(&world, &["backup", "list", "ann"]).contains("cut off"));
}

#[test]
fn a_restore_that_is_killed_with_the_snapshot_in_place_is_undone_before_the_next_one() {
    let Some(world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    add_project(&world, "ann");
    let now = events(&world, "ann");
    let config = deadly(&world, "start_command");
    assert_eq!(run(&world, &["backup", "restore", "ann", "--yes"]).exit, -1, "killed");
    replace(&world.path("config.toml"), &config);
    assert_eq!(events(&world, "ann"), 193, "the snapshot is in place");

    let said = ok(&world, &["backup", "restore", "ann"]);
    let known = said.contains("was cut off at start ") && said.contains(" ago; it is undone first");
    assert!(known && said.contains("dry run"), "{said}");
    let _supervised = Supervised(&world, "ann");
    let said = ok(&world, &["backup", "restore", "ann", "--yes"]);
    assert!(said.contains("the former state is back in its place"), "{said}");
    assert!(said.contains("restored; somebody logged in"), "{said}");
    let aside = said.lines().find_map(|line| line.split_once("the former state lies in ")).expect("aside").1;
    let former = std::path::Path::new(aside).join("state.sqlite");
    assert_eq!(
        super::number(&former, "SELECT count(*) FROM orchestration_events"),
        now,
        "it was brought back"
    );
    assert_eq!((messages(&world, "ann"), events(&world, "ann")), (54, 193));
    wait_for("somebody to log in", || (world.probe("ann").exit == 0).then_some(()));
}

#[test]
fn whoever_gives_up_while_a_command_stops_the_instance_has_it_started_again_as_it_was() {
    let Some(world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    add_project(&world, "ann");
    let now = events(&world, "ann");
    let stop = format!("kill -INT $PPID; exec {} stop ann", world.path("supervisor").display());
    instead(&world, "stop_command", &stop);
    let _supervised = Supervised(&world, "ann");
    let said = run(&world, &["backup", "restore", "ann", "--yes"]);
    assert_eq!(said.exit, 1, "{}", said.text);
    let wanted = "not restored: stop: it was given up; the former state is back in its place";
    assert!(said.text.contains("told to stop") && said.text.contains(wanted), "{}", said.text);
    assert_eq!((world.probe("ann").exit, events(&world, "ann")), (0, now));
}
