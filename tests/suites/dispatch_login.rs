//! A first visit, and every one after: logged in without seeing a pairing page, where it asked to go, once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::door::{Door, Instance, Wire};
use crate::support::world::{Answer, World, http, wait_for};

const BROWSER: &[(&str, &str)] =
    &[("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"), ("Accept", "text/html,*/*")];

fn visit(door: &Door, path: &str, cookie: &str, more: &[(&str, &str)]) -> Answer {
    let mut headers = vec![("X-authentik-username", "ann@example.com")];
    headers.extend_from_slice(more);
    if !cookie.is_empty() {
        headers.push(("Cookie", cookie));
    }
    http(door.port, "GET", path, &headers).expect("an answer")
}

/// `name=value` of every cookie that an answer sets.
fn cookies(answer: &Answer) -> String {
    let set = answer.head.lines().filter_map(|line| line.strip_prefix("Set-Cookie: "));
    set.filter_map(|cookie| cookie.split(';').next()).collect::<Vec<_>>().join("; ")
}

fn session(answer: &Answer) -> String {
    cookies(answer).split("; ").find(|cookie| cookie.starts_with("t3_session")).unwrap_or_default().to_owned()
}

fn logins(door: &Door) -> f64 {
    ["bootstrap", "browser_session"]
        .map(|endpoint| {
            door.metric(&format!("t3_dispatch_pairings_total{{user=\"ann\",endpoint=\"{endpoint}\"}}"))
        })
        .iter()
        .sum()
}

#[test]
fn a_first_visit_lands_where_it_asked_to_go_logged_in_on_every_generation() {
    for version in ["0.0.24", "0.0.26", "0.0.33"] {
        let door = Door::before(World::with(&[("ann", version)]), "");
        let first = visit(&door, "/threads/7?tab=diff", "", BROWSER);
        assert_eq!(first.status, 302, "{version}: {first:?}");
        assert!(first.head.contains("\r\nLocation: /threads/7?tab=diff\r\n"), "{}", first.head);
        assert!(!first.head.contains("Secure"), "{}", first.head);
        let second = visit(&door, "/threads/7?tab=diff", &cookies(&first), BROWSER);
        assert_eq!(second.status, 200, "{version}: {second:?}");
        let known = visit(&door, "/api/auth/session", &session(&first), &[]);
        assert!(known.body.contains("\"authenticated\":true"), "{version}: {known:?}");
        assert_eq!(logins(&door), 1.0);
    }
}

#[test]
fn behind_https_the_session_is_secure() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let first = visit(&door, "/", "", &[("X-Forwarded-Proto", "https"), ("Accept", "text/html")]);
    let set = first.head.lines().find(|line| line.starts_with("Set-Cookie: t3_session")).expect("a session");
    assert!(set.ends_with("; Secure") && set.contains("HttpOnly") && set.contains("SameSite=Lax"), "{set}");
}

#[test]
fn a_bare_curl_without_a_cookie_is_sent_back_with_one() {
    let door = Door::before(World::with(&[("ann", "0.0.26")]), "");
    let raw = "HEAD /deep/link HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann@example.com\r\nConnection: close\r\n\r\n";
    let answer = door.raw(raw.as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 302 ") && answer.contains("\r\nLocation: /deep/link\r\n"),
        "{answer}"
    );
    assert!(answer.contains("\r\nSet-Cookie: t3_session"), "{answer}");
}

#[test]
fn nothing_but_a_page_is_ever_redirected() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let answer =
        visit(&door, "/api/auth/session", "", &[("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]);
    assert!(
        answer.status == 200 && answer.body.contains("\"authenticated\":true"),
        "paired in passing: {answer:?}"
    );
    assert!(session(&answer).starts_with("t3_session"), "{answer:?}");
    let ticketed = visit(&door, "/api/auth/session?wsTicket=x", "", BROWSER);
    assert!(ticketed.status == 200 && ticketed.body.contains("\"authenticated\":false"), "{ticketed:?}");
    assert_eq!(logins(&door), 1.0);
}

#[test]
fn a_hundred_first_visits_at_once_are_one_login() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    std::thread::scope(|scope| {
        let visits: Vec<_> = (0..100).map(|_| scope.spawn(|| visit(&door, "/", "", BROWSER))).collect();
        let sessions: std::collections::BTreeSet<_> =
            visits.into_iter().map(|visit| session(&visit.join().expect("an answer"))).collect();
        assert!(sessions.len() == 1 && !sessions.contains(""), "{} sessions", sessions.len());
    });
    assert_eq!(logins(&door), 1.0);
}

#[test]
fn a_browser_that_keeps_no_cookie_costs_one_login_and_is_told() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    assert_eq!(visit(&door, "/loop", "", BROWSER).status, 302);
    let told = wait_for("the browser to be told", || {
        let answer = visit(&door, "/loop", "", BROWSER);
        (answer.status != 302).then_some(answer)
    });
    assert!(told.status == 403 && told.body.contains("did not keep the session"), "{told:?}");
    let marked = visit(&door, "/other", "t3_dispatch_paired=1", BROWSER);
    assert!(marked.status == 403 && marked.body.contains("did not keep the session"), "{marked:?}");
    assert_eq!(logins(&door), 1.0);
}

