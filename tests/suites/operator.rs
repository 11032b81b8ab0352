//! The operator's listener: what is open to everybody, what is not, and that nothing said by others runs on a page.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::tools;
use crate::support::world::{Answer, Serving, World, replace, wait_for};

const QUICK: &str = "[probe]\npulse_interval = \"2s\"\npulse_timeout = \"1600ms\"\n";
const TOKEN: &str = "a-token-that-nobody-guesses";
/// What needs a right: it starts or changes something, or is free text.
const GUARDED: &[(&str, &str)] = &[
    ("GET", "/history"),
    ("GET", "/history/events"),
    ("GET", "/history/1"),
    ("GET", "/probe?user=ann"),
    ("POST", "/-/reload"),
    ("GET", "/api/v1/verdicts"),
    ("GET", "/api/v1/verdicts/0.0.26"),
    ("POST", "/api/v1/verdicts"),
    ("GET", "/api/v1/rollout/0.0.26"),
];
const OPEN: &[&str] = &["/", "/users/ann", "/live.js", "/metrics", "/-/healthy", "/-/ready"];

/// What renews a page in place, and the only script there is.
const OUR_SCRIPT: &str = "<script type=\"module\" src=\"/live.js\"></script>";

/// A world whose operator's listener has a token and a socket.
fn guarded_world(users: &[(&str, &str)]) -> World {
    let world = World::with(users).configured(QUICK);
    replace(&world.path("token"), TOKEN);
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    let (socket, token) = (world.path("operator.sock"), world.path("token"));
    let doors = format!("socket = {socket:?}\ntoken_file = {token:?}\n[t3]\n");
    replace(&world.path("config.toml"), &config.replacen("[t3]\n", &doors, 1));
    world
}

