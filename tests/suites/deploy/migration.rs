//! What deploy/MIGRATION.md promises to hosts that have scripts of their own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::support::root::{Root, source};
use crate::support::tools;
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

/// Commands of systemctl among the text, without what needs a running systemd.
fn commands(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with("systemctl "));
    let spans = text.split('`').skip(1).step_by(2).filter(|span| span.starts_with("systemctl "));
    let words =
        lines.chain(spans).map(|line| line.split(' ').skip(1).filter(|word| *word != "--now").collect());
    words.filter(|words: &Vec<_>| words[0] == "enable" || words[0] == "disable").collect()
}

/// What is enabled on a root, and where each link leads.
fn enabled(root: &Root) -> BTreeSet<(String, PathBuf)> {
    let units = root.listing().into_keys().filter(|path| path.starts_with("/etc/systemd/"));
    units.filter_map(|path| Some((path.clone(), fs::read_link(root.path(&path)).ok()?))).collect()
}

fn systemctl(root: &Root, arguments: &[&str]) {
    let mut command = Command::new("systemctl");
    command.arg(format!("--root={}", root.path("/").display())).args(arguments);
    let output = command.output().expect("systemctl");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[test]
fn what_undoes_a_step_leaves_what_was_before_it() {
    if !tools::root() || tools::find("systemctl").is_none() || tools::find("systemd-sysusers").is_none() {
        return;
    }
    let guide = fs::read_to_string(source("deploy/MIGRATION.md")).expect("the guide");
    let root = Root::new();
    let bare = root.listing();
    let mut undone = 0;
    for step in guide.split("\n## ").skip(1) {
        let name = step.lines().next().unwrap_or_default();
        let (done, undo) = step.split_once("\nUndo").expect(name);
        if undo.contains("`deploy/install.sh --uninstall`") {
            root.install();
            let output = root.run(&source("deploy/install.sh"), &["--uninstall"]);
            assert!(output.status.success(), "{name}: {output:?}");
            // Data and the accounts whose it is stay.
            let is_ours = |path: &&String| {
                let data = ["/var/", "/opt/t3"].iter().any(|place| path.starts_with(place));
                let account =
                    ["passwd", "group", "shadow", ".pwd.lock"].iter().any(|end| path.ends_with(end));
                !bare.contains_key(*path) && root.path(path).is_file() && !data && !account
            };
            let left = root.listing();
            assert_eq!(left.keys().filter(is_ours).collect::<Vec<_>>(), Vec::<&String>::new(), "{name}");
            root.install();
            undone += 1;
            continue;
        }
        let (done, undo) = (commands(done), commands(undo));
        let before = enabled(&root);
        done.iter().for_each(|arguments| systemctl(&root, arguments));
        let after = enabled(&root);
        assert_ne!(after, before, "{name} enables nothing");
        undo.iter().for_each(|arguments| systemctl(&root, arguments));
        assert_eq!(enabled(&root), before, "{name} is not undone");
        done.iter().for_each(|arguments| systemctl(&root, arguments));
        assert_eq!(enabled(&root), after, "{name} cannot be done again");
        undone += 1;
    }
    assert_eq!(undone, 6);
}
