//! HTTP to one instance: a connection of its own for every probe, hard limits on time and size, no redirect followed,
//! no proxy asked. A secret is written only to a connection whose far end belongs to the instance's user.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::Instance;
use super::door::{self, Passage};
use super::owner;
use super::trace::TraceContext;
use crate::outcome::{Failure, Reason};

/// No answer that the program asks of a live instance comes near this (`server.getConfig` is 18 kB, CONTRACT §6).
const LARGEST_ANSWER: usize = 1 << 20;
/// t3 closes a connection that was idle for 5 to 6 s (CONTRACT §9); one that it may be closing is not used again.
const KEPT: Duration = Duration::from_secs(4);

/// What proves who is asking.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    Nobody,
    Cookie { name: &'a str, value: &'a str },
    Bearer(&'a str),
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A client of one instance for the length of one probe or one login.
pub struct Client<'a> {
    pub instance: &'a Instance,
    trace: &'a TraceContext,
    /// The way through the dispatch proxy; `None` straight to the instance.
    passage: Option<Passage<'a>>,
    connection: Option<Box<Connection>>,
    largest: usize,
    forwarded: bool,
}

struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Pin<Box<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>>,
    confirmed: bool,
    ended: bool,
    /// When the last answer was complete.
    answered: Instant,
    addresses: (SocketAddr, SocketAddr),
}

impl<'a> Client<'a> {
    pub fn new(instance: &'a Instance, trace: &'a TraceContext) -> Self {
        Self { instance, trace, passage: None, connection: None, largest: LARGEST_ANSWER, forwarded: false }
    }

    /// The same, asked through the dispatch proxy as the edge would.
    pub fn through(passage: Passage<'a>, instance: &'a Instance, trace: &'a TraceContext) -> Self {
        Self { passage: Some(passage), ..Self::new(instance, trace) }
    }

    /// Allows for larger answers: a whole history is as large as the database (CONTRACT §11).
    pub fn allow(&mut self, largest: usize) {
        self.largest = largest;
    }

    /// Asks as a proxy does that passes a browser's request on.
    pub fn through_a_proxy(&mut self) {
        self.forwarded = true;
    }

    /// Drops the connection, so that the next request opens a new one: a connection accepted while t3 starts is
    /// never answered, also not later (CONTRACT §9).
    pub fn reconnect(&mut self) {
        self.connection = None;
    }

    pub async fn get(&mut self, path: &str, proof: Proof<'_>, limit: Duration) -> Result<Answer, Failure> {
        let request = self.request(Method::GET, path, None, proof)?;
        self.send(request, !matches!(proof, Proof::Nobody), limit).await
    }

    pub async fn post(
        &mut self,
        path: &str,
        body: &Value,
        proof: Proof<'_>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let request = self.request(Method::POST, path, Some(body.to_string()), proof)?;
        self.send(request, !matches!(proof, Proof::Nobody), limit).await
    }

    /// Asks without proof, and believes only an answer that the instance's user gives.
    pub async fn get_from_owner(&mut self, path: &str, limit: Duration) -> Result<Answer, Failure> {
        let request = self.request(Method::GET, path, None, Proof::Nobody)?;
        self.send(request, true, limit).await
    }

