//! permessage-deflate, as a browser uses it: offered with every upgrade, and used as soon as it is granted.

use flate2::{Compress, Compression, FlushCompress};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::raw_http::{self, Response};
use crate::support::sim::{PATIENCE, Sim};

/// Upgrades with a cookie and, as browsers do, with the offer.
async fn upgrade(sim: &Sim) -> (Response, TcpStream) {
    let headers = [
        ("Host", "127.0.0.1"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "O4XejJTT/fHfnb8X6q1+1g=="),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ];
    let ticket = sim.ticket(&sim.login().await).await;
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    raw_http::upgrade(sim.port(), "GET", &format!("/ws?{ticket}"), &headers, None).await.expect("an answer")
}

/// A final text frame whose message is compressed, masked with zeros.
fn compressed_frame(text: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(1024);
    let mut window = Compress::new(Compression::default(), false);
    window.compress_vec(text.as_bytes(), &mut message, FlushCompress::Sync).expect("room");
    message.truncate(message.len() - 4);
    let length = u8::try_from(message.len()).ok().filter(|length| *length < 126).expect("a short message");
    [0xc1, 0x80 | length, 0, 0, 0, 0].into_iter().chain(message).collect()
}

#[tokio::test]
async fn a_compressed_call_is_answered_where_the_extension_is_granted() {
    let sim = Sim::start("0.0.33").await;
    let (response, mut stream) = upgrade(&sim).await;
    assert_eq!(response.status, 101);
    assert_eq!(response.headers["sec-websocket-extensions"], "permessage-deflate");
    for _ in 0..2 {
        stream.write_all(&compressed_frame(r#"{"_tag":"Ping"}"#)).await.expect("open");
    }
    let mut socket = WebSocketStream::from_partially_read(stream, response.rest, Role::Client, None).await;
    for _ in 0..2 {
        let answer = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an answer in time");
        let answer = answer.expect("a frame").expect("no error").into_text().expect("text");
        assert_eq!(answer.as_str(), r#"{"_tag":"Pong"}"#);
    }
}

#[tokio::test]
async fn an_older_version_does_not_grant_it() {
    let sim = Sim::start("0.0.26").await;
    let (response, _) = upgrade(&sim).await;
    assert_eq!(response.status, 101);
    assert_eq!(response.headers.get("sec-websocket-extensions"), None);
}
