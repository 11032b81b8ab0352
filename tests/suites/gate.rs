//! The gate, driven as an enforcer would: broken builds fail with their reason, broken gates never do, and good builds
//! pass with the truth about the way back.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::gate::Gate;
use crate::support::{fixtures, sim};

mod broken_gates;
mod enforcer;
mod mutations;

/// How often the same build is judged beside itself.
const TIMES: usize = 100;
/// At once; more would only wait for each other on two cores.
const LANES: usize = 4;

#[test]
fn the_same_build_as_candidate_and_control_passes_every_time() {
    let rounds = std::sync::atomic::AtomicUsize::new(0);
    let lane = || {
        let gate = Gate::new();
        let mut passed = 0;
        loop {
            let round = rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if round >= TIMES {
                break;
            }
            let version = ["0.0.24", "0.0.26", "0.0.33"][round % 3];
            let judged = gate.judge(&[version, "--control", version]);
            let found = (judged.code, judged.verdict(), judged.text("rollback"), judged.text("risk"));
            let [pass, back, risk] = ["pass all_passed", "binary_only", "safe"].map(str::to_owned);
            assert_eq!(found, (Some(0), pass, back, risk), "round {round}: {}", judged.output);
            assert_eq!(judged.document["rolling_restart"], true);
            assert_eq!(judged.differences(), [""; 0]);
            passed += 1;
        }
        assert_eq!(gate.left_behind(), [""; 0].map(std::path::PathBuf::from));
        passed
    };
    let passed: usize = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().map(|lane| lane.join().expect("a lane that passed")).sum()
    });
    assert_eq!(passed, TIMES);
}

#[test]
fn each_step_between_releases_has_its_way_back_and_its_differences() {
    const ENDPOINTS: [&str; 2] = [
        "exchange endpoint /api/auth/bootstrap → /api/auth/browser-session",
        "WebSocket ticket endpoint /api/auth/ws-token → /api/auth/websocket-ticket",
    ];
    const COOKIE: &str = "cookie on loopback t3_session → t3_session_<port>_<hash>";
    let table: [(&str, &str, &str, bool, Vec<&str>); 3] = [
        (
            "0.0.24",
            "0.0.26",
            "needs_restore",
            false,
            [&ENDPOINTS[..], &["schema 30 → 32: drops sessions"]].concat(),
        ),
        (
            "0.0.24",
            "0.0.33",
            "needs_restore",
            false,
            [&ENDPOINTS[..], &[COOKIE, "schema 30 → 40: drops sessions"]].concat(),
        ),
        ("0.0.26", "0.0.33", "binary_only", true, vec![COOKIE, "schema 32 → 40"]),
    ];
    let gate = Gate::new();
    for (control, candidate, rollback, rolling, differences) in table {
        let database = gate.path(&format!("from-{control}-to-{candidate}"));
        let fixture = fixtures::copy(control, &database);
        let mut arguments = vec![candidate, "--control", control];
        let fixture = fixture.map(|path| path.display().to_string());
        if let Some(path) = &fixture {
            arguments.extend(["--seed", path]);
        }
        let judged = gate.judge(&arguments);
        let context = format!("{control} → {candidate}: {}", judged.output);
        assert_eq!(judged.verdict(), "pass all_passed", "{context}");
        assert_eq!(judged.text("rollback"), rollback, "{context}");
        assert_eq!(judged.document["rolling_restart"], rolling, "{context}");
        assert_eq!(judged.differences(), differences, "{context}");
        assert_eq!(judged.text("risk"), "caution");
        let seeds = judged.document["seeds"].as_array().expect("seeds").len();
        assert_eq!(seeds, 1 + usize::from(fixture.is_some()));
    }
}

