//! The runbooks: one an alert, in four parts, and their commands work.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::support::rules::{self, listed};
use crate::support::world::{Serving, World};

const PARTS: [&str; 4] = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"];

/// What cannot run in a test, by the beginning of the command, and why. Its syntax is checked all the same.
const NOT_RUN: &[(&str, &str)] = &[
    (
        "t3-prober enforce --back",
        "no rollout is under way here; the enforcer's suite brings everybody back with it",
    ),
    (
        "ln -sfn ",
        "leads a user to a build that is not installed here; the enforcer's suite follows such links",
    ),
    ("cp -a /var/backups/t3/", "copies from a place that this world does not use"),
    (
        "cat /var/lib/t3-prober/enforce/journal.json",
        "there is one while a rollout is unfinished; the enforcer's suite reads it",
    ),
    ("curl -fsS http://127.0.0.1:9781/", "asks a dispatch of its own; the door's suites do"),
    ("systemctl ", "asks systemd about units that are not installed here"),
    ("journalctl ", "reads the journal of units that are not installed here"),
    ("amtool alert query ", "asks a running Alertmanager; the alerting suite runs one"),
    ("amtool check-config ", "the routes suite checks the configuration that is given"),
    (
        "t3-prober backup restore ann --auth-only",
        "refuses where nothing is to repair; the backup suite runs it",
    ),
    ("t3-prober enforce ", "holds where nothing is wanted; the alerting suite walks it"),
    ("t3-prober verdict", "there is none here; the alerting suite walks it"),
    ("t3-prober gate ", "takes a box and half a minute; the gate suite runs it"),
    ("promtool check config ", "the routes suite checks the configuration that is given"),
];

/// Every runbook: its name and its text.
fn runbooks() -> Vec<(String, String)> {
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, fs::read_to_string(path).expect("readable"))
    };
    listed("alerts/runbooks", "md").iter().map(read).collect()
}

/// The lines between "```sh" and "```".
fn commands(text: &str) -> Vec<&str> {
    let blocks = text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    blocks.flat_map(str::lines).collect()
}

#[test]
fn every_alert_has_a_runbook_in_four_parts_and_every_runbook_an_alert() {
    let alerts: BTreeSet<_> =
        rules::all().into_iter().filter(rules::Rule::is_alert).map(|rule| rule.alert).collect();
    let named: BTreeSet<_> = runbooks().into_iter().map(|(name, _)| name).collect();
    assert_eq!(alerts, named);
    for (name, text) in runbooks() {
        assert!(text.starts_with(&format!("# {name}\n")), "{name} does not begin with its name");
        let headings: Vec<_> = text.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, PARTS, "{name}");
        for part in text.split("\n## ").skip(1) {
            let said = part.split_once('\n').map(|(_, said)| said.trim()).unwrap_or_default();
            assert!(said.len() > 20, "{name} says nothing under {part}");
        }
        let diagnosis = text.split("## Diagnosis").nth(1).and_then(|rest| rest.split("## ").next());
        assert!(!commands(diagnosis.unwrap_or_default()).is_empty(), "{name} names no command to look with");
    }
}

/// A world in which the runbooks' paths and addresses lead to something.
struct Desk {
    world: World,
    serving: Serving,
}

impl Desk {
    fn new() -> Self {
        let world = World::with(&[("ann", "0.0.33")]);
        let backups = world.path("backups");
        fs::create_dir(&backups).expect("a directory");
        let more = format!("[backup]\ndir = {backups:?}\n[pins]\nversion = \"0.0.33\"\n");
        let world = world.configured(&more);
        let shim = world.path("bin/t3-prober");
        fs::create_dir_all(world.path("bin")).expect("a directory");
        let (program, config) = (crate::support::world::PROGRAM, world.path("config.toml"));
        let script = format!("#!/bin/sh\nexec {program} --config {} \"$@\"\n", config.display());
        fs::write(&shim, script).expect("a script");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("a mode");
        // Otherwise it is a finding, and the check says so.
        let private = Command::new("chmod").args(["-R", "o-rwx"]).arg(world.path("home")).status();
        assert!(private.expect("chmod").success());
        let serving = world.serve();
        serving.until_ok("ann", "handshake", true);
        let taken = world.command(&["backup", "take", "ann"]).output().expect("the program");
        assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
        Self { world, serving }
    }

    /// Runs a command as the operator would, on this world.
    fn run(&self, command: &str) -> Output {
        let command = command
            .replace("127.0.0.1:9780", &format!("127.0.0.1:{}", self.serving.port))
            .replace("/var/lib/t3-prober", &self.world.path("state").display().to_string())
            .replace("/opt/t3", &self.world.path("installs").display().to_string());
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}:/usr/sbin:/sbin", self.world.path("bin").display());
        // `pipefail` so that a page which is not there is not hidden by what reads it.
        Command::new("bash")
            .args(["-o", "pipefail", "-c", &command])
            .env("PATH", path)
            .output()
            .expect("bash")
    }
}

#[test]
fn every_command_of_every_runbook_works() {
    let desk = Desk::new();
    // What a metric says only after the first failure is there for this one.
    desk.world.fault("ann", "exchange-500");
    desk.serving.until_ok("ann", "pulse", false);
    desk.world.mend("ann", "exchange-500");
    desk.serving.until_ok("ann", "pulse", true);
    desk.serving.until_ok("ann", "handshake", true);
    let runbooks = runbooks();
    let all: BTreeSet<&str> = runbooks.iter().flat_map(|(_, text)| commands(text)).collect();
    assert!(all.len() > 20, "the commands were not found");
    let mut unused: BTreeSet<&str> = NOT_RUN.iter().map(|(begin, _)| *begin).collect();
    for command in all {
        let syntax = Command::new("bash").args(["-n", "-c", command]).output().expect("bash");
        assert!(syntax.status.success(), "{command}: {}", String::from_utf8_lossy(&syntax.stderr));
        if let Some((begin, _)) = NOT_RUN.iter().find(|(begin, _)| command.starts_with(begin)) {
            unused.remove(begin);
            continue;
        }
        let output = desk.run(command);
        let text = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr].concat()).into_owned();
        assert!(output.status.success() && !output.stdout.is_empty(), "{command}: {text}");
    }
    assert_eq!(unused, BTreeSet::new(), "no runbook has such a command any more");
}
