//! The HTTP surface: connections in, one request after another to the call that answers it (CONTRACT §3).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::fault::Fault;
use super::instance::Instance;
use super::mutation::Mutation;
use super::release::Generation;

pub mod access;
mod administration;
mod exchange;
mod history;
pub mod reply;
mod trace;

use reply::{Body, Reply};

/// How long Node keeps an idle connection.
const IDLE: Duration = Duration::from_secs(5);

/// A request whose body has not been read yet, and what every call wants to know of it.
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub peer: SocketAddr,
    /// The caller's trace, or a new one.
    pub trace_id: String,
}

/// Serves connections until the server is told to stop; then the port is free at once.
pub async fn accept(instance: Arc<Instance>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = instance.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                instance.tasks.spawn(connection(instance.clone(), stream, peer));
            }
            // Out of descriptors: those that are open must end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connection(instance: Arc<Instance>, mut stream: TcpStream, peer: SocketAddr) {
    if instance.faults.on(Fault::Drop) {
        return;
    }
    if instance.faults.on(Fault::NotHttp) {
        // It listens on, as such a server does; closing on an unread request would reset what was said.
        let spoken = async {
            stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        tokio::select! {
            () = instance.stopping.cancelled() => {}
            _ = spoken => {}
        }
        return;
    }
    let serving = instance.clone();
    let service = service_fn(move |request| answer(serving.clone(), request, peer));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE).auto_date_header(false);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        () = instance.stopping.cancelled() => {}
        // A client that goes away in the middle is nobody's error.
        _ = connection => {}
    }
}

async fn answer(
    instance: Arc<Instance>,
    mut request: Request<Incoming>,
    peer: SocketAddr,
) -> io::Result<Response<Body>> {
    let call = Call {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().clone(),
        peer,
        trace_id: trace::id(request.headers()),
    };
    trace::record(&instance, &call);
    if let Some(on) = instance.faults.strikes(Fault::Slow) {
        tokio::time::sleep(on.millis(500)).await;
    }
    let reply = match struck(&instance, &call).await? {
        Some(reply) => reply,
        None if call.path == "/ws" && call.is_upgrade() => {
            return Ok(super::socket::upgrade(&instance, &call, &mut request));
        }
        None => respond(&instance, &call, request.into_body()).await?,
    };
    Ok(reply.finish(&instance.release, &call))
}

/// What a fault answers in place of the call.
async fn struck(instance: &Instance, call: &Call) -> io::Result<Option<Reply>> {
    let on = |fault| instance.faults.on(fault);
    if on(Fault::Hang) {
        std::future::pending::<()>().await;
    }
    let behind_proxy = call.headers.contains_key("x-forwarded-for");
    if on(Fault::Status500)
        || (behind_proxy && instance.faults.mutation(Mutation::FailsBehindProxy).is_some())
    {
        return Ok(Some(Reply::empty(StatusCode::INTERNAL_SERVER_ERROR)));
    }
    if on(Fault::Status503) {
        return Ok(Some(Reply::empty(StatusCode::SERVICE_UNAVAILABLE)));
    }
    if on(Fault::Redirect) {
        return Ok(Some(Reply::empty(StatusCode::FOUND).header("location", "/login")));
    }
    if !call.is_api() {
        return Ok(None);
    }
    if on(Fault::HtmlOnApi) || (call.path.starts_with("/.well-known") && on(Fault::DescriptorHtml)) {
        return Ok(Some(Reply::page(instance)));
    }
    if on(Fault::CloseMidBody) {
        return Ok(Some(Reply::broken_off()));
    }
    if on(Fault::HugeBody) {
        return Ok(Some(Reply::flood()));
    }
    Ok(None)
}

async fn respond(instance: &Instance, call: &Call, body: Incoming) -> io::Result<Reply> {
    use Generation::{A, B};
    let generation = instance.release.generation();
    if call.method == Method::OPTIONS {
        return Ok(Reply::preflight(&instance.release));
    }
    if call.method == Method::GET || call.method == Method::HEAD {
        return Ok(match (call.path.as_str(), generation) {
            ("/", _) => Reply::front_page(instance),
            ("/.well-known/t3/environment", _) => Reply::json(StatusCode::OK, &instance.descriptor()).cors(),
            ("/api/auth/session", _) => access::session_document(instance, call),
            ("/api/auth/clients", _) => administration::clients(instance, call),
            ("/api/auth/pairing-links", _) => administration::links(instance, call),
            ("/api/orchestration/snapshot", _) => history::snapshot(instance, call),
            ("/api/orchestration/shell", _) if instance.release.since(29) => history::shell(instance, call),
            ("/ws", _) => access::plain_socket(instance, call),
            _ => Reply::page(instance),
        });
    }
    if call.method != Method::POST {
        return Ok(Reply::empty(StatusCode::NOT_FOUND));
    }
    match (call.path.as_str(), generation) {
        ("/api/auth/bootstrap", A) | ("/api/auth/browser-session", B)
            if !instance.faults.on(Fault::ExchangeMoved) =>
        {
            exchange::browser(instance, call, body).await
        }
        ("/api/auth/bootstrap", B) | ("/api/auth/browser-session", A)
            if instance.faults.on(Fault::ExchangeMoved) =>
        {
            exchange::browser(instance, call, body).await
        }
        ("/api/auth/bootstrap/bearer", A) => exchange::bearer(instance, call, body).await,
        ("/oauth/token", B) => exchange::oauth(instance, call, body).await,
        ("/api/auth/ws-token", A) | ("/api/auth/websocket-ticket", B) => Ok(access::ticket(instance, call)),
        ("/api/auth/pairing-token", _) => administration::mint(instance, call, body).await,
        ("/api/auth/clients/revoke", _) => administration::revoke(instance, call, body).await,
        _ => Ok(Reply::empty(StatusCode::NOT_FOUND)),
    }
}

impl Call {
    fn is_api(&self) -> bool {
        ["/api/", "/.well-known/", "/oauth/"].iter().any(|prefix| self.path.starts_with(prefix))
    }

    pub fn is_upgrade(&self) -> bool {
        self.headers.contains_key(UPGRADE)
            && self.header(CONNECTION.as_str()).to_lowercase().contains("upgrade")
    }

    /// The header's text; empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The media type of the body, where one is named.
    pub fn media_type(&self) -> Option<&str> {
        let text = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        Some(text.split(';').next().unwrap_or(text).trim())
    }

    /// A value of the query string.
    pub fn query_value(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}