/// One request as another account of this machine.
fn as_nobody(serving: &Serving, method: &str, path: &str, header: &str) -> u16 {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; printf '%s\\r\\n' '{method} {path} HTTP/1.1' 'Host: 127.0.0.1' \
         'Connection: close' '{header}' '' >&3; read -r _ status _ <&3; echo $status; cat <&3 >/dev/null",
        serving.port
    );
    let account = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let output =
        Command::new("setpriv").args(account).args(["bash", "-c", &script]).output().expect("setpriv");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.trim().parse().unwrap_or_else(|_| panic!("{said} {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn another_account_of_the_host_sees_pages_and_metrics_and_nothing_else() {
    if !tools::root() || tools::find("setpriv").is_none() {
        return;
    }
    let world = guarded_world(&[("ann", "0.0.33")]);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    for path in OPEN {
        assert_eq!(as_nobody(&serving, "GET", path, "X-None: 1"), 200, "{path}");
    }
    for (method, path) in GUARDED {
        assert_eq!(as_nobody(&serving, method, path, "X-None: 1"), 403, "{path} without a right");
        assert_eq!(
            as_nobody(&serving, method, path, "Authorization: Bearer wrong"),
            403,
            "{path}, wrong token"
        );
    }
    let bearer = format!("Authorization: Bearer {TOKEN}");
    for (method, path) in GUARDED {
        let status = as_nobody(&serving, method, path, &bearer);
        assert!(status != 403, "{path} with the token: {status}");
    }
    // An account that is named may, once that is taken into use.
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(
        &world.path("config.toml"),
        &config.replacen("token_file", "trusted_uids = [65534]\ntoken_file", 1),
    );
    let reloaded = serving.request("POST", "/-/reload", &[]);
    assert_eq!(reloaded.status, 200, "{reloaded:?}");
    assert_eq!(as_nobody(&serving, "GET", "/history", "X-None: 1"), 200);
    assert_eq!(as_nobody(&serving, "GET", "/history", "Authorization: Bearer wrong"), 403);
    // And a new token opens, the old one no longer does.
    replace(&world.path("token"), "another-token-that-nobody-guesses");
    serving.request("POST", "/-/reload", &[]);
    assert_eq!(as_nobody(&serving, "GET", "/history", &bearer), 403);
}

#[test]
fn the_unix_socket_opens_everything_to_whoever_may_write_to_it() {
    let world = guarded_world(&[("ann", "0.0.33")]);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    let path = world.path("operator.sock");
    let mode = std::fs::metadata(&path).expect("the socket").permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    let mut socket = UnixStream::connect(&path).expect("connected");
    write!(socket, "GET /history?user=ann HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n")
        .expect("asked");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(serving.stop(), 0);
    assert!(!path.exists(), "the socket is left behind");
}

#[test]
fn a_page_of_another_site_cannot_act_with_an_operators_browser() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    for (method, path) in GUARDED {
        for site in ["cross-site", "same-site"] {
            let answer = serving.request(method, path, &[("Sec-Fetch-Site", site)]);
            assert_eq!(answer.status, 403, "{path} {site}");
            assert!(answer.body.contains("another site"), "{answer:?}");
        }
    }
    // A name that was made to point here: to the browser it is all one site, and it says so.
    let rebound = [("Host", "evil.example"), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(serving.request("GET", "/history", &rebound).status, 403);
    assert_eq!(serving.request("GET", "/history", &[("Sec-Fetch-Site", "same-origin")]).status, 200);
    assert_eq!(serving.request("GET", "/-/reload", &[]).status, 405, "a link changes nothing");
}

#[test]
fn one_user_is_probed_on_demand_once_in_thirty_seconds() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    let first = serving.get("/probe?user=ann");
    assert_eq!(first.status, 200, "{first:?}");
    let runs: Value = serde_json::from_str(&first.body).expect("JSON");
    let kinds: Vec<_> =
        runs["runs"].as_array().expect("runs").iter().map(|run| run["kind"].clone()).collect();
    assert_eq!(kinds, ["pulse", "handshake"]);
    assert!(runs["runs"].as_array().is_some_and(|runs| runs.iter().all(|run| run["trigger"] == "demand")));

    let again = serving.get("/probe?user=ann");
    assert_eq!(again.status, 429, "{again:?}");
    let wait = again.head.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("Retry-After");
    assert!((1..=30).contains(&wait.trim().parse::<u32>().expect("seconds")), "{wait}");
    assert!(again.body.contains("/history?user=ann"), "{again:?}");

    world.fault("bob", "session-false");
    let text = serving.get("/probe?user=bob&debug=true");
    assert_eq!(text.status, 503, "what is not well is no 200");
    assert!(text.head.contains("content-type: text/plain"), "{}", text.head);
    assert!(text.body.contains("bob handshake failed(not_authenticated)"), "{}", text.body);
    assert!(text.body.contains("  session "), "{}", text.body);
    assert_eq!(serving.get("/probe?user=zoe").status, 404);
    assert_eq!(serving.get("/probe").status, 400);
}

#[test]
fn a_browser_gets_a_page_and_a_program_gets_json() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    wait_for("the history", || (!serving.history("/history").is_empty()).then_some(()));
    let id = serving.history("/history")[0]["id"].to_string();
    for path in ["/history", "/history/events", &format!("/history/{id}")] {
        let page = serving.page(path);
        assert!(page.head.contains("content-type: text/html"), "{path}: {page:?}");
        let json = serving.get(path);
        assert!(json.head.contains("content-type: application/json"), "{path}: {json:?}");
        serde_json::from_str::<Value>(&json.body).expect("JSON");
    }
    let probed = serving.page("/probe?user=ann");
    assert!(probed.status == 200 && probed.body.contains("<h1>Probe of ann</h1>"), "{probed:?}");
    for path in ["/", "/history"] {
        locked_down(&serving.page(path));
    }
}

/// Nothing on a page comes from elsewhere, runs, is framed or is kept.
fn locked_down(page: &Answer) {
    let policy =
        page.head.lines().find(|line| line.starts_with("content-security-policy: ")).expect("a policy");
    for part in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"] {
        assert!(policy.contains(part), "{policy}");
    }
    for header in
        ["cache-control: no-store", "x-content-type-options: nosniff", "referrer-policy: no-referrer"]
    {
        assert!(page.head.contains(header), "{header} in {}", page.head);
    }
    assert!(
        !page.body.replace(OUR_SCRIPT, "").contains("<script")
            && !page.body.contains("http://")
            && !page.body.contains("https://")
    );
}

