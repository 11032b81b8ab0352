//! The service as a whole: what it answers, what it survives, and how it ends.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::tools;
use crate::support::world::{Serving, World, replace, wait_for};

mod history;
mod prometheus;

const QUICK: &str = "[probe]\npulse_interval = \"1s\"\npulse_timeout = \"800ms\"\n";

#[test]
fn it_is_healthy_at_once_and_ready_when_it_knows_whom_to_serve() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let table = std::fs::read_to_string(world.path("dispatch.json")).expect("the table");
    std::fs::remove_file(world.path("dispatch.json")).expect("removed");
    let serving = world.serve();
    let ready = serving.get("/-/ready");
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(ready.body.contains("dispatch.json"), "{ready:?}");
    assert_eq!(serving.get("/-/healthy").status, 200);
    let page = serving.page("/");
    assert!(page.status == 200 && page.body.contains("Nobody is served"), "{page:?}");
    replace(&world.path("dispatch.json"), &table);
    wait_for("it to be ready", || (serving.get("/-/ready").status == 200).then_some(()));
    serving.until_ok("ann", "handshake", true);
}

#[test]
fn promtool_has_nothing_to_say_of_the_metrics() {
    let Some(promtool) = tools::find("promtool") else { return };
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.24")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("bob", "handshake", true);
    world.fault("ann", "exchange-500");
    serving.until_ok("ann", "pulse", false);
    let classic = serving.get("/metrics");
    assert!(classic.head.contains("text/plain; version=0.0.4"), "{}", classic.head);
    let mut checker = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    checker.stdin.take().expect("a pipe").write_all(classic.body.as_bytes()).expect("written");
    let output = checker.wait_with_output().expect("promtool");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    let open =
        serving.request("GET", "/metrics", &[("Accept", "application/openmetrics-text; version=1.0.0")]);
    assert!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    assert!(open.body.contains("trace_id="), "no exemplar");
}

#[test]
fn a_reload_takes_over_what_is_good_and_keeps_the_old_where_it_is_not() {
    let mut world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    let successful = "t3_prober_config_last_reload_successful";
    let good = serving.request("POST", "/-/reload", &[]);
    assert_eq!((good.status, good.body.as_str()), (200, "the configuration was taken over\n"));

    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(&world.path("config.toml"), &config.replace("pulse_interval", "puls_interval"));
    let bad = serving.request("POST", "/-/reload", &[]);
    assert_eq!(bad.status, 500, "{bad:?}");
    assert!(bad.body.contains("config.toml:") && bad.body.contains("pulse_interval"), "{bad:?}");
    assert_eq!(serving.metric(successful), Some(0.0));
    let pulses = serving.until_runs("ann", "pulse", "ok", 0.0);
    serving.until_runs("ann", "pulse", "ok", pulses);

    // By signal, now that it is good again, and with something that a reload cannot change.
    world.add("bob");
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(
        &world.path("config.toml"),
        &config.replace("[operator]", "[history]\nkeep = \"9d\"\n[operator]"),
    );
    serving.signal(Signal::SIGHUP);
    serving.until_metric(successful, |ok| ok == 1.0);
    wait_for("the log to say what needs a restart", || world.log().contains("needs_restart").then_some(()));
    let restart = serving.request("POST", "/-/reload", &[]);
    assert_eq!(restart.status, 200);
    replace(&world.path("config.toml"), &config.replace("state_dir = \"", "state_dir = \"/elsewhere"));
    let restart = serving.request("POST", "/-/reload", &[]);
    assert!(
        restart.status == 200 && restart.body.contains("needs a restart: state_dir, history"),
        "{restart:?}"
    );
    assert_eq!(serving.stop(), 0);
}

#[test]
fn other_settings_of_the_probe_are_in_use_after_a_reload() {
    let world = World::with(&[("ann", "0.0.33")]).configured("[probe]\npulse_interval = \"1h\"\n");
    let serving = world.serve();
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(&world.path("config.toml"), &config.replace("1h", "500ms"));
    assert_eq!(serving.request("POST", "/-/reload", &[]).status, 200);
    serving.until_runs("ann", "pulse", "ok", 2.0);
}

