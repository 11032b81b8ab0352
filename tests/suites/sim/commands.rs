//! The command line: t3's own, and that of the stand-in around it.

use std::process::Command;

use crate::support::sim::{Ended, Sim, sim};

#[test]
fn a_usage_error_puts_help_on_stdout_and_the_message_on_stderr() {
    let t3 = Sim::stopped("0.0.24", &[]);
    let refused = t3.cli(&["auth", "pairing", "create", "--nope"]);
    assert_eq!(refused.code, Some(1));
    assert_eq!(refused.stderr, "\nERROR\n  Unrecognized flag: --nope in command t3 auth pairing create\n");
    assert!(refused.stdout.contains("USAGE\n  t3 auth pairing create"));
}

#[test]
fn a_runtime_error_is_on_stdout_and_the_last_cause_is_the_root() {
    let t3 = Sim::stopped("0.0.33", &[]);
    std::fs::create_dir_all(t3.userdata("")).expect("a directory");
    std::fs::write(t3.userdata("state.sqlite"), "not a database at all, only text ".repeat(50))
        .expect("a file");
    for command in
        [&["auth", "pairing", "create", "--json"][..], &["serve", "--port", &t3.port().to_string()]]
    {
        let refused = t3.cli(command);
        assert_eq!((refused.code, refused.cause()), (Some(1), "file is not a database"), "{command:?}");
    }
}

#[test]
fn the_version_is_told_without_touching_a_file() {
    let t3 = Sim::stopped("0.0.26", &[]);
    assert_eq!(t3.cli(&["--version"]).stdout, "t3 v0.0.26\n");
    assert!(!t3.base_dir().exists());
}

#[test]
fn a_command_makes_a_base_directory_where_there_is_none() {
    let t3 = Sim::stopped("0.0.24", &[]);
    assert_eq!(t3.mint().len(), 12);
    assert!(t3.userdata("state.sqlite").exists() && !t3.userdata("environment-id").exists());
}

#[test]
fn adding_a_project_adds_one_event_and_one_project() {
    for version in ["0.0.24", "0.0.26", "0.0.33"] {
        let t3 = Sim::stopped(version, &[]);
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().to_str().expect("text");
        assert_eq!(t3.cli(&["project", "add", path, "--title", "scratch"]).code, Some(0));
        assert_eq!(t3.cli(&["project", "add", path]).code, Some(1), "{version}: it is there already");
        assert_eq!(t3.count("SELECT count(*) FROM orchestration_events"), 1);
        assert_eq!(t3.count("SELECT count(*) FROM orchestration_command_receipts"), 1);
        assert_eq!(t3.count("SELECT count(*) FROM projection_projects WHERE title = 'scratch'"), 1);
        assert_eq!(t3.count("SELECT count(*) FROM projection_state WHERE last_applied_sequence = 1"), 9);
        assert_eq!(t3.cli(&["project", "rename", path, "renamed"]).code, Some(0));
        assert_eq!(t3.cli(&["project", "remove", path]).code, Some(0));
        let removed =
            "SELECT count(*) FROM projection_projects WHERE title = 'renamed' AND deleted_at NOT NULL";
        assert_eq!(t3.count(removed), 1, "{version}");
    }
}

#[test]
fn migrations_keep_the_history_and_drop_the_sessions() {
    let t3 = Sim::stopped("0.0.24", &[]);
    let folder = tempfile::tempdir().expect("a directory");
    assert_eq!(t3.cli(&["project", "add", folder.path().to_str().expect("text")]).code, Some(0));
    t3.keeper();
    let now = "2026-11-22T06:00:00.000Z";
    let insert =
        "INSERT INTO projection_thread_messages VALUES ('m', 't', NULL, 'user', 'hello', 0, ?1, ?1, '[]')";
    t3.database().execute(insert, [now]).expect("a message");
    for (version, level) in [("0.0.26", 32), ("0.0.29", 34), ("0.0.32", 37), ("0.0.33", 40)] {
        assert_eq!(t3.cli_as(version, &["auth", "session", "list", "--json"]).json(), serde_json::json!([]));
        assert_eq!(t3.level(), level);
        assert_eq!(t3.count("SELECT count(*) FROM projection_thread_messages"), 1);
        assert_eq!(t3.count("SELECT count(*) FROM projection_projects"), 1);
    }
}

#[test]
fn an_older_command_leaves_a_newer_database_as_it_is() {
    let t3 = Sim::stopped("0.0.33", &[]);
    t3.mint();
    t3.cli_as("0.0.26", &["auth", "pairing", "create", "--json"]).json();
    assert_eq!(t3.level(), 40);
}

#[test]
fn an_installed_copy_is_a_program_whose_version_can_be_read() {
    let folder = tempfile::tempdir().expect("a directory");
    let prefix = folder.path().join("it's here");
    let prefix = prefix.to_str().expect("text");
    let installed = sim(&["install", prefix, "0.0.26", "--mutation", "no-cookie", "--command", "1ms"]);
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    let run = Command::new(format!("{prefix}/bin/t3")).arg("--version").output().expect("it runs");
    assert_eq!(Ended::of(run).stdout, "t3 v0.0.26\n");
    let package = std::fs::read(format!("{prefix}/lib/node_modules/t3/package.json")).expect("a file");
    let package: serde_json::Value = serde_json::from_slice(&package).expect("JSON");
    assert_eq!(package, serde_json::json!({ "name": "t3", "version": "0.0.26" }));
    let script = std::fs::read_to_string(format!("{prefix}/bin/t3")).expect("a script");
    assert!(script.contains("'--mutation=no-cookie'") && script.contains("'--command=1ms'"), "{script}");
}

#[test]
fn an_unknown_mutation_or_fault_is_refused() {
    assert_eq!(sim(&["install", "/nowhere", "0.0.26", "--mutation", "no-such-thing"]).code, Some(64));
    assert_eq!(sim(&["fault", "/nowhere", "no-such-thing", "on"]).code, Some(64));
}
