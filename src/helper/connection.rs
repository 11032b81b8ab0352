//! One connection of the socket unit: stdin is the socket, the caller is known once for all, and requests are answered
//! one after the other until the caller goes or falls silent. Many at once come over many connections.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::caller::Caller;
use super::verbs::Verbs;
use crate::config::Config;
use crate::t3::access::wire::{LARGEST_REQUEST, Reply};
use crate::t3::leash::Leash;

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
    let mut leash = Leash::new(UnixStream::from_std(socket).map_err(no_socket)?);
    let verbs = Verbs::new(config, caller)?;
    while let Some(line) = next(&mut leash).await {
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => match verbs.answer(&request, &mut leash).await {
                Some(reply) => reply,
                None => break,
            },
            // The line itself is not repeated: it may hold anything.
            Err(_) if line.ends_with(b"\n") => Reply::refused("that is no request"),
            Err(_) => Reply::refused("the request is too long, or has no end"),
        };
        let written = timeout(WRITE, leash.get_mut().write_all(&reply.line())).await;
        if !matches!(written, Ok(Ok(()))) || !line.ends_with(b"\n") {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The next line; `None` where the caller has gone or says nothing more.
async fn next(leash: &mut Leash<UnixStream>) -> Option<Vec<u8>> {
    let line = timeout(IDLE, leash.line(LARGEST_REQUEST)).await.ok()?.ok()?;
    (!line.is_empty()).then_some(line)
}