#[test]
fn whoever_joins_is_probed_and_whoever_leaves_is_forgotten_while_it_runs() {
    let mut world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    world.add("bob");
    world.start("bob", "0.0.24");
    serving.until_ok("bob", "handshake", true);
    assert!(serving.page("/").body.contains("bob"));
    world.remove("bob");
    wait_for("every series of bob to vanish", || {
        (!serving.get("/metrics").body.contains("user=\"bob\"")).then_some(())
    });
    assert!(!serving.page("/").body.contains("bob"));
    assert_eq!(serving.request("GET", "/probe?user=bob", &[]).status, 404);
    serving.until_ok("ann", "pulse", true);
}

#[test]
fn a_broken_dispatch_table_keeps_everybody_served() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "pulse", true);
    let path = world.path("dispatch.json");
    let good = std::fs::read_to_string(&path).expect("the table");
    let loaded = "t3_prober_inventory_last_reload_successful";
    for broken in [Some(&good[..good.len() / 2]), Some(""), Some("[1]"), Some("\u{0}\u{1}garbage"), None] {
        match broken {
            Some(text) => replace(&path, text),
            None => std::fs::remove_file(&path).expect("removed"),
        }
        serving.until_metric(loaded, |ok| ok == 0.0);
        let pulses = serving.until_runs("bob", "pulse", "ok", 0.0);
        serving.until_runs("bob", "pulse", "ok", pulses);
        let page = serving.page("/").body;
        assert!(page.contains("stays in use") && page.contains("ann"), "{broken:?}: {page}");
        assert_eq!(serving.get("/-/ready").status, 200, "{broken:?}");
        replace(&path, &good);
        serving.until_metric(loaded, |ok| ok == 1.0);
    }
}

#[test]
fn a_pause_shows_in_metric_and_page_and_ends_by_itself() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    world.fault("ann", "exchange-500");
    serving.until_ok("ann", "pulse", false);
    let run = |args: &[&str]| {
        let output = world.command(args).output().expect("the program");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let paused = "t3_user_paused{user=\"ann\"}";
    let (code, said) = run(&["pause", "ann", "--for", "4s", "--reason", "new disk"]);
    assert_eq!(code, Some(0), "{said}");
    serving.until_metric(paused, |paused| paused == 1.0);
    let page = serving.page("/").body;
    assert!(page.contains("new disk"), "{page}");
    assert!(!page.contains("ann</strong></a> fails"), "no alarm for somebody who is paused: {page}");
    assert_eq!(serving.metric("t3_user_paused{user=\"bob\"}"), Some(0.0));
    serving.until_metric(paused, |paused| paused == 0.0);
    assert!(serving.page("/").body.contains("ann</strong></a> fails"));

    run(&["pause", "--all", "--for", "2h", "--reason", "maintenance"]);
    serving.until_metric(paused, |paused| paused == 1.0);
    serving.until_metric("t3_user_paused{user=\"bob\"}", |paused| paused == 1.0);
    let (code, said) = run(&["resume", "--all"]);
    assert!(code == Some(0) && said.contains("everybody resumed"), "{said}");
    serving.until_metric(paused, |paused| paused == 0.0);
    let (code, said) = run(&["pause", "nobody", "--for", "1h", "--reason", "x"]);
    assert!(code == Some(1) && said.contains("no user 'nobody'"), "{said}");
}

#[test]
fn a_probe_by_hand_is_in_the_metrics_of_the_service() {
    let world = World::with(&[("ann", "0.0.33")]).configured("[probe]\npulse_interval = \"1h\"\n");
    let serving = world.serve();
    assert_eq!(world.probe("ann").exit, 0);
    serving.until_metric("t3_prober_spool_events_total{event=\"run\"}", |runs| runs == 2.0);
    serving.until_ok("ann", "handshake", true);
    std::fs::write(world.path("state/spool/nonsense"), "{").expect("a file");
    serving.until_metric("t3_prober_spool_rejected_total", |files| files == 1.0);
}

#[test]
fn it_ends_cleanly_and_soon_even_while_an_instance_hangs() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    world.fault("ann", "hang");
    serving.until_ok("ann", "pulse", false);
    // Somebody who has a connection open and asks nothing does not hold it up either.
    let _silent = std::net::TcpStream::connect(("127.0.0.1", serving.port)).expect("connected");
    let asked = Instant::now();
    assert_eq!(serving.stop(), 0);
    assert!(asked.elapsed() < Duration::from_secs(20), "it took {:?}", asked.elapsed());
}

