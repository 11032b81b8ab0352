//! Long-lived credentials, watched by the running program: from never seen to the end, without a restart.

use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::support::world::{World, replace, wait_for};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// `{"expires": …}`, so many days from now.
fn ends_in(days: u32) -> String {
    let end = humantime::format_rfc3339_seconds(SystemTime::now() + days * DAY);
    format!("{{\"expires\": \"{end}\"}}")
}

fn info(user: &str, state: &str) -> String {
    format!("t3_credential_info{{name=\"claude\",user=\"{user}\",standing=\"{state}\"}}")
}

#[test]
fn each_change_of_the_file_beside_a_credential_is_in_the_metrics_and_on_the_page_within_seconds() {
    let world = World::empty();
    let sidecar = world.path("claude.json");
    let world = world
        .configured(&format!("[[credential]]\nname = \"claude\"\nuser = \"ann\"\nsidecar = {sidecar:?}\n"));
    let serving = world.serve();
    let until = |state: &str| serving.until_metric(&info("ann", state), |value| value == 1.0);
    let says = |words: &str| {
        wait_for(words, || serving.page("/").body.contains(words).then_some(()));
    };
    until("never_seen");
    says("claude.json: cannot read it: No such file or directory");
    replace(&sidecar, &ends_in(90));
    until("valid");
    assert_eq!(serving.metric(&info("ann", "never_seen")), None);
    for (days, state, words) in
        [(20, "expires_in_30_days", "expires in 30 days"), (3, "expires_in_7_days", "expires in 7 days")]
    {
        replace(&sidecar, &ends_in(days));
        until(state);
        says(words);
    }
    let expiry = "t3_credential_expiry_timestamp_seconds{name=\"claude\",user=\"ann\",evidence=\"expiry\"}";
    let known = serving.metric(expiry).expect("an end");
    replace(&sidecar, "{\"token\": \"hunter2\"}");
    says("claude.json:1:");
    assert_eq!(serving.metric(expiry), Some(known), "the last end that was known stays");
    replace(&sidecar, "{\"expires\": \"2026-01-01\"}");
    until("expired");
    let told = world.log();
    assert!(told.contains("a credential has ended") && told.contains("claude of ann"), "{told}");
    let shown = [told, serving.get("/metrics").body, serving.page("/").body].concat();
    assert!(!shown.contains("hunter2"), "what stands in the file reaches nobody");
}

#[test]
fn a_credential_that_is_added_to_the_configuration_is_watched_after_a_reload_and_a_bad_one_refused() {
    let world = World::empty();
    let serving = world.serve();
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    let token = world.path("token");
    std::fs::write(&token, "hunter2").expect("a token");
    let added = format!("{config}[[credential]]\nname = \"claude\"\nuser = \"bob\"\nfile = {token:?}\n");
    replace(&world.path("config.toml"), &added);
    serving.signal(Signal::SIGHUP);
    serving.until_metric("t3_prober_config_last_reload_successful", |ok| ok == 0.0);
    assert!(world.log().contains("credential.file: it needs a lifetime; add lifetime"), "{}", world.log());
    replace(&world.path("config.toml"), &format!("{added}lifetime = \"365d\"\n"));
    serving.signal(Signal::SIGHUP);
    serving.until_metric(&info("bob", "valid"), |value| value == 1.0);
    let page = serving.page("/").body;
    assert!(page.contains("claude of bob") && page.contains("at the latest, by its file's time"), "{page}");
    replace(&world.path("config.toml"), &config);
    serving.signal(Signal::SIGHUP);
    wait_for("the credential to be forgotten", || {
        (!serving.get("/metrics").body.contains("t3_credential_info{")).then_some(())
    });
}

#[test]
fn what_was_known_of_a_credential_outlives_a_restart_without_its_file() {
    let world = World::empty();
    let sidecar = world.path("claude.json");
    let world = world
        .configured(&format!("[[credential]]\nname = \"claude\"\nuser = \"ann\"\nsidecar = {sidecar:?}\n"));
    replace(&sidecar, &ends_in(3));
    let serving = world.serve();
    serving.until_metric(&info("ann", "expires_in_7_days"), |value| value == 1.0);
    assert_eq!(serving.stop(), 0);
    std::fs::remove_file(&sidecar).expect("removed");
    let serving = world.serve();
    serving.until_metric(&info("ann", "expires_in_7_days"), |value| value == 1.0);
    wait_for("the page to say both", || {
        let page = serving.page("/").body;
        (page.contains("Last confirmed") && page.contains("cannot read it")).then_some(())
    });
}
