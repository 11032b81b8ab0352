//! README.md and MIGRATION.md of deploy/, followed word by word as far as it goes without systemd as PID 1.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::free_port::free_port;
use crate::support::root::{Root, source};
use crate::support::tools;
use crate::support::world::{PROGRAM, Serving, World, http, wait_for};

/// What is not run here, by its beginning, and why. Its syntax is checked all the same.
const NOT_RUN: &[(&str, &str)] = &[
    ("apt-get install ", "changes the machine of the test"),
    ("cargo build ", "the program under test is built already"),
    ("npm install ", "needs a registry; the stand-in is installed in its place"),
    ("deploy/kubernetes/rules.sh | kubectl ", "there is no cluster; what it prints is held to the API"),
    ("systemctl ", "there is no systemd as PID 1; its units are looked up"),
    ("t3-prober gate ", "the gate suite runs it; its arguments are tried"),
    ("t3-prober enforce ", "the enforce suite runs it; its arguments are tried"),
    ("t3-prober verdict ", "the gate suite runs it; its arguments are tried"),
];

const GUIDES: [&str; 2] = ["deploy/README.md", "deploy/MIGRATION.md"];

fn text(guide: &str) -> String {
    fs::read_to_string(source(guide)).expect(guide)
}

/// The blocks of a language, each with what stands before it.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(&'a str, &'a str)> {
    let fence = format!("```{language}\n");
    let begins = text.match_indices(&fence).map(|(at, fence)| (at, at + fence.len()));
    let block =
        |(at, begin): (usize, usize)| (&text[..at], text[begin..].split("```").next().unwrap_or_default());
    begins.map(block).collect()
}

/// A machine on which a guide is followed: a root of its own, a t3, the service and the front door.
struct Desk {
    root: Root,
    world: World,
    serving: Serving,
    door: std::process::Child,
    door_operator: u16,
}

impl Desk {
    fn new() -> Self {
        let door_operator = free_port();
        let world = World::with(&[("ann", "0.0.33")]);
        let backups = world.path("backups");
        let world = world.configured(&format!(
            "[backup]\ndir = {backups:?}\n[dispatch]\nlisten = [\"127.0.0.1:{}\"]\noperator_listen = \"127.0.0.1:{door_operator}\"\ntrusted_uids = [0]\n",
            free_port()
        ));
        // As t3-serve@ has it made, by its umask.
        fs::set_permissions(world.base_dir("ann"), fs::Permissions::from_mode(0o700)).expect("a mode");
        let shim = world.path("bin/t3-prober");
        fs::create_dir_all(world.path("bin")).expect("a directory");
        let config = world.path("config.toml");
        fs::write(&shim, format!("#!/bin/sh\nexec {PROGRAM} --config {} \"$@\"\n", config.display()))
            .expect("a script");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("a mode");
        let serving = world.serve();
        serving.until_ok("ann", "handshake", true);
        let mut door = world.command(&["dispatch"]);
        let door = door.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
        wait_for("the front door", || {
            http(door_operator, "GET", "/-/healthy", &[]).ok().filter(|answer| answer.status == 200)
        });
        Self { root: Root::new(), world, serving, door, door_operator }
    }

