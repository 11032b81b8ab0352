//! What deploy/MIGRATION.md promises to hosts that have scripts of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::world::World;

/// A world in which an existing `t3-mint` mints, by a t3 of that version; `print` is what its shell does with t3's JSON.
fn wrapped(version: &str, runs: &str, print: &str) -> World {
    let world = World::with(&[("ann", version)]);
    world.install(runs);
    let (wrapper, t3) = (world.path("t3-mint"), world.t3(runs));
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>{calls}\n{t3} auth pairing create --json --base-dir {homes}/$1/.t3 {print}\n",
        calls = world.path("calls").display(),
        t3 = t3.display(),
        homes = world.path("home").display(),
    );
    fs::write(&wrapper, script).expect("a script");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("a mode");
    world.configured(&format!(
        "mint = \"command\"\nmint_command = [{wrapper:?}, \"{{user}}\"]\nmint_command_t3 = {t3:?}\n"
    ))
}

fn calls(world: &World) -> String {
    fs::read_to_string(world.path("calls")).unwrap_or_default()
}

#[test]
fn an_existing_wrapper_mints_whether_it_prints_t3s_json_or_the_credential_alone() {
    const ALONE: &str = "| sed -n 's/.*\"credential\": *\"\\([^\"]*\\)\".*/\\1/p'";
    for print in ["", ALONE] {
        let world = wrapped("0.0.26", "0.0.26", print);
        let probed = world.probe("ann");
        assert_eq!(probed.decided("handshake"), "ok", "{}", probed.json);
        assert_eq!(calls(&world), "ann\n", "{print}");
    }
}

#[test]
fn a_wrapper_whose_t3_is_another_version_than_the_running_one_is_never_started() {
    let world = wrapped("0.0.24", "0.0.26", "");
    let before = world.level("ann");
    let probed = world.probe("ann");
    assert_eq!(probed.decided("handshake"), "mint: skipped(version_skew)", "{}", probed.json);
    assert!(probed.json.to_string().contains("`[t3] mint_command` runs 0.0.26"), "{}", probed.json);
    assert_eq!((calls(&world), world.level("ann")), (String::new(), before));
}

#[test]
fn a_wrapper_that_prints_something_else_is_told_apart_and_what_it_printed_is_not_repeated() {
    let world = wrapped("0.0.26", "0.0.26", "| sed 's/credential/secret/'");
    let probed = world.probe("ann");
    assert_eq!(probed.decided("handshake"), "mint: failed(cli_garbage)", "{}", probed.json);
    assert!(!probed.json.to_string().contains("\\\"secret\\\""), "{}", probed.json);
}
