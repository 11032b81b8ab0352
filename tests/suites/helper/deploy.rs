//! The files that put the helper in its place: the units and the sudoers lines.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{World, ended, mint, refused};
use crate::support::host::{text, until};
use crate::support::tools;

fn deploy(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let Some(analyze) = tools::find("systemd-analyze") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let program = env!("CARGO_BIN_EXE_t3-prober");
    let mut units = Vec::new();
    for (name, as_unit) in [
        ("t3-prober-helper.socket", "t3-prober-helper.socket"),
        ("t3-prober-helper@.service", "t3-prober-helper@0.service"),
    ] {
        let path = dir.path().join(as_unit);
        let unit = deploy(&format!("systemd/{name}")).replace("/usr/bin/t3-prober", program);
        fs::write(&path, &unit).expect("written");
        fs::write(dir.path().join(name), unit).expect("written");
        units.push(path);
    }
    let output = Command::new(analyze).args(["--man=no", "verify"]).args(&units).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("t3-prober-helper")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn through_a_socket_of_systemds_own_the_helper_answers() {
    let Some(activate) = tools::find("systemd-socket-activate") else { return };
    let Some(world) = World::new() else { return };
    let path = world.host.path("systemd.sock");
    let mut socket = Command::new(activate);
    socket.args(["--accept", "--inetd", "--listen", text(&path)]).arg(&world.host.program);
    socket.args(["helper", "connection", "--config"]).arg(world.host.path("config.toml"));
    let mut socket = socket.stderr(Stdio::null()).spawn().expect("it runs");
    until("the socket is there", || path.exists());
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("mode");
    fs::remove_file(world.host.path("helper.sock")).expect("the other socket is removed");
    fs::rename(&path, world.host.path("helper.sock")).expect("renamed");
    let answer = world.ask(&mint(&world.ann.name));
    let _ = socket.kill();
    let _ = socket.wait();
    assert_eq!(ended(&answer), "ok", "{answer}");
}

#[test]
fn visudo_takes_the_sudoers_lines() {
    let Some(visudo) = tools::find("visudo") else { return };
    let sudoers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/sudoers");
    let output = Command::new(visudo).args(["--check", "--strict", "--file"]).arg(sudoers).output();
    let output = output.expect("visudo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn through_sudo_a_caller_gets_the_verbs_of_its_lines_and_no_argument_of_its_own() {
    let Some(sudo) = tools::find("sudo") else { return };
    let Some(mut world) = World::new() else { return };
    let dispatch = world.host.caller("mint");
    let program = text(&world.host.program).to_owned();
    let lines = deploy("sudoers")
        .replace("\nt3-dispatch ", &format!("\n{} ", dispatch.name))
        .replace("\nt3-prober ", &format!("\n{} ", world.prober.name))
        .replace("/usr/bin/t3-prober", &program);
    let run = |arguments: &[&str], request: &Value| {
        let mut command = vec![text(&sudo), "-n", &program, "helper"];
        command.extend(arguments);
        let mut machine = world.host.with_sudoers(&dispatch, &lines, &command).spawn().expect("unshare runs");
        // Whoever is refused at once does not read.
        let _ = machine.stdin.take().expect("stdin").write_all(format!("{request}\n").as_bytes());
        let output = machine.wait_with_output().expect("an end");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (serde_json::from_slice::<Value>(&output.stdout).unwrap_or(json!(null)), said)
    };
    let name = world.ann.name.as_str();
    let (answer, said) = run(&["mint"], &mint(name));
    assert_eq!(ended(&answer), "ok", "{answer} {said}");
    let (answer, _) = run(&["mint"], &json!({ "verb": "port", "user": name }));
    refused(&answer, "not for mint");
    let config = world.host.path("config.toml");
    for arguments in [&["revoke"][..], &["mint", name], &["mint", "--config", text(&config)], &["as-user"]] {
        let (answer, said) = run(arguments, &mint(name));
        assert!(answer.is_null() && said.contains("password is required"), "{arguments:?}: {answer} {said}");
    }
}
