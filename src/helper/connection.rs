//! One connection of the socket unit: stdin is the socket, the caller is known once for all, and requests are answered
//! one after the other until the caller goes or falls silent. Many at once come over many connections.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::caller::Caller;
use super::verbs::Verbs;
use crate::config::Config;
use crate::outcome::HelperVerb;
use crate::t3::access::wire::{LARGEST_REQUEST, Reply, Request};

/// Longer than the callers keep a connection that they do not use.
const IDLE: Duration = Duration::from_secs(60);
/// A caller that does not take its answer is gone.
const WRITE: Duration = Duration::from_secs(10);

pub async fn serve(config: &Config) -> Result<ExitCode, String> {
    let no_socket = |error: io::Error| format!("stdin is no connection: {error}");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(no_socket)?;
    let caller = Caller::of_connection(&config.helper, &socket)?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true).map_err(no_socket)?;
    let mut socket = BufReader::new(UnixStream::from_std(socket).map_err(no_socket)?);
    let verbs = Verbs::new(config, caller)?;
    while let Some(line) = next(&mut socket).await {
        let reply = match serde_json::from_slice::<Request>(&line) {
            // Nobody waits for a rehearsal whose gate was killed, and its boxes end with it.
            Ok(request) if request.verb() == HelperVerb::Rehearse => tokio::select! {
                reply = verbs.answer(&request) => reply,
                () = gone(&mut socket) => break,
            },
            Ok(request) => verbs.answer(&request).await,
            // The line itself is not repeated: it may hold anything.
            Err(_) if line.ends_with(b"\n") => Reply::refused("that is no request"),
            Err(_) => Reply::refused("the request is too long, or has no end"),
        };
        let written = timeout(WRITE, socket.get_mut().write_all(&reply.line())).await;
        if !matches!(written, Ok(Ok(()))) || !line.ends_with(b"\n") {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the caller has gone; one that has something more to say waits.
async fn gone(socket: &mut BufReader<UnixStream>) {
    if !matches!(socket.fill_buf().await, Ok([]) | Err(_)) {
        std::future::pending::<()>().await;
    }
}

/// The next line; `None` where the caller has gone or says nothing more.
async fn next(socket: &mut BufReader<UnixStream>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut socket = socket.take(LARGEST_REQUEST as u64);
    let read = timeout(IDLE, socket.read_until(b'\n', &mut line)).await;
    matches!(read, Ok(Ok(1..))).then_some(line)
}
