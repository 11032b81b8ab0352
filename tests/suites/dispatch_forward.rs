//! Requests and answers on their way: byte for byte what was sent, however it is framed, whoever breaks off.

use std::time::Duration;

use crate::support::door::{Door, Instance, Wire};
use crate::support::world::World;

const SESSION: (&str, &str) = ("Cookie", "t3_session=v");

fn head(line: &str, more: &str) -> String {
    format!(
        "{line} HTTP/1.1\r\nHost: t3.example\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\n{more}\r\n"
    )
}

#[test]
fn a_request_and_its_answer_arrive_as_they_were_sent() {
    let instance = Instance::start(|talk| {
        while talk.request().is_some() {
            assert_eq!(talk.body(11), b"hello\0world");
            talk.say(
                b"HTTP/1.1 201 Made It\r\nX-Thing: a\r\nX-Thing: b\r\nContent-Length: 4\r\n\r\n\0\r\n\xff",
            );
        }
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    for _ in 0..3 {
        wire.send(head("POST /a/%2e%2e/b?x=%20&y", "Content-Length: 11\r\nX-Odd:  spaced \r\n").as_bytes());
        wire.send(b"hello\0world");
        let answer = wire.until("\r\n\r\n\0\r\n");
        assert!(
            answer
                .starts_with("HTTP/1.1 201 Made It\r\nX-Thing: a\r\nX-Thing: b\r\nContent-Length: 4\r\n\r\n"),
            "{answer}"
        );
    }
    let heads = instance.heads();
    assert_eq!(heads.len(), 3, "kept alive");
    assert!(
        heads[0].starts_with("POST /a/%2e%2e/b?x=%20&y HTTP/1.1\r\nHost: t3.example\r\n"),
        "{}",
        heads[0]
    );
    assert!(
        heads[0].contains("X-Forwarded-For: 127.0.0.1\r\n") && !heads[0].contains("traceparent"),
        "{}",
        heads[0]
    );
}

#[test]
fn chunks_and_trailers_pass_unchanged_both_ways() {
    const UP: &str =
        "5;name=\"v\"\r\nhello\r\n00c\r\nmore \r\n text\r\n000\r\nTrailer-A: 1\r\nTrailer-B: 2\r\n\r\n";
    const DOWN: &str = "2\r\nok\r\n3;x\r\na\r\n\r\n0\r\nSum: 9\r\n\r\n";
    let instance = Instance::start(|talk| {
        while talk.request().is_some() {
            assert_eq!(talk.body_until("Trailer-B: 2\r\n\r\n"), UP);
            talk.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n");
            for byte in DOWN.as_bytes() {
                talk.say(&[*byte]);
            }
        }
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    wire.send(head("PUT /up", "Transfer-Encoding: chunked\r\n").as_bytes());
    for byte in UP.as_bytes() {
        wire.send(&[*byte]);
    }
    let answer = wire.until("Sum: 9\r\n\r\n");
    assert!(
        answer.ends_with(&format!("Transfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n{DOWN}")),
        "{answer}"
    );
    wire.send(head("PUT /again", "Transfer-Encoding: chunked\r\n").as_bytes());
    wire.send(UP.as_bytes());
    wire.until("Sum: 9\r\n\r\n");
}

#[test]
fn requests_sent_without_waiting_are_answered_in_order() {
    let instance = Instance::start(|talk| {
        while let Some(head) = talk.request() {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            talk.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).as_bytes());
        }
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    let all: String = (0..20).map(|n| head(&format!("GET /n{n}"), "")).collect();
    wire.send(all.as_bytes());
    wire.send(head("GET /last", "Connection: close\r\n").as_bytes());
    let answers = wire.rest();
    let bodies: Vec<_> = answers
        .split("\r\n\r\n")
        .skip(1)
        .map(|rest| rest.split("HTTP/1.1").next().unwrap_or_default())
        .collect();
    let expected: Vec<_> = (0..20).map(|n| format!("/n{n}")).chain(["/last".to_owned()]).collect();
    assert_eq!(bodies, expected);
}

#[test]
fn the_end_of_an_unframed_answer_is_the_end_of_the_connection() {
    let instance = Instance::start(|talk| {
        talk.request();
        talk.say(b"HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let door = Door::to(&instance);
    let answer = door.raw(head("GET /x", "").as_bytes());
    assert!(answer.ends_with("Connection: close\r\n\r\nuntil the end"), "{answer}");
}

#[test]
fn an_old_client_is_spoken_to_in_its_own_words() {
    let instance = Instance::start(|talk| {
        talk.request();
        talk.say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let door = Door::to(&instance);
    let raw = "GET /x HTTP/1.0\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\nExpect: 100-continue\r\n\r\n";
    let answer = door.raw(raw.as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("Connection: close\r\n\r\nok"),
        "{answer}"
    );
    assert!(
        instance.heads()[0].starts_with("GET /x HTTP/1.0\r\n") && !instance.heads()[0].contains("Expect")
    );
}

#[test]
fn the_answer_to_head_and_a_304_have_no_body() {
    let instance = Instance::start(|talk| {
        while let Some(head) = talk.request() {
            talk.say(if head.starts_with("HEAD") {
                &b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"[..]
            } else {
                b"HTTP/1.1 304 Not Modified\r\nContent-Length: 900\r\nETag: \"1\"\r\n\r\n"
            });
        }
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    for _ in 0..2 {
        wire.send(head("HEAD /x", "").as_bytes());
        assert!(wire.until("\r\n\r\n").contains("Content-Length: 900"));
        wire.send(head("GET /x", "").as_bytes());
        assert!(wire.until("\r\n\r\n").starts_with("HTTP/1.1 304 "));
    }
}

#[test]
fn a_client_that_waits_for_100_gets_it_before_it_sends() {
    let instance = Instance::start(|talk| {
        let head = talk.request().unwrap_or_default();
        assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
        talk.say(b"HTTP/1.1 100 Continue\r\n\r\n");
        let body = talk.body(5);
        talk.say(
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
                body.len(),
                String::from_utf8_lossy(&body)
            )
            .as_bytes(),
        );
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    wire.send(head("POST /x", "Content-Length: 5\r\nExpect: 100-continue\r\n").as_bytes());
    assert_eq!(wire.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    wire.send(b"hello");
    assert!(wire.until("hello").starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn an_early_answer_to_a_large_upload_arrives() {
    let instance = Instance::start(|talk| {
        talk.request();
        talk.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    wire.send(head("POST /x", "Content-Length: 50000000\r\n").as_bytes());
    wire.send(&vec![0; 1_000_000]);
    let answer = wire.until("\r\n\r\nno");
    assert!(answer.starts_with("HTTP/1.1 413 Too Large\r\n"), "{answer}");
}

#[test]
fn large_bodies_pass_whole_in_both_directions_at_once() {
    const SIZE: usize = 30_000_000;
    let instance = Instance::start(|talk| {
        talk.request();
        talk.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes());
        let mut left = SIZE;
        while left > 0 {
            let piece = talk.body(left.min(100_000));
            if piece.is_empty() {
                return;
            }
            left -= piece.len();
            talk.say(&piece);
        }
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    let mut writer = wire.another();
    let echoed = std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.send(
                head("POST /echo", &format!("Content-Length: {SIZE}\r\nConnection: close\r\n")).as_bytes(),
            );
            for _ in 0..SIZE / 100_000 {
                writer.send(&[7; 100_000]);
            }
        });
        wire.until("\r\n\r\n");
        wire.count()
    });
    assert!(echoed > SIZE - 8192 && echoed <= SIZE, "{echoed}");
    assert!(door.resident() < 60_000, "{} KiB: bodies are streamed, not held", door.resident());
}

#[test]
fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let instance = Instance::start(|talk| {
        talk.request();
        std::thread::park_timeout(Duration::from_millis(200));
        talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    wire.send(head("GET /x", "").as_bytes());
    wire.finish_sending();
    assert!(wire.rest().ends_with("\r\n\r\nok"));
}

#[test]
fn an_instance_that_dies_in_the_middle_of_an_answer_leaves_it_visibly_cut() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    ] {
        let instance = Instance::start(move |talk| {
            talk.request();
            talk.say(answer.as_bytes());
        });
        let door = Door::to(&instance);
        let came = door.raw(head("GET /x", "").as_bytes());
        assert!(came.ends_with("half"), "{came}");
    }
}

#[test]
fn an_instance_that_dies_before_its_answer_is_a_page_that_says_so() {
    let instance = Instance::start(|talk| {
        talk.request();
        talk.body(3);
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    wire.send(head("POST /x", "Content-Length: 100\r\n").as_bytes());
    wire.send(b"half of it");
    let answer = wire.rest();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("\"reason\":\"closed\""), "{answer}");
    assert_eq!(instance.heads().len(), 1, "a request with a body is never sent twice");
}

#[test]
fn a_connection_that_the_instance_closed_while_idle_costs_nobody_a_request() {
    let instance = Instance::start(|talk| {
        talk.request();
        talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    for n in 0..50 {
        wire.send(head("GET /x", "").as_bytes());
        let answer = wire.until("\r\n\r\nok");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{n}: {answer}");
    }
}

#[test]
fn an_answer_that_the_edge_could_cut_elsewhere_never_reaches_it() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\nok",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let instance = Instance::answering(answer);
        let door = Door::to(&instance);
        let came = door.ann("GET", "/x", &[SESSION]);
        assert_eq!(came.status, 502, "{answer:?}: {came:?}");
    }
    // What follows an answer that nobody asked for is nobody's.
    let instance = Instance::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    );
    let door = Door::to(&instance);
    let mut wire = Wire::connect(door.port);
    for _ in 0..5 {
        wire.send(head("GET /x", "").as_bytes());
        assert!(!wire.until("\r\n\r\nok").contains("evil"));
    }
}

#[test]
fn an_instance_that_is_not_there_is_a_page_that_comes_back() {
    let instance = Instance::answering("");
    let port = instance.port;
    let door = Door::to(&instance);
    drop(instance);
    crate::support::world::wait_for("the port to be free", || {
        std::net::TcpListener::bind(("127.0.0.1", port)).ok()
    });
    let page = door.ann("GET", "/x", &[SESSION, ("Accept", "text/html"), ("Sec-Fetch-Mode", "navigate")]);
    assert!(
        page.status == 503
            && page.head.contains("Retry-After: ")
            && page.body.contains("http-equiv=\"refresh\""),
        "{page:?}"
    );
    let json = door.ann("POST", "/x", &[SESSION]);
    assert!(json.status == 503 && json.body.contains("\"reason\":\"refused\""), "{json:?}");
}

#[test]
fn a_file_of_an_older_build_is_a_404_and_not_a_page() {
    let instance = Instance::answering(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 6\r\n\r\n<html>",
    );
    let door = Door::to(&instance);
    assert_eq!(door.ann("GET", "/assets/index-0a1b.js", &[SESSION]).status, 404);
    assert_eq!(door.ann("GET", "/threads/1", &[SESSION]).status, 200);
}

#[test]
fn a_port_that_belongs_to_another_user_is_sent_nothing() {
    let instance = Instance::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let door = Door::to(&instance);
    // With accounts looked up, ann's instance must be ann's; the scripted one is the tester's.
    let Ok(Some(nobody)) = nix::unistd::User::from_name("nobody") else { return };
    let config = std::fs::read_to_string(door.world.path("config.toml")).expect("the configuration");
    std::fs::write(door.world.path("config.toml"), config.replace("accounts = false", "accounts = true"))
        .expect("written");
    crate::support::door::table(&door.world, &[("ann", &nobody.name, instance.port)]);
    let mut door = door;
    door.signal(nix::sys::signal::Signal::SIGTERM);
    door.ended();
    door.start();
    let answer = door.ann("POST", "/x", &[SESSION]);
    assert!(answer.status == 503 && answer.body.contains("wrong_owner"), "{answer:?}");
    assert_eq!(instance.heads(), Vec::<String>::new());
}

#[test]
fn a_connection_that_a_starting_instance_never_answers_is_not_waited_on() {
    let deaf = std::sync::atomic::AtomicU32::new(0);
    let instance = Instance::start(move |talk| {
        if talk.request().is_some() && deaf.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 {
            // Accepted before it was ready: silent for as long as the connection lives.
            while talk.request().is_some() {}
            return;
        }
        talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let door = Door::to(&instance);
    let start = std::time::Instant::now();
    let answer = door.ann("GET", "/api/x", &[SESSION]);
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    assert_eq!(instance.heads().len(), 3);
}

#[test]
fn what_cannot_be_sent_twice_is_sent_to_a_starting_instance_only_when_it_answers() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let port = crate::support::free_port::free_port();
    let door = Door::in_front_of(World::empty(), &[("ann", "ann", port)]);
    assert_eq!(door.ann("POST", "/x", &[SESSION]).status, 503, "nothing listens");
    let is_ready = std::sync::Arc::new(AtomicBool::new(false));
    let ready = is_ready.clone();
    let instance = Instance::on(port, move |talk| {
        // What is accepted before it is ready is silent for as long as the connection lives.
        let answers = ready.load(Ordering::Relaxed);
        while talk.request().is_some() {
            if answers {
                talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let posts = || instance.heads().iter().filter(|head| head.starts_with("POST")).count();
    let start = std::time::Instant::now();
    let answer = door.ann("POST", "/x", &[SESSION]);
    assert!(answer.status == 503 && answer.body.contains("timeout"), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(posts(), 0, "it could have been lost, or done twice");
    is_ready.store(true, Ordering::Relaxed);
    assert_eq!(door.ann("POST", "/x", &[SESSION]).status, 200);
    assert_eq!(posts(), 1);
    assert!(
        instance.heads().iter().all(|head| head.starts_with("POST") || head.contains("-00\r\n")),
        "a trace is left"
    );
}