#[test]
fn a_dead_session_is_replaced_on_a_page_and_nowhere_else() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let name = session(&visit(&door, "/", "", BROWSER)).split('=').next().expect("a name").to_owned();
    let dead = format!("{name}=e30.bm90aGluZw");
    let page = visit(&door, "/deep", &dead, BROWSER);
    assert!(page.status == 302 && page.head.contains("\r\nLocation: /deep\r\n"), "{page:?}");
    let call = visit(&door, "/api/auth/session", &dead, &[("Sec-Fetch-Mode", "cors")]);
    assert!(
        call.status == 200 && call.body.contains("\"authenticated\":false") && session(&call).is_empty(),
        "{call:?}"
    );
}

#[test]
fn no_path_leads_to_another_host() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    for path in [
        "//evil.example/",
        "///evil.example",
        "/\\evil.example",
        "/\\/evil.example",
        "/a//evil.example",
        "/.//evil.example",
        "/../evil",
        "/a/..//evil.example",
        "/%5c/..//x",
    ] {
        let answer = visit(&door, path, "", BROWSER);
        let location = answer.head.lines().find_map(|line| line.strip_prefix("Location: "));
        assert!(answer.status == 403 || location == Some("/"), "{path}: {answer:?}");
    }
}

#[test]
fn while_nobody_can_log_in_nothing_is_minted_and_everybody_is_told_to_wait() {
    let door = Door::before(World::with(&[("ann", "0.0.24")]), "");
    // The outage: a newer command migrates the database under the running server.
    door.world.foreign_mint("ann", "0.0.26");
    for turn in 0..10 {
        let answer = visit(&door, "/", "", BROWSER);
        assert!(answer.status == 503 && answer.body.contains("auth_store"), "{turn}: {answer:?}");
    }
    let failures = door
        .metric("t3_dispatch_pairing_failures_total{user=\"ann\",step=\"contract\",reason=\"auth_store\"}");
    assert!((1.0..4.0).contains(&failures), "{failures}: it backs off");
    assert_eq!(logins(&door), 0.0);
    let log = door.log();
    assert!(!log.contains("mint"), "{log}");
}

#[test]
fn an_instance_that_dies_between_mint_and_exchange_costs_one_mint_and_heals() {
    let world = World::with(&[("ann", "0.0.33")]);
    let (real, dying, mints) =
        (world.port("ann"), Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let (dies, minted) = (Arc::clone(&dying), Arc::clone(&mints));
    // In front of the stand-in: it passes everything on, but for the exchange that follows a mint.
    let instance = Instance::start(move |talk| {
        // One request a connection.
        let Some(head) = talk.request() else { return };
        let lower = head.to_ascii_lowercase();
        let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let body = talk.body(length.and_then(|length| length.parse().ok()).unwrap_or(0));
        let is_real = !String::from_utf8_lossy(&body).contains("PROBE0000000");
        if head.starts_with("POST /api/auth/browser-session") && is_real && dies.load(Ordering::Relaxed) {
            return;
        }
        if head.starts_with("POST /api/auth/pairing-token") {
            minted.fetch_add(1, Ordering::Relaxed);
        }
        let mut through = TcpStream::connect(("127.0.0.1", real)).expect("the stand-in");
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        through.write_all(&[head.as_bytes(), &body].concat()).expect("sent");
        let mut answer = Vec::new();
        through.read_to_end(&mut answer).expect("an answer");
        talk.say(&answer);
    });
    let door = Door::in_front_of(world, &[("ann@example.com", "ann", instance.port)]);
    for turn in 0..5 {
        let answer = visit(&door, "/deep", "", BROWSER);
        assert!(answer.status == 503 && answer.head.contains("Retry-After: "), "{turn}: {answer:?}");
    }
    assert!(mints.load(Ordering::Relaxed) <= 2, "{mints:?}: it backs off");
    dying.store(false, Ordering::Relaxed);
    let healed =
        wait_for("a login", || Some(visit(&door, "/deep", "", BROWSER)).filter(|it| it.status == 302));
    assert!(healed.head.contains("\r\nLocation: /deep\r\n"), "{healed:?}");
    assert_eq!(logins(&door), 1.0);
    let failures = "t3_dispatch_pairing_failures_total{user=\"ann\",step=\"exchange\",reason=\"closed\"}";
    assert!(door.metric(failures) >= 1.0);
}

#[test]
fn a_restart_of_the_instance_is_a_page_that_waits() {
    let mut door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let cookie = session(&visit(&door, "/", "", BROWSER));
    door.world.kill("ann");
    let waiting = visit(&door, "/deep", &cookie, BROWSER);
    assert!(waiting.status == 503 && waiting.body.contains("http-equiv=\"refresh\""), "{waiting:?}");
    door.world.start("ann", "0.0.33");
    let back = visit(&door, "/deep", &cookie, BROWSER);
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(logins(&door), 1.0, "the session outlives the restart");
}

#[test]
fn no_session_and_no_credential_is_ever_written_down() {
    let door = Door::before(World::with(&[("ann", "0.0.26")]), "");
    let first = visit(&door, "/", "", BROWSER);
    let value = session(&first).split_once('=').expect("a session").1.to_owned();
    visit(&door, "/", &session(&first), BROWSER);
    let metrics = {
        let mut wire = Wire::connect(door.operator_port());
        wire.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        wire.rest()
    };
    assert!(!door.log().contains(&value) && !metrics.contains(&value));
    assert!(door.log().contains("logged a user in"), "{}", door.log());
}
