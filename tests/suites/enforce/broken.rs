//! Builds that break live, whatever the gate said: judged within their soak and one pulse, and everybody back with every
//! row within the time that t3 needs to stop and half a minute more. A command stands in for the gate, because our own
//! would refuse three of them as they are: those of the third login and behind the dispatch (`gate::mutations`) and the
//! one for a user's data (`enforce::gate`). What it misses, a later login or another minute, goes through it there.

use std::time::{Duration, Instant};

use super::{NEW, OLD, PASSES, USERS};
use crate::support::door::section;
use crate::support::fleet::{Fleet, Told, has_message};
use crate::support::free_port::free_port;
use crate::support::held::Held;
use crate::support::world::{http, wait_for};

/// As in production.
const PULSE: Duration = Duration::from_secs(5);
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// With a soak in the words of the configuration.
fn fleet(soak: &str) -> Fleet {
    Fleet::on(OLD, &USERS, &format!("{PASSES}soak = \"{soak}\"\n"))
        .changed("pulse_interval = \"1s\"", "pulse_interval = \"5s\"")
}

/// Rolls the build out while everybody writes on, and expects that it is judged bad and undone in time: within its soak
/// and a pulse, and what t3 needs to stop and half a minute.
fn is_undone(fleet: &Fleet, soak: Duration, stops: Duration) -> Told {
    for user in USERS {
        fleet.write_message(user, "before");
    }
    let mut rows: Vec<_> = USERS.iter().map(|user| fleet.rows(user)).collect();
    let told = std::thread::scope(|scope| {
        let run = scope.spawn(|| fleet.tell(&["--to", NEW]));
        // After everybody's backup, and before the restart of whoever is not the canary.
        wait_for("the canary to be stopped, or the end", || {
            (run.is_finished() || fleet.journal()?["moves"][0]["user"] == "ann").then_some(())
        });
        if fleet.running("cid").as_deref() == Some(OLD) {
            fleet.write_message("cid", "between");
            rows[2] = fleet.rows("cid");
        }
        run.join().expect("a run")
    });
    assert_eq!(told.exit, 1, "{}", told.text());
    assert!(fleet.has_message("cid", "between"), "{}", told.text());
    for (user, rows) in USERS.iter().zip(rows) {
        assert_eq!(fleet.world.level(user), 30);
        assert_eq!(fleet.rows(user), rows, "{user}: {}", told.text());
    }
    fleet.everybody_is_on(OLD);
    assert!(fleet.journal().is_none() && fleet.freeze_file().exists());
    let again = fleet.enforce(&["--to", NEW]).exits(3);
    assert!(again.contains("frozen: 0.0.33 was rolled back at"), "{again}");
    in_time(&told, soak, stops);
    told
}

fn in_time(told: &Told, soak: Duration, stops: Duration) {
    let bad = told.position(" is bad: ");
    // What it broke under: the watch of a group, or the first login to a fresh instance.
    let begins = |line: &str| line.starts_with("watching ") || line.contains(": starting t3 ");
    let begun = told.lines[..bad].iter().rposition(|(_, line)| begins(line)).expect("somebody was moved");
    let (begun, bad): (Instant, Instant) = (told.lines[begun].0, told.lines[bad].0);
    let (judged, back) = (bad - begun, told.ended - bad);
    println!("judged bad after {judged:.1?} of a soak of {soak:?}, everybody back {back:.1?} later");
    assert!(judged <= soak + PULSE, "judged after {judged:?}: {}", told.text());
    assert!(back <= stops + BACK_WITHIN, "back after {back:?}: {}", told.text());
}

#[test]
fn one_that_fails_from_the_third_login_on() {
    let fleet = fleet("6s");
    fleet.install_broken(NEW, "fails-on-third-login");
    let told = is_undone(&fleet, Duration::from_secs(6), Duration::ZERO);
    told.position("t3 0.0.33 is bad: ann fails at exchange");
}

/// In real time, and with the times of production.
#[test]
fn one_that_fails_after_ninety_seconds() {
    let fleet = fleet("2m").changed("login_interval = \"500ms\"", "login_interval = \"15s\"");
    fleet.install_with(NEW, &["--mutation", "fails-later", "--boot", "1100ms", "--early", "270ms"]);
    let told = is_undone(&fleet, Duration::from_secs(120), Duration::ZERO);
    let (watched, bad) = (told.position("watching ann on"), told.position("t3 0.0.33 is bad: ann fails at"));
    let well = told.lines[bad].0 - told.lines[watched].0;
    assert!(well >= Duration::from_secs(80), "it was well for {well:?}");
}

#[test]
fn one_that_fails_for_one_users_data_only_with_a_t3_that_takes_long_to_stop() {
    const STOPS: Duration = Duration::from_secs(3);
    let fleet = fleet("6s");
    fleet.install_broken(NEW, "fails-for-one-user=/srv/of-cid");
    fleet.add_project("cid", OLD, "srv/of-cid");
    std::fs::write(fleet.path("stop-takes"), STOPS.as_secs().to_string()).expect("written");
    let told = is_undone(&fleet, Duration::from_secs(6), STOPS);
    let said = told.text();
    assert!(said.contains("ann: on t3 0.0.33") && said.contains("t3 0.0.33 is bad: cid fails at"), "{said}");
    assert!(said.contains("back where they were: ann, bob, cid;"), "{said}");
    assert!(fleet.has_message("ann", "before"), "{said}");
}

