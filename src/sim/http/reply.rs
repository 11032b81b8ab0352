//! Answers with t3's headers: which of them come with which kind of body differs by generation (CONTRACT §3).

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::Call;
use crate::sim::clock::Millis;
use crate::sim::instance::Instance;
use crate::sim::release::{Generation, Release};

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

const CORS_METHODS: (&str, &str) = ("access-control-allow-methods", "GET, POST, OPTIONS");
const HUGE: u64 = 100 * 1024 * 1024;
const CHUNK: u64 = 64 * 1024;

/// An answer before its common headers.
pub struct Reply {
    status: StatusCode,
    headers: Vec<(&'static str, String)>,
    content: Content,
    cors: bool,
}

enum Content {
    /// Nothing at all, as 204 has it.
    Nothing,
    /// An empty body in chunks, without content-type.
    Empty,
    Typed(&'static str, Bytes),
    /// Ends before the length that was promised.
    BrokenOff,
    Flood,
}

impl Reply {
    pub fn json(status: StatusCode, document: &impl Serialize) -> Self {
        let text = serde_json::to_string(document).unwrap_or_default();
        Self::typed(status, "application/json", text)
    }

    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), content: Content::Empty, cors: false }
    }

    pub fn text(status: StatusCode, text: String) -> Self {
        Self::typed(status, "text/plain", text)
    }

    /// The app, as any unmatched path gets it.
    pub fn page(instance: &Instance) -> Self {
        Self::typed(StatusCode::OK, "text/html; charset=utf-8", html(&instance.release))
    }

    /// The app under its own path.
    pub fn front_page(instance: &Instance) -> Self {
        Self::typed(StatusCode::OK, "text/html", html(&instance.release))
    }

    pub fn preflight(release: &Release) -> Self {
        let headers = match release.generation() {
            Generation::A => "authorization,b3,traceparent,content-type",
            Generation::B => "authorization,b3,traceparent,content-type,dpop",
        };
        Self { status: StatusCode::NO_CONTENT, headers: Vec::new(), content: Content::Nothing, cors: false }
            .header(CORS_METHODS.0, CORS_METHODS.1)
            .header("access-control-allow-headers", headers)
            .header("access-control-max-age", "600")
    }

    pub fn broken_off() -> Self {
        Self { status: StatusCode::OK, headers: Vec::new(), content: Content::BrokenOff, cors: false }
    }

    pub fn flood() -> Self {
        Self { status: StatusCode::OK, headers: Vec::new(), content: Content::Flood, cors: false }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Generation A names methods and headers on the answers of its own authentication routes.
    pub fn cors(mut self) -> Self {
        self.cors = true;
        self
    }

    /// Generation B forbids keeping what grants access.
    pub fn not_stored(self, release: &Release) -> Self {
        match release.generation() {
            Generation::A => self,
            Generation::B => self.header("cache-control", "no-store").header("pragma", "no-cache"),
        }
    }

    pub fn finish(self, release: &Release, call: &Call) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        response =
            response.header("access-control-allow-origin", "*").header("date", Millis::now().http_date());
        if self.cors && release.generation() == Generation::A {
            response = response
                .header(CORS_METHODS.0, CORS_METHODS.1)
                .header("access-control-allow-headers", "authorization, b3, traceparent, content-type");
        }
        let negotiates = release.since(32);
        let content = match self.content {
            Content::Typed(kind, bytes) if negotiates && call.header("accept-encoding").contains("gzip") => {
                response = response.header("content-encoding", "gzip");
                Content::Typed(kind, gzipped(&bytes))
            }
            content => content,
        };
        if let Content::Typed(kind, bytes) = &content {
            response = response.header("content-type", *kind).header("content-length", bytes.len());
            if negotiates {
                response = response.header("vary", "Accept-Encoding");
            }
        }
        for (name, value) in &self.headers {
            response = response.header(*name, value);
        }
        if call.header("connection").eq_ignore_ascii_case("close") {
            response = response.header("connection", "close");
        } else {
            response = response.header("connection", "keep-alive");
            if !call.is_upgrade() {
                response = response.header("keep-alive", "timeout=5");
            }
        }
        if matches!(content, Content::BrokenOff) {
            response = response.header("content-type", "application/json").header("content-length", 4096);
        }
        response.body(content.into_body()).unwrap_or_else(|_| Response::new(Content::Empty.into_body()))
    }

    fn typed(status: StatusCode, kind: &'static str, text: String) -> Self {
        Self { status, headers: Vec::new(), content: Content::Typed(kind, text.into()), cors: false }
    }
}

impl Content {
    fn into_body(self) -> Body {
        match self {
            Self::Nothing => Full::default().map_err(|never| match never {}).boxed_unsync(),
            Self::Typed(_, bytes) => Full::new(bytes).map_err(|never| match never {}).boxed_unsync(),
            Self::Empty => chunks(stream::empty()),
            Self::BrokenOff => chunks(stream::iter([
                Ok(Bytes::from_static(b"{\"authenticated\":")),
                Err(io::ErrorKind::ConnectionAborted.into()),
            ])),
            Self::Flood => {
                chunks(stream::iter(0..HUGE / CHUNK).map(|_| Ok(Bytes::from_static(&[b' '; CHUNK as usize]))))
            }
        }
    }
}

fn chunks(chunks: impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

fn gzipped(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default().into()
}

fn html(release: &Release) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Stand-in for t3 {release}</title></head>\n\
         <body><main><h1>Stand-in for t3 {release}</h1><p>There is no app here, only what a prober needs.</p></main></body>\n\
         </html>\n"
    )
}

/// An answer that refuses, in the words of the generation: a sentence in A, a tag with a trace id in B.
pub fn refusal(release: &Release, call: &Call, status: StatusCode, a: &str, b: Refusal) -> Reply {
    match release.generation() {
        Generation::A => Reply::json(status, &json!({ "error": a })).cors(),
        Generation::B => Reply::json(status, &b.document(&call.trace_id)),
    }
}

/// What generation B calls a refusal.
#[derive(Clone, Copy)]
pub enum Refusal {
    Auth { reason: &'static str },
    Scope { required: &'static str },
    Internal { reason: &'static str },
}

#[derive(Serialize)]
struct RefusalDocument<'a> {
    _tag: &'static str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(rename = "requiredScope", skip_serializing_if = "Option::is_none")]
    required_scope: Option<&'static str>,
    #[serde(rename = "traceId")]
    trace_id: &'a str,
}

impl Refusal {
    fn document(self, trace_id: &str) -> RefusalDocument<'_> {
        let (tag, code, reason, required_scope) = match self {
            Self::Auth { reason } => ("EnvironmentAuthInvalidError", "auth_invalid", Some(reason), None),
            Self::Scope { required } => {
                ("EnvironmentScopeRequiredError", "insufficient_scope", None, Some(required))
            }
            Self::Internal { reason } => ("EnvironmentInternalError", "internal_error", Some(reason), None),
        };
        RefusalDocument { _tag: tag, code, reason, required_scope, trace_id }
    }
}