#[test]
fn a_user_whose_own_data_breaks_the_build_fails_it_by_name() {
    let mut gate = Gate::new();
    for user in ["ann", "bob", "cid"] {
        let base = gate.user(user);
        let project = gate.path(&format!("projects/{user}"));
        std::fs::create_dir_all(&project).expect("a project");
        gate.t3("0.0.26", &base, &["project", "add", project.to_str().expect("text")]);
    }
    let bad = gate.build("bad", "0.0.26", &["fails-for-one-user=/projects/bob"]);
    let judged = gate.judge(&["--bin", &bad]);
    assert_eq!(
        (judged.code, judged.verdict()),
        (Some(1), "fail candidate_failed".to_owned()),
        "{}",
        judged.output
    );
    assert_eq!(judged.findings(), ["bob: contract auth_store"]);
    assert!(judged.text("summary").contains("contract on the data of bob:"), "{}", judged.text("summary"));
    let judged = gate.judge(&["--bin", &bad, "--user", "ann", "--user", "cid"]);
    assert_eq!(judged.verdict(), "pass all_passed", "{}", judged.output);
    let asked = gate.run(&["verdict", "0.0.26"]);
    assert_eq!(asked.status.code(), Some(5), "bob was not rehearsed: {asked:?}");
    assert!(String::from_utf8_lossy(&asked.stderr).contains("[not_covered]"), "{asked:?}");
}

#[test]
fn going_back_by_restore_counts_only_with_a_verified_backup_of_everybody() {
    let mut gate = Gate::new().set("control", "\"0.0.24\"");
    let base = gate.user("ann");
    gate.t3("0.0.24", &base, &["auth", "pairing", "list"]);
    let judged = gate.judge(&["0.0.26"]);
    assert_eq!(
        (judged.code, judged.verdict()),
        (Some(3), "inconclusive no_way_back".to_owned()),
        "{}",
        judged.output
    );
    let taken = gate.run(&["backup", "take", "ann"]);
    assert!(taken.status.success(), "{taken:?}");
    let judged = gate.judge(&["0.0.26"]);
    assert_eq!((judged.code, judged.verdict()), (Some(0), "pass all_passed".to_owned()), "{}", judged.output);
    assert_eq!(judged.text("rollback"), "needs_restore");
    assert_eq!(gate.run(&["verdict", "0.0.26"]).status.code(), Some(0));
    gate.t3("0.0.26", &base, &["auth", "pairing", "list"]);
    let asked = gate.run(&["verdict", "0.0.26"]);
    assert_eq!(asked.status.code(), Some(5), "{asked:?}");
    assert!(String::from_utf8_lossy(&asked.stderr).contains("[level_differs]"), "{asked:?}");
}

#[test]
fn a_database_that_is_already_ahead_passes_the_build_that_mends_it_and_says_there_is_no_way_back() {
    let mut gate = Gate::new().set("control", "\"0.0.24\"");
    let base = gate.user("ann");
    gate.t3("0.0.26", &base, &["auth", "pairing", "list"]);
    let judged = gate.judge(&["0.0.26"]);
    assert_eq!(
        (judged.code, judged.verdict()),
        (Some(0), "pass control_outrun".to_owned()),
        "{}",
        judged.output
    );
    assert_eq!(judged.text("rollback"), "unsafe");
    assert_eq!(judged.document["rolling_restart"], false);
}

#[test]
fn a_version_that_is_not_installed_is_installed_in_a_box_for_this_run_only() {
    let install = format!("[\"{}\", \"sim\", \"install\", \"{{prefix}}\", \"{{version}}\"]", sim::PROGRAM);
    let gate = Gate::new().set("install_command", &install);
    let judged = gate.judge(&["0.0.32"]);
    assert_eq!(judged.verdict(), "pass all_passed", "{}", judged.output);
    let integrity = judged.document["candidate"]["integrity"].as_str().unwrap_or_default().to_owned();
    assert!(integrity.starts_with("sha256:") && integrity.len() == 71, "{integrity}");
    assert!(!gate.path("installs/0.0.32").exists());
    let broken = Gate::new().set("install_command", "[\"/bin/false\", \"{prefix}\", \"{version}\"]");
    let judged = broken.judge(&["0.0.32"]);
    assert_eq!(
        (judged.code, judged.verdict()),
        (Some(4), "error no_candidate".to_owned()),
        "{}",
        judged.output
    );
}