#[test]
fn nothing_of_a_probe_is_left_when_it_ends() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    assert_eq!(serving.stop(), 0);
    let database = tokio_rusqlite::rusqlite::Connection::open(world.database("ann")).expect("the database");
    let live = "SELECT count(*) FROM auth_sessions WHERE client_label = 't3-prober' AND revoked_at IS NULL";
    let live: i64 = database.query_row(live, [], |row| row.get(0)).expect("a count");
    assert_eq!(live, 0, "sessions of probes that are still open");
}

#[test]
fn a_second_service_on_one_state_directory_is_refused_with_the_remedy() {
    let world = World::with(&[("ann", "0.0.33")]);
    let _serving = world.serve();
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    let other = world.path("other.toml");
    let listen = config.lines().find(|line| line.starts_with("listen")).expect("an address");
    replace(&other, &config.replace(listen, "listen = \"127.0.0.1:0\""));
    let refused = |config: &std::path::Path| {
        let program = crate::support::world::PROGRAM;
        let output =
            Command::new(program).arg("--config").arg(config).arg("serve").output().expect("the program");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = refused(&other);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("another t3-prober serves from") && said.contains("set another state_dir"),
        "{said}"
    );
    let (code, said) = refused(&world.path("config.toml"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is t3-prober running already?"), "{said}");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_said_with_the_remedy() {
    let world = World::with(&[("ann", "0.0.33")]);
    std::fs::write(world.path("state"), "a file").expect("a file");
    let output = world.command(&["serve"]).output().expect("the program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot make the state directory"), "{said}");
}

/// Whoever else is served goes on being probed.
pub fn unharmed(serving: &Serving, user: &str) {
    let pulses = serving.until_runs(user, "pulse", "ok", 0.0);
    serving.until_runs(user, "pulse", "ok", pulses + 1.0);
}

#[test]
fn the_state_directory_is_closed_to_others() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    let mode = |name: &str| {
        let metadata = std::fs::metadata(world.path(name)).expect(name);
        metadata.permissions().mode() & 0o777
    };
    assert_eq!([mode("state"), mode("state/keepers"), mode("state/keepers/ann.json")], [0o750, 0o700, 0o600]);
    assert_eq!(mode("state/history.sqlite") & 0o007, 0, "the history is readable by everybody");
}

#[test]
fn a_login_that_the_dispatchs_own_account_reports_is_taken_in_and_a_strangers_is_not() {
    if !tools::root() {
        return;
    }
    let (dispatch, stranger) = (65_533, 65_532);
    let world = World::with(&[("ann", "0.0.33")])
        .configured(&format!("[helper]\ncallers = {{ \"{dispatch}\" = [\"mint\"] }}\n"));
    let serving = world.serve();
    let login = serde_json::json!({
        "event": "login", "user": "ann", "endpoint": "browser_session", "duration_seconds": 0.02,
        "at": humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
    });
    for uid in [stranger, dispatch] {
        let (hidden, shown) =
            (world.path(&format!("state/spool/.{uid}")), world.path(&format!("state/spool/{uid}.json")));
        std::fs::write(&hidden, login.to_string()).expect("an event");
        std::os::unix::fs::chown(&hidden, Some(uid), None).expect("an owner");
        std::fs::rename(hidden, shown).expect("a rename");
    }
    serving.until_metric("t3_prober_spool_events_total{event=\"login\"}", |events| events == 1.0);
    serving.until_metric("t3_prober_spool_rejected_total", |rejected| rejected == 1.0);
}

#[test]
fn a_real_login_stands_for_one_handshake_and_somebody_who_logs_in_all_the_time_for_no_more() {
    let quick = "[probe]\npulse_interval = \"500ms\"\nhandshake_interval = \"3s\"\n";
    let world = World::with(&[("ann", "0.0.33")]).configured(quick);
    let serving = world.serve();
    let before = serving.until_runs("ann", "handshake", "ok", 0.0);
    let login = serde_json::json!({
        "event": "login", "user": "ann", "endpoint": "browser_session", "duration_seconds": 0.02,
        "at": "2026-01-01T00:00:00.000Z",
    });
    let mut logins = 0;
    let sample = "t3_probe_runs_total{user=\"ann\",kind=\"handshake\",outcome=\"ok\"}";
    wait_for("two more handshakes in spite of all the logins", || {
        logins += 1;
        world.spool(&logins.to_string(), &login);
        std::thread::park_timeout(Duration::from_millis(250));
        serving.metric(sample).filter(|runs| *runs >= before + 2.0)
    });
    serving.until_metric("t3_prober_spool_events_total{event=\"login\"}", |events| events > 4.0);
}
