//! The real gate and the real enforcer together: no verdict is written by anybody else.

use std::path::Path;

use super::{NEW, OLD, USERS};
use crate::support::fleet::{Fleet, Said};
use crate::support::tools;
use crate::support::world::PROGRAM;

/// Users whose builds are judged in boxes; `None` where no box can be made.
fn fleet(more: &str) -> Option<Fleet> {
    tools::find("bwrap")?;
    let expose = Path::new(PROGRAM).parent().expect("a directory");
    let gate = format!("hold = \"500ms\"\nkeep_free_mib = 1\nexpose = [{expose:?}]\nrequire_box = true\n");
    let fleet = Fleet::on(OLD, &USERS, &format!("soak = \"2s\"\n{more}"));
    Some(fleet.changed("require_box = false\n", &gate))
}

fn in_order(said: &str, words: &[&str]) {
    let mut rest = said;
    for word in words {
        let (_, after) = rest.split_once(word).unwrap_or_else(|| panic!("'{word}' in its place in {said}"));
        rest = after;
    }
}

fn backed_up(fleet: &Fleet) {
    let output = fleet.world.command(&["backup", "due"]).output().expect("the program");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_version_goes_from_its_tag_through_the_gate_to_a_canary_and_to_all() {
    let Some(fleet) =
        fleet(&format!("track = \"nightly\"\ntrack_command = [\"sh\", \"-c\", \"echo {NEW} # {{tag}}\"]\n"))
    else {
        return;
    };
    for user in USERS {
        fleet.write_message(user, "before");
    }
    // This build changes the databases, so that going back from it needs a copy of each.
    let said = fleet.enforce(&[]).exits(3);
    assert!(said.contains("no_way_back") && said.contains("[held: not_passed]"), "{said}");
    fleet.everybody_is_on(OLD);
    backed_up(&fleet);
    let rows: Vec<_> = USERS.iter().map(|user| fleet.rows(user)).collect();
    let said = fleet.enforce(&[]).exits(0);
    in_order(
        &said,
        &[
            "the gate rehearses t3 0.0.33 beside t3 0.0.24",
            "ann: backed up as ",
            "ann: on t3 0.0.33",
            "watching ann on",
            "bob: on t3 0.0.33",
            "watching ann, bob on",
            "cid: on t3 0.0.33",
            "watching ann, bob, cid on",
            "ann, bob, cid run t3 0.0.33",
        ],
    );
    fleet.everybody_is_on(NEW);
    for (user, rows) in USERS.iter().zip(rows) {
        assert!(fleet.has_message(user, "before"), "{said}");
        let messages = "projection_thread_messages";
        assert_eq!(fleet.rows(user)[messages].len(), rows[messages].len(), "{user}");
    }
    let verdict = std::fs::read(fleet.path("state/verdicts/0.0.33.json")).expect("the gate's own verdict");
    let verdict: serde_json::Value = serde_json::from_slice(&verdict).expect("a document");
    assert_eq!((&verdict["verdict"], &verdict["rollback"]), (&"pass".into(), &"needs_restore".into()));
}

#[test]
fn a_build_that_the_gate_refuses_reaches_nobody() {
    let Some(fleet) = fleet("") else { return };
    fleet.install_broken(NEW, "no-cookie");
    backed_up(&fleet);
    let started: Vec<_> = USERS.iter().map(|user| fleet.started(user)).collect();
    let Said { exit, text } = fleet.enforce(&["--to", NEW]);
    assert_eq!(exit, 3, "{text}");
    assert!(text.contains("the gate says fail") && text.contains("[held: not_passed]"), "{text}");
    assert_eq!(started, USERS.map(|user| fleet.started(user)));
    fleet.everybody_is_on(OLD);
}

#[test]
fn a_build_that_fails_for_one_users_data_is_refused_because_everybodys_is_rehearsed() {
    let Some(fleet) = fleet("") else { return };
    fleet.install_broken(NEW, "fails-for-one-user=/srv/of-cid");
    fleet.add_project("cid", OLD, "srv/of-cid");
    backed_up(&fleet);
    let said = fleet.enforce(&["--to", NEW]).exits(3);
    assert!(said.contains("the gate says fail") && said.contains("[held: not_passed]"), "{said}");
    fleet.everybody_is_on(OLD);
}

#[test]
fn a_build_that_breaks_after_longer_than_a_rehearsal_passes_the_gate_and_is_rolled_back() {
    passes_the_gate_and_is_rolled_back("fails-later=20");
}

#[test]
fn a_build_that_breaks_after_more_logins_than_a_rehearsal_makes_passes_the_gate_and_is_rolled_back() {
    passes_the_gate_and_is_rolled_back("fails-on-third-login=20");
}

/// The whole chain over a build that no gate can see through, as it works while it is rehearsed.
fn passes_the_gate_and_is_rolled_back(mutation: &str) {
    let Some(fleet) = fleet("") else { return };
    let fleet = fleet.changed("soak = \"2s\"", "soak = \"1m\"");
    fleet.install_broken(NEW, mutation);
    backed_up(&fleet);
    for user in USERS {
        fleet.write_message(user, "after-the-backup");
    }
    let rows: Vec<_> = USERS.iter().map(|user| fleet.rows(user)).collect();
    let said = fleet.enforce(&["--to", NEW]).exits(1);
    in_order(
        &said,
        &["the gate rehearses", "ann: on t3 0.0.33", "is bad: ann fails at", "back on t3 0.0.24"],
    );
    fleet.everybody_is_on(OLD);
    for (user, rows) in USERS.iter().zip(rows) {
        assert_eq!(fleet.rows(user), rows, "{user}: {said}");
    }
}
