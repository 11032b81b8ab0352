//! What answers and is no web server, and what no longer answers.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::*;

#[tokio::test]
async fn who_speaks_before_being_asked_does_not_speak_http_however_early_that_is() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let greets = async {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            // Before the request is sent, while it is, or after it.
            stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.expect("a client that listens");
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    };
    let asks = async {
        let instance = Instance { name: "ann".to_owned(), port, base_dir: "/nowhere".into(), uid: u32::MAX };
        let trace = TraceContext::unsampled();
        for _ in 0..200 {
            let mut client = Client::new(&instance, &trace);
            let failure =
                client.get("/", Proof::Nobody, Duration::from_secs(10)).await.expect_err("no answer");
            assert_eq!(failure.reason, Reason::Malformed, "{}", failure.detail);
        }
    };
    tokio::select! {
        () = asks => {}
        () = greets => {}
    }
}

/// A server that answers one request on each connection and then keeps it; the first one it ends when `end` says so.
async fn answers_once(listener: &TcpListener, end: &Notify) {
    let mut kept = Vec::new();
    loop {
        tokio::select! {
            () = end.notified() => kept.clear(),
            accepted = listener.accept() => {
                let (mut stream, _) = accepted.expect("a client");
                assert!(stream.read(&mut [0; 4096]).await.expect("a request") > 0, "a connection without a request");
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("a client that listens");
                kept.push(stream);
            }
        }
    }
}

/// Asks twice, with what happens in between, and expects that the second is answered too.
async fn asks_twice(listener: &TcpListener, between: impl Future<Output = ()>) {
    let port = listener.local_addr().expect("an address").port();
    let instance = Instance { name: "ann".to_owned(), port, base_dir: "/nowhere".into(), uid: u32::MAX };
    let trace = TraceContext::unsampled();
    let mut client = Client::new(&instance, &trace);
    client.get("/", Proof::Nobody, Duration::from_secs(10)).await.expect("an answer");
    between.await;
    client.get("/", Proof::Nobody, Duration::from_secs(10)).await.expect("another answer");
}

#[tokio::test]
async fn a_connection_that_t3_ended_while_it_was_idle_is_not_asked_again() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let end = Notify::new();
    let ended = async {
        end.notify_one();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !was_ended(&listener) {
            assert!(Instant::now() < deadline, "the connection stays");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What the kernel knows the runtime learns at its next turn.
        tokio::task::yield_now().await;
    };
    tokio::select! {
        () = asks_twice(&listener, ended) => {}
        () = answers_once(&listener, &end) => {}
    }
}

#[tokio::test]
async fn a_connection_that_t3_may_be_ending_is_not_asked_again() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let never = Notify::new();
    let idle = async {
        tokio::time::pause();
        tokio::time::advance(KEPT).await;
        tokio::time::resume();
    };
    tokio::select! {
        () = asks_twice(&listener, idle) => {}
        () = answers_once(&listener, &never) => {}
    }
}

/// Whether the client's side of the one connection has seen its end.
fn was_ended(listener: &TcpListener) -> bool {
    let address = listener.local_addr().expect("an address");
    let table = procfs::net::tcp().expect("the table of connections");
    let mut entries = table.iter().filter(|entry| entry.remote_address == address);
    entries.any(|entry| entry.state == procfs::net::TcpState::CloseWait)
}
