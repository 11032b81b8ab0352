//! The front tier: what only the dispatch can do wrong is named by a probe that goes through it, and no user is touched.

use std::sync::{Arc, Mutex};

use tokio_rusqlite::rusqlite::Connection;

use crate::support::door::{Door, Instance};
use crate::support::free_port::free_port;
use crate::support::world::{Serving, World, http, wait_for};

/// Keys that let the prober in, and make it hurry.
fn keys(world: &World, front: u16) -> String {
    let file = world.path("probe.key");
    std::fs::write(&file, "a key of the prober's own\n").expect("a file");
    format!(
        "probe_key_file = \"{}\"\n[probe]\nfront = \"127.0.0.1:{front}\"\nfront_interval = \"500ms\"\n\
         pulse_interval = \"200ms\"\nhandshake_interval = \"500ms\"\n",
        file.display()
    )
}

fn failures(reason: &str) -> String {
    format!("t3_probe_failures_total{{user=\"ann\",step=\"front\",reason=\"{reason}\"}}")
}

fn live_sessions(world: &World, label: &str) -> i64 {
    let database = Connection::open(world.database("ann")).expect("the database");
    let live = "SELECT count(*) FROM auth_sessions WHERE client_label = ?1 AND revoked_at IS NULL";
    database.query_row(live, [label], |row| row.get(0)).expect("a count")
}

/// A dispatch and a service beside it, both on ann's t3.
fn both(version: &str) -> (Door, Serving) {
    let mut door = Door::before(World::with(&[("ann", version)]), "");
    let keys = keys(&door.world, door.port);
    door.signal(nix::sys::signal::Signal::SIGTERM);
    door.ended();
    door.world.extend(&keys);
    door.start();
    let serving = door.world.serve();
    (door, serving)
}

#[test]
fn visits_through_the_dispatch_are_the_probes_own_and_leave_nothing() {
    for version in ["0.0.24", "0.0.33"] {
        let (door, serving) = both(version);
        serving.until_runs("ann", "front", "ok", 2.0);
        // Direct, first visit, direct, first visit.
        serving.until_runs("ann", "handshake", "ok", 3.0);
        assert_eq!(serving.metric(&failures("refused")).unwrap_or(0.0), 0.0);
        let first_visits = serving.metric("t3_probe_step_duration_seconds_count{step=\"front\"}");
        assert!(first_visits.is_some_and(|count| count >= 4.0), "{first_visits:?}");
        assert_eq!(live_sessions(&door.world, "t3-prober front"), 1, "one is kept");

        let requests = |code: &str, client: &str| {
            let labels = format!("user=\"ann\",code=\"{code}\",client=\"{client}\"");
            door.metric(&format!("t3_dispatch_requests_total{{{labels}}}"))
        };
        assert!(requests("2xx", "probe") >= 4.0 && requests("3xx", "probe") >= 1.0);
        assert_eq!(requests("2xx", "user") + requests("3xx", "user"), 0.0);
        for endpoint in ["bootstrap", "browser_session"] {
            let sample = format!("t3_dispatch_pairings_total{{user=\"ann\",endpoint=\"{endpoint}\"}}");
            assert_eq!(door.metric(&sample), 0.0, "no probe is a real login");
        }
        assert_eq!(door.metric("t3_dispatch_websocket_duration_seconds_count"), 0.0);
        assert_eq!(serving.stop(), 0);
        assert_eq!(live_sessions(&door.world, "t3-prober front"), 0, "and ended with the service");
        assert_eq!(live_sessions(&door.world, "t3-prober"), 0);
        assert!(!door.world.log().contains("a key of the prober's own"));
    }
}

#[test]
fn a_probe_that_is_asked_for_goes_through_the_front_door_too_and_leaves_the_kept_session_alone() {
    let (door, serving) = both("0.0.33");
    serving.until_runs("ann", "front", "ok", 1.0);
    let kinds = |json: &serde_json::Value| {
        let runs = json["runs"].as_array().expect("runs").iter();
        runs.map(|run| format!("{} {}", run["kind"], run["trigger"]).replace('"', "")).collect::<Vec<_>>()
    };
    let asked = serving.get("/probe?user=ann");
    assert_eq!(asked.status, 200, "{asked:?}");
    let wanted = ["pulse demand", "handshake demand", "front demand"];
    assert_eq!(kinds(&serde_json::from_str(&asked.body).expect("JSON")), wanted);

    let kept = |world: &World| {
        let database = Connection::open(world.database("ann")).expect("the database");
        let newest = "SELECT max(issued_at) FROM auth_sessions WHERE client_label = 't3-prober front'";
        database.query_row(newest, [], |row| row.get::<_, String>(0)).expect("the kept session")
    };
    let before = kept(&door.world);
    let probed = door.world.probe("ann");
    assert_eq!(probed.exit, 0, "{}", probed.json);
    let mut found = kinds(&probed.json);
    found.sort_unstable();
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    serving.until_runs("ann", "front", "ok", 2.0);
    assert_eq!(kept(&door.world), before, "the service's visits had to log in anew");
    assert_eq!(serving.stop(), 0);
    assert_eq!(live_sessions(&door.world, "t3-prober"), 0, "what was made for one visit is ended");
}

