//! Faults: each is seen where its line says, is gone when it is mended, and none is left untried.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::sim::{BOGUS, PATIENCE, Sim, cookie, sim};

/// Where to look.
#[derive(Clone, Copy)]
pub enum Look {
    Page,
    Session,
    Descriptor,
    Bogus,
    Login,
    Authenticated,
    Ticket,
    Upgrade,
    Ping,
    Call,
    KeeperMint,
    KeeperLogin,
    KeeperRevoke,
    Snapshot,
    Mint,
    MintedLogin,
    Revoke,
    Project,
    Level,
}

const SILENCE: &str = "no answer";

/// Every fault, where it shows, what is seen there while it is on.
const FAULTS: &[(&str, Look, &str)] = &[
    ("hang", Look::Page, SILENCE),
    ("drop", Look::Page, "broken"),
    ("not-http", Look::Page, "broken"),
    ("slow", Look::Page, SILENCE),
    ("status-500", Look::Page, "500 empty"),
    ("status-503", Look::Session, "503 empty"),
    ("html-on-api", Look::Session, "200 html"),
    ("redirect", Look::Page, "302 empty"),
    ("close-mid-body", Look::Session, "broken"),
    ("huge-body", Look::Session, "200 104857600 bytes"),
    ("bad-json", Look::Session, "200 json status"),
    ("wrong-version", Look::Descriptor, "0.0.99 here"),
    ("wrong-environment", Look::Descriptor, "0.0.26 elsewhere"),
    ("descriptor-html", Look::Descriptor, "html"),
    ("exchange-404", Look::Bogus, "404 empty"),
    ("exchange-moved", Look::Bogus, "404 empty"),
    ("exchange-500", Look::Bogus, "500 json _tag code reason traceId"),
    ("exchange-hang", Look::Bogus, SILENCE),
    ("exchange-refuses", Look::Login, "401"),
    ("exchange-accepts-all", Look::Bogus, "200 json authenticated expiresAt scopes sessionMethod"),
    ("no-cookie", Look::Login, "200"),
    ("cookie-renamed", Look::Login, "200 other HttpOnly"),
    ("cookie-without-http-only", Look::Login, "200 announced"),
    ("session-false", Look::Authenticated, "false"),
    ("ticket-500", Look::Ticket, "500"),
    ("socket-200", Look::Upgrade, "200"),
    ("socket-403", Look::Upgrade, "403"),
    ("socket-silent", Look::Ping, SILENCE),
    ("socket-closes", Look::Ping, "closed"),
    ("rpc-error", Look::Call, "Failure"),
    ("rpc-silent", Look::Call, SILENCE),
    ("revoke-fails", Look::KeeperRevoke, "500"),
    ("keeper-refused", Look::KeeperMint, "401"),
    ("mint-500", Look::KeeperMint, "500"),
    ("mint-foreign", Look::KeeperLogin, "401"),
    ("history-unloadable", Look::Snapshot, "500"),
    ("cli-hang", Look::Mint, SILENCE),
    ("cli-slow", Look::Mint, SILENCE),
    ("cli-garbage", Look::Mint, "exit 0, no JSON"),
    ("cli-fails", Look::Mint, "exit 1, a fault is switched on"),
    ("cli-mint-foreign", Look::MintedLogin, "401"),
    ("cli-revoke-fails", Look::Revoke, "exit 1, a fault is switched on"),
    ("cli-project-fails", Look::Project, "exit 1, a fault is switched on"),
    ("locked", Look::Mint, "exit 1, database is locked"),
    ("auth-tables", Look::Bogus, "500 json _tag code reason traceId"),
    ("foreign-migration", Look::Level, "33 SomethingElse"),
    // Last: what it does to the database stays.
    ("cli-migrates", Look::Level, "40 ProjectionProjectFaviconPath"),
];

/// What is seen there now; `patience` is how long no answer is waited for.
pub async fn look(sim: &Sim, at: Look, patience: Duration) -> String {
    tokio::time::timeout(patience, seen(sim, at)).await.unwrap_or_else(|_| SILENCE.to_owned())
}

