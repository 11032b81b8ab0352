//! Start and stop: the port before the database, the connection that is never answered, SIGTERM.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::support::sim::{PATIENCE, Sim};

const NO_ANSWER: Duration = Duration::from_millis(300);

fn ask(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.set_read_timeout(Some(NO_ANSWER))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    stream.read(&mut [0; 16])
}

fn connected(port: u16) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "nothing listens: {error}"),
        }
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_connection_of_the_first_moment_is_never_answered() {
    let mut sim = Sim::stopped("0.0.24", &["--early", "1500ms"]);
    sim.spawn();
    let mut early = connected(sim.port());
    let silent = ask(&mut early).expect_err("no answer");
    assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    let deadline = Instant::now() + PATIENCE;
    while ask(&mut connected(sim.port())).is_err() {
        assert!(Instant::now() < deadline, "the server does not get ready");
    }
    assert!(early.read(&mut [0; 16]).is_err(), "the early connection stays dead");
}

#[tokio::test]
async fn a_stopped_server_leaves_a_clean_directory_and_exits_130() {
    let mut sim = Sim::start("0.0.26").await;
    assert!(sim.userdata("server-runtime.json").exists() && sim.userdata("state.sqlite-wal").exists());
    assert_eq!(sim.terminate().code(), Some(130));
    for gone in ["server-runtime.json", "state.sqlite-wal", "state.sqlite-shm"] {
        assert!(!sim.userdata(gone).exists(), "{gone} stays behind");
    }
}

#[tokio::test]
async fn a_cookie_survives_a_restart_of_the_same_version() {
    let mut sim = Sim::start("0.0.26").await;
    let cookie = sim.login().await;
    sim.restart_as("0.0.26").await;
    assert!(sim.is_authenticated(&cookie).await);
}

#[tokio::test]
async fn a_taken_port_is_an_error_and_the_database_is_not_touched() {
    let sim = Sim::start("0.0.33").await;
    let second = Sim::stopped("0.0.33", &[]);
    let refused = second.cli(&["serve", "--host", "127.0.0.1", "--port", &sim.port().to_string()]);
    assert_eq!(refused.code, Some(1));
    assert_eq!(
        refused.cause(),
        format!("listen EADDRINUSE: address already in use 127.0.0.1:{}", sim.port())
    );
    assert!(!second.userdata("state.sqlite").exists());
}

#[tokio::test]
async fn an_open_socket_holds_the_end_up_and_a_silent_one_longer() {
    let mut sim = Sim::start_with("0.0.24", &["--stop-open", "300ms", "--stop-silent", "20s"]).await;
    let mut socket = sim.socket(&sim.ticket(&sim.login().await).await).await.expect("the socket opens");
    let asked = Instant::now();
    sim.signal("TERM");
    // A client that reads answers the close by itself.
    while socket.next().await.is_some_and(|frame| frame.is_ok()) {}
    assert_eq!(sim.ended().code(), Some(130));
    assert!((300..20_000).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());

    let mut sim = Sim::start_with("0.0.24", &["--stop-open", "300ms", "--stop-silent", "900ms"]).await;
    let silent = sim.socket(&sim.ticket(&sim.login().await).await).await.expect("the socket opens");
    let asked = Instant::now();
    assert_eq!(sim.terminate().code(), Some(130));
    assert!(asked.elapsed() >= Duration::from_millis(900), "{:?}", asked.elapsed());
    drop(silent);
}

#[tokio::test]
async fn a_stuck_connection_of_the_first_moment_holds_the_end_up_while_its_client_waits() {
    for client_waits in [true, false] {
        let mut sim = Sim::stopped("0.0.24", &["--early", "1s", "--stop-stuck", "30s"]);
        sim.spawn();
        let stuck = connected(sim.port());
        let deadline = Instant::now() + PATIENCE;
        while ask(&mut connected(sim.port())).is_err() {
            assert!(Instant::now() < deadline, "the server does not get ready");
        }
        let _stuck = client_waits.then_some(stuck);
        sim.signal("TERM");
        let deadline = Instant::now() + Duration::from_millis(if client_waits { 700 } else { 20_000 });
        while sim.is_running() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(sim.is_running(), client_waits);
    }
}

#[tokio::test]
async fn the_port_is_free_as_soon_as_the_server_is_told_to_stop() {
    let mut sim = Sim::start_with("0.0.24", &["--stop-silent", "30s"]).await;
    let silent = sim.socket(&sim.ticket(&sim.login().await).await).await.expect("the socket opens");
    sim.signal("TERM");
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", sim.port())).is_ok() {
        assert!(Instant::now() < deadline, "the port is still taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(sim.is_running(), "the open socket keeps the process");
    drop(silent);
    assert_eq!(sim.ended().code(), Some(130));
}

#[tokio::test]
async fn only_a_request_without_an_unsampled_parent_leaves_a_trace() {
    for (version, cost) in [("0.0.24", 1_500), ("0.0.33", 3_000)] {
        let sim = Sim::start(version).await;
        let size = || std::fs::metadata(sim.userdata("logs/server.trace.ndjson")).expect("a file").len();
        let before = size();
        let unsampled = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00";
        let request = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = request.get(sim.url("/api/auth/session")).header("traceparent", unsampled).send().await;
        assert!(answer.is_ok());
        assert_eq!(size(), before, "{version}");
        assert!(sim.get("/api/auth/session").await.is_ok());
        assert!(size() > before + cost, "{version}");
    }
}

#[tokio::test]
async fn an_unknown_first_word_starts_a_server_in_a_folder_of_that_name() {
    let mut sim = Sim::stopped("0.0.24", &[]);
    let folder = sim.base_dir().join("frobnicate");
    let folder = folder.to_str().expect("text").to_owned();
    let taken = std::net::TcpListener::bind(("0.0.0.0", sim.port())).expect("the port is free");
    let refused = sim.cli(&[&folder, "--port", &sim.port().to_string()]);
    assert!(refused.cause().contains("EADDRINUSE"), "it tried to serve: {}", refused.stdout);
    assert!(std::path::Path::new(&folder).is_dir());
    drop(taken);
    sim.serve().await;
}
