//! What the running service does for snapshots, and what it says of them.

use super::{Supervised, ok, run, world};
use crate::support::world::{World, wait_for};

const TAKEN: &str = "t3_backup_runs_total{user=\"ann\",act=\"take\",outcome=\"ok\"}";

#[test]
fn where_there_is_no_helper_the_service_takes_verifies_and_drills_what_is_due() {
    let Some(world) = world(&["ann"]) else { return };
    std::fs::create_dir(world.path("backups")).expect("whoever wants snapshots makes the directory");
    let serving = world.serve();
    serving.until_metric("t3_restore_verified_timestamp_seconds{user=\"ann\"}", |at| at > 1e9);
    for (sample, value) in [
        (TAKEN, 1.0),
        ("t3_backup_runs_total{user=\"ann\",act=\"verify\",outcome=\"ok\"}", 1.0),
        ("t3_backup_runs_total{user=\"ann\",act=\"drill\",outcome=\"ok\"}", 1.0),
        ("t3_backup_schema_level{user=\"ann\"}", 30.0),
        ("t3_backup_snapshots{user=\"ann\"}", 1.0),
        ("t3_history_events{user=\"ann\"}", 193.0),
    ] {
        serving.until_metric(sample, |found| found == value);
    }
    assert!(serving.metric("t3_restore_duration_seconds{user=\"ann\"}") > Some(0.0));
    let page = serving.page("/").body;
    assert!(page.contains("Can everybody's data be brought back?"), "{page}");
    assert!(page.contains("0.0.23 – 0.0.24"), "the builds that open it: {page}");
    let acts = wait_for("the history to hold the acts", || {
        let rows = serving.history("/history/events?user=ann&kind=backup");
        (rows.len() == 3).then_some(rows)
    });
    assert!(acts.iter().all(|act| act["outcome"] == "ok"), "{acts:?}");
}

#[test]
fn what_a_command_did_and_found_is_in_the_metrics_on_the_page_and_in_the_history() {
    let Some(world) = world(&["ann"]) else { return };
    let serving = world.serve();
    serving.until_metric(TAKEN, |taken| taken == 0.0);
    ok(&world, &["backup", "take", "ann"]);
    serving.until_metric(TAKEN, |taken| taken == 1.0);
    serving.until_metric("t3_backup_verified_timestamp_seconds{user=\"ann\"}", |at| at > 1e9);

    let tree = std::fs::read_dir(world.path("backups/ann")).expect("the tree").flatten();
    let file =
        tree.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "sqlite"));
    let file = file.expect("a snapshot");
    let mut content = std::fs::read(&file).expect("the snapshot");
    content.truncate(8192);
    std::fs::write(&file, content).expect("damage");
    assert_eq!(run(&world, &["backup", "verify", "ann"]).exit, 1);

    let found = "t3_restore_verification_failures_total{user=\"ann\",reason=\"truncated\"}";
    serving.until_metric(found, |failures| failures == 1.0);
    wait_for("the proof to be gone", || {
        serving.metric("t3_backup_verified_timestamp_seconds{user=\"ann\"}").is_none().then_some(())
    });
    wait_for("the page to say so", || serving.page("/").body.contains("does not restore").then_some(()));
    let row = wait_for("the history to hold it", || {
        let rows = serving.history("/history/events?user=ann&kind=backup");
        rows.into_iter().find(|row| row["outcome"] == "failed")
    });
    assert_eq!((&row["subject"], &row["detail"]["reason"]), (&"verify".into(), &"truncated".into()), "{row}");
}

#[test]
fn the_outage_is_shouted_from_every_surface_and_both_ways_back_are_counted() {
    let Some(world) = world(&["ann", "bob"]) else { return };
    let world = outage(world);
    let serving = world.serve();
    for user in ["ann", "bob"] {
        serving.until_metric(&format!("t3_probe_ok{{user=\"{user}\",kind=\"state\"}}"), |ok| ok == 1.0);
        serving.until_metric(&format!("t3_version_skew{{user=\"{user}\"}}"), |skew| skew == 1.0);
        ok(&world, &["backup", "take", user]);
    }
    let page = serving.page("/").body;
    assert!(page.contains("bob runs 0.0.24, installed is 0.0.26"), "{page}");
    let began = wait_for("the history to hold it", || {
        serving.history("/history/events?user=bob&kind=version").into_iter().next()
    });
    assert_eq!((&began["subject"], &began["outcome"]), (&"skew of bob".into(), &"began".into()), "{began}");
    assert!(began["detail"]["detail"].as_str().is_some_and(|words| words.contains("installed is 0.0.26")));
    assert_eq!((world.level("ann"), world.level("bob")), (30, 30), "nothing of ours has migrated anything");

    for user in ["ann", "bob"] {
        world.foreign_mint(user, "0.0.26");
        serving.until_metric(&format!("t3_schema_ahead{{user=\"{user}\"}}"), |levels| levels == 2.0);
        let failing = format!(
            "t3_probe_failing{{user=\"{user}\",kind=\"state\",step=\"database\",reason=\"schema_ahead\"}}"
        );
        assert_eq!(serving.metric(&failing), Some(1.0));
    }
    wait_for("the page to name the way back", || {
        let page = serving.page("/").body;
        ["ann", "bob"]
            .iter()
            .all(|user| page.contains(&format!("backup restore {user} --auth-only")))
            .then_some(())
    });

    ok(&world, &["backup", "restore", "ann", "--auth-only", "--yes"]);
    let _supervised = Supervised(&world, "bob");
    ok(&world, &["backup", "restore", "bob", "--yes"]);
    for (user, act) in [("ann", "auth_only"), ("bob", "restore")] {
        let restored = format!("t3_backup_runs_total{{user=\"{user}\",act=\"{act}\",outcome=\"ok\"}}");
        serving.until_metric(&restored, |runs| runs == 1.0);
        serving.until_metric(&format!("t3_schema_ahead{{user=\"{user}\"}}"), |levels| levels == 0.0);
        assert_eq!((super::messages(&world, user), super::events(&world, user)), (54, 193));
    }
    // What the repair has put aside is a copy of the outage, and not what anybody would go back to.
    serving.until_metric("t3_backup_snapshots{user=\"ann\"}", |snapshots| snapshots == 2.0);
    assert_eq!(serving.metric("t3_backup_schema_level{user=\"ann\"}"), Some(30.0));
}

/// One t3 command for the whole host, of the version that nobody runs.
fn outage(world: World) -> World {
    world.with_host_command("0.0.26").configured(
        "[probe]\nstate_interval = \"1s\"\nversion_interval = \"2s\"\nhandshake_interval = \"5s\"\n",
    )
}