async fn seen(sim: &Sim, at: Look) -> String {
    match at {
        Look::Page => described(sim.get("/").await).await,
        Look::Session => described(sim.get("/api/auth/session").await).await,
        Look::Bogus => described(sim.exchange(BOGUS).await).await,
        Look::Descriptor => descriptor(sim).await,
        Look::Login => {
            let answer = sim.exchange(&sim.mint()).await.expect("an answer");
            let document = sim.get("/api/auth/session").await.expect("an answer").json::<Value>().await;
            let announced =
                document.expect("JSON")["auth"]["sessionCookieName"].as_str().expect("a name").to_owned();
            let set = cookie(&answer).map(|set| {
                let name = if set.starts_with(&format!("{announced}=")) { "announced" } else { "other" };
                format!(" {name}{}", if set.contains("HttpOnly") { " HttpOnly" } else { "" })
            });
            format!("{}{}", answer.status().as_u16(), set.unwrap_or_default())
        }
        Look::Authenticated => sim.is_authenticated(&sim.login().await).await.to_string(),
        Look::Ticket => {
            let answer = sim.post_as(&sim.keeper(), "/api/auth/websocket-ticket", &json!({})).await;
            answer.expect("an answer").status().as_u16().to_string()
        }
        Look::Upgrade => match sim.socket(&sim.ticket(&sim.login().await).await).await {
            Ok(_) => "101".to_owned(),
            Err(status) => status.to_string(),
        },
        Look::Ping => spoken(sim, json!({ "_tag": "Ping" })).await,
        Look::Call => {
            spoken(sim, json!({ "_tag": "Request", "id": "1", "tag": "server.getConfig", "payload": {} }))
                .await
        }
        Look::KeeperMint => {
            let answer = sim.post_as(&sim.keeper(), "/api/auth/pairing-token", &json!({})).await;
            answer.expect("an answer").status().as_u16().to_string()
        }
        Look::KeeperLogin => {
            let answer = sim.post_as(&sim.keeper(), "/api/auth/pairing-token", &json!({})).await;
            let minted: Value = answer.expect("an answer").json().await.expect("JSON");
            status(sim.exchange(minted["credential"].as_str().expect("a credential")).await)
        }
        Look::KeeperRevoke => {
            let revoke = json!({ "sessionId": "00000000-0000-4000-8000-000000000000" });
            status(sim.post_as(&sim.keeper(), "/api/auth/clients/revoke", &revoke).await)
        }
        Look::Snapshot => {
            status(sim.get_with_cookie("/api/orchestration/snapshot", &sim.login().await).await)
        }
        Look::Mint => command(sim, &["auth", "pairing", "create", "--json"]).await,
        Look::MintedLogin => status(sim.exchange(&sim.mint()).await),
        Look::Revoke => {
            command(sim, &["auth", "session", "revoke", "00000000-0000-4000-8000-000000000000"]).await
        }
        Look::Project => {
            let folder = tempfile::tempdir().expect("a directory");
            command(sim, &["project", "add", folder.path().to_str().expect("text")]).await
        }
        Look::Level => {
            sim.cli(&["auth", "pairing", "create", "--json"]);
            let sql =
                "SELECT migration_id || ' ' || name FROM effect_sql_migrations ORDER BY migration_id DESC";
            sim.database().query_row(sql, [], |row| row.get(0)).expect("a row")
        }
    }
}

async fn descriptor(sim: &Sim) -> String {
    let answer = sim.get("/.well-known/t3/environment").await.expect("an answer").text().await.expect("text");
    let Ok(document) = serde_json::from_str::<Value>(&answer) else { return "html".to_owned() };
    let id = std::fs::read_to_string(sim.userdata("environment-id")).expect("a file");
    let place = if document["environmentId"] == id.trim() { "here" } else { "elsewhere" };
    format!("{} {place}", document["serverVersion"].as_str().expect("a version"))
}

fn status(answer: reqwest::Result<reqwest::Response>) -> String {
    answer.expect("an answer").status().as_u16().to_string()
}