    fn run(&self, command: &str) -> Output {
        let root = self.root.path("/").display().to_string();
        let mut command = command
            .replace("127.0.0.1:9780", &format!("127.0.0.1:{}", self.serving.port))
            .replace("127.0.0.1:9781", &format!("127.0.0.1:{}", self.door_operator))
            .replace("/opt/t3", &self.world.path("installs").display().to_string());
        if command.starts_with("deploy/install.sh") {
            command.push_str(&format!(" --root {root}"));
            if !command.contains("--uninstall") {
                command.push_str(&format!(" --binary {PROGRAM}"));
            }
        }
        let path = format!(
            "{}:{}:/usr/sbin:/sbin",
            self.world.path("bin").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut bash = Command::new("bash");
        bash.args(["-o", "pipefail", "-c", &command]).env("PATH", path).current_dir(source("."));
        bash.output().expect("bash")
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.door.kill();
        let _ = self.door.wait();
    }
}

#[test]
fn every_command_of_the_guides_works_in_its_order() {
    let tools_needed = ["systemd-sysusers", "systemd-tmpfiles", "promtool", "visudo"];
    if !tools::root() || tools_needed.iter().any(|tool| tools::find(tool).is_none()) {
        return;
    }
    for guide in GUIDES {
        let desk = Desk::new();
        let guide_text = text(guide);
        let mut run = 0;
        for (_, block) in blocks(&guide_text, "sh") {
            for command in block.lines() {
                let syntax = Command::new("bash").args(["-n", "-c", command]).output().expect("bash");
                assert!(syntax.status.success(), "{guide}: {command}: {syntax:?}");
                if NOT_RUN.iter().any(|(beginning, _)| command.starts_with(beginning)) {
                    try_out(guide, command);
                    continue;
                }
                let output = desk.run(command);
                assert!(output.status.success(), "{guide}: {command}: {output:?}");
                run += 1;
            }
        }
        assert!(run >= 5, "{guide}: only {run} commands were run");
    }
}

/// What can be held true of a command that is not run: units exist, and the program takes the arguments.
fn try_out(guide: &str, command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    match words[0] {
        "systemctl" => {
            for unit in words.iter().filter(|word| word.contains('.')) {
                let file =
                    unit.split_once('@').map_or((*unit).to_owned(), |(name, _)| format!("{name}@.service"));
                assert!(source("deploy/systemd").join(&file).exists(), "{guide}: {command}: no unit {file}");
            }
        }
        "t3-prober" => {
            let output = Command::new(PROGRAM).args(&words[1..]).arg("--help").output().expect("the program");
            assert!(output.status.success(), "{guide}: {command}: {output:?}");
        }
        _ => {}
    }
}

#[test]
fn every_piece_of_configuration_in_the_guides_is_taken_where_it_is_said_to_stand() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut tried = 0;
    for guide in GUIDES {
        let guide_text = text(guide);
        for (before, block) in blocks(&guide_text, "toml") {
            let section =
                before.rsplit("`[").next().and_then(|rest| rest.split("]`").next()).expect("a section");
            let config = dir.path().join("config.toml");
            fs::write(&config, format!("[{section}]\n{block}")).expect("written");
            let mut check = Command::new(PROGRAM);
            let output = check.arg("check").arg("--config").arg(&config).output().expect("the program");
            assert_ne!(output.status.code(), Some(78), "{guide}: [{section}] {block}: {output:?}");
            tried += 1;
        }
        for (_, block) in blocks(&guide_text, "json") {
            let _: serde_json::Value =
                serde_json::from_str(block).unwrap_or_else(|error| panic!("{guide}: {error}"));
        }
    }
    assert!(tried >= 3, "only {tried} pieces were found");
}

#[test]
fn every_unit_and_file_that_the_guides_name_is_there() {
    for guide in GUIDES {
        let guide_text = text(guide);
        let named = guide_text.split(|c: char| c.is_whitespace() || "`()[],;".contains(c));
        for word in named.map(|word| word.trim_end_matches(['.', ':'])) {
            let is_unit = [".service", ".socket", ".timer"].iter().any(|end| word.ends_with(end));
            if word.starts_with("t3-") && is_unit {
                let file =
                    word.split_once('@').map_or(word.to_owned(), |(name, _)| format!("{name}@.service"));
                assert!(source("deploy/systemd").join(&file).exists(), "{guide} names {word}");
            }
            if word.starts_with("deploy/") && !word.contains('*') {
                assert!(Path::new(&source(word)).exists(), "{guide} names {word}");
            }
        }
    }
}

#[test]
fn each_step_of_the_migration_says_how_to_undo_it() {
    let guide = text("deploy/MIGRATION.md");
    let steps: Vec<_> = guide.split("\n## ").skip(1).collect();
    assert!(steps.len() >= 6);
    for step in steps {
        let name = step.lines().next().unwrap_or_default();
        assert!(step.contains("\nUndo"), "{name} cannot be undone");
    }
}

#[test]
fn the_piece_for_prometheus_is_a_configuration_that_finds_the_rules() {
    let Some(promtool) = tools::find("promtool") else { return };
    let readme = text("deploy/README.md");
    let pieces = blocks(&readme, "yaml");
    assert_eq!(pieces.len(), 1);
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("prometheus.yml");
    let rules = source("alerts").display().to_string();
    fs::write(&config, pieces[0].1.replace("/usr/share/t3-prober/alerts", &rules)).expect("written");
    let output = Command::new(promtool).args(["check", "config"]).arg(config).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("rules found"), "{output:?}");
}
