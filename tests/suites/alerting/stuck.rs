//! Upgrades that got stuck: begun and killed, forgotten for days, not to be decided, and one that nobody could be brought
//! back from.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::control_room::{ControlRoom, Tools};
use super::keep_state_private;
use super::upkeep::each_text_leads_to_its_cause;
use crate::support::fleet::{Fleet, script_at};
use crate::support::held::Held;
use crate::support::world::wait_for;

/// What waits for hours or days is seen after this.
const LONGEST: Duration = Duration::from_secs(8);

/// The alert, and what the command that its text names has to say.
const STUCK: &[(&str, &str, &str)] = &[
    ("", "T3EnforcerNotCompleted", ""),
    ("", "T3RolloutUnfinished", ""),
    ("", "T3VerdictUndecided", "no_space"),
    ("", "T3VersionDrift", "0.0.29"),
    ("bob", "T3UserDeferred", "handshake"),
    ("bob", "T3UserLeftBehind", "handshake"),
];

const LOST: (&str, &str, &str) = ("", "T3RollbackFailed", "auth_store");

pub fn live() -> impl Iterator<Item = &'static str> {
    STUCK.iter().chain([&LOST]).map(|(_, alert, _)| *alert)
}

fn fleet() -> Fleet {
    let fleet = Fleet::on("0.0.29", &["ann", "bob"], "gate_command = [\"true\"]\nsoak = \"1s\"\n");
    let asked = format!("cat {} # {{tag}}", fleet.path("tag").display());
    let follow =
        format!("[gate.track]\ntag = \"nightly\"\ncommand = [\"sh\", \"-c\", {asked:?}]\nevery = \"1s\"\n");
    let (none, default) = ("installs/none/bin/t3", "installs/default/bin/t3");
    fleet
        .changed(none, default)
        .changed("[backup]\n", "[backup]\ninterval = \"0s\"\n")
        .changed("[gate]\n", "[gate]\nkeep_free_mib = 1099511627776\n")
        .configured(&format!("{follow}[pins]\nversion = \"0.0.29\"\n"))
}

/// As if it had happened days earlier: what the enforcer has written about itself.
fn days_ago(fleet: &Fleet, ended: u64, deferred: u64) {
    let path = fleet.path("state/enforce/standing.json");
    let mut standing: Value = serde_json::from_slice(&fs::read(&path).expect("it has run")).expect("JSON");
    let day = |days: u64| {
        let then = SystemTime::now() - Duration::from_secs(days * 86_400);
        Value::from(humantime::format_rfc3339_seconds(then).to_string())
    };
    standing["last"]["at"] = day(ended);
    standing["deferred"][0]["since"] = day(deferred);
    fs::write(path, standing.to_string()).expect("written");
}

#[test]
fn upgrades_that_are_stuck_for_days_end_in_their_alerts() {
    let Some(tools) = Tools::find() else { return };
    let fleet = fleet();
    let world = &fleet.world;
    keep_state_private(world);
    let serving = world.serve();
    for user in ["ann", "bob"] {
        serving.until_ok(user, "handshake", true);
    }
    let room = ControlRoom::with(world, &serving, &[], &tools, Some(LONGEST));
    room.stays_silent(20);

    fs::write(fleet.path("tag"), "0.0.35\n").expect("a build is published that there is no room to judge");
    room.until("", "T3VerdictUndecided");
    // Bob is at work, and is left behind; then the next build is begun and the enforcer killed in the middle.
    fleet.busy("bob", true);
    fleet.enforce(&["--to", "0.0.33"]).exits(0);
    let fleet = fleet.changed("soak = \"1s\"", "soak = \"10m\"");
    let world = &fleet.world;
    let enforcer = fleet.command(&["--to", "0.0.34"]).stdout(Stdio::null()).spawn();
    let enforcer = Held(enforcer.expect("the program"));
    wait_for("ann to be on the new build", || {
        (fleet.journal()?["moves"][0]["step"] == "proven").then_some(())
    });
    drop(enforcer);
    days_ago(&fleet, 3, 4);
    for (user, alert, _) in STUCK {
        room.until(user, alert);
    }
    room.evaluations(10);
    let expected: Vec<_> = {
        let of = |(user, alert, _): &(&str, &str, &str)| ((*user).to_owned(), (*alert).to_owned());
        STUCK.iter().map(of).collect()
    };
    // Whether ann is told of depends on the pause that the killed enforcer has left her.
    let of_ann = |(user, alert): &(String, String)| user == "ann" && alert == "T3UserLeftBehind";
    let fired: Vec<_> = room.fired().into_iter().filter(|one| !of_ann(one)).collect();
    assert_eq!(fired, expected, "{}", world.log());
    each_text_leads_to_its_cause(world, &room, STUCK);

    // The next run goes on with it, finds it bad, and can stop nobody any more.
    world.fault("ann", "exchange-500");
    script_at(&fleet.path("supervisor"), "#!/bin/sh\necho 'no such unit' >&2\nexit 1\n");
    let said = fleet.enforce(&[]).exits(6);
    assert!(said.contains("not everybody could be brought back"), "{said}");
    let (user, alert, _) = LOST;
    room.until(user, alert);
    each_text_leads_to_its_cause(world, &room, &[LOST]);
}