#[test]
fn the_history_is_paged_filtered_and_found_by_trace() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("bob", "handshake", true);
    world.fault("ann", "ticket-500");
    // Every run that is not like the one before is a row of its own.
    for turn in 0..120 {
        let outcome = if turn % 2 == 0 { json!("ok") } else { json!("failed") };
        let mut step = json!({ "step": "reach", "outcome": outcome, "duration_seconds": 0.001 });
        if turn % 2 == 1 {
            step["reason"] = json!("timeout");
        }
        let at = format!("2020-01-01T00:{:02}:{:02}.000Z", turn / 60, turn % 60);
        let run = json!({
            "event": "run", "user": "ann", "kind": "pulse", "trigger": "demand", "started": at,
            "duration_seconds": 0.001, "trace_id": format!("{turn:032x}"), "steps": [step],
        });
        world.spool(&format!("{turn:03}"), &run);
    }
    wait_for("all of it to be recorded", || {
        (serving.history("/history?user=ann&kind=pulse&outcome=failed").len() >= 60).then_some(())
    });
    let first: Value = serde_json::from_str(&serving.get("/history?user=ann&kind=pulse").body).expect("JSON");
    let rows = first["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 100);
    let next = first["next"].as_i64().expect("there is more");
    let older = serving.history(&format!("/history?user=ann&kind=pulse&before={next}"));
    assert!(!older.is_empty() && older.iter().all(|row| row["id"].as_i64() < Some(next)), "{older:?}");
    assert!(rows.windows(2).all(|two| two[0]["id"].as_i64() > two[1]["id"].as_i64()));
    let page = serving.page("/history?user=ann&kind=pulse");
    assert!(page.body.contains(&format!("before={next}")), "no way to what is older");

    for (filter, key, value) in [
        ("user=bob", "user", "bob"),
        ("kind=handshake", "kind", "handshake"),
        ("outcome=failed", "outcome", "failed"),
    ] {
        let rows = serving.history(&format!("/history?{filter}"));
        assert!(!rows.is_empty() && rows.iter().all(|row| row[key] == value), "{filter}: {rows:?}");
    }
    let story = serving.get(&format!("/history/{:032x}", 7));
    assert_eq!(story.status, 200, "{story:?}");
    assert!(story.body.contains("\"timeout\""), "{story:?}");
    assert!(serving.page(&format!("/history/{:032x}", 7)).body.contains("failed(timeout)"));
    assert!(serving.page("/history?user=ann").body.contains("The last failures, which are kept for ever"));
    let statuses =
        ["/history?kind=teapot", "/history?before=x", "/history/xyz", "/history/999999999999999999"];
    assert_eq!(statuses.map(|path| serving.get(path).status), [400, 400, 400, 404]);
}

#[test]
fn real_logins_are_on_the_page_of_events() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    world.spool("1", &json!({ "event": "login", "user": "ann", "endpoint": "browser_session", "duration_seconds": 0.25, "at": "2026-01-01T00:00:00.000Z" }));
    world.spool("2", &json!({ "event": "login_failed", "user": "bob", "step": "exchange", "reason": "auth_store", "at": "2026-01-01T00:00:01.000Z" }));
    let rows = wait_for("both logins", || {
        Some(serving.history("/history/events?kind=login")).filter(|rows| rows.len() == 2)
    });
    assert_eq!((&rows[0]["user"], &rows[0]["outcome"]), (&json!("bob"), &json!("failed")));
    assert_eq!(rows[1]["detail"]["duration_seconds"], json!(0.25));
    let page = serving.page("/history/events?user=bob").body;
    assert!(page.contains("auth_store") && !page.contains("browser_session"), "{page}");
    assert_eq!(serving.get("/history/events?kind=teapot").status, 400);
}

