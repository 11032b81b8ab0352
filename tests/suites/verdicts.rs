//! Verdicts as the service knows them: what is exported, shown and remembered of each, and how one is asked for.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::support::world::{PROGRAM, Serving, World, replace, wait_for};

/// A gate that is quick, whose known-good build is 0.0.26.
fn gate(more: &str) -> String {
    // The stand-in's builds are this program under another name.
    let program = Path::new(PROGRAM).parent().expect("a directory").display();
    format!(
        "[probe]\npulse_interval = \"2s\"\npulse_timeout = \"1600ms\"\n\
         [gate]\nexpose = [\"{program}\"]\nhold = \"100ms\"\nkeep_free_mib = 1\ncontrol = \"0.0.26\"\n{more}"
    )
}

fn world(more: &str) -> World {
    let world = World::with(&[("ann", "0.0.26")]).configured(&gate(more));
    world.install("0.0.33");
    world
}

/// A build that is broken in one way; answers its program.
fn broken(world: &World, mutation: &str) -> String {
    let dir = world.path(mutation);
    let mut install = std::process::Command::new(PROGRAM);
    install.args(["sim", "install"]).arg(&dir).args(["0.0.29", "--mutation", mutation]);
    assert!(install.status().expect("the program").success());
    dir.join("bin/t3").display().to_string()
}

fn ask(serving: &Serving, path: &str) -> (u16, Value) {
    let answer = serving.get(path);
    let body = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    (answer.status, body)
}

fn verdicts(serving: &Serving) -> Vec<String> {
    let of = |row: &Value| {
        format!("{} {}", row["subject"].as_str().unwrap_or("-"), row["outcome"].as_str().unwrap_or("-"))
    };
    serving.history("/history/events?kind=verdict").iter().map(of).collect()
}

#[test]
fn whoever_ran_the_gate_its_verdict_is_exported_shown_and_remembered_once() {
    let world = world("");
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    let code = |arguments: &[&str]| world.command(arguments).output().expect("the program").status.code();
    assert_eq!(code(&["gate", "0.0.33"]), Some(0));
    serving.until_metric(
        "t3_verdict_info{version=\"0.0.33\",verdict=\"pass\",grounds=\"all_passed\",rollback=\"binary_only\"}",
        |value| value == 1.0,
    );
    assert_eq!(serving.metric("t3_verdict_holds{version=\"0.0.33\"}"), Some(1.0));
    assert_eq!(serving.metric("t3_verdict_consecutive_nonpass"), Some(0.0));
    let bad = broken(&world, "no-cookie");
    assert_eq!(code(&["gate", "--bin", &bad]), Some(1));
    serving.until_metric(
        "t3_verdict_last_refusal_info{version=\"0.0.29\",verdict=\"fail\",grounds=\"candidate_failed\",step=\"exchange\",reason=\"no_cookie\"}",
        |value| value == 1.0,
    );
    assert_eq!(serving.metric("t3_verdict_consecutive_nonpass"), Some(1.0));
    assert_eq!(serving.metric("t3_verdict_runs_total{verdict=\"fail\"}"), Some(1.0));
    let took =
        serving.metric("t3_verdict_rehearsal_duration_seconds{version=\"0.0.33\",rehearsal=\"candidate\"}");
    assert!(took.is_some_and(|took| took > 0.1), "{took:?}");
    let page = serving.page("/").body;
    for said in ["Candidates", "0.0.33", "The last refusal", "exchange", "differs: cookie on loopback"] {
        assert!(page.contains(said), "no '{said}' in {page}");
    }
    let page = serving.page("/candidates/0.0.33").body;
    for said in [
        "t3 0.0.33 may be given to everybody.",
        "Starting the control again is enough.",
        "cookie on loopback",
        "ann",
    ] {
        assert!(page.contains(said), "no '{said}' in {page}");
    }
    let page = serving.page("/candidates/0.0.29").body;
    for said in ["t3 0.0.29 is not fit for these users.", "no_cookie", "exchange"] {
        assert!(page.contains(said), "no '{said}' in {page}");
    }
    assert_eq!(serving.page("/candidates/0.0.1").status, 404);
    wait_for("the history", || (verdicts(&serving) == ["0.0.29 fail", "0.0.33 pass"]).then_some(()));
    assert_eq!(serving.stop(), 0);

    let serving = world.serve();
    serving.until_metric("t3_verdict_consecutive_nonpass", |streak| streak == 1.0);
    serving.until_metric("t3_verdict_holds{version=\"0.0.33\"}", |holds| holds == 1.0);
    assert_eq!(serving.metric("t3_verdict_runs_total{verdict=\"fail\"}"), Some(0.0));
    assert_eq!(verdicts(&serving), ["0.0.29 fail", "0.0.33 pass"]);
}

