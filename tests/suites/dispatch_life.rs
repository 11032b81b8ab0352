//! The dispatch's own comings and goings: nobody is refused and no request fails.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::door::{Door, Instance, Wire};
use crate::support::free_port::free_port;
use crate::support::tools;
use crate::support::world::{PROGRAM, World, http, wait_for};

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const HEAD: &str = "GET /x HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\n\r\n";

#[test]
fn a_restart_under_load_with_a_held_listener_fails_no_request() {
    let instance = Instance::answering(FINE);
    let mut door = Door::to(&instance);
    door.signal(Signal::SIGTERM);
    assert_eq!(door.ended(), 0);
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    door.port = listener.local_addr().expect("an address").port();
    door.start_with(&listener);
    let (stop, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    let port = door.port;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut wire = Wire::connect(port);
                    // Until the dispatch says that it closes: then a new connection, as any client does.
                    loop {
                        wire.send(HEAD.as_bytes());
                        let answer = wire.until("\r\n\r\nok");
                        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                        answers.fetch_add(1, Ordering::Relaxed);
                        if answer.contains("Connection: close") || stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            });
        }
        for _ in 0..3 {
            let before = answers.load(Ordering::Relaxed);
            wait_for("load", || (answers.load(Ordering::Relaxed) > before + 100).then_some(()));
            door.signal(Signal::SIGTERM);
            assert_eq!(door.ended(), 0);
            door.start_with(&listener);
        }
        let before = answers.load(Ordering::Relaxed);
        wait_for("load after the last restart", || {
            (answers.load(Ordering::Relaxed) > before + 100).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_listener_of_systemds_is_used_and_whoever_came_before_the_program_is_answered() {
    let Some(activate) = tools::find("systemd-socket-activate") else { return };
    let instance = Instance::answering(FINE);
    let mut door = Door::to(&instance);
    door.signal(Signal::SIGTERM);
    assert_eq!(door.ended(), 0);
    let port = free_port();
    let mut command = Command::new(activate);
    command.args(["-l", &format!("127.0.0.1:{port}"), PROGRAM, "--config"]);
    command.arg(door.world.path("config.toml")).arg("dispatch").stdout(Stdio::null()).stderr(Stdio::null());
    let mut systemd = command.spawn().expect("it runs");
    // The first connection is what starts the program.
    let ask = || http(port, "GET", "/x", &[("X-authentik-username", "ann"), ("Cookie", "t3_session=v")]);
    let answer = wait_for("the listener", || ask().ok());
    let closed = TcpListener::bind(("127.0.0.1", door.port)).map(drop);
    let _ = kill(Pid::from_raw(i32::try_from(systemd.id()).expect("a pid")), Signal::SIGTERM);
    let ended = wait_for("the program to end", || systemd.try_wait().expect("a child"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    assert!(closed.is_ok(), "the configured address is left alone: {closed:?}");
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn a_request_under_way_is_finished_before_the_end() {
    let instance = Instance::start(|talk| {
        talk.request();
        talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        std::thread::park_timeout(Duration::from_millis(700));
        talk.say(b"rest");
    });
    let mut door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    wire.send(HEAD.as_bytes());
    wire.until("half");
    door.signal(Signal::SIGTERM);
    assert_eq!(wire.rest(), "rest");
    drop(wire);
    assert_eq!(door.ended(), 0);
}

#[test]
fn a_request_that_never_ends_does_not_hold_the_end_up_for_ever() {
    let instance = Instance::start(|talk| {
        talk.request();
        std::thread::park_timeout(Duration::from_secs(60));
    });
    let mut door = Door::to_with(&instance, "");
    let mut wire = Wire::connect(door.port);
    wire.send(HEAD.as_bytes());
    wait_for("the request to arrive", || (instance.heads().len() == 1).then_some(()));
    let start = std::time::Instant::now();
    door.signal(Signal::SIGTERM);
    assert_eq!(door.ended(), 0);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn more_connections_than_the_limit_are_turned_away_and_room_comes_back() {
    let instance = Instance::answering(FINE);
    let door = Door::to_with(&instance, "max_connections = 3\n");
    let mut held: Vec<_> = (0..3).map(|_| Wire::connect(door.port)).collect();
    for wire in &mut held {
        wire.send(HEAD.as_bytes());
        wire.until("\r\n\r\nok");
    }
    let answer = Wire::connect(door.port).rest();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("too_many_connections"), "{answer}");
    drop(held);
    wait_for("room", || {
        let mut wire = Wire::connect(door.port);
        wire.send(HEAD.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes());
        wire.rest().starts_with("HTTP/1.1 200").then_some(())
    });
}

#[test]
fn an_idle_client_is_let_go() {
    let instance = Instance::answering(FINE);
    let door = Door::to_with(&instance, "idle_timeout = \"500ms\"\n");
    let mut wire = Wire::connect(door.port);
    wire.send(HEAD.as_bytes());
    assert!(wire.rest().ends_with("\r\n\r\nok"));
}

#[test]
fn thousands_of_requests_to_a_dead_instance_leave_nothing_behind() {
    let instance = Instance::answering(FINE);
    let door = Door::to(&instance);
    let port = instance.port;
    drop(instance);
    wait_for("the port to be free", || TcpListener::bind(("127.0.0.1", port)).ok());
    let burst = || {
        for _ in 0..10 {
            let mut wires: Vec<_> = (0..50).map(|_| Wire::connect(door.port)).collect();
            for wire in &mut wires {
                wire.send(
                    HEAD.replace("\r\n\r\n", "\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n")
                        .as_bytes(),
                );
            }
            for wire in &mut wires {
                assert!(wire.rest().starts_with("HTTP/1.1 503 "));
            }
        }
    };
    burst();
    let (memory, descriptors) = (door.resident(), door.descriptors());
    for _ in 0..4 {
        burst();
    }
    wait_for("the descriptors to come back", || (door.descriptors() <= descriptors).then_some(()));
    let grown = door.resident().saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB grown");
}

#[test]
fn a_dispatch_of_its_own_exports_nothing_of_the_probes_that_it_does_not_run() {
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let text = http(door.operator_port(), "GET", "/metrics", &[]).expect("the metrics").body;
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let others: Vec<_> = names
        .filter(|name| !["t3_dispatch_", "process_", "t3_prober_"].iter().any(|ours| name.starts_with(ours)))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(
        text.contains("t3_prober_build_info{") && text.contains("t3_dispatch_websockets{user=\"ann\"} 0")
    );
    assert!(!text.contains("t3_prober_probe_sessions_left{"), "{text}");
}
