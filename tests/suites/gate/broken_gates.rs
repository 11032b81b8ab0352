//! Gates that cannot pass: each is inconclusive or an error, and none is ever taken for a bad build.

use crate::support::disk::Disk;
use crate::support::gate::{Gate, Judged};
use crate::support::tools;

fn expect(judged: &Judged, code: i32, verdict: &str) {
    assert_eq!((judged.code, judged.verdict()), (Some(code), verdict.to_owned()), "{}", judged.output);
}

#[test]
fn without_bubblewrap_the_verdict_is_inconclusive_unless_that_is_allowed() {
    let gate = Gate::new().set("bwrap", "\"/no/such/bwrap\"");
    let judged = gate.judge(&["0.0.26"]);
    expect(&judged, 3, "inconclusive not_boxed");
    assert_eq!(judged.document["boxed"], false);
    let bad = gate.build("bad", "0.0.26", &["no-cookie"]);
    expect(&gate.judge(&["--bin", &bad]), 3, "inconclusive not_boxed");
    let allowed = gate.set("require_box", "false");
    expect(&allowed.judge(&["0.0.26"]), 0, "pass all_passed");
    expect(&allowed.judge(&["--bin", &bad]), 1, "fail candidate_failed");
    expect(&allowed.judge(&["0.0.32"]), 4, "error no_box");
}

#[test]
fn bound_to_loopback_the_cookie_has_another_name_and_a_good_build_still_passes() {
    let gate = Gate::new().set("host", "\"127.0.0.1\"");
    expect(&gate.judge(&["0.0.33"]), 0, "pass all_passed");
}

#[test]
fn a_full_disk_is_an_error() {
    let judged = Gate::new().set("keep_free_mib", "1099511627776").judge(&["0.0.26"]);
    expect(&judged, 4, "error no_space");
    assert!(judged.text("summary").contains("MiB free"), "{}", judged.text("summary"));
}

#[test]
fn a_disk_that_fills_up_under_the_builds_is_an_error_and_no_fault_of_theirs() {
    if !tools::root() {
        return;
    }
    let gate = Gate::new();
    let disk = Disk::under(gate.path("state/gate"), "256m");
    let candidate = gate.build("thirsty", "0.0.26", &[]);
    gate.wrap(&candidate, "[ \"$1\" = serve ] && /usr/bin/dd if=/dev/zero of=ballast bs=64k 2>/dev/null");
    let judged = gate.judge(&["--bin", &candidate]);
    expect(&judged, 4, "error no_space");
    assert!(judged.text("summary").contains("0 MiB free"), "{}", judged.text("summary"));
    assert!(gate.left_behind().is_empty());
    drop(disk);
}

#[test]
fn a_deadline_that_is_too_short_is_an_error() {
    let gate = Gate::new().set("deadline", "\"200ms\"");
    expect(&gate.judge(&["0.0.26"]), 4, "error deadline");
    assert!(gate.left_behind().is_empty());
}

#[test]
fn too_little_memory_is_an_error() {
    expect(
        &Gate::new().set("memory_mib", "1").set("hold", "\"2s\"").judge(&["0.0.26"]),
        4,
        "error out_of_memory",
    );
}

#[test]
fn a_corrupt_seed_is_an_error() {
    let gate = Gate::new();
    let seed = gate.path("seed.sqlite");
    std::fs::write(&seed, "not a database at all").expect("written");
    expect(&gate.judge(&["0.0.26", "--seed", seed.to_str().expect("text")]), 4, "error no_seed");
    expect(&gate.judge(&["0.0.26", "--seed", "/no/such/file"]), 4, "error no_seed");
    expect(&gate.judge(&["0.0.26", "--user", "nobody"]), 4, "error no_seed");
}

#[test]
fn a_missing_or_unusable_control_is_an_error() {
    let gate = Gate::new();
    expect(&gate.judge(&["0.0.26", "--control", "0.0.25"]), 4, "error no_control");
    expect(&gate.judge(&["0.0.26", "--control", "/no/such/t3"]), 4, "error no_control");
    expect(&gate.judge(&["--bin", "/no/such/t3"]), 4, "error no_candidate");
}

#[test]
fn where_minting_is_denied_to_both_the_gate_is_broken_and_not_the_build() {
    let gate = Gate::new();
    let denied = gate.build("denied", "0.0.26", &["mint-prints-another-key"]);
    expect(&gate.judge(&["--bin", &denied, "--control", &denied]), 3, "inconclusive gate_broken");
    expect(&gate.judge(&["0.0.26", "--control", &denied]), 3, "inconclusive control_failed");
}