#[test]
fn only_a_pass_that_counts_is_answered_with_200_and_it_is_made_once_however_often_it_is_asked_for() {
    let mut world = world("");
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    let (status, none) = ask(&serving, "/api/v1/verdicts/0.0.33");
    assert_eq!((status, &none["standing"]), (404, &Value::from("none")));
    for _ in 0..3 {
        assert_eq!(serving.post("/api/v1/verdicts", r#"{"version": "0.0.33"}"#).status, 202);
    }
    let (status, judged) = ask(&serving, "/api/v1/verdicts/0.0.33?wait=60s");
    assert_eq!((status, &judged["standing"]), (200, &Value::from("pass")), "{judged}");
    assert_eq!(judged["document"]["candidate"]["version"], "0.0.33");
    let again = serving.post("/api/v1/verdicts", r#"{"version": "0.0.33"}"#);
    assert_eq!(again.status, 200, "a pass that counts is not made again: {again:?}");
    assert_eq!(serving.metric("t3_verdict_runs_total{verdict=\"pass\"}"), Some(1.0));

    world.add("bob");
    let answered = || Some(ask(&serving, "/api/v1/verdicts/0.0.33")).filter(|(status, _)| *status != 200);
    let (status, elsewhere) = wait_for("bob to matter", answered);
    assert_eq!((status, &elsewhere["standing"]), (409, &Value::from("not_covered")), "{elsewhere}");
    let (_, list) = ask(&serving, "/api/v1/verdicts");
    assert_eq!(list["verdicts"][0]["elsewhere"], "not_covered", "{list}");
}

#[test]
fn a_fail_is_409_and_so_is_what_could_not_be_told() {
    let world = world("install_command = [\"/bin/false\", \"{prefix}\", \"{version}\"]\n");
    let bad = broken(&world, "no-cookie");
    let serving = world.serve();
    assert_eq!(world.command(&["gate", "--bin", &bad]).output().expect("the program").status.code(), Some(1));
    let (status, fail) = ask(&serving, "/api/v1/verdicts/0.0.29?wait=10s");
    assert_eq!((status, &fail["standing"]), (409, &Value::from("fail")), "{fail}");
    let again = serving.post("/api/v1/verdicts", r#"{"version": "0.0.29"}"#);
    assert_eq!(again.status, 409, "{again:?}");
    assert_eq!(serving.post("/api/v1/verdicts", r#"{"version": "0.0.32"}"#).status, 202);
    let (status, error) = ask(&serving, "/api/v1/verdicts/0.0.32?wait=60s");
    assert_eq!((status, &error["document"]["verdict"]), (409, &Value::from("error")), "{error}");
    // What could not be told is worth another try.
    assert_eq!(serving.post("/api/v1/verdicts", r#"{"version": "0.0.32"}"#).status, 202);
}

#[test]
fn a_version_is_all_that_can_be_asked_for() {
    let world = world("");
    let serving = world.serve();
    let long = format!("{{\"version\": \"{}\"}}", "1".repeat(5000));
    for (body, status) in [
        ("", 400),
        ("{}", 400),
        ("[]", 400),
        ("{\"version\": 26}", 400),
        ("{\"version\": \"latest\"}", 400),
        ("{\"version\": \"../../etc/passwd\"}", 400),
        ("{\"version\": \"0.0.33; reboot\"}", 400),
        ("{\"version\": \"/bin/sh\"}", 400),
        ("{\"version\": \"0.0.33\", \"bin\": \"/bin/sh\"}", 400),
        ("{\"version\": \"0.0.33\", \"command\": [\"sh\"]}", 400),
        (long.as_str(), 413),
    ] {
        let answer = serving.post("/api/v1/verdicts", body);
        assert_eq!(answer.status, status, "{body:.60}: {answer:?}");
    }
    for path in ["latest", "..%2f..%2fconfig", "0.0.33?wait=forever", "0.0.33?wait=1h", "0.0.33?bin=/bin/sh"]
    {
        let answer = serving.get(&format!("/api/v1/verdicts/{path}"));
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
    }
    let (_, list) = ask(&serving, "/api/v1/verdicts");
    assert_eq!((&list["running"], &list["waiting"]), (&Value::Null, &Value::Array(Vec::new())), "{list}");
}

#[test]
fn a_followed_tag_has_its_builds_judged_by_themselves_but_not_beside_an_upgrade() {
    let script = "#!/bin/sh\ncat \"$(dirname \"$0\")/tag-$1\"\n";
    let world = world("");
    replace(&world.path("view"), script);
    std::fs::set_permissions(world.path("view"), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    replace(&world.path("tag-nightly"), "0.0.33\n");
    let view = world.path("view").display().to_string();
    let track = format!(
        "[gate.track]\ntag = \"nightly\"\ncommand = [{view:?}, \"{{tag}}\"]\nevery = \"1s\"\nmost = 1\n"
    );
    let world = world.configured(&track);
    let held = upgrade(&world);

    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    serving.until_metric("t3_verdict_gate_running", |running| running == 1.0);
    let gates = || {
        let entries = std::fs::read_dir(world.path("state/gate")).into_iter().flatten();
        entries.count()
    };
    // Longer than the gate needs to make its place.
    let quiet = serving.metric("process_cpu_seconds_total").map(|_| wait_a_while(&serving));
    assert!(quiet.is_some() && gates() == 0, "the gate works beside an upgrade");
    drop(held);
    let (status, judged) = ask(&serving, "/api/v1/verdicts/0.0.33?wait=60s");
    assert_eq!((status, &judged["standing"]), (200, &Value::from("pass")), "{judged}");

    // One in six hours was the limit.
    replace(&world.path("tag-nightly"), "0.0.24\n");
    wait_a_while(&serving);
    let (_, list) = ask(&serving, "/api/v1/verdicts");
    assert_eq!(list["verdicts"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!((&list["running"], &list["waiting"]), (&Value::Null, &Value::Array(Vec::new())), "{list}");
}

#[test]
fn a_gate_in_the_background_is_given_up_when_an_upgrade_begins_and_comes_again_after_it() {
    // Long enough to be seen at work.
    let world = World::with(&[("ann", "0.0.26")]).configured(&gate("").replace("100ms", "4s"));
    world.install("0.0.33");
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    assert_eq!(serving.post("/api/v1/verdicts", r#"{"version": "0.0.33"}"#).status, 202);
    let builds = || {
        let place = world.path("state/gate").display().to_string();
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let lines = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.contains(&place)).count()
    };
    wait_for("a rehearsal", || (builds() > 0).then_some(()));
    let held = upgrade(&world);
    wait_for("the gate to be given up with its boxes", || (builds() == 0).then_some(()));
    serving.until_metric("t3_verdict_gate_running", |running| running == 1.0);
    let (_, list) = ask(&serving, "/api/v1/verdicts");
    assert_eq!(
        (&list["running"], &list["verdicts"]),
        (&Value::from("0.0.33"), &Value::Array(Vec::new())),
        "{list}"
    );
    drop(held);
    let (status, judged) = ask(&serving, "/api/v1/verdicts/0.0.33?wait=60s");
    assert_eq!((status, &judged["standing"]), (200, &Value::from("pass")), "{judged}");
}

#[test]
fn a_service_that_may_make_no_boxes_hands_builds_to_the_units_that_may() {
    let world = World::empty();
    for version in ["0.0.26", "0.0.33"] {
        world.install(version);
    }
    replace(&world.path("view"), "#!/bin/sh\necho 0.0.24\n");
    std::fs::set_permissions(world.path("view"), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let (socket, view) = (world.path("none.sock"), world.path("view"));
    let world = world.configured(&format!(
        "{}[helper]\nsocket = {socket:?}\n[gate.track]\ntag = \"nightly\"\ncommand = [{view:?}, \"{{tag}}\"]\n",
        gate("")
    ));
    world.install("0.0.24");
    let serving = world.serve();
    assert_eq!(serving.post("/api/v1/verdicts", r#"{"version": "0.0.33"}"#).status, 202);
    let asked = world.path("state/docket/asked/0.0.33");
    wait_for("the build to be handed over", || asked.exists().then_some(()));
    serving.until_metric("t3_verdict_gate_running", |running| running == 1.0);
    assert!(!world.path("state/gate").exists(), "the service runs a gate of its own");

    // As t3-prober-gate.path and t3-prober-gate.timer have it run.
    let due = || world.command(&["gate", "--due"]).output().expect("the program");
    let output = due();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!asked.exists());
    for version in ["0.0.33", "0.0.24"] {
        let (status, judged) = ask(&serving, &format!("/api/v1/verdicts/{version}?wait=20s"));
        assert_eq!((status, &judged["standing"]), (200, &Value::from("pass")), "{judged}");
    }
    serving.until_metric("t3_version_info{place=\"tracked\",version=\"0.0.24\"}", |value| value == 1.0);
    serving.until_metric("t3_verdict_gate_running", |running| running == 0.0);
    let stamp = || {
        std::fs::metadata(world.path("state/verdicts/0.0.24.json")).expect("it").modified().expect("a time")
    };
    let before = stamp();
    assert_eq!(due().status.code(), Some(0));
    assert_eq!(stamp(), before, "what is judged is not judged again");

    replace(&world.path("view"), "#!/bin/sh\necho offline >&2; exit 1\n");
    std::fs::set_permissions(world.path("view"), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let output = due();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(4) && said.contains("'nightly'") && said.contains("offline"),
        "{said}"
    );
}

/// The lock that upgrades and restores hold.
fn upgrade(world: &World) -> Flock<std::fs::File> {
    let dir = world.path("state/enforce");
    std::fs::create_dir_all(&dir).expect("a directory");
    let lock = std::fs::File::create(dir.join("lock")).expect("a lock");
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error).expect("held")
}

/// As long as three pulses of ann take.
fn wait_a_while(serving: &Serving) {
    let pulses = serving.until_runs("ann", "pulse", "ok", 0.0);
    serving.until_runs("ann", "pulse", "ok", pulses + 2.0);
}
