//! The WebSocket as the app uses it: a ticket bought with the cookie, an upgrade with that ticket, one call and its
//! answer (CONTRACT §6).

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::{self, Message, protocol::WebSocketConfig};

use super::http::{Client, Proof, connect};
use super::owner;
use super::version::{Generation, Version};
use crate::outcome::{Failure, Reason};

/// `server.getConfig` answers with 18 kB and needs no grant beyond the login itself.
const CALL: &str = r#"{"_tag":"Request","id":"1","tag":"server.getConfig","payload":{},"headers":[]}"#;
const LARGEST_FRAME: usize = 4 << 20;

/// A WebSocket ticket: lives five minutes and opens any number of sockets, so it is as secret as a cookie.
pub struct Ticket(String);

/// Buys a ticket; it is also the cheapest call that only the app makes.
pub async fn ticket(
    client: &mut Client<'_>,
    generation: Generation,
    proof: Proof<'_>,
    limit: Duration,
) -> Result<Ticket, Failure> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(alias = "token")]
        ticket: String,
    }
    let path = ticket_path(generation);
    let answer = client.post(path, &serde_json::json!({}), proof, limit).await?;
    match answer.status.as_u16() {
        200 => answer.json::<Document>().map(|document| Ticket(document.ticket)),
        _ => Err(answer.unexpected(&format!("POST {path}"))),
    }
}

/// Where a ticket is bought.
pub fn ticket_path(generation: Generation) -> &'static str {
    match generation {
        Generation::A => "/api/auth/ws-token",
        Generation::B => "/api/auth/websocket-ticket",
    }
}

/// Opens a socket with the ticket and makes one call; answers the version that the server gives over it.
pub async fn round_trip(
    client: &Client<'_>,
    generation: Generation,
    ticket: &Ticket,
    limit: Duration,
) -> Result<Version, Failure> {
    let opened = std::sync::atomic::AtomicBool::new(false);
    let talk = async {
        let mut socket = open(client, generation, ticket).await?;
        opened.store(true, std::sync::atomic::Ordering::Relaxed);
        call(&mut socket).await
    };
    timeout_at(Instant::now() + limit, talk).await.unwrap_or_else(|_| {
        let what = if opened.load(std::sync::atomic::Ordering::Relaxed) {
            "server.getConfig"
        } else {
            "the upgrade"
        };
        let limit = humantime::format_duration(limit);
        Err(Failure::new(Reason::NoAnswer, format!("WebSocket /ws: {what} was not answered within {limit}")))
    })
}

type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

async fn open(client: &Client<'_>, generation: Generation, ticket: &Ticket) -> Result<Socket, Failure> {
    let parameter = match generation {
        Generation::A => "wsToken",
        Generation::B => "wsTicket",
    };
    let stream = connect(client.address()).await?;
    let ended = |error: std::io::Error| Failure::new(Reason::Closed, format!("WebSocket /ws: {error}"));
    owner::confirm(stream.local_addr().map_err(ended)?, stream.peer_addr().map_err(ended)?, client.owners())?;
    let uri = format!("ws://{}/ws?{parameter}={}", client.address(), ticket.0);
    let mut request = tungstenite::client::IntoClientRequest::into_client_request(uri)
        .map_err(|_| Failure::new(Reason::Malformed, "the ticket holds characters that no URL may hold"))?;
    client.mark(request.headers_mut());
    let config =
        WebSocketConfig::default().max_message_size(Some(LARGEST_FRAME)).max_frame_size(Some(LARGEST_FRAME));
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let own = client.answered_at_the_door(answer.status(), answer.headers());
            Err(own.unwrap_or_else(|| {
                Failure::new(
                    match answer.status().as_u16() {
                        401 => Reason::Unauthorized,
                        500 => Reason::AuthStore,
                        _ => Reason::NotUpgraded,
                    },
                    format!("WebSocket /ws: {} instead of 101", answer.status()),
                )
            }))
        }
        Err(error) => Err(describe(&error)),
    }
}

async fn call(socket: &mut Socket) -> Result<Version, Failure> {
    socket.send(Message::text(CALL)).await.map_err(|error| describe(&error))?;
    let version = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                if let Some(answer) = Reply::to_our_call(&text)? {
                    break answer;
                }
            }
            Some(Ok(Message::Close(_))) | None => {
                return Err(Failure::new(
                    Reason::Closed,
                    "WebSocket /ws: closed by the instance before it answered server.getConfig",
                ));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(describe(&error)),
        }
    };
    // A close frame, so that the server does not keep a dead peer for half a minute at its next stop (CONTRACT §9).
    let _ = socket.close(None).await;
    Ok(version)
}

/// The envelopes a server may send; what is not the answer to our call is passed over.
#[derive(Deserialize)]
#[serde(tag = "_tag")]
enum Reply {
    Exit {
        #[serde(rename = "requestId")]
        request_id: String,
        exit: Exit,
    },
    Defect,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "_tag")]
enum Exit {
    Success {
        value: Config,
    },
    #[serde(other)]
    Failure,
}

#[derive(Deserialize)]
struct Config {
    environment: Environment,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Environment {
    server_version: Version,
}

impl Reply {
    fn to_our_call(text: &str) -> Result<Option<Version>, Failure> {
        let refused = |what: &str| {
            Err(Failure::new(
                Reason::RpcError,
                format!("WebSocket /ws: server.getConfig was answered with {what}"),
            ))
        };
        match serde_json::from_str(text) {
            Ok(Self::Exit { request_id, exit: Exit::Success { value } }) if request_id == "1" => {
                Ok(Some(value.environment.server_version))
            }
            Ok(Self::Exit { request_id, exit: Exit::Failure }) if request_id == "1" => refused("a failure"),
            Ok(Self::Defect) => refused("a defect"),
            Ok(_) => Ok(None),
            Err(_) => refused("something that does not have the contract's shape"),
        }
    }
}

fn describe(error: &tungstenite::Error) -> Failure {
    match error {
        tungstenite::Error::Io(_)
        | tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed => {
            Failure::new(Reason::Closed, format!("WebSocket /ws: {error}"))
        }
        _ => Failure::new(Reason::Malformed, format!("WebSocket /ws: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_our_own_call_counts() {
        let good = r#"{"_tag":"Exit","requestId":"1","exit":{"_tag":"Success","value":{"environment":{"serverVersion":"0.0.33"}}}}"#;
        assert_eq!(Reply::to_our_call(good), Ok(Some(Version::new(0, 0, 33))));
        let other = r#"{"_tag":"Exit","requestId":"2","exit":{"_tag":"Success","value":{"environment":{"serverVersion":"0.0.33"}}}}"#;
        assert_eq!(Reply::to_our_call(other), Ok(None));
        assert_eq!(Reply::to_our_call(r#"{"_tag":"Pong"}"#), Ok(None));
    }

    #[test]
    fn a_failure_or_a_defect_is_an_error() {
        let failure = r#"{"_tag":"Exit","requestId":"1","exit":{"_tag":"Failure","cause":[]}}"#;
        for text in [failure, r#"{"_tag":"Defect","defect":"no such method"}"#, "[]"] {
            assert_eq!(Reply::to_our_call(text).expect_err("an error").reason, Reason::RpcError, "{text}");
        }
    }
}