#[test]
fn one_that_fails_behind_the_dispatch_only() {
    let (port, operator) = (free_port(), free_port());
    let fleet = fleet("6s");
    let key = fleet.path("probe.key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").expect("a key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let fleet = fleet
        .configured(&format!("{}probe_key_file = \"{}\"\n", section(port, operator), key.display()))
        .changed("[probe]\n", &format!("[probe]\nfront = \"127.0.0.1:{port}\"\n"));
    let _dispatch =
        Held(fleet.world.command(&["dispatch"]).stderr(std::process::Stdio::null()).spawn().expect("it"));
    wait_for("the dispatch", || {
        http(operator, "GET", "/-/healthy", &[]).ok().filter(|answer| answer.status == 200)
    });
    fleet.install_broken(NEW, "fails-behind-proxy");
    let told = is_undone(&fleet, Duration::from_secs(6), Duration::ZERO);
    told.position("t3 0.0.33 is bad: ann fails at front");
}

#[test]
fn one_that_breaks_at_a_drained_restart_brings_that_user_back_with_what_they_wrote_meanwhile() {
    let fleet = fleet("2s");
    fleet.install_broken(NEW, "fails-for-one-user=/srv/of-bob");
    fleet.busy("bob", true);
    fleet.write_message("bob", "before-the-first-backup");
    let folder = fleet.path("srv/of-bob");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut add = std::process::Command::new(fleet.world.t3(OLD));
    add.args(["project", "add"]).arg(&folder).arg("--base-dir").arg(fleet.world.base_dir("bob"));
    assert!(add.stdout(std::process::Stdio::null()).status().expect("t3").success());
    fleet.enforce(&["--to", NEW]).exits(0);
    fleet.write_message("bob", "after-the-first-backup");
    fleet.busy("bob", false);
    let rows = fleet.rows("bob");
    let said = fleet.enforce(&["--drain"]).exits(1);
    assert!(
        said.contains("t3 0.0.33 is bad: bob fails at")
            && said.contains("back where they were: ")
            && said.contains("bob;"),
        "{said}"
    );
    assert_eq!((fleet.running("bob").as_deref(), fleet.linked("bob").as_str()), (Some(OLD), OLD));
    assert_eq!((fleet.world.level("bob"), fleet.rows("bob")), (30, rows));
    assert!(fleet.has_message("bob", "after-the-first-backup"));
    assert_eq!(fleet.world.probe("bob").exit, 0);
    assert_eq!(fleet.running("ann").as_deref(), Some(NEW), "where it works it stays");
}

#[test]
fn what_was_written_on_the_bad_build_is_kept_and_shown() {
    let fleet = super::fleet("");
    fleet.install_broken(NEW, "fails-later=2");
    let mut enforcer =
        fleet.command(&["--to", NEW]).stdout(std::process::Stdio::piped()).spawn().expect("the program");
    wait_for("ann to be watched", || {
        let journal = fleet.journal()?;
        (journal["moves"][0]["step"] == "proven").then_some(())
    });
    fleet.write_message("ann", "on-the-new-build");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut enforcer.stdout.take().expect("a pipe"), &mut said).expect("text");
    assert_eq!(enforcer.wait().expect("an end").code(), Some(1), "{said}");
    fleet.everybody_is_on(OLD);
    assert!(!fleet.has_message("ann", "on-the-new-build"));
    let aside = fleet.aside("ann");
    assert_eq!(aside.len(), 1);
    assert!(
        has_message(&aside[0].join("state.sqlite"), "on-the-new-build"),
        "the newer database is kept whole"
    );
    assert!(said.contains("1 messages, 1 events written since the copy"), "{said}");
}

#[test]
fn whoever_cannot_be_brought_back_is_told_what_runs_for_them_meanwhile() {
    // Of the same level: the database is the old build's own, and only the old build fits it.
    const LIKE_OLD: &str = "0.0.25";
    let fleet = Fleet::on(OLD, &["ann"], &format!("{PASSES}soak = \"30s\"\n"))
        .changed("start_timeout = \"20s\"", "start_timeout = \"3s\"");
    fleet.install_broken(LIKE_OLD, "fails-later=3");
    let watched = || (fleet.step("ann")? == "proven").then_some(());
    let said =
        fleet.disturbed(&["--to", LIKE_OLD], watched, |_| fleet.install_broken(OLD, "no-cookie")).exits(6);
    assert!(said.contains("not everybody could be brought back: ann: "), "{said}");
    assert!(said.contains("; t3 0.0.24 runs meanwhile"), "{said}");
    assert_eq!(fleet.running("ann").as_deref(), Some(OLD));
    fleet.install_broken(OLD, "fails-later=600");
    fleet.enforce(&[]).exits(1);
    fleet.everybody_is_on(OLD);
}
