//! kill -9 at every write of the journal, once right before and once right after it: the next run brings everything to
//! the same end. The steps are the journal's own words, so that none can be left out.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::{NEW, OLD, PASSES};
use crate::support::fleet::Fleet;
use crate::support::tools;

/// More writes than a rollout of one user has.
const MANY: u32 = 40;

/// The words of `MoveStep`, in their order.
fn steps() -> Vec<String> {
    const SOURCE: &str = include_str!("../../../src/outcome/enforce.rs");
    let (_, rest) = SOURCE.split_once("pub enum MoveStep {").expect("the steps");
    let (body, _) = rest.split_once('}').expect("their end");
    let words = body.lines().filter(|line| !line.trim().starts_with("///"));
    words.filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect()
}

/// The moment at which the enforcer dies.
#[derive(Clone, Copy)]
enum Moment {
    /// The change is about to be written: everything before it was done.
    Before,
    /// The change is on disk, and nothing has followed from it.
    After,
}

/// Runs the enforcer until the n-th write of its journal; `None` where it came to its end before, else what the journal
/// says of ann.
fn dies(fleet: &Fleet, to: &str, moment: Moment, n: u32) -> Option<String> {
    let dir = fleet.path("state/enforce");
    // The journal is renamed into its place, and then its directory is synced.
    let (calls, path) = match moment {
        Moment::Before => ("/^rename", dir.join("journal.json")),
        Moment::After => ("fsync", dir),
    };
    let mut strace = Command::new("strace");
    // Its own thread alone: whoever is started by it lives on, as after a real kill.
    strace.args(["-qq", "-o", "/dev/null", "-P"]).arg(path).arg("-e").arg(format!("trace={calls}"));
    strace.arg("-e").arg(format!("inject={calls}:signal=KILL:when={n}"));
    let enforcer = fleet.command(&["--to", to]);
    strace.arg(enforcer.get_program()).args(enforcer.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
    let ended = strace.stderr(Stdio::null()).status().expect("strace");
    if ended.code().is_some() {
        return None;
    }
    let journal = fleet.journal().unwrap_or_default();
    Some(journal["moves"][0]["step"].as_str().unwrap_or("none").to_owned())
}

#[test]
fn on_the_way_forward() {
    if tools::find("strace").is_none() {
        return;
    }
    let fleet = Fleet::on(NEW, &["ann"], &format!("{PASSES}soak = \"200ms\"\n"));
    fleet.write_message("ann", "before");
    let rows = fleet.rows("ann");
    let mut died_at = BTreeSet::new();
    let mut build = 0;
    for moment in [Moment::Before, Moment::After] {
        for n in 1.. {
            assert!(n < MANY, "it writes without an end");
            build += 1;
            let to = format!("0.0.34-nightly.{build}");
            fleet.world.install(&to);
            let step = dies(&fleet, &to, moment, n);
            // Who was cut off in the middle is served again at the latest by the next run.
            fleet.enforce(&["--to", &to]).exits(0);
            fleet.everybody_is_on(&to);
            assert!(fleet.journal().is_none() && !fleet.freeze_file().exists(), "{step:?}");
            assert!(fleet.aside("ann").is_empty(), "{step:?}: nothing was put aside");
            let Some(step) = step else { break };
            died_at.insert(step);
        }
    }
    assert_eq!(fleet.rows("ann"), rows);
    let steps = steps();
    let forward = steps.iter().take_while(|step| *step != "returning");
    for step in forward {
        assert!(died_at.contains(step), "it never died at '{step}': {died_at:?}");
    }
}

#[test]
fn on_the_way_back() {
    if tools::find("strace").is_none() {
        return;
    }
    let fleet = Fleet::on(OLD, &["ann"], &format!("{PASSES}soak = \"10s\"\n"));
    // The proof is the first login; the build breaks at once after it.
    fleet.install_broken(NEW, "fails-on-third-login=2");
    fleet.write_message("ann", "before");
    let rows = fleet.rows("ann");
    let mut died_at = BTreeSet::new();
    for moment in [Moment::Before, Moment::After] {
        // The way forward has a test of its own: five writes, and after each of those that say what it is at the directory
        // is synced as well.
        let first = match moment {
            Moment::Before => 6,
            Moment::After => 11,
        };
        for n in first.. {
            assert!(n < MANY, "it writes without an end");
            let step = dies(&fleet, NEW, moment, n);
            let next = fleet.enforce(&["--to", NEW]);
            // Where the journal was closed already there is nothing left to do, and a freeze.
            assert!(next.exit == 1 || next.exit == 3, "{step:?}: {}", next.text);
            fleet.everybody_is_on(OLD);
            assert_eq!(fleet.world.level("ann"), 30, "{step:?}: {}", next.text);
            assert_eq!(fleet.rows("ann"), rows, "{step:?}: {}", next.text);
            assert!(fleet.journal().is_none(), "{step:?}: {}", next.text);
            std::fs::remove_file(fleet.freeze_file()).expect("it is frozen");
            let Some(step) = step else { break };
            died_at.insert(step);
        }
    }
    let steps = steps();
    let back = steps.iter().skip_while(|step| *step != "returning");
    for step in back {
        assert!(died_at.contains(step), "it never died at '{step}': {died_at:?}");
    }
}

#[test]
fn the_steps_are_those_of_the_journal() {
    let steps = steps();
    assert_eq!(steps.first().map(String::as_str), Some("stopping"));
    assert!(steps.iter().any(|step| step == "returning") && steps.len() >= 7, "{steps:?}");
}
