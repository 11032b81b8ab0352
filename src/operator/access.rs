//! Who may start or change something: whoever shows the bearer token, comes through the unix socket, or comes over
//! loopback from a trusted account. Pages and metrics need none of it; loopback alone proves nothing on a shared host.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, UnixListener};

use super::{Section, Surfaces};
use crate::t3::owner;

/// By which door a request came in.
#[derive(Clone, Debug)]
pub enum Door {
    Tcp { ours: Option<SocketAddr>, theirs: SocketAddr },
    Unix,
}

impl Connected<IncomingStream<'_, TcpListener>> for Door {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self::Tcp { ours: stream.io().local_addr().ok(), theirs: *stream.remote_addr() }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Door {
    fn connect_info(_: IncomingStream<'_, UnixListener>) -> Self {
        Self::Unix
    }
}

/// What a caller is measured by.
#[derive(Clone)]
pub struct Access {
    /// Only its digest is kept: comparing digests takes the same time for every wrong token.
    token: Option<[u8; 32]>,
    uids: Vec<u32>,
}

impl Access {
    pub fn new(section: &Section) -> anyhow::Result<Self> {
        let token = section.token_file.as_deref().map(read_token).transpose()?;
        let mut uids = section.trusted_uids.clone();
        uids.extend([0, nix::unistd::geteuid().as_raw()]);
        Ok(Self { token, uids })
    }

    async fn allows(&self, door: &Door, headers: &HeaderMap) -> bool {
        if let (Some(known), Some(shown)) = (self.token, bearer(headers)) {
            return digest(shown) == known;
        }
        match *door {
            Door::Unix => true,
            Door::Tcp { ours: Some(ours), theirs } => {
                let looked_up = tokio::task::spawn_blocking(move || owner::of_peer(ours, theirs)).await;
                matches!(looked_up, Ok(Ok(Some(uid))) if self.uids.contains(&uid))
                    && names_this_machine(headers)
            }
            Door::Tcp { ours: None, .. } => false,
        }
    }
}

/// Lets a request through to what starts or changes something, or says why not.
pub async fn require(
    State(surfaces): State<Surfaces>,
    ConnectInfo(door): ConnectInfo<Door>,
    request: Request,
    next: Next,
) -> Response {
    // A page on another site must not make an operator's browser act with the operator's rights.
    let site = request.headers().get("sec-fetch-site").map(http::HeaderValue::as_bytes);
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return (StatusCode::FORBIDDEN, "refused: the request was made by a page of another site\n")
            .into_response();
    }
    if surfaces.access().allows(&door, request.headers()).await {
        return next.run(request).await;
    }
    let remedy = "refused: show the bearer token of [operator] token_file, come through the unix socket of [operator] \
                  socket, or come over loopback from an account in [operator] trusted_uids\n";
    (StatusCode::FORBIDDEN, [(header::WWW_AUTHENTICATE, "Bearer")], remedy).into_response()
}

/// Whether the request was made to an address or to `localhost`. A name can be made to point here by whoever owns it, and
/// then a page of theirs is, to an operator's browser, the same site as ours.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(Ok(authority)) = host.to_str().map(str::parse::<Authority>) else { return false };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(header::AUTHORIZATION)?.as_bytes().strip_prefix(b"Bearer ")
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn read_token(path: &Path) -> anyhow::Result<[u8; 32]> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the operator's token in {}", path.display()))?;
    let token = text.trim();
    anyhow::ensure!(
        token.len() >= 16,
        "the operator's token in {} is shorter than 16 characters; make one with `openssl rand -hex 32`",
        path.display()
    );
    Ok(digest(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: Option<&str>, uids: &[u32]) -> Access {
        Access { token: token.map(|token| digest(token.as_bytes())), uids: uids.to_vec() }
    }

    fn with_token(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().expect("a header"))])
    }

    fn stranger() -> Door {
        Door::Tcp { ours: Some(([127, 0, 0, 1], 9780).into()), theirs: ([192, 0, 2, 7], 40000).into() }
    }

    #[tokio::test]
    async fn a_stranger_needs_the_token() {
        let access = access(Some("sixteen-or-more-characters"), &[0]);
        assert!(!access.allows(&stranger(), &HeaderMap::new()).await);
        assert!(!access.allows(&stranger(), &with_token("sixteen-or-more-character")).await);
        assert!(access.allows(&stranger(), &with_token("sixteen-or-more-characters")).await);
    }

    #[tokio::test]
    async fn a_wrong_token_is_refused_even_through_a_trusted_door() {
        let access = access(Some("sixteen-or-more-characters"), &[0]);
        assert!(!access.allows(&Door::Unix, &with_token("guessed")).await);
        assert!(access.allows(&Door::Unix, &HeaderMap::new()).await);
    }

    #[tokio::test]
    async fn loopback_alone_is_no_proof() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let _client = tokio::net::TcpStream::connect(address).await.expect("connect");
        let (stream, theirs) = listener.accept().await.expect("accept");
        let door = Door::Tcp { ours: stream.local_addr().ok(), theirs };
        let own = nix::unistd::geteuid().as_raw();
        assert!(access(None, &[own]).allows(&door, &HeaderMap::new()).await);
        assert!(!access(None, &[own + 1]).allows(&door, &HeaderMap::new()).await);
        let rebound = HeaderMap::from_iter([(header::HOST, "evil.example:9780".parse().expect("a header"))]);
        assert!(!access(None, &[own]).allows(&door, &rebound).await);
    }

    #[test]
    fn a_name_that_somebody_else_may_own_is_not_this_machine() {
        for (host, ours) in [
            ("127.0.0.1:9780", true),
            ("[::1]:9780", true),
            ("localhost", true),
            ("evil.example:9780", false),
            ("127.0.0.1.evil.example", false),
            ("a b", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().expect("a header"))]);
            assert_eq!(names_this_machine(&headers), ours, "{host}");
        }
    }
}
