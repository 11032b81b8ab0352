//! Requests that two programs could cut at different places, sent raw to the real program: refused, and the connection
//! closed, so that nothing behind them is taken for a request.

use crate::support::door::{Door, Instance, Wire};

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What a smuggler hopes to have read as a request of its own.
const SMUGGLED: &str =
    "GET /smuggled HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\n\r\n";

/// The lines after the request line and the usual headers, and the body.
const REQUESTS: &[(&str, &str)] = &[
    ("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"),
    ("Content-Length: 0\r\nContent-Length: 5", ""),
    ("Content-Length: 5\r\nContent-Length: 5", "hello"),
    ("Content-Length: 0, 5", ""),
    ("Content-Length: +5", "hello"),
    ("Content-Length: -1", ""),
    ("Content-Length: 0x5", "hello"),
    ("Content-Length: 5 5", "hello"),
    ("Content-Length:", ""),
    ("Content-Length: 18446744073709551617", "h"),
    ("Content_Length: 5", "hello"),
    ("Transfer_Encoding: chunked", "0\r\n\r\n"),
    ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked, identity", "0\r\n\r\n"),
    ("Transfer-Encoding: identity", ""),
    ("Transfer-Encoding: xchunked", "0\r\n\r\n"),
    ("Transfer-Encoding: \x0bchunked", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n"),
    ("Transfer-Encoding : chunked", "0\r\n\r\n"),
    (" Transfer-Encoding: chunked", "0\r\n\r\n"),
    ("X: y\r\n Transfer-Encoding: chunked", "0\r\n\r\n"),
    ("X: y\nTransfer-Encoding: chunked", "0\r\n\r\n"),
    ("X: y\rTransfer-Encoding: chunked", "0\r\n\r\n"),
    ("Connection: content-length\r\nContent-Length: 5", "hello"),
    ("Connection: close, transfer-encoding\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
    ("Host: other", ""),
    ("Expect: 200-ok", ""),
];

/// Bodies in the chunked coding that not everybody reads alike.
const CHUNKS: &[&str] = &[
    "\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhelloworld\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "0\r\n Folded: x\r\n\r\n",
    "0\r\n: x\r\n\r\n",
    "0\r\n\n",
];

/// How many answers came, by their status lines.
fn answers(bytes: &str) -> usize {
    bytes.lines().filter(|line| line.starts_with("HTTP/1.1 ")).count()
}

#[test]
fn a_request_that_can_be_cut_in_two_ways_is_refused_and_ends_the_connection() {
    let instance = Instance::answering(FINE);
    let door = Door::to(&instance);
    for (lines, body) in REQUESTS {
        let raw = format!(
            "POST /api/x HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\n{lines}\r\n\r\n{body}{SMUGGLED}"
        );
        let answer = door.raw(raw.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{lines:?}: {answer}");
        assert_eq!(answers(&answer), 1, "{lines:?}: {answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{lines:?}: {answer}");
    }
    assert_eq!(instance.heads(), Vec::<String>::new());
}

#[test]
fn a_request_line_that_is_not_plain_is_refused() {
    let instance = Instance::answering(FINE);
    let door = Door::to(&instance);
    for line in [
        "GET http://other/ HTTP/1.1",
        "CONNECT other:80 HTTP/1.1",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET /",
        "GET  / HTTP/1.1",
        "GET / x HTTP/1.1",
        "G\tET / HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET * HTTP/1.1",
        "\r\nGET / HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let answer =
            door.raw(format!("{line}\r\nHost: x\r\nX-authentik-username: ann\r\n\r\n{SMUGGLED}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 ") && answers(&answer) == 1, "{line:?}: {answer}");
    }
    assert_eq!(instance.heads(), Vec::<String>::new());
}

#[test]
fn a_chunk_that_can_be_cut_in_two_ways_ends_the_connection_and_nothing_behind_it_is_a_request() {
    let instance = Instance::start(|talk| {
        while talk.request().is_some() {
            talk.body_until("0\r\n\r\n");
            talk.say(FINE.as_bytes());
        }
    });
    let door = Door::to(&instance);
    for body in CHUNKS {
        let raw = format!(
            "POST /api/x HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SMUGGLED}"
        );
        let answer = door.raw(raw.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 ") && answers(&answer) == 1, "{body:?}: {answer}");
    }
    assert!(!instance.heads().concat().contains("/smuggled"), "{:?}", instance.heads());
}

#[test]
fn an_upgrade_to_anything_but_a_websocket_is_an_ordinary_request() {
    let instance = Instance::answering(FINE);
    let door = Door::to(&instance);
    let answer = door.ann(
        "GET",
        "/api/x",
        &[("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk"), ("Cookie", "t3_session=v")],
    );
    assert_eq!(answer.status, 200);
    let head = instance.heads().concat().to_ascii_lowercase();
    assert!(!head.contains("upgrade"), "{head}");
}

#[test]
fn a_head_without_end_or_in_drips_is_not_waited_for() {
    let instance = Instance::answering(FINE);
    let door = Door::to_with(&instance, "head_timeout = \"1s\"\n");
    let bomb = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: {}\r\n\r\n",
        "a=b; ".repeat(20_000)
    );
    let answer = door.raw(bomb.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("Delete the cookies"), "{answer}");
    let mut drips = Wire::connect(door.port);
    let start = std::time::Instant::now();
    drips.send(b"GET / HTTP/1.1\r\n");
    let answer = std::thread::scope(|scope| {
        let mut other = Wire::connect(door.port);
        scope.spawn(move || {
            other.send(b"GET / HTTP/1.1\r\nHost");
            assert!(other.rest().starts_with("HTTP/1.1 408 "));
        });
        drips.rest()
    });
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(start.elapsed() < std::time::Duration::from_secs(15), "{:?}", start.elapsed());
    door.until_metric("t3_dispatch_refused_total{reason=\"head_timeout\"}", 2.0);
}
