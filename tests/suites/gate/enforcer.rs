//! The enforcer of the README, word for word: it installs only on 0, rolls back only on 1, and otherwise holds.

use std::process::Command;

use crate::support::gate::Gate;
use crate::support::sim::PROGRAM;

const README: &str = include_str!("../../../README.md");

/// The script between the fences, with what it calls written down instead of done.
fn enforcer() -> String {
    let (_, rest) = README.split_once("## Verdicts").expect("the section");
    let (_, rest) = rest.split_once("```sh\n").expect("the script");
    let (script, _) = rest.split_once("```").expect("its end");
    assert!(script.lines().count() <= 10, "{script}");
    format!(
        "install_build() {{ echo install; }}\nroll_back() {{ echo roll back; }}\nalert() {{ echo hold; }}\n{script}"
    )
}

/// What it does where `verdict` and `gate` end with these codes.
fn does(verdict: u8, gate: u8) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("t3-prober");
    let script = format!("#!/bin/sh\n[ \"$1\" = verdict ] && exit {verdict}\nexit {gate}\n");
    std::fs::write(&program, script).expect("written");
    let chmod = Command::new("chmod").arg("755").arg(&program).status().expect("chmod runs");
    assert!(chmod.success());
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    let output = Command::new("/bin/sh").args(["-c", &enforcer(), "sh", "0.0.26"]).env("PATH", path).output();
    let output = output.expect("a shell");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_enforcer_of_the_readme_does_the_right_thing_for_every_exit_code() {
    for code in [0, 1, 3, 4, 64, 78, 101, 127, 137] {
        let expected = match code {
            0 => "install",
            1 => "roll back",
            _ => "hold",
        };
        assert_eq!(does(code, 99), expected, "the stored verdict ends with {code}");
        assert_eq!(does(5, code), expected, "there is none, and the gate ends with {code}");
    }
    assert_eq!(does(5, 5), "hold");
}

#[test]
fn nothing_but_a_judged_build_ends_with_0_or_1() {
    let code = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).output().expect("the program runs");
        output.status.code()
    };
    assert_eq!(code(&["gate"]), Some(64));
    assert_eq!(code(&["gate", "latest"]), Some(64));
    assert_eq!(code(&["--config", "/no/such/file", "gate", "0.0.26"]), Some(78));
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "state_dir = \"/proc/nowhere\"\n").expect("written");
    let config = config.to_str().expect("text");
    assert_eq!(code(&["--config", config, "gate", "0.0.26"]), Some(4));
    assert_eq!(code(&["--config", config, "verdict", "0.0.26"]), Some(5));
}

#[test]
fn a_pass_is_not_believed_while_it_cannot_be_told_who_is_served() {
    let gate = Gate::new();
    assert_eq!(gate.judge(&["0.0.26"]).code, Some(0));
    let mut verdict = gate.command(&["verdict", "0.0.26"]);
    std::fs::remove_file(gate.path("dispatch.json")).expect("removed");
    let output = verdict.output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("cannot be told who is served"), "{said}");
}

#[test]
fn a_gate_that_could_not_run_stays_an_error_however_many_users_there_are() {
    let mut gate = Gate::new().set("keep_free_mib", "1099511627776");
    gate.user("ann");
    assert_eq!(gate.judge(&["0.0.26"]).code, Some(4));
    assert_eq!(gate.run(&["verdict", "0.0.26"]).status.code(), Some(4));
}
