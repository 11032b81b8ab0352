//! Broken builds: each is broken where its line says, and none is left untried.

use std::time::{Duration, Instant};

use crate::support::sim::{BOGUS, PATIENCE, Sim, sim};

use super::faults::{Look, look};

/// Builds that start, where they are broken, and what is seen there.
const BROKEN: &[(&str, Look, &str)] = &[
    ("exchange-renamed", Look::Bogus, "404 empty"),
    ("cookie-renamed", Look::Login, "200 other HttpOnly"),
    ("cookie-without-http-only", Look::Login, "200 announced"),
    ("no-cookie", Look::Login, "200"),
    ("session-stays-false", Look::Authenticated, "false"),
    ("mint-prints-another-key", Look::MintedLogin, "401"),
    ("exchange-accepts-all", Look::Bogus, "200 json authenticated expiresAt scopes sessionMethod"),
    ("history-does-not-load", Look::Snapshot, "500"),
    ("writes-refused", Look::Project, "exit 1, a fault is switched on"),
    ("socket-200", Look::Upgrade, "200"),
    ("rpc-silent", Look::Call, "no answer"),
    ("fails-later=0", Look::Bogus, "500 json _tag code reason traceId"),
];

/// Those that a test of their own is about.
const ELSEWHERE: &[&str] = &[
    "migration-fails",
    "migration-drops-messages",
    "way-back-breaks",
    "second-start-migrates",
    "slow-start",
    "crashes-soon",
    "ignores-sigterm",
    "fails-on-third-login",
    "fails-for-one-user",
    "fails-behind-proxy",
];

const OTHER_DIRECTORY: &str = "project";

fn mutation(name: &str) -> [&str; 2] {
    ["--mutation", name]
}

/// A base directory with one project and one message, as an unbroken build leaves it.
fn with_history(version: &str, manner: &[&str]) -> Sim {
    let sim = Sim::stopped(version, manner);
    std::fs::create_dir_all(sim.base_dir().join(OTHER_DIRECTORY)).expect("a directory");
    let path = sim.base_dir().join(OTHER_DIRECTORY);
    let added = sim.unbroken(&["project", "add", path.to_str().expect("text")]);
    assert_eq!(added.code, Some(0), "{}", added.stdout);
    let insert =
        "INSERT INTO projection_thread_messages VALUES ('m', 't', NULL, 'user', 'hello', 0, '', '', '[]')";
    sim.database().execute(insert, []).expect("a message");
    sim
}

#[tokio::test]
async fn each_broken_build_is_broken_where_its_line_says() {
    let mut wrong = Vec::new();
    for (name, at, expected) in BROKEN {
        let sim = Sim::start_with("0.0.26", &mutation(name)).await;
        let patience = if *expected == "no answer" { Duration::from_millis(400) } else { PATIENCE };
        let seen = look(&sim, *at, patience).await;
        if seen != *expected {
            wrong.push(format!("{name}: {seen:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_mutation_is_left_untried() {
    let help = sim(&["install", "--help"]).stdout;
    let listed: Vec<_> = help
        .lines()
        .skip_while(|line| *line != "Mutations:")
        .filter_map(|line| line.strip_prefix("  "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut tried: Vec<_> = BROKEN.iter().map(|(name, ..)| name.split('=').next().unwrap_or(name)).collect();
    tried.extend(ELSEWHERE);
    for name in &listed {
        assert!(tried.contains(name), "{name} is in no test");
    }
    assert_eq!(listed.len(), tried.len(), "{help}");
}

#[tokio::test]
async fn a_migration_that_fails_leaves_the_database_as_it_was() {
    let mut sim = with_history("0.0.26", &mutation("migration-fails"));
    sim.spawn();
    assert_eq!(sim.ended().code(), Some(1));
    assert_eq!(sim.level(), 32);
    assert!(sim.log().contains("[cause]: Error: NOT NULL constraint failed"), "{}", sim.log());
}

#[tokio::test]
async fn a_migration_may_drop_messages() {
    let mut sim = with_history("0.0.26", &mutation("migration-drops-messages"));
    sim.serve().await;
    assert_eq!(sim.count("SELECT count(*) FROM projection_thread_messages"), 0);
    assert_eq!(sim.count("SELECT count(*) FROM projection_projects"), 1);
}

#[tokio::test]
async fn a_migration_may_break_the_way_back_and_nothing_else() {
    let mut sim = with_history("0.0.26", &mutation("way-back-breaks"));
    sim.serve().await;
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().to_str().expect("text");
    let added = sim.cli(&["project", "add", path]);
    assert_eq!(added.code, Some(0), "{}", added.stdout);
    let refused = sim.unbroken(&["project", "rename", path, "x"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.cause().contains("NOT NULL constraint failed"), "{}", refused.stdout);
    assert_eq!(sim.count("SELECT count(*) FROM orchestration_events"), 2);
}

#[tokio::test]
async fn only_a_build_that_migrates_at_each_start_changes_the_level_twice() {
    for (name, again) in [("migration-drops-messages", 33), ("second-start-migrates", 34)] {
        let mut sim = Sim::start_with("0.0.26", &mutation(name)).await;
        assert_eq!(sim.level(), 33, "{name}");
        sim.restart_as("0.0.26").await;
        assert_eq!(sim.level(), again, "{name}");
    }
}

#[tokio::test]
async fn a_slow_start_is_slow() {
    let asked = Instant::now();
    let _sim = Sim::start_with("0.0.26", &mutation("slow-start=1")).await;
    assert!(asked.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_build_may_crash_soon_after_it_was_well() {
    let mut sim = Sim::start_with("0.0.26", &mutation("crashes-soon=1")).await;
    assert_eq!(sim.exchange(BOGUS).await.expect("an answer").status(), 401);
    assert_eq!(sim.ended().code(), Some(1));
}

#[tokio::test]
async fn a_build_may_ignore_sigterm() {
    let mut sim = Sim::start_with("0.0.26", &mutation("ignores-sigterm")).await;
    sim.signal("TERM");
    assert_eq!(sim.exchange(BOGUS).await.expect("an answer").status(), 401);
    assert!(sim.is_running());
}

#[tokio::test]
async fn a_build_may_fail_from_the_third_login_on() {
    let sim = Sim::start_with("0.0.26", &mutation("fails-on-third-login")).await;
    sim.login().await;
    assert_eq!(sim.exchange(BOGUS).await.expect("an answer").status(), 401, "a refusal is no login");
    sim.login().await;
    assert_eq!(sim.exchange(&sim.mint()).await.expect("an answer").status(), 500);
    assert_eq!(sim.exchange(BOGUS).await.expect("an answer").status(), 401, "nothing shows without a login");
}

#[tokio::test]
async fn a_build_may_fail_for_one_users_data_only() {
    let manner = ["--mutation", "fails-for-one-user=/project"];
    let mut with = with_history("0.0.26", &manner);
    with.serve().await;
    assert_eq!(with.exchange(&with.mint()).await.expect("an answer").status(), 500);
    Sim::start_with("0.0.26", &manner).await.login().await;
}

#[tokio::test]
async fn a_build_may_fail_behind_a_proxy_only() {
    let sim = Sim::start_with("0.0.26", &mutation("fails-behind-proxy")).await;
    assert_eq!(sim.get("/").await.expect("an answer").status(), 200);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(sim.url("/")).header("x-forwarded-for", "192.0.2.7").send().await;
    assert_eq!(answer.expect("an answer").status(), 500);
}
