//! WebSockets through the dispatch: byte for byte, and every end explained.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::door::{Door, table};
use crate::support::tools;
use crate::support::world::{World, wait_for};

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

async fn open(door: &Door) -> Socket {
    let mut request = format!("ws://127.0.0.1:{}/ws", door.port).into_client_request().expect("a request");
    request.headers_mut().insert("X-authentik-username", "ann@example.com".parse().expect("a value"));
    tokio_tungstenite::connect_async(request).await.expect("paired in passing and upgraded").0
}

async fn ping(socket: &mut Socket) {
    socket.send(Message::text("{\"_tag\":\"Ping\"}")).await.expect("sent");
    let answer = next(socket).await;
    assert_eq!(answer.into_text().expect("text").as_str(), "{\"_tag\":\"Pong\"}");
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(Duration::from_secs(20), socket.next())
        .await
        .expect("in time")
        .expect("a message")
        .expect("well formed")
}

fn closes(door: &Door, initiator: &str, cause: &str) -> f64 {
    door.metric(&format!(
        "t3_dispatch_websocket_closes_total{{user=\"ann\",initiator=\"{initiator}\",cause=\"{cause}\"}}"
    ))
}

fn until_closed(door: &Door, initiator: &str, cause: &str) {
    wait_for(&format!("{initiator} {cause} in {}", door.log()), || {
        (closes(door, initiator, cause) == 1.0).then_some(())
    });
    assert_eq!(door.metric("t3_dispatch_websockets{user=\"ann\"}"), 0.0);
}

#[tokio::test]
async fn a_socket_works_and_its_end_is_the_clients() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let mut socket = open(&door).await;
    ping(&mut socket).await;
    assert_eq!(door.metric("t3_dispatch_websockets{user=\"ann\"}"), 1.0);
    socket.close(Some(CloseFrame { code: CloseCode::Normal, reason: "done".into() })).await.expect("closed");
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
    until_closed(&door, "client", "normal");
}

#[tokio::test]
async fn a_page_that_is_left_a_tab_that_dies_and_a_reset_are_told_apart() {
    let door = Door::before(World::with(&[("ann", "0.0.26")]), "");
    let mut socket = open(&door).await;
    socket.close(Some(CloseFrame { code: CloseCode::Away, reason: "".into() })).await.expect("closed");
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
    until_closed(&door, "client", "going_away");
    let mut socket = open(&door).await;
    ping(&mut socket).await;
    drop(socket);
    until_closed(&door, "client", "dropped");
    let mut socket = open(&door).await;
    ping(&mut socket).await;
    let MaybeTlsStream::Plain(stream) = socket.get_ref() else { panic!("no TLS here") };
    stream.set_zero_linger().expect("a reset at the end");
    drop(socket);
    until_closed(&door, "client", "reset");
}

#[tokio::test]
async fn an_instance_that_dies_under_a_socket_is_named() {
    let mut door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let mut socket = open(&door).await;
    ping(&mut socket).await;
    door.world.kill("ann");
    let ended = tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("in time");
    assert!(!matches!(ended, Some(Ok(Message::Text(_)))), "{ended:?}");
    wait_for("the end to be counted", || {
        (closes(&door, "instance", "dropped") + closes(&door, "instance", "reset") == 1.0).then_some(())
    });
}

#[tokio::test]
async fn a_stopping_dispatch_says_so_in_a_close_frame() {
    let mut door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let mut socket = open(&door).await;
    ping(&mut socket).await;
    door.signal(Signal::SIGTERM);
    match next(&mut socket).await {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("{other:?} instead of a close frame"),
    }
    assert_eq!(door.ended(), 0);
    let log = door.log();
    assert!(log.contains("initiator=dispatch cause=drain"), "{log}");
}

#[tokio::test]
async fn who_is_no_longer_served_loses_their_sockets() {
    let door = Door::before(World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]), "");
    let mut socket = open(&door).await;
    ping(&mut socket).await;
    table(&door.world, &[("bob@example.com", "bob", door.world.port("bob"))]);
    door.signal(Signal::SIGHUP);
    assert!(matches!(next(&mut socket).await, Message::Close(Some(frame)) if frame.code == CloseCode::Away));
    wait_for("the log to say why", || {
        door.log().contains("initiator=dispatch cause=user_removed").then_some(())
    });
}

#[tokio::test]
async fn idle_sockets_cost_little_and_give_everything_back() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let mut first = open(&door).await;
    ping(&mut first).await;
    drop(first);
    door.until_metric("t3_dispatch_websockets{user=\"ann\"}", 0.0);
    let (memory, descriptors) = (door.resident(), door.descriptors());
    let mut sockets = Vec::new();
    for _ in 0..200 {
        let mut socket = open(&door).await;
        ping(&mut socket).await;
        sockets.push(socket);
    }
    let each = (door.resident().saturating_sub(memory)) / 200;
    assert!(each < 40, "{each} KiB a socket");
    drop(sockets);
    door.until_metric("t3_dispatch_websockets{user=\"ann\"}", 0.0);
    // Idle connections to the instance stay for a few seconds.
    wait_for("the descriptors to come back", || (door.descriptors() <= descriptors + 4).then_some(()));
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_asked_for_by_the_kernel_at_both_ends() {
    let Some(ss) = tools::find("ss") else { return };
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let mut socket = open(&door).await;
    ping(&mut socket).await;
    let instance = door.world.port("ann");
    for (end, filter) in
        [("client", format!("sport = :{}", door.port)), ("instance", format!("dport = :{instance}"))]
    {
        // What was sent has to be acknowledged before the timer that is left is the one of keepalive.
        wait_for(&format!("keepalive towards the {end}"), || {
            let output = std::process::Command::new(&ss)
                .args(["-tnoH", "state", "established", &filter])
                .output()
                .expect("ss");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().any(|line| line.contains("timer:(keepalive,")).then_some(())
        });
    }
    ping(&mut socket).await;
}