    /// Asks for a page as a browser does that follows a link.
    pub async fn navigate(
        &mut self,
        target: &str,
        proof: Proof<'_>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = self.request(Method::GET, target, None, proof)?;
        for (name, value) in
            [("accept", "text/html"), ("sec-fetch-dest", "document"), ("sec-fetch-mode", "navigate")]
        {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        self.send(request, !matches!(proof, Proof::Nobody), limit).await
    }

    /// Posts a body without proof; `secret` says that the body itself holds one.
    pub async fn offer(
        &mut self,
        path: &str,
        body: &Value,
        secret: bool,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let request = self.request(Method::POST, path, Some(body.to_string()), Proof::Nobody)?;
        self.send(request, secret, limit).await
    }

    /// Sends one request and reads the whole answer, both within `limit`; where it matters whose process is asked, only
    /// after its owner is confirmed.
    async fn send(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
        owners_only: bool,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let what = format!("{} {}", request.method(), request.uri().path());
        let result = match timeout_at(Instant::now() + limit, self.exchange(request, owners_only)).await {
            Ok(result) => {
                result.map_err(|failure| Failure::new(failure.reason, format!("{what}: {}", failure.detail)))
            }
            Err(_) => Err(Failure::new(
                Reason::Timeout,
                format!("{what}: no answer within {:.1} s", limit.as_secs_f64()),
            )),
        };
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn exchange(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
        owners_only: bool,
    ) -> Result<Answer, Failure> {
        if let Some(kept) = &mut self.connection
            && !kept.is_open().await
        {
            self.connection = None;
        }
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Box::new(Connection::open(self.address()).await?),
        };
        // What is shown to the dispatch with every request opens every user's door.
        if (owners_only || self.passage.is_some()) && !connection.confirmed {
            owner::confirm(connection.addresses.0, connection.addresses.1, self.owners())?;
            connection.confirmed = true;
        }
        let answer = connection.exchange(request, self.largest).await?;
        if let Some(failure) = self.answered_at_the_door(answer.status, &answer.headers) {
            return Err(failure);
        }
        if !answer
            .headers
            .get(header::CONNECTION)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
        {
            connection.answered = Instant::now();
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    /// Where connections go.
    pub fn address(&self) -> SocketAddr {
        match &self.passage {
            Some(passage) => passage.address(),
            None => (Ipv4Addr::LOCALHOST, self.instance.port).into(),
        }
    }

    /// The uids that may have the listener there.
    pub fn owners(&self) -> &[u32] {
        match &self.passage {
            Some(passage) => passage.owners(),
            None => std::slice::from_ref(&self.instance.uid),
        }
    }

    /// What the dispatch says in an answer of its own, which is not the instance's.
    pub fn answered_at_the_door(&self, status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
        self.passage.as_ref().and_then(|_| door::own_answer(status, headers))
    }

    /// What goes with every request on this way.
    pub fn mark(&self, headers: &mut HeaderMap) {
        if let Some(passage) = &self.passage {
            passage.mark(headers);
        }
        if let Ok(value) = self.trace.traceparent().parse() {
            headers.insert("traceparent", value);
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        proof: Proof<'_>,
    ) -> Result<hyper::Request<Full<Bytes>>, Failure> {
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address().to_string())
            .header(header::USER_AGENT, concat!("t3-prober/", env!("CARGO_PKG_VERSION")))
            // 0.0.33 compresses when it may (CONTRACT §3).
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(headers) = request.headers_mut() {
            self.mark(headers);
        }
        if self.forwarded {
            // An address that is nobody's, for documentation.
            request = request.header("x-forwarded-for", "192.0.2.1").header("x-forwarded-proto", "https");
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some((name, value)) = secret_header(proof)? {
            request = request.header(name, value);
        }
        let body = Full::new(body.map(Bytes::from).unwrap_or_default());
        request
            .body(body)
            .map_err(|error| Failure::new(Reason::Malformed, format!("cannot build the request: {error}")))
    }
}

/// The header that carries the proof, marked so that no debug output shows it.
pub fn secret_header(proof: Proof<'_>) -> Result<Option<(header::HeaderName, HeaderValue)>, Failure> {
    let (name, text) = match proof {
        Proof::Nobody => return Ok(None),
        Proof::Cookie { name, value } => (header::COOKIE, format!("{name}={value}")),
        Proof::Bearer(token) => (header::AUTHORIZATION, format!("Bearer {token}")),
    };
    let mut value = HeaderValue::try_from(text).map_err(|_| {
        Failure::new(Reason::Malformed, "the cookie or token holds characters that no header may hold")
    })?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}

/// Opens a TCP connection; the caller holds the deadline.
pub async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let port = address.port();
    let stream = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            Failure::new(Reason::Refused, format!("nothing listens on port {port}"))
        }
        _ => Failure::new(Reason::Closed, format!("cannot connect to port {port}: {error}")),
    })?;
    // Small requests, each waited for: never held back by Nagle's algorithm.
    stream
        .set_nodelay(true)
        .map_err(|error| Failure::new(Reason::Closed, format!("connection to port {port}: {error}")))?;
    Ok(stream)
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = connect(address).await?;
        let ended = |error: std::io::Error| {
            Failure::new(Reason::Closed, format!("connection to port {}: {error}", address.port()))
        };
        let addresses = (stream.local_addr().map_err(ended)?, stream.peer_addr().map_err(ended)?);
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| describe(&error))?;
        Ok(Self {
            sender,
            driver: Box::pin(driver),
            confirmed: false,
            ended: false,
            answered: Instant::now(),
            addresses,
        })
    }

    /// Nobody drives a connection between two requests, while t3's command runs for seconds: whether it ended meanwhile
    /// shows only here, and a request on one that did would wait for its answer until the deadline.
    async fn is_open(&mut self) -> bool {
        if !self.ended {
            tokio::select! {
                biased;
                _ = &mut self.driver => self.ended = true,
                () = std::future::ready(()) => {}
            }
        }
        !self.ended && self.answered.elapsed() < KEPT
    }

    async fn exchange(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
        largest: usize,
    ) -> Result<Answer, Failure> {
        let sender = &mut self.sender;
        let answer = async {
            sender.ready().await.map_err(|error| describe(&error))?;
            let (head, body) =
                sender.send_request(request).await.map_err(|error| describe(&error))?.into_parts();
            let body = Limited::new(body, largest)
                .collect()
                .await
                .map_err(|error| describe_body(&*error, largest))?;
            Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::pin!(answer);
        // The connection is driven here, not by a task of its own: it ends with the probe.
        tokio::select! {
            biased;
            result = &mut answer => result,
            driven = &mut self.driver => {
                self.ended = true;
                match (answer.await, driven) {
                    // What broke the connection says more than that it is gone.
                    (Err(gone), Err(broken)) if gone.reason == Reason::Closed => Err(describe(&broken)),
                    (result, _) => result,
                }
            }
        }
    }
}

