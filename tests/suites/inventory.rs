//! What `t3-prober check` says about an inventory: one directory of sources per case.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/inventory")
}

/// `t3-prober check` with this `[inventory]`; everything else it looks at is in order.
fn check(inventory: &str) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state_dir = dir.path().join("state");
    fs::create_dir(&state_dir).expect("a directory");
    fs::set_permissions(&state_dir, std::os::unix::fs::PermissionsExt::from_mode(0o750)).expect("a mode");
    let config = dir.path().join("config.toml");
    let text = format!(
        "state_dir = {state_dir:?}\n[inventory]\n{inventory}\n[operator]\nlisten = \"127.0.0.1:0\"\n"
    );
    fs::write(&config, text).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_t3-prober"));
    command.arg("check").arg("--config").arg(config).output().expect("the program starts")
}

/// The `[inventory]` of a case; users are only names, so that no account of the test's machine matters.
fn sources(case: &Path) -> String {
    let mut keys = format!("accounts = false\ndispatch_table = {:?}\n", case.join("dispatch.json"));
    for (key, name) in [("user_map", "users.map"), ("env_dir", "env")] {
        let path = case.join(name);
        if path.exists() {
            keys.push_str(&format!("{key} = {path:?}\n"));
        }
    }
    keys
}

/// The lines about the inventory, with the directory of the cases taken off.
fn inventory_lines(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).replace(&format!("{}/", cases().display()), "");
    text.lines()
        .filter(|line| line.contains(" inventory "))
        .fold(String::new(), |all, line| all + line + "\n")
}

#[test]
fn every_case_is_told_with_file_line_and_remedy() {
    let mut names: Vec<_> = fs::read_dir(cases())
        .expect("the cases")
        .map(|case| case.expect("a case").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    let mut report = String::new();
    for name in &names {
        let output = check(&sources(&cases().join(name)));
        let code = output.status.code().expect("an exit code");
        report.push_str(&format!("== {name}: exit {code}\n{}", inventory_lines(&output)));
        assert_eq!(output.stderr, b"", "{name}");
    }
    insta::assert_snapshot!("cases", report);
}

#[test]
fn a_token_beside_a_port_is_never_shown() {
    for case in ["all-well", "compared"] {
        let output = check(&sources(&cases().join(case)));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("inventory"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_user_without_an_account_on_this_machine_is_withheld() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let table = dir.path().join("dispatch.json");
    fs::write(&table, r#"{"ann": {"os_user": "no-such-account", "port": 4001}}"#).expect("written");
    let output = check(&format!("dispatch_table = {table:?}"));
    let said = inventory_lines(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("withheld: 1"), "{said}");
    assert!(said.contains("[unknown_account]"), "{said}");
}

#[test]
fn a_database_that_everybody_can_read_is_an_error() {
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let userdata = dir.path().join("ann/userdata");
    fs::create_dir_all(&userdata).expect("directories");
    fs::write(userdata.join("state.sqlite"), "").expect("written");
    for path in [dir.path(), &dir.path().join("ann"), &userdata] {
        mode(path, 0o755);
    }
    mode(&userdata.join("state.sqlite"), 0o644);
    let table = dir.path().join("dispatch.json");
    fs::write(&table, r#"{"ann": {"os_user": "ann", "port": 4001}}"#).expect("written");
    let base_dir = dir.path().join("{user}");
    let inventory = format!("accounts = false\ndispatch_table = {table:?}\nbase_dir = {base_dir:?}");
    let output = check(&inventory);
    assert!(inventory_lines(&output).contains("[state_exposed]"), "{}", inventory_lines(&output));
    assert_eq!(output.status.code(), Some(1));
    mode(&dir.path().join("ann"), 0o750);
    let output = check(&inventory);
    assert!(!inventory_lines(&output).contains("[state_exposed]"), "{}", inventory_lines(&output));
    assert_eq!(output.status.code(), Some(0));
}
