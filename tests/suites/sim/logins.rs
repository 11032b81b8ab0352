//! Logging in, version by version, and the outage.

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::sim::{BOGUS, PATIENCE, Sim, Socket, body};

const VERSIONS: [&str; 4] = ["0.0.24", "0.0.26", "0.0.29", "0.0.33"];

async fn asked(socket: &mut Socket, frame: serde_json::Value) -> serde_json::Value {
    socket.send(Message::text(frame.to_string())).await.expect("the frame is sent");
    let answer = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an answer in time");
    let answer = answer.expect("a frame").expect("no error").into_text().expect("text");
    serde_json::from_str(&answer).expect("JSON")
}

#[tokio::test]
async fn a_login_goes_through_on_every_version() {
    for version in VERSIONS {
        let sim = Sim::start(version).await;
        let cookie = sim.login().await;
        assert!(sim.is_authenticated(&cookie).await, "{version}");
        let mut socket = sim.socket(&sim.ticket(&cookie).await).await.expect("the socket opens");
        assert_eq!(asked(&mut socket, json!({ "_tag": "Ping" })).await, json!({ "_tag": "Pong" }));
        let call =
            json!({ "_tag": "Request", "id": "1", "tag": "server.getConfig", "payload": {}, "headers": [] });
        let config = asked(&mut socket, call).await;
        assert_eq!(config["exit"]["value"]["environment"]["serverVersion"], version);
        let forbidden = sim.get_with_cookie("/api/auth/clients", &cookie).await.expect("an answer");
        assert_eq!(forbidden.status(), 403, "{version}");
    }
}

#[tokio::test]
async fn a_credential_works_once_and_a_bogus_one_never() {
    for version in VERSIONS {
        let sim = Sim::start(version).await;
        let credential = sim.mint();
        for (credential, status) in [(credential.as_str(), 200), (&credential, 401), (BOGUS, 401)] {
            assert_eq!(sim.exchange(credential).await.expect("an answer").status(), status, "{version}");
        }
    }
}

#[tokio::test]
async fn an_administrative_session_mints_and_revokes_without_a_command() {
    for version in VERSIONS {
        let sim = Sim::start(version).await;
        let keeper = sim.keeper();
        let label = json!({ "label": "t3-prober" });
        let minted = sim.post_as(&keeper, "/api/auth/pairing-token", &label).await.expect("an answer");
        let minted = body(minted).await;
        let credential = minted["credential"].as_str().expect("a credential");
        let answer = sim.exchange(credential).await.expect("an answer");
        let cookie = crate::support::sim::cookie(&answer).expect("a cookie");
        let session = sim.count("SELECT count(*) FROM auth_sessions WHERE client_label = 't3-prober'");
        assert_eq!(session, 1, "{version}: the label of the credential is the label of the session");
        let sql = "SELECT session_id FROM auth_sessions WHERE client_label = 't3-prober'";
        let id: String = sim.database().query_row(sql, [], |row| row.get(0)).expect("a row");
        let revoke = json!({ "sessionId": id });
        let revoked = sim.post_as(&keeper, "/api/auth/clients/revoke", &revoke).await.expect("an answer");
        assert_eq!(body(revoked).await, json!({ "revoked": true }));
        assert!(!sim.is_authenticated(&cookie).await, "{version}");
    }
}

#[tokio::test]
async fn a_newer_command_locks_everybody_out_of_an_older_server_and_a_newer_server_lets_them_in_again() {
    let mut sim = Sim::start("0.0.24").await;
    let cookie = sim.login().await;
    let mut socket = sim.socket(&sim.ticket(&cookie).await).await.expect("the socket opens");

    let minted = sim.cli_as("0.0.26", &["auth", "pairing", "create", "--json"]).json();
    let credential = minted["credential"].as_str().expect("a credential").to_owned();

    assert_eq!(sim.level(), 32);
    assert_eq!(sim.get("/").await.expect("an answer").status(), 200);
    assert!(!sim.is_authenticated(&cookie).await);
    for credential in [credential.as_str(), BOGUS] {
        assert_eq!(sim.exchange(credential).await.expect("an answer").status(), 500);
    }
    assert_eq!(asked(&mut socket, json!({ "_tag": "Ping" })).await, json!({ "_tag": "Pong" }));
    let refused = sim.cli(&["auth", "pairing", "create", "--json"]);
    assert_eq!(
        (refused.code, refused.cause()),
        (Some(1), "table auth_pairing_links has no column named role")
    );

    drop(socket);
    sim.restart_as("0.0.26").await;
    assert_eq!(sim.exchange(&credential).await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn an_older_server_on_a_newer_database_says_nothing_and_lets_nobody_in() {
    let mut sim = Sim::start("0.0.26").await;
    sim.restart_as("0.0.24").await;
    assert!(sim.log().contains("Listening on") && !sim.log().contains("is ready"), "{}", sim.log());
    assert_eq!(sim.exchange(BOGUS).await.expect("an answer").status(), 500);
    sim.restart_as("0.0.33").await;
    assert_eq!(sim.level(), 40);
    assert_eq!(sim.exchange(BOGUS).await.expect("an answer").status(), 401);
}

#[tokio::test]
async fn a_lock_held_elsewhere_fails_writes_at_once_and_uses_nothing_up() {
    for version in ["0.0.24", "0.0.26"] {
        let sim = Sim::start(version).await;
        let (cookie, credential) = (sim.login().await, sim.mint());
        let holder = sim.database();
        holder.execute_batch("BEGIN IMMEDIATE").expect("the lock is ours");
        assert_eq!(sim.exchange(&credential).await.expect("an answer").status(), 500);
        assert!(sim.is_authenticated(&cookie).await);
        let refused = sim.cli(&["auth", "pairing", "create", "--json"]);
        assert_eq!((refused.code, refused.cause()), (Some(1), "database is locked"));
        assert_eq!(sim.cli(&["auth", "session", "list", "--json"]).code, Some(0));
        holder.execute_batch("ROLLBACK").expect("the lock is free");
        assert_eq!(sim.exchange(&credential).await.expect("an answer").status(), 200);
    }
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_ask_from_0_0_32_on() {
    for (version, encoding) in [("0.0.26", None), ("0.0.33", Some("gzip"))] {
        let sim = Sim::start(version).await;
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.get(sim.url("/api/auth/session")).header("accept-encoding", "gzip, br");
        let answer = request.send().await.expect("an answer");
        let named =
            answer.headers().get("content-encoding").map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(named.as_deref(), encoding, "{version}");
        let whole = answer.bytes().await.expect("a body");
        assert_eq!(whole.starts_with(&[0x1f, 0x8b]), encoding.is_some(), "{version}");
    }
}

#[tokio::test]
async fn the_cookie_name_depends_on_version_and_bind() {
    for (version, suffix) in [("0.0.24", false), ("0.0.28", false), ("0.0.29", true), ("0.0.33", true)] {
        let announced = |document: serde_json::Value| document["auth"]["sessionCookieName"].to_string();
        let loopback = Sim::start(version).await;
        let name = announced(body(loopback.get("/api/auth/session").await.expect("an answer")).await);
        assert_eq!(name.contains(&format!("t3_session_{}_", loopback.port())), suffix, "{version}: {name}");
        assert!(loopback.login().await.starts_with(name.trim_matches('"')));
        let all = Sim::start_on_all_interfaces(version).await;
        let name = announced(body(all.get("/api/auth/session").await.expect("an answer")).await);
        assert_eq!(name, "\"t3_session\"", "{version}");
    }
}