fn describe(error: &hyper::Error) -> Failure {
    let source = std::error::Error::source(error);
    // Of a request that never went out, what broke the connection before it.
    if let Some(broken) = source.and_then(|source| source.downcast_ref::<hyper::Error>()) {
        return describe(broken);
    }
    let cause = source.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let gone = error.is_canceled() || error.is_closed() || error.is_incomplete_message() || cause.is_some();
    if error.is_parse() || !gone {
        return Failure::new(Reason::Malformed, format!("the answer is not HTTP: {error}"));
    }
    let how = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    Failure::new(Reason::Closed, format!("the connection ended before the answer did{how}"))
}

fn describe_body(error: &(dyn std::error::Error + 'static), largest: usize) -> Failure {
    if error.is::<LengthLimitError>() {
        Failure::new(Reason::TooLarge, format!("the answer is larger than {largest} bytes"))
    } else if let Some(error) = error.downcast_ref::<hyper::Error>() {
        describe(error)
    } else {
        Failure::new(Reason::Closed, format!("the answer broke off: {error}"))
    }
}

impl Answer {
    pub fn is_html(&self) -> bool {
        self.content_type().is_some_and(|value| value.starts_with("text/html"))
    }

    fn is_json(&self) -> bool {
        self.content_type().is_some_and(|value| value.starts_with("application/json"))
    }

    /// The JSON body, where the answer claims to be JSON. Every unknown GET of t3 is 200 with HTML, so a status
    /// alone proves nothing (CONTRACT §3).
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        if self.is_html() {
            return Err(Failure::new(Reason::Html, format!("{} with HTML where JSON is due", self.status)));
        }
        if !self.is_json() {
            let found = self.content_type().unwrap_or("no content type").to_owned();
            return Err(Failure::new(
                Reason::Malformed,
                format!("{} with {found} where JSON is due", self.status),
            ));
        }
        // The parser's own message may quote the input, which may hold a token.
        serde_json::from_slice(&self.body).map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            Failure::new(
                Reason::Malformed,
                format!("{} with JSON that does not have the contract's shape at {place}", self.status),
            )
        })
    }

    /// A failure for a status that the contract does not name for this call.
    pub fn unexpected(&self, what: &str) -> Failure {
        let reason = match self.status.as_u16() {
            401 => Reason::Unauthorized,
            403 => Reason::Forbidden,
            404 => Reason::NotFound,
            // Unusable authentication tables are answered in the API's own form (CONTRACT §3); anything else broke.
            500 if self.is_json() => Reason::AuthStore,
            500 => Reason::InternalError,
            300..=399 => Reason::Redirected,
            _ if self.is_html() => Reason::Html,
            _ => Reason::Status,
        };
        Failure::new(reason, format!("{what} answered {}", self.status))
    }

    fn content_type(&self) -> Option<&str> {
        self.headers.get(header::CONTENT_TYPE)?.to_str().ok()
    }
}

#[cfg(test)]
mod tests;