#[test]
fn no_user_is_handed_a_session_that_the_probe_will_end() {
    let (door, serving) = both("0.0.33");
    for round in 1..=3 {
        let cold = serving.metric("t3_probe_step_duration_seconds_count{step=\"socket\"}").unwrap_or(0.0);
        serving.until_metric("t3_probe_step_duration_seconds_count{step=\"socket\"}", |count| {
            count > cold + 1.0
        });
        let headers = [("X-authentik-username", "ann@example.com"), ("Accept", "text/html")];
        let first = http(door.port, "GET", "/", &headers).expect("an answer");
        assert_eq!(first.status, 302, "{round}: {first:?}");
    }
    assert!(live_sessions(&door.world, "sign-in") >= 1);
    // The dispatch is another process: it tells the service of real logins through the spool.
    serving.until_metric("t3_prober_spool_events_total{event=\"login\"}", |events| events >= 1.0);
    wait_for("the login to be in the history", || {
        serving.get("/history/events").body.contains("browser_session").then_some(())
    });
    serving.stop();
    assert!(live_sessions(&door.world, "sign-in") >= 1, "users' sessions live on");
}

#[test]
fn what_only_the_dispatch_does_wrong_is_named() {
    const HTML: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>";
    let answer = Arc::new(Mutex::new(""));
    let says = Arc::clone(&answer);
    let dispatch = Instance::start(move |talk| {
        while let Some(head) = talk.request() {
            let answer = *says.lock().expect("no panic");
            match answer {
                "silence" => {
                    while talk.request().is_some() {}
                    return;
                }
                "of another" if head.starts_with("GET / ") => talk.say(HTML.as_bytes()),
                "of another" => {
                    let body = "{\"authenticated\":false,\"auth\":{\"sessionCookieName\":\"t3_session\"}}";
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    talk.say(format!("{head}{body}").as_bytes());
                }
                answer => talk.say(answer.as_bytes()),
            }
        }
    });
    let world = World::with(&[("ann", "0.0.33")]);
    let keys =
        format!("[dispatch]\n{}", keys(&world, dispatch.port)).replace("handshake_interval = \"500ms\"", "");
    let world = world.configured(&keys);
    let serving = world.serve();
    for (says, reason) in [
        ("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "redirected"),
        (
            "HTTP/1.1 302 Found\r\nLocation: /\r\nSet-Cookie: t3_session=new; Path=/\r\nContent-Length: 0\r\n\r\n",
            "paired_again",
        ),
        ("of another", "wrong_instance"),
        (
            "HTTP/1.1 403 Forbidden\r\nX-T3-Dispatch: unknown_identity\r\nContent-Length: 0\r\n\r\n",
            "unknown_identity",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\nX-T3-Dispatch: untrusted_peer\r\nContent-Length: 0\r\n\r\n",
            "untrusted_peer",
        ),
        (
            "HTTP/1.1 503 Busy\r\nX-T3-Dispatch: too_many_connections\r\nContent-Length: 0\r\n\r\n",
            "too_many_connections",
        ),
        ("HTTP/1.1 503 Wait\r\nX-T3-Dispatch: wrong_owner\r\nContent-Length: 0\r\n\r\n", "wrong_owner"),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi", "malformed"),
        ("silence", "timeout"),
    ] {
        *answer.lock().expect("no panic") = says;
        let before = serving.metric(&failures(reason)).unwrap_or(0.0);
        serving.until_metric(&failures(reason), |count| count > before);
        serving.until_ok("ann", "front", false);
        assert_eq!(serving.metric("t3_probe_ok{user=\"ann\",kind=\"pulse\"}"), Some(1.0), "{reason}");
    }
    let heads = dispatch.heads().concat().to_ascii_lowercase();
    for shown in ["x-authentik-username: ann@example.com", "x-t3-prober-key: a key", "cookie: t3_session_"] {
        assert!(heads.contains(shown), "{shown} in {heads}");
    }
    drop(dispatch);
    let before = serving.metric(&failures("refused")).unwrap_or(0.0);
    serving.until_metric(&failures("refused"), |count| count > before);
}

#[test]
fn where_the_instance_itself_fails_the_dispatch_is_not_blamed() {
    let (mut door, serving) = both("0.0.33");
    serving.until_runs("ann", "front", "ok", 0.0);
    door.world.kill("ann");
    serving.until_ok("ann", "pulse", false);
    let skipped = serving.metric("t3_probe_runs_total{user=\"ann\",kind=\"front\",outcome=\"skipped\"}");
    serving.until_runs("ann", "front", "skipped", skipped.unwrap_or(0.0) + 1.0);
    assert_eq!(serving.metric("t3_probe_ok{user=\"ann\",kind=\"front\"}"), Some(1.0));
}

#[test]
fn a_kept_session_that_ended_is_replaced_and_nobody_is_blamed() {
    let (door, serving) = both("0.0.33");
    serving.until_runs("ann", "front", "ok", 0.0);
    let database = Connection::open(door.world.database("ann")).expect("the database");
    database.busy_timeout(std::time::Duration::from_secs(10)).expect("a timeout");
    let end = "UPDATE auth_sessions SET revoked_at = issued_at WHERE client_label = 't3-prober front'";
    assert_eq!(database.execute(end, []).expect("ended"), 1);
    let runs =
        serving.metric("t3_probe_runs_total{user=\"ann\",kind=\"front\",outcome=\"ok\"}").unwrap_or(0.0);
    serving.until_runs("ann", "front", "ok", runs + 1.0);
    assert_eq!(
        serving.metric("t3_probe_runs_total{user=\"ann\",kind=\"front\",outcome=\"failed\"}"),
        Some(0.0)
    );
    assert_eq!(live_sessions(&door.world, "t3-prober front"), 1);
}

#[test]
fn a_dispatch_that_is_gone_is_told_from_an_instance_that_is() {
    let (mut door, serving) = both("0.0.33");
    serving.until_runs("ann", "front", "ok", 0.0);
    door.signal(nix::sys::signal::Signal::SIGTERM);
    door.ended();
    serving.until_metric(&failures("refused"), |count| count > 0.0);
    // The next first visit fails at the door, and the login behind it is made all the same.
    serving.until_ok("ann", "handshake", false);
    let row = wait_for("a first visit that was turned away", || {
        let rows = serving.history("/history?user=ann&kind=handshake&outcome=failed");
        // One that was under way when the dispatch went may have failed further on.
        rows.into_iter().find(|row| row["step"] == "front")
    });
    assert_eq!(row["reason"], "refused", "{row}");
    assert_eq!(
        serving.metric("t3_probe_last_step_duration_seconds{user=\"ann\",step=\"mint\"}").map(|_| ()),
        Some(())
    );
    door.start();
    serving.until_ok("ann", "front", true);
    serving.until_ok("ann", "handshake", true);
}

#[test]
fn serve_lets_users_in_by_itself_where_it_is_told_to() {
    let port = free_port();
    let own = nix::unistd::geteuid();
    let world = World::with(&[("ann", "0.0.33")]).configured(&format!(
        "[dispatch]\ninside_serve = true\nlisten = [\"127.0.0.1:{port}\"]\ntrusted_uids = [{own}]\n\
         [probe]\nfront_interval = \"500ms\"\n"
    ));
    let serving = world.serve();
    serving.until_runs("ann", "front", "ok", 0.0);
    let visit = [("X-authentik-username", "ann@example.com"), ("Accept", "text/html")];
    let first = http(port, "GET", "/x?y=z", &visit).expect("an answer");
    assert!(first.status == 302 && first.head.contains("\r\nLocation: /x?y=z\r\n"), "{first:?}");
    let pairings = "t3_dispatch_pairings_total{user=\"ann\",endpoint=\"browser_session\"}";
    serving.until_metric(pairings, |count| count == 1.0);
    wait_for("the login to be in the history", || {
        serving.get("/history/events").body.contains("browser_session").then_some(())
    });
    assert_eq!(serving.stop(), 0);
}

#[test]
fn with_a_helper_serve_does_not_let_users_in_itself() {
    let world = World::empty().configured(
        "[dispatch]\ninside_serve = true\ntrusted_uids = [0]\n[helper]\nsocket = \"/run/helper.sock\"\n",
    );
    let output = world.command(&["serve"]).output().expect("the program");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("inside_serve") && said.contains("account of its own"), "{said}");
}
