//! The day this program was made for: a newer t3 command mints on the database of a running older server, and from then
//! on nobody can log in while `GET /` stays 200.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tokio_rusqlite::rusqlite::Connection;

use crate::support::world::{World, http, replace, wait_for};

/// Pulses come quickly, and logins as often as they do on a bad day.
const QUICK: &str =
    "[probe]\npulse_interval = \"2s\"\npulse_timeout = \"1600ms\"\nhandshake_interval = \"10s\"\n";

#[test]
fn the_outage_is_named_on_every_surface_and_ends_with_the_roll_forward() {
    replay("0.0.26", 32);
}

#[test]
fn the_outage_by_the_newest_command_is_named_just_so() {
    replay("0.0.33", 40);
}

#[test]
fn an_upgrade_that_the_pulse_has_not_seen_yet_is_no_outage() {
    // Whoever looks at databases is the first to see it, by far.
    let rare = "[probe]\npulse_interval = \"10s\"\nhandshake_interval = \"1h\"\nstate_interval = \"200ms\"\n";
    let mut world = World::with(&[("ann", "0.0.24")]).configured(rare);
    let serving = world.serve();
    let level = "t3_schema_level{user=\"ann\"}";
    serving.until_metric(level, |level| level == 30.0);
    // The version is known by the first pulse.
    serving.until_metric("t3_schema_expected_level{user=\"ann\"}", |level| level == 30.0);
    world.kill("ann");
    world.start("ann", "0.0.33");
    serving.until_metric(level, |level| level == 40.0);
    serving.until_metric("t3_schema_expected_level{user=\"ann\"}", |level| level == 40.0);
    let failed = serving.history("/history?user=ann&kind=state&outcome=failed");
    assert!(failed.is_empty(), "{failed:?}");
}

fn replay(culprit: &str, level: i64) {
    let mut world = World::with(&[("ann", "0.0.24"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    for user in ["ann", "bob"] {
        serving.until_ok(user, "pulse", true);
        serving.until_ok(user, "handshake", true);
    }
    assert_eq!(world.level("ann"), 30);

    world.foreign_mint("ann", culprit);

    assert_eq!(world.level("ann"), level);
    let front = http(world.port("ann"), "GET", "/", &[]).expect("an answer");
    assert_eq!(front.status, 200, "what a naive health check sees");
    let failures = |step: &str| {
        format!("t3_probe_failures_total{{user=\"ann\",step=\"{step}\",reason=\"schema_ahead\"}}")
    };
    serving.until_metric(&failures("contract"), |count| count >= 1.0);
    serving.until_metric(&failures("mint"), |count| count >= 1.0);
    serving.until_ok("ann", "pulse", false);
    serving.until_ok("ann", "handshake", false);

    let said = format!("the database is at level {level}");
    let page = serving.page("/").body;
    assert!(page.contains("schema_ahead") && page.contains(&said), "{page}");
    assert!(page.contains("running 0.0.24 expects 30"), "{page}");
    let row = wait_for("the history to hold it", || {
        let rows = serving.history("/history?user=ann&kind=pulse&outcome=failed");
        rows.into_iter().find(|row| row["reason"] == "schema_ahead")
    });
    assert_eq!((row["step"].as_str(), row["facts"]["version"].as_str()), (Some("contract"), Some("0.0.24")));
    assert!(row["detail"].as_str().is_some_and(|detail| detail.contains(&said)), "{row}");
    let probed = world.probe("ann");
    assert_eq!(
        (probed.decided("pulse"), probed.decided("handshake"), probed.exit),
        ("contract: failed(schema_ahead)".to_owned(), "mint: failed(schema_ahead)".to_owned(), 1)
    );
    assert!(world.log().contains("schema_ahead"), "{}", world.log());
    serving.until_ok("bob", "pulse", true);
    assert_eq!(world.level("ann"), level, "nothing of ours has migrated anything");

    world.kill("ann");
    world.start("ann", culprit);

    serving.until_ok("ann", "pulse", true);
    serving.until_ok("ann", "handshake", true);
    wait_for("the page to say so", || {
        serving.page("/").body.contains("All 2 users can log in").then_some(())
    });
    assert_eq!(world.probe("ann").exit, 0);
}

#[test]
fn a_command_of_another_version_is_never_run_on_a_users_database() {
    let world = World::with(&[("ann", "0.0.24")]).with_host_command("0.0.33").configured(QUICK);
    let (real, calls) = (world.t3("0.0.33"), world.path("calls"));
    // The host's command as a bare script, so that even its version has to be asked for.
    let spy = world.path("spy");
    replace(
        &spy,
        &format!("#!/bin/sh\necho \"$@\" >> {}\nexec {} \"$@\"\n", calls.display(), real.display()),
    );
    std::fs::set_permissions(&spy, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(
        &world.path("config.toml"),
        &config.replace(&real.display().to_string(), &spy.display().to_string()),
    );
    let before = contents(&world);

    let serving = world.serve();
    serving.until_runs("ann", "handshake", "skipped", 0.0);
    serving.until_ok("ann", "pulse", true);
    let probed = world.probe("ann");

    assert_eq!(
        (probed.decided("pulse"), probed.decided("handshake"), probed.exit),
        ("ok".to_owned(), "mint: skipped(version_skew)".to_owned(), 4),
        "{:#}",
        probed.json
    );
    assert_eq!(serving.metric("t3_probe_skipped{user=\"ann\",kind=\"handshake\"}"), Some(1.0));
    assert_eq!(serving.metric("t3_probe_ok{user=\"ann\",kind=\"handshake\"}"), None, "a skip is no success");
    let called = std::fs::read_to_string(calls).expect("the calls");
    assert!(called.lines().all(|call| call == "--version"), "{called}");
    assert_eq!(contents(&world), before, "the database was touched");
    assert_eq!(world.level("ann"), 30);
}

/// Everything in the tables that a t3 command could have changed.
fn contents(world: &World) -> Vec<Vec<String>> {
    let database = Connection::open(world.database("ann")).expect("the database");
    ["auth_pairing_links", "auth_sessions", "effect_sql_migrations", "sqlite_master"]
        .map(|table| {
            let mut rows = database.prepare(&format!("SELECT * FROM {table}")).expect("the table");
            let columns = rows.column_count();
            let row = rows.query_map([], |row| {
                let cell = |column| row.get::<_, tokio_rusqlite::rusqlite::types::Value>(column);
                Ok((0..columns).map(|column| format!("{:?}", cell(column))).collect::<Vec<_>>().join("|"))
            });
            row.expect("rows").map(|row| row.expect("a row")).collect()
        })
        .to_vec()
}

#[test]
fn an_older_command_on_a_newer_server_is_skipped_too_and_the_server_is_unharmed() {
    let world = World::with(&[("ann", "0.0.26")]).with_host_command("0.0.24");
    let probed = world.probe("ann");
    assert_eq!((probed.decided("handshake"), probed.exit), ("mint: skipped(version_skew)".to_owned(), 4));
    let step = probed.json["runs"][1]["steps"].as_array().and_then(|steps| {
        steps.iter().find(|step| step["step"] == "mint").and_then(|step| step["detail"].as_str())
    });
    let detail = step.map(str::to_owned).unwrap_or_default();
    assert!(detail.contains("the instance runs 0.0.26, the installed command is 0.0.24"), "{detail}");
    assert_eq!(Value::from(world.level("ann")), Value::from(32));
}
