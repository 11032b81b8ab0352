//! What the program says to a configuration that it does not take: one bad file per refusal.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/config")
}

/// `t3-prober ARGS` in the directory of the bad files, so that messages name them shortly.
fn t3_prober(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_t3-prober"));
    command.args(args).current_dir(testdata()).output().expect("the program starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_bad_file_is_refused_with_file_line_and_remedy() {
    let mut files: Vec<_> = std::fs::read_dir(testdata())
        .expect("the bad files")
        .map(|file| file.expect("a file").file_name().into_string().expect("a name"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut refusals = String::new();
    for file in &files {
        let output = t3_prober(&["check", "--config", file]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(78), "{file}: {said}");
        assert_eq!(output.stdout, b"", "{file}");
        for line in said.lines() {
            let place =
                line.strip_prefix(&format!("{file}:")).unwrap_or_else(|| panic!("no file in: {line}"));
            assert!(place.starts_with(|digit: char| digit.is_ascii_digit()), "no line in: {line}");
            assert!(place.contains("; "), "no remedy in: {line}");
        }
        refusals.push_str(&said);
    }
    insta::assert_snapshot!("refusals", refusals);
}

#[test]
fn a_file_that_was_named_and_is_not_there_is_refused() {
    let output = t3_prober(&["check", "--config", "no-such-file.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(said(&output).starts_with("no-such-file.toml: "), "{}", said(&output));
}

#[test]
fn the_option_is_taken_before_and_after_the_command() {
    let before = t3_prober(&["--config", "invalid-type.toml", "check"]);
    let after = t3_prober(&["check", "--config", "invalid-type.toml"]);
    assert_eq!(said(&before), said(&after));
    assert_eq!((before.status.code(), after.status.code()), (Some(78), Some(78)));
}

#[test]
fn a_usage_error_is_told_from_a_bad_configuration() {
    assert_eq!(t3_prober(&["check", "--frobnicate"]).status.code(), Some(64));
    assert_eq!(t3_prober(&["no-such-command"]).status.code(), Some(64));
}