#[test]
fn what_others_say_is_text_on_every_page() {
    const EVIL: &str = "<script>alert(1)</script>";
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let table = json!({
        format!("{EVIL}@example.com"): { "os_user": "ann", "port": world.port("ann") },
        "bob@example.com": { "os_user": EVIL, "port": 4000 },
    });
    replace(&world.path("dispatch.json"), &table.to_string());
    let serving = world.serve();
    serving.until_runs("ann", "pulse", "ok", 0.0);
    let trace = "a".repeat(32);
    world.spool("1", &json!({
        "event": "run", "user": "ann", "kind": "handshake", "trigger": "demand", "started": "2026-01-01T00:00:00.000Z",
        "duration_seconds": 0.1, "trace_id": trace, "facts": { "version": EVIL, "cookie": EVIL },
        "steps": [{ "step": "mint", "outcome": "failed", "reason": "cli_failed", "duration_seconds": 0.1, "detail": EVIL }],
    }));
    world.spool("2", &json!({ "event": "login_failed", "user": EVIL, "step": "exchange", "reason": "status", "at": "2026-01-01T00:00:01.000Z" }));
    wait_for("the run", || (serving.get(&format!("/history/{trace}")).status == 200).then_some(()));
    wait_for("the login", || (!serving.history("/history/events?kind=login").is_empty()).then_some(()));
    let search = "/history?user=%3Cscript%3Ealert(1)%3C/script%3E";
    for path in [
        "/",
        "/users/ann",
        "/history",
        "/history?user=ann",
        search,
        "/history/events",
        &format!("/history/{trace}"),
    ] {
        let page = serving.page(path);
        assert_eq!(page.status, 200, "{path}");
        assert!(page.head.contains("default-src 'none'"), "{path}: {}", page.head);
        let others = page.body.replace(OUR_SCRIPT, "");
        assert!(!others.contains("<script"), "{path}: {others}");
    }
    let escaped = "&lt;script&gt;alert(1)&lt;/script&gt;";
    for path in ["/history", "/history/events", &format!("/history/{trace}")] {
        assert!(serving.page(path).body.contains(escaped), "{path} does not show it at all");
    }
    let metrics = serving.get("/metrics").body;
    assert!(
        metrics.lines().all(|line| line.starts_with('#') || line.rsplit_once(' ').is_some()),
        "{metrics}"
    );
}

#[test]
fn a_users_page_says_whether_they_can_log_in_and_what_the_last_probes_did() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    serving.until_ok("bob", "handshake", true);
    let page = serving.page("/users/ann").body;
    assert!(page.contains("ann can log in.") && page.contains("0.0.33"), "{page}");
    for step in ["reach", "contract", "mint", "exchange", "session", "app", "socket", "revoke"] {
        assert!(page.contains(&format!(">{step}</th>")), "no {step}: {page}");
    }
    world.fault("bob", "exchange-500");
    let failing = wait_for("bob's page", || {
        let page = serving.page("/users/bob").body;
        page.contains("bob cannot log in.").then_some(page)
    });
    assert!(failing.contains("failed(auth_store)") && failing.contains("Next:"), "{failing}");
    assert!(serving.page("/").body.contains("href=\"/users/bob\""), "the status page leads there");
    assert!(
        serving.page("/users/ann").body.contains("ann can log in."),
        "another user's page is another user's"
    );
    assert_eq!(serving.get("/users/eve").status, 404);
}

#[test]
fn a_live_page_renews_itself_with_a_script_and_without_one() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    for path in ["/", "/users/ann"] {
        let page = serving.page(path).body;
        assert!(page.contains(OUR_SCRIPT), "{page}");
        assert!(page.contains("<noscript><meta http-equiv=\"refresh\""), "{page}");
        assert!(page.contains("data-live=\"headline\"") && page.contains("data-live=\"rest\""), "{page}");
    }
    let script = serving.get("/live.js");
    assert!(
        script.head.contains("text/javascript") && script.body.contains("[data-live=rest]"),
        "{script:?}"
    );
}