#[test]
fn a_planted_credential_is_in_no_verdict_log_or_report() {
    const PLANTED: &str = "P7ANTEDKEY99";
    let mut gate = Gate::new();
    let base = gate.user("ann");
    gate.t3("0.0.26", &base, &["auth", "pairing", "create", "--label", PLANTED]);
    let database = base.join("userdata/state.sqlite");
    let connection = tokio_rusqlite::rusqlite::Connection::open(database).expect("the database");
    let update = "UPDATE auth_pairing_links SET credential = ?1";
    assert_eq!(connection.execute(update, [PLANTED]).expect("planted"), 1);
    drop(connection);
    for mutation in ["no-cookie", "writes-refused", "migration-fails"] {
        let bad = gate.build(mutation, "0.0.26", &[mutation]);
        let judged = gate.judge(&["--bin", &bad]);
        assert_eq!(judged.verdict(), "fail candidate_failed");
        let report = gate.run(&["verdict", "0.0.26"]);
        let kept = std::fs::read_to_string(gate.path("state/verdicts/0.0.26.json")).expect("the verdict");
        for text in [judged.output, String::from_utf8_lossy(&report.stdout).into_owned(), kept] {
            assert!(!text.contains(PLANTED), "{text}");
            assert!(!text.contains("eyJ"), "a token: {text}");
        }
    }
}

#[tokio::test]
async fn a_gate_that_is_killed_leaves_nothing_that_the_next_one_does_not_remove() {
    let gate = Gate::new().set("hold", "\"60s\"");
    let mut killed = gate.start(&["gate", "0.0.26"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    let works = || {
        let base =
            gate.left_behind().into_iter().next()?.join("0-candidate/base/userdata/server-runtime.json");
        base.exists().then_some(base)
    };
    while works().is_none() {
        assert!(Instant::now() < deadline, "no rehearsal began");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let dir = gate.left_behind().pop().expect("a place").display().to_string();
    assert!(!processes_naming(&dir).is_empty());
    killed.kill().expect("killed");
    killed.wait().expect("gone");
    while !processes_naming(&dir).is_empty() {
        assert!(Instant::now() < deadline, "{:?} still run", processes_naming(&dir));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gate = gate.set("hold", "\"100ms\"");
    assert_eq!(gate.left_behind().len(), 1);
    assert_eq!(gate.judge(&["0.0.26"]).verdict(), "pass all_passed");
    assert!(gate.left_behind().is_empty(), "{:?}", gate.left_behind());
}

#[test]
fn what_runs_in_a_box_ends_with_whoever_asked_and_does_not_begin_after_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let leashed = |script: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_t3-prober"));
        command.args(["leashed", "/bin/sh", "-c", script]).current_dir(dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts")
    };
    let mut running = leashed("echo up; exec sleep 600");
    let (mut stdin, mut stdout) =
        (running.stdin.take().expect("stdin"), running.stdout.take().expect("stdout"));
    stdin.write_all(b"\n").expect("written");
    let mut said = [0; 3];
    stdout.read_exact(&mut said).expect("it runs");
    drop(stdin);
    // Ended where the last of those who could write has ended.
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("the end");
    assert_eq!((&said, rest.len()), (b"up\n", 0));
    assert_eq!(running.wait().expect("an end").code(), Some(1));

    let late = leashed("touch begun").wait_with_output().expect("an end");
    assert_eq!((late.status.code(), dir.path().join("begun").exists()), (Some(1), false));

    let mut done = leashed("exit 7");
    let mut stdin = done.stdin.take().expect("stdin");
    stdin.write_all(b"\n").expect("written");
    assert_eq!(done.wait().expect("an end").code(), Some(7));
}

/// The command lines that name a directory.
fn processes_naming(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(dir)).map(|line| line.replace('\0', " ")).collect()
}