async fn described(answer: reqwest::Result<reqwest::Response>) -> String {
    let Ok(answer) = answer else { return "broken".to_owned() };
    let status = answer.status().as_u16();
    let Ok(body) = answer.bytes().await else { return "broken".to_owned() };
    if body.is_empty() {
        return format!("{status} empty");
    }
    if body.starts_with(b"<!doctype html>") {
        return format!("{status} html");
    }
    match serde_json::from_slice::<Value>(&body) {
        Ok(document) => {
            let keys: Vec<_> =
                document.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            format!("{status} json {}", keys.join(" "))
        }
        Err(_) => format!("{status} {} bytes", body.len()),
    }
}

async fn spoken(sim: &Sim, frame: Value) -> String {
    let mut socket = sim.socket(&sim.ticket(&sim.login().await).await).await.expect("the socket opens");
    if socket.send(Message::text(frame.to_string())).await.is_err() {
        return "closed".to_owned();
    }
    let Some(Ok(Message::Text(answer))) = socket.next().await else { return "closed".to_owned() };
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    answer["exit"]["_tag"].as_str().or(answer["_tag"].as_str()).unwrap_or_default().to_owned()
}

async fn command(sim: &Sim, arguments: &[&str]) -> String {
    // It may be one that never ends: killed when the caller loses patience.
    let mut command = tokio::process::Command::from(sim.command(arguments));
    let output = command.kill_on_drop(true).output().await.expect("the program starts");
    let ended = crate::support::sim::Ended::of(output);
    let told = match serde_json::from_str::<Value>(&ended.stdout) {
        Ok(_) => "JSON",
        Err(_) if ended.cause().is_empty() => "no JSON",
        Err(_) => ended.cause(),
    };
    format!("exit {}, {told}", ended.code.expect("a code"))
}

#[tokio::test]
async fn each_fault_is_seen_where_its_line_says_and_gone_when_mended() {
    let sim = Sim::start("0.0.26").await;
    let mut wrong = Vec::new();
    for (fault, at, expected) in FAULTS {
        let healthy = look(&sim, *at, PATIENCE).await;
        sim.fault(fault);
        let patience = if *expected == SILENCE { Duration::from_millis(400) } else { PATIENCE };
        let broken = look(&sim, *at, patience).await;
        sim.mend(fault);
        let mended = if *fault == "cli-migrates" { healthy.clone() } else { look(&sim, *at, PATIENCE).await };
        if broken != *expected || healthy == broken || mended != healthy {
            wrong.push(format!(
                "{fault}: {healthy:?}, then {broken:?} instead of {expected:?}, then {mended:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_fault_is_left_untried() {
    let help = sim(&["fault", "--help"]).stdout;
    let listed: Vec<_> = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .filter_map(|line| line.split(':').next())
        .filter(|name| !matches!(*name, "on" | "off"))
        .collect();
    let mut tried: Vec<_> = FAULTS.iter().map(|(fault, ..)| *fault).collect();
    assert!(listed.len() >= 20, "{help}");
    for fault in &listed {
        assert!(tried.contains(fault), "{fault} is not in the table of this test");
    }
    tried.retain(|fault| !listed.contains(fault));
    assert!(tried.is_empty(), "no such faults: {tried:?}");
}

#[tokio::test]
async fn a_fault_may_end_by_itself_after_a_number_of_times() {
    let sim = Sim::start("0.0.24").await;
    sim.fault_value("locked", "1");
    assert_eq!(sim.faults(), "locked 1\n");
    assert_eq!(sim.cli(&["auth", "pairing", "create", "--json"]).cause(), "database is locked");
    assert_eq!(sim.faults(), "");
    assert_eq!(sim.cli(&["auth", "pairing", "create", "--json"]).code, Some(0));
}

#[tokio::test]
async fn broken_tables_show_in_each_generation_as_recorded_and_heal_without_a_restart() {
    for (version, status) in [("0.0.24", 200), ("0.0.33", 500)] {
        let sim = Sim::start(version).await;
        let cookie = sim.login().await;
        sim.fault("auth-tables");
        let answer = sim.get_with_cookie("/api/auth/session", &cookie).await.expect("an answer");
        assert_eq!(answer.status(), status, "{version}");
        assert_eq!(sim.exchange(BOGUS).await.expect("an answer").status(), 500, "{version}");
        sim.mend("auth-tables");
        assert!(sim.is_authenticated(&cookie).await, "{version}");
    }
}
