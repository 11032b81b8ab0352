//! What is said of the metrics, held to the program.

use assert_cmd::Command;

#[test]
fn metrics_md_is_what_the_program_exports() {
    let output = Command::new(env!("CARGO_BIN_EXE_t3-prober")).arg("metrics-reference").output();
    let output = output.expect("the program starts");
    let reference = String::from_utf8(output.stdout).expect("the reference is text");
    let committed = include_str!("../../METRICS.md");
    assert!(
        reference == committed,
        "METRICS.md differs from the program; renew it with: cargo run -q -- metrics-reference > METRICS.md"
    );
}
