//! A disk that is full at the wrong moment: whatever was being done is not done, and nothing else has changed.

use std::fs;
use std::path::Path;

use super::{NEW, OLD, PASSES};
use crate::support::disk::Disk;
use crate::support::fleet::Fleet;
use crate::support::tools;
use crate::support::world::wait_for;

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
    let disk = Disk::under(fleet.path("installs"), "256k");
    disk.fill();
    let (started, before) = (fleet.started("ann"), names(disk.path()));
    let said = fleet.enforce(&["--to", NEW]).exits(4);
    assert!(said.contains("[no_space]"), "{said}");
    assert_eq!((fleet.started("ann"), names(disk.path())), (started, before), "{said}");
    assert!(fleet.journal().is_none());
    fleet.everybody_is_on(OLD);
    disk.empty();
    fleet.enforce(&["--to", NEW]).exits(0);
    fleet.everybody_is_on(NEW);
}

#[test]
fn full_at_the_backup_nobody_was_touched() {
    if !tools::root() {
        return;
    }
    let fleet = Fleet::on(OLD, &["ann"], PASSES);
    let _disk = Disk::under(fleet.path("backups"), "64k");
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
    let disk = Disk::under(fleet.world.base_dir("ann").join("userdata"), "4m");
    // What runs on it is stopped before it goes.
    let desk = (fleet, disk);
    let (fleet, disk) = &desk;
    fleet.start("ann");
    let started = fleet.started("ann");
    disk.fill();
    let said = fleet.enforce(&["--to", NEW]);
    assert!(said.exit == 3 || said.exit == 4, "{}", said.text);
    assert_eq!((fleet.started("ann"), fleet.linked("ann").as_str()), (started, OLD), "{}", said.text);
    disk.empty();
    fleet.everybody_is_on(OLD);
}

#[test]
fn full_at_the_restore_the_new_build_runs_on_its_own_database_until_there_is_room() {
    if !tools::root() {
        return;
    }
    let fleet = Fleet::on(OLD, &["ann"], &format!("{PASSES}soak = \"30s\"\n"));
    fleet.stop("ann");
    let disk = Disk::under(fleet.world.base_dir("ann").join("userdata"), "8m");
    let desk = (fleet, disk);
    let (fleet, disk) = &desk;
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
        disk.fill();
        run.join().expect("a run")
    });
    let said = said.exits(6);
    assert!(said.contains("not everybody could be brought back: ann: "), "{said}");
    assert_eq!((fleet.linked("ann").as_str(), fleet.world.level("ann")), (NEW, 40), "{said}");
    assert!(fleet.journal().is_some(), "it is not over");
    assert!(fleet.aside("ann").is_empty(), "nothing was put aside: {said}");
    disk.empty();
    let said = fleet.enforce(&[]).exits(1);
    assert!(said.contains("an earlier run was going back; it is carried on"), "{said}");
    fleet.everybody_is_on(OLD);
    assert_eq!((fleet.world.level("ann"), fleet.rows("ann")), (30, rows), "{said}");
    assert!(fleet.journal().is_none() && fleet.has_message("ann", "before"));
}
