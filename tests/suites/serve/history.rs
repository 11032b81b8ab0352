//! The history under the service: it survives everything, and nothing of it ever stops a probe.

use std::process::Command;

use nix::sys::signal::Signal;

use super::{QUICK, unharmed};
use crate::support::tools;
use crate::support::world::{PROGRAM, Serving, World, wait_for};

/// "fails … since": the exact time behind the words.
fn failing_since(serving: &Serving, user: &str) -> String {
    wait_for("the page to say since when", || {
        let page = serving.page("/").body;
        let sentence = page.split(&format!("<strong>{user}</strong></a> fails")).nth(1)?;
        Some(sentence.split("datetime=\"").nth(1)?.split('"').next()?.to_owned())
    })
}

#[test]
fn killed_in_the_middle_it_knows_since_when_things_fail() {
    let mut world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    world.fault("ann", "exchange-500");
    serving.until_ok("ann", "pulse", false);
    let since = failing_since(&serving, "ann");
    wait_for("the failure to be written", || {
        (!serving.history("/history?user=ann&kind=pulse&outcome=failed").is_empty()).then_some(())
    });
    serving.signal(Signal::SIGKILL);
    drop(serving);

    let serving = world.serve();
    serving.until_ok("ann", "pulse", false);
    assert_eq!(failing_since(&serving, "ann"), since, "the failure is not a new one");
    let rows = serving.history("/history?user=ann");
    assert!(rows.iter().any(|row| row["kind"] == "handshake" && row["outcome"] == "ok"), "{rows:#?}");
    assert_eq!(serving.metric("t3_prober_history_errors_total"), Some(0.0));
    world.mend("ann", "exchange-500");
    serving.until_ok("ann", "pulse", true);
    world.kill("ann");
    serving.until_ok("ann", "pulse", false);
    assert_ne!(failing_since(&serving, "ann"), since, "this one is");
    assert_eq!(serving.stop(), 0);
}

#[test]
fn a_history_that_is_garbage_is_put_aside_and_recording_goes_on() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    std::fs::create_dir_all(world.path("state")).expect("the state directory");
    std::fs::write(world.path("state/history.sqlite"), "not a database ".repeat(1000)).expect("garbage");
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    wait_for("the new history to be in use", || {
        (serving.get("/history").status == 200 && !serving.history("/history").is_empty()).then_some(())
    });
    let aside = std::fs::read_dir(world.path("state")).expect("the directory").flatten();
    assert!(aside.into_iter().any(|file| file.file_name().to_string_lossy().contains(".corrupt-")));
    assert_eq!(serving.stop(), 0);
}

#[test]
fn a_history_that_cannot_be_written_stops_no_probe_and_says_so() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    std::fs::create_dir_all(world.path("state/history.sqlite/in-the-way")).expect("a directory in its place");
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    unharmed(&serving, "ann");
    serving.until_metric("t3_prober_history_errors_total", |errors| errors >= 1.0);
    let page = serving.page("/").body;
    assert!(page.contains("not recorded for"), "{page}");
    let history = serving.get("/history");
    assert_eq!(history.status, 503, "{history:?}");
    std::fs::remove_dir_all(world.path("state/history.sqlite")).expect("cleared away");
    wait_for("recording to begin again", || serving.page("/").body.contains(">look<").then_some(()));
    assert_eq!(serving.stop(), 0);
}

#[test]
fn a_full_disk_stops_no_probe() {
    if !tools::root() {
        return;
    }
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let state = world.path("state");
    std::fs::create_dir_all(&state).expect("the state directory");
    // A file system of its own, too small for a history, that only the service sees.
    let script = format!(
        "mount -t tmpfs -o size=128k none {0} && head -c 100k /dev/zero > {0}/ballast; exec {PROGRAM} --config {1} serve",
        state.display(),
        world.path("config.toml").display()
    );
    let serving = world.serve_as(Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    serving.until_metric("t3_prober_history_errors_total", |errors| errors >= 1.0);
    unharmed(&serving, "ann");
    let page = serving.page("/").body;
    assert!(page.contains("not recorded for"), "{page}");
    assert_eq!(serving.stop(), 0);
}
