//! Restores where no command stops or starts an instance: whoever gave the command is asked to, and waited for.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Stdio};

use nix::unistd::Pid;

use super::{add_project, events, ok, run};
use crate::support::held::Held;
use crate::support::world::World;

/// A restore under way, of ann, who has one event more than her snapshot.
struct Restore {
    child: Held,
    lines: BufReader<ChildStdout>,
    said: String,
}

fn world() -> World {
    let world = World::with(&[("ann", "0.0.24")]);
    let backups = world.path("backups");
    let world = world.configured(&format!("[backup]\ndir = \"{}\"\n", backups.display()));
    ok(&world, &["backup", "take", "ann"]);
    add_project(&world, "ann");
    world
}

impl Restore {
    fn begin(world: &World) -> Self {
        let mut command = world.command(&["backup", "restore", "ann", "--yes"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program");
        let lines = BufReader::new(child.stdout.take().expect("what it says"));
        Self { child: Held(child), lines, said: String::new() }
    }

    /// Reads on until a line says this.
    fn until(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            let length = self.lines.read_line(&mut line).expect("text");
            assert!(length > 0, "it ended without '{wanted}': {}", self.said);
            self.said.push_str(&line);
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.0.id() as i32)
    }

    fn end(mut self) -> Option<i32> {
        self.child.0.wait().expect("its end").code()
    }
}

#[test]
fn an_operator_who_is_asked_stops_and_starts_the_instance_and_the_login_is_proven() {
    let mut world = world();
    let now = events(&world, "ann");
    let mut restore = Restore::begin(&world);
    restore.until("wait until you have stopped the instance");
    restore.until("ann: stop the instance now, there is no `[backup] stop_command`: port ");
    assert_eq!(events(&world, "ann"), now, "nothing is done while it runs");
    world.kill("ann");
    restore.until("ann: start the instance now, there is no `[backup] start_command`");
    world.start("ann", "0.0.24");
    restore.until("ann: restored; somebody logged in");
    assert_eq!(restore.end(), Some(0));
    assert!(events(&world, "ann") < now);
}

#[test]
fn where_nobody_can_log_in_the_operator_is_asked_to_stop_it_again_and_has_the_former_state() {
    let mut world = world();
    let now = events(&world, "ann");
    world.fault("ann", "session-false");
    let mut restore = Restore::begin(&world);
    restore.until("ann: stop the instance now");
    world.kill("ann");
    restore.until("ann: start the instance now");
    world.start("ann", "0.0.24");
    restore.until("ann: stop the instance now");
    world.kill("ann");
    restore.until("ann: start the instance again");
    restore.until("not restored: prove: ");
    assert!(restore.said.contains("the former state is back in its place; what ran meanwhile lies in "));
    assert_eq!(restore.end(), Some(1));
    assert_eq!(events(&world, "ann"), now);
    world.mend("ann", "session-false");
    world.start("ann", "0.0.24");
    assert_eq!(world.probe("ann").exit, 0);
}

#[test]
fn a_second_restore_waits_for_its_turn_and_an_operator_who_gives_up_has_the_former_state() {
    let mut world = world();
    let now = events(&world, "ann");
    let mut restore = Restore::begin(&world);
    restore.until("ann: stop the instance now");
    world.kill("ann");
    restore.until("ann: start the instance now");
    for further in [&["--yes"][..], &[]] {
        let said = run(&world, &[&["backup", "restore", "ann"], further].concat());
        assert!(said.exit == 1 && said.text.contains("another restore is at work"), "{}", said.text);
    }
    assert!(events(&world, "ann") < now, "the snapshot is in its place still");
    nix::sys::signal::kill(restore.pid(), nix::sys::signal::Signal::SIGINT).expect("told to stop");
    restore.until("ann: start the instance again");
    restore.until("not restored: start: it was given up; the former state is back in its place");
    assert_eq!(restore.end(), Some(1));
    assert_eq!(events(&world, "ann"), now);
}
