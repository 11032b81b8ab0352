//! Real users' logins are a reason to go back, by `rollout`, where the enforcer's own have not been tried again yet.

use std::fs::{self, File};
use std::process::Stdio;

use tokio_rusqlite::rusqlite::Connection;

use super::{NEW, OLD, PASSES};
use crate::support::door::section;
use crate::support::fleet::Fleet;
use crate::support::free_port::free_port;
use crate::support::held::Held;
use crate::support::world::{http, wait_for};

#[test]
fn failed_logins_of_real_users_bring_everybody_back() {
    let (port, operator) = (free_port(), free_port());
    // The enforcer logs in once in half a minute; before it does so again it asks how others fared.
    let fleet = Fleet::on(OLD, &["ann", "bob"], &format!("{PASSES}soak = \"2m\"\n"))
        .changed("login_interval = \"500ms\"", "login_interval = \"30s\"")
        .changed("[probe]\n", "[rollout]\nconsecutive_limit = 3\n[probe]\nhandshake_interval = \"1h\"\n")
        .configured(&section(port, operator));
    let serving = fleet.world.serve();
    serving.until_ok("ann", "handshake", true);
    let _dispatch =
        Held(fleet.world.command(&["dispatch"]).stderr(Stdio::null()).spawn().expect("the program"));
    wait_for("the dispatch", || {
        http(operator, "GET", "/-/healthy", &[]).ok().filter(|answer| answer.status == 200)
    });
    let comes_in = |identity: &str| {
        let headers = [("X-authentik-username", identity), ("Accept", "text/html")];
        http(port, "GET", "/", &headers).expect("an answer").status
    };
    assert_eq!(comes_in("bob@example.com"), 302, "bob can log in");
    let heard = fleet.path("enforcer.out");
    let out = File::create(&heard).expect("a file");
    let mut enforcer = Held(fleet.command(&["--to", NEW]).stdout(out).spawn().expect("the program"));
    let step = || Some(fleet.journal()?["moves"][0]["step"].as_str()?.to_owned());
    wait_for("ann to be watched", || (step()? == "proven").then_some(()));
    fleet.world.fault("ann", "exchange-refuses");
    let failed = || {
        let logins = serving.history("/history/events?kind=login");
        logins.iter().filter(|login| login["outcome"] == "failed").count()
    };
    wait_for("three failed logins", || {
        assert_ne!(comes_in("ann@example.com"), 302);
        (failed() >= 3).then_some(())
    });
    // It was the new build's.
    wait_for("ann to go back", || (step()? != "proven").then_some(()));
    fleet.world.mend("ann", "exchange-refuses");
    let ended = enforcer.0.wait().expect("an end");
    let said = fs::read_to_string(&heard).expect("what it said");
    assert_eq!(ended.code(), Some(1), "{said}");
    let bad = said.lines().find(|line| line.starts_with("t3 0.0.33 is bad: the last ")).expect(&said);
    assert!(bad.contains(" logins of ann failed, and they went well before [consecutive_limit]"), "{said}");
    fleet.everybody_is_on(OLD);
    serving.until_metric("t3_enforcer_runs_total{outcome=\"rolled_back\"}", |value| value == 1.0);
}

#[test]
fn without_a_service_to_ask_it_says_so_once_and_goes_on() {
    let fleet = Fleet::on(OLD, &["ann"], &format!("{PASSES}soak = \"2s\"\n"));
    let said = fleet.enforce(&["--to", NEW]).exits(0);
    assert_eq!(said.matches("real logins are not judged").count(), 1, "{said}");
    fleet.everybody_is_on(NEW);
}

#[test]
fn the_session_that_the_service_keeps_for_visits_outlives_a_rollout() {
    // Of the same generation: a session goes on over the upgrade.
    const LIKE_OLD: &str = "0.0.25";
    let (port, operator) = (free_port(), free_port());
    let fleet = Fleet::on(OLD, &["ann"], &format!("{PASSES}soak = \"3s\"\n"));
    let key = fleet.path("probe.key");
    fs::write(&key, "0123456789abcdef0123456789abcdef").expect("a key");
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let fleet = fleet
        .configured(&format!("{}probe_key_file = \"{}\"\n", section(port, operator), key.display()))
        .changed(
            "[probe]\n",
            &format!("[probe]\nfront = \"127.0.0.1:{port}\"\nfront_interval = \"500ms\"\n"),
        );
    let _dispatch =
        Held(fleet.world.command(&["dispatch"]).stderr(Stdio::null()).spawn().expect("the program"));
    wait_for("the dispatch", || {
        http(operator, "GET", "/-/healthy", &[]).ok().filter(|answer| answer.status == 200)
    });
    let serving = fleet.world.serve();
    serving.until_runs("ann", "front", "ok", 1.0);
    fleet.enforce(&["--to", LIKE_OLD]).exits(0);
    let visits = serving.metric("t3_probe_runs_total{user=\"ann\",kind=\"front\",outcome=\"ok\"}");
    serving.until_runs("ann", "front", "ok", visits.unwrap_or(0.0) + 2.0);
    let database = Connection::open(fleet.world.database("ann")).expect("the database");
    let sessions =
        "SELECT count(*), count(revoked_at) FROM auth_sessions WHERE client_label = 't3-prober front'";
    let found = database.query_row(sessions, [], |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(found.expect("counts"), (1_i64, 0_i64), "sessions for visits, and those that were ended");
    // What the enforcer made for its own visits it has ended itself.
    let ours = "SELECT count(*) FROM auth_sessions WHERE client_label = 't3-prober' AND revoked_at IS NULL";
    wait_for("no session to be left", || {
        let left: i64 = database.query_row(ours, [], |row| row.get(0)).expect("a count");
        (left == 0).then_some(())
    });
    assert_eq!(serving.stop(), 0);
}
