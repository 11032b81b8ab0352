//! No end is silent: told to stop, broken by a defect, refused before it began, killed. Each is an outcome in the metrics
//! and in the history, with what is left and what the next run does.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{NEW, OLD, PASSES, USERS, fleet};
use crate::support::fleet::{Fleet, Said};
use crate::support::tools;
use crate::support::world::{Serving, wait_for};

/// Nobody waits longer for somebody who was told to stop and had nothing in hand.
const SOON: Duration = Duration::from_secs(20);

fn signal(name: &'static str) -> impl Fn(&Child) {
    move |enforcer| {
        let sent = Command::new("kill").args(["-s", name, &enforcer.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }
}

/// The end is counted, and stands in the history with these words.
fn is_told(serving: &Serving, outcome: &str, words: &str) {
    serving.until_metric(&format!("t3_enforcer_runs_total{{outcome=\"{outcome}\"}}"), |value| value == 1.0);
    wait_for(&format!("'{words}' in the history"), || {
        let events = serving.history("/history/events?kind=upgrade");
        let is_it = |event: &serde_json::Value| {
            event["outcome"] == outcome
                && event["detail"]["detail"].as_str().is_some_and(|detail| detail.contains(words))
        };
        events.iter().any(is_it).then_some(())
    });
}

#[test]
fn told_to_stop_while_the_gate_works_it_ends_at_once_with_the_gate_and_nobody_was_moved() {
    let fleet = Fleet::on(OLD, &["ann"], "");
    let pid = fleet.path("gate.pid");
    let gate = format!("gate_command = [\"sh\", \"-c\", \"echo $$ > {}; exec sleep 600\"]\n", pid.display());
    let fleet = fleet.configured(&gate);
    let serving = fleet.world.serve();
    let began = Instant::now();
    let gate = || std::fs::read_to_string(&pid).ok().filter(|pid| pid.ends_with('\n'));
    let said = fleet.disturbed(&["--to", NEW], gate, signal("TERM")).exits(4);
    assert!(began.elapsed() < SOON, "{said}");
    assert!(
        said.contains("told to stop (SIGTERM) while having the build judged; no rollout is under way")
            && said.contains("[interrupted]"),
        "{said}"
    );
    is_told(&serving, "interrupted", "while having the build judged");
    let gate = format!("/proc/{}", gate().expect("a number").trim());
    wait_for("the gate to be gone", || (!std::path::Path::new(&gate).exists()).then_some(()));
    fleet.everybody_is_on(OLD);
    assert!(fleet.journal().is_none());
}

#[test]
fn told_to_stop_while_a_user_is_moved_it_finishes_that_and_the_next_run_goes_on() {
    let fleet = fleet("");
    let serving = fleet.world.serve();
    std::fs::write(fleet.path("stop-takes"), "2").expect("written");
    let moment = || fleet.step("ann").filter(|step| step == "stopping");
    let args = ["--to", NEW, "--except", "cid"];
    let said = fleet.disturbed(&args, moment, signal("TERM")).exits(4);
    assert!(said.contains("told to stop (SIGTERM): what is in hand is finished"), "{said}");
    let left = "the rollout of t3 0.0.33 is not finished: ann on t3 0.0.33; the next run of t3-prober enforce goes on";
    assert!(said.contains(left) && said.contains("[interrupted]"), "{said}");
    is_told(&serving, "interrupted", left);
    let page = serving.page("/").body;
    assert!(page.contains("A rollout is not finished"), "{page}");
    let runs = USERS.map(|user| fleet.running(user));
    assert_eq!(runs.each_ref().map(Option::as_deref), [Some(NEW), Some(OLD), Some(OLD)], "{said}");
    assert_eq!(fleet.world.probe("ann").exit, 0, "the one in hand can log in");

    std::fs::remove_file(fleet.path("stop-takes")).expect("removed");
    let said = fleet.enforce(&["--drain"]).exits(0);
    assert!(said.contains("it is carried on"), "{said}");
    let runs = USERS.map(|user| fleet.running(user));
    assert_eq!(runs.each_ref().map(Option::as_deref), [Some(NEW), Some(NEW), Some(OLD)], "{said}");
    assert!(said.contains("cid stays: named with --except") && fleet.journal().is_none(), "{said}");
}

#[test]
fn told_to_stop_while_it_watches_it_stops_at_once_and_an_operator_can_bring_everybody_back() {
    let fleet = fleet("").changed("soak = \"2s\"", "soak = \"10m\"");
    for user in USERS {
        fleet.write_message(user, "before");
    }
    let rows = USERS.map(|user| fleet.rows(user));
    let began = Instant::now();
    let moment = || fleet.step("ann").filter(|step| step == "proven");
    let said = fleet.disturbed(&["--to", NEW], moment, signal("INT")).exits(4);
    assert!(began.elapsed() < 2 * SOON, "{said}");
    assert!(said.contains("told to stop (SIGINT) while watching those who were moved"), "{said}");
    assert!(said.contains("t3-prober enforce --back brings everybody back"), "{said}");
    assert_eq!(fleet.running("ann").as_deref(), Some(NEW));

    let dry = fleet.enforce(&["--back", "--dry-run"]).exits(0);
    assert!(
        dry.contains("this one would bring them back") && fleet.running("ann").as_deref() == Some(NEW),
        "{dry}"
    );
    let said = fleet.enforce(&["--back"]).exits(1);
    assert!(said.contains("t3 0.0.33 was rolled back: an operator asked for it [operator]"), "{said}");
    fleet.everybody_is_on(OLD);
    assert_eq!(USERS.map(|user| fleet.rows(user)), rows);
    assert!(fleet.freeze_file().exists() && fleet.journal().is_none());
    let said = fleet.enforce(&["--back"]).exits(3);
    assert!(said.contains("[held: frozen]") || said.contains("[held: nothing_under_way]"), "{said}");
}

#[test]
fn a_way_back_is_finished_whoever_wants_it_stopped() {
    let fleet = fleet("");
    fleet.install_broken(NEW, "fails-on-third-login");
    std::fs::write(fleet.path("stop-takes"), "2").expect("written");
    let moment = || fleet.journal().filter(|journal| journal["back"].is_object());
    let said = fleet.disturbed(&["--to", NEW], moment, |enforcer| {
        for name in ["HUP", "TERM", "HUP"] {
            signal(name)(enforcer);
        }
    });
    let said = said.exits(1);
    assert!(said.contains("was rolled back: ann fails at exchange"), "{said}");
    fleet.everybody_is_on(OLD);
    assert!(fleet.freeze_file().exists() && fleet.journal().is_none());
}

/// As `systemctl start` answers while the host goes down.
#[test]
fn what_cannot_be_started_on_a_host_that_goes_down_is_held_against_no_build() {
    let fleet = fleet("");
    fleet.write_message("ann", "before");
    std::fs::write(fleet.path("stop-takes"), "2").expect("written");
    let moment = || fleet.step("ann").filter(|step| step == "stopping");
    let said = fleet.disturbed(&["--to", NEW], moment, |enforcer| {
        std::fs::write(fleet.path("goes-down"), "").expect("written");
        signal("TERM")(enforcer);
    });
    let said = said.exits(4);
    assert!(said.contains("ann at 'linked' between t3 0.0.24 and 0.0.33"), "{said}");
    assert!(said.contains("[interrupted]") && !fleet.freeze_file().exists(), "{said}");
    assert_eq!(fleet.running("ann"), None);
    for file in ["goes-down", "stop-takes"] {
        std::fs::remove_file(fleet.path(file)).expect("removed");
    }
    fleet.enforce(&["--to", NEW]).exits(0);
    fleet.everybody_is_on(NEW);
    assert!(fleet.has_message("ann", "before"));
}

#[test]
fn told_twice_by_hand_it_ends_in_the_middle_and_says_where() {
    let fleet = fleet("");
    std::fs::write(fleet.path("stop-takes"), "60").expect("written");
    let moment = || fleet.step("ann").filter(|step| step == "stopping");
    let said = fleet.disturbed(&["--to", NEW], moment, |enforcer| {
        // Two that come at the same moment are heard as one.
        wait_for("the enforcer to end", || {
            signal("INT")(enforcer);
            let status = std::fs::read_to_string(format!("/proc/{}/status", enforcer.id())).ok()?;
            status.contains("State:\tZ").then_some(())
        });
    });
    let said = said.exits(4);
    assert!(
        said.contains("told to stop twice (SIGINT) while moving users to the build: it stopped at once"),
        "{said}"
    );
    assert!(said.contains("ann at 'stopping' between t3 0.0.24 and 0.0.33"), "{said}");
    std::fs::remove_file(fleet.path("stop-takes")).expect("removed");
    fleet.enforce(&["--to", NEW]).exits(0);
    fleet.everybody_is_on(NEW);
}

#[test]
fn killed_it_is_said_on_the_page_at_once_and_by_the_next_run_in_metrics_and_history() {
    let fleet = fleet("").changed("soak = \"2s\"", "soak = \"10m\"");
    let serving = fleet.world.serve();
    let moment = || fleet.step("ann").filter(|step| step == "proven");
    let shown = |words: &str| wait_for(words, || serving.page("/").body.contains(words).then_some(()));
    let Said { exit, text } = fleet.disturbed(&["--to", NEW], moment, |enforcer| {
        shown("watching those who were moved");
        signal("KILL")(enforcer);
    });
    assert_eq!(exit, -1, "{text}");
    shown("ended without a word while it was watching those who were moved, since");
    let fleet = fleet.changed("soak = \"10m\"", "soak = \"2s\"");
    // The time of the rollout that is under way is in its journal.
    let moment = || (fleet.standing()["last"]["end"] == "killed").then_some(());
    fleet.disturbed(&["--to", NEW], moment, signal("TERM")).exits(4);
    is_told(&serving, "killed", "while it was watching those who were moved, since");
    is_told(&serving, "killed", "ann on t3 0.0.33");
    fleet.enforce(&["--back"]).exits(1);
    fleet.everybody_is_on(OLD);
    assert_eq!(serving.metric("t3_enforcer_runs_total{outcome=\"killed\"}"), Some(1.0), "once a run");
}

/// The kernel gives no thread, once: the runtime panics. Those that it has for such work end after ten seconds without any,
/// which is why stopping takes longer.
#[test]
fn after_a_panic_whoever_was_down_runs_again_and_the_defect_is_an_outcome() {
    if tools::find("strace").is_none() {
        return;
    }
    let fleet = fleet("");
    let serving = fleet.world.serve();
    std::fs::write(fleet.path("stop-takes"), "12").expect("written");
    let moment = || fleet.path("stopping").exists().then_some(());
    let mut tracer = None;
    let said = fleet.disturbed(&["--to", NEW], moment, |enforcer| {
        let mut strace = Command::new("strace");
        strace.args([
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=clone3",
            "-e",
            "inject=clone3:error=EPERM:when=1",
            "-p",
        ]);
        let strace = strace.arg(enforcer.id().to_string()).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        tracer = Some(strace.expect("strace"));
    });
    tracer.expect("strace").wait().expect("its end");
    let said = said.exits(4);
    let words = "a defect of this program while moving users to the build: OS can't spawn worker thread";
    assert!(said.contains(words) && said.contains("ann was down and was started"), "{said}");
    is_told(&serving, "error", words);
    assert_eq!(fleet.running("ann").as_deref(), Some(OLD), "{said}");
    std::fs::remove_file(fleet.path("stop-takes")).expect("removed");
    fleet.enforce(&["--to", NEW]).exits(0);
    fleet.everybody_is_on(NEW);
}

#[test]
fn a_run_that_cannot_begin_is_an_outcome_as_well() {
    let fleet = Fleet::on(OLD, &["ann"], PASSES);
    let serving = fleet.world.serve();
    let mut enforcer = fleet.command(&["--to", NEW]);
    let output = enforcer.env("RUST_LOG", "t3_prober=[").output().expect("the program");
    assert_eq!(output.status.code(), Some(4), "1 would be a rollback: {output:?}");
    is_told(&serving, "error", "it cannot begin: 't3_prober=[' is not a log filter");
    let config = fleet.path("refused.toml");
    let text = std::fs::read_to_string(fleet.path("config.toml")).expect("the configuration");
    std::fs::write(&config, format!("{text}sooak = \"2s\"\n")).expect("written");
    let mut enforcer = Command::new(crate::support::world::PROGRAM);
    let output = enforcer.arg("--config").arg(&config).arg("enforce").output().expect("the program");
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    serving.until_metric("t3_enforcer_runs_total{outcome=\"error\"}", |value| value == 2.0);
    fleet.everybody_is_on(OLD);
}
