//! A disk that is full at the wrong moment: whatever was being done is not done, and nothing else has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{NEW, OLD, PASSES};
use crate::support::fleet::Fleet;
use crate::support::tools;
use crate::support::world::wait_for;

/// A small file system of its own.
struct Small(PathBuf);

impl Small {
    /// Holds what was in the directory before.
    fn under(path: PathBuf, size: &str) -> Self {
        let kept = path.with_extension("kept");
        if path.exists() {
            fs::rename(&path, &kept).expect("renamed");
        }
        fs::create_dir_all(&path).expect("a directory");
        let options = format!("size={size},mode=700");
        done(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path));
        let small = Self(path);
        if kept.exists() {
            done(Command::new("cp").arg("-a").arg(kept.join(".")).arg(&small.0));
        }
        small
    }

    /// Takes what is free.
    fn fill(&self) {
        let mut fill = Command::new("dd");
        fill.arg("if=/dev/zero").arg(format!("of={}", self.filler().display())).args(["bs=4k"]);
        // It ends where the disk does.
        let filled = fill.stderr(Stdio::null()).status().expect("dd");
        assert!(!filled.success(), "the disk has no end");
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).expect("removed");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn done(command: &mut Command) {
    assert!(command.status().expect("it runs").success(), "{command:?}");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn full_at_the_install_nobody_was_touched_and_nothing_is_left_of_it() {
    if !tools::root() {
        return;
    }
    let fleet = Fleet::on(OLD, &["ann"], &format!("{PASSES}soak = \"1s\"\n"));
    let small = Small::under(fleet.path("installs"), "256k");
    small.fill();
    let (started, before) = (fleet.started("ann"), names(&small.0));
    let said = fleet.enforce(&["--to", NEW]).exits(4);
    assert!(said.contains("[no_space]"), "{said}");
    assert_eq!((fleet.started("ann"), names(&small.0)), (started, before), "{said}");
    assert!(fleet.journal().is_none());
    fleet.everybody_is_on(OLD);
    small.empty();
    fleet.enforce(&["--to", NEW]).exits(0);
    fleet.everybody_is_on(NEW);
}

#[test]
fn full_at_the_backup_nobody_was_touched() {
    if !tools::root() {
        return;
    }
    let fleet = Fleet::on(OLD, &["ann"], PASSES);
    let _small = Small::under(fleet.path("backups"), "64k");
    let started = fleet.started("ann");
    let said = fleet.enforce(&["--to", NEW]).exits(4);
    assert!(said.contains("nothing was changed: no backup of ann") && said.contains("[no_space]"), "{said}");
    fleet.everybody_is_on(OLD);
    assert_eq!(fleet.started("ann"), started, "ann was not restarted");
    assert!(fleet.journal().is_none());
}

#[test]
fn without_room_for_the_way_back_nobody_is_moved() {
    if !tools::root() {
        return;
    }
    let fleet = Fleet::on(OLD, &["ann"], PASSES);
    fleet.stop("ann");
    let small = Small::under(fleet.world.base_dir("ann").join("userdata"), "4m");
    // What runs on it is stopped before it goes.
    let desk = (fleet, small);
    let (fleet, small) = &desk;
    fleet.start("ann");
    let started = fleet.started("ann");
    small.fill();
    let said = fleet.enforce(&["--to", NEW]);
    assert!(said.exit == 3 || said.exit == 4, "{}", said.text);
    assert_eq!((fleet.started("ann"), fleet.linked("ann").as_str()), (started, OLD), "{}", said.text);
    small.empty();
    fleet.everybody_is_on(OLD);
}

#[test]
fn full_at_the_restore_the_new_build_runs_on_its_own_database_until_there_is_room() {
    if !tools::root() {
        return;
    }
    let fleet = Fleet::on(OLD, &["ann"], &format!("{PASSES}soak = \"30s\"\n"));
    fleet.stop("ann");
    let small = Small::under(fleet.world.base_dir("ann").join("userdata"), "8m");
    let desk = (fleet, small);
    let (fleet, small) = &desk;
    fleet.start("ann");
    fleet.write_message("ann", "before");
    let rows = fleet.rows("ann");
    fleet.install_broken(NEW, "fails-later=8");
    let said = std::thread::scope(|scope| {
        let run = scope.spawn(|| fleet.enforce(&["--to", NEW]));
        wait_for("ann to be watched, or the end", || {
            let watched = fleet.journal().is_some_and(|journal| journal["moves"][0]["step"] == "proven");
            (watched || run.is_finished()).then_some(())
        });
        small.fill();
        run.join().expect("a run")
    });
    let said = said.exits(6);
    assert!(said.contains("not everybody could be brought back: ann: "), "{said}");
    assert_eq!((fleet.linked("ann").as_str(), fleet.world.level("ann")), (NEW, 40), "{said}");
    assert!(fleet.journal().is_some(), "it is not over");
    assert!(fleet.aside("ann").is_empty(), "nothing was put aside: {said}");
    small.empty();
    let said = fleet.enforce(&[]).exits(1);
    assert!(said.contains("an earlier run was going back; it is carried on"), "{said}");
    fleet.everybody_is_on(OLD);
    assert_eq!((fleet.world.level("ann"), fleet.rows("ann")), (30, rows), "{said}");
    assert!(fleet.journal().is_none() && fleet.has_message("ann", "before"));
}
