//! How many series there are when there are many users, all tiers, and a bad day behind them.

use std::collections::BTreeMap;

use crate::support::free_port::free_port;
use crate::support::world::{World, http};

#[test]
fn with_25_users_and_every_tier_nobody_has_more_than_150_series_and_all_have_less_than_5000() {
    const FAULTS: [&str; 4] = ["exchange-500", "html-on-api", "session-false", "socket-silent"];
    let users: Vec<String> = (1..=25).map(|number| format!("user{number}")).collect();
    let versions = ["0.0.33", "0.0.24", "0.0.26"];
    let of_version: Vec<_> =
        users.iter().zip(versions.iter().cycle()).map(|(user, version)| (user.as_str(), *version)).collect();
    let (front, own) = (free_port(), nix::unistd::geteuid());
    let world = World::with(&of_version);
    let backups = world.path("backups");
    std::fs::create_dir(&backups).expect("a directory");
    let credentials: String = users
        .iter()
        .map(|user| {
            format!("[[credential]]\nname = \"claude\"\nuser = \"{user}\"\nexpires = \"2099-01-01\"\n")
        })
        .collect();
    let world = world.configured(&format!(
        "[probe]\nhandshake_interval = \"10s\"\nrequest_timeout = \"1s\"\nfront_interval = \"5s\"\n\
         [dispatch]\ninside_serve = true\nlisten = [\"127.0.0.1:{front}\"]\ntrusted_uids = [{own}]\n\
         [backup]\ndir = {backups:?}\n{credentials}"
    ));
    let serving = world.serve();
    for user in &users {
        for kind in ["pulse", "handshake", "front", "state"] {
            serving.until_ok(user, kind, true);
        }
        serving.until_metric(&format!("t3_restore_verified_timestamp_seconds{{user=\"{user}\"}}"), |at| {
            at > 1e9
        });
        let identity = format!("{user}@example.com");
        let visit = [("X-authentik-username", identity.as_str()), ("Accept", "text/html")];
        assert_eq!(http(front, "GET", "/", &visit).map_or(0, |answer| answer.status), 302);
    }
    // A bad day: whoever fails has more to show, and keeps it.
    let (unlucky, others) = users.split_at(5);
    for fault in FAULTS {
        for user in unlucky {
            world.fault(user, fault);
        }
        for user in unlucky {
            serving.until_ok(user, "handshake", false);
        }
        for user in unlucky {
            world.mend(user, fault);
        }
        for user in unlucky {
            serving.until_ok(user, "handshake", true);
        }
    }
    let document = serving.get("/metrics").body;
    let mut share: BTreeMap<&str, usize> = BTreeMap::new();
    let samples = || document.lines().filter(|line| !line.starts_with('#'));
    for sample in samples() {
        if let Some(user) = sample.split_once("user=\"").and_then(|(_, rest)| rest.split('"').next()) {
            *share.entry(user).or_default() += 1;
        }
    }
    let all = samples().count();
    println!("{all} series in all; {} of user1, {} of user25", share["user1"], share["user25"]);
    assert!(unlucky.iter().all(|user| share[user.as_str()] > share["user25"]), "{share:?}");
    assert!(others.iter().all(|user| share[user.as_str()] > 80), "the tiers are not all there: {share:?}");
    assert_eq!(share.len(), 25);
    assert!(share.values().all(|series| *series <= 150), "{share:?}");
    assert!(all <= 5000, "{all} series");
}
