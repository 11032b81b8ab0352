//! The trace file: it grows by every request that does not come with an unsampled parent (CONTRACT §13).

use std::fs::OpenOptions;
use std::io::Write;

use hyper::header::HeaderMap;

use super::Call;
use crate::sim::clock::Millis;
use crate::sim::instance::Instance;
use crate::sim::token;

/// The caller's trace id, or a new one.
pub fn id(headers: &HeaderMap) -> String {
    parent(headers).map_or_else(token::trace_id, |parent| parent.trace_id.to_owned())
}

/// One line for the request; a full disk is no reason not to answer.
pub fn record(instance: &Instance, call: &Call) {
    let parent = parent(&call.headers);
    if parent.is_some_and(|parent| !parent.sampled) {
        return;
    }
    let size = if instance.release.since(33) { 3900 } else { 2000 };
    let line = serde_json::json!({
        "name": format!("http.server {}", call.method), "traceId": call.trace_id, "spanId": &token::trace_id()[..16],
        "parentSpanId": parent.map(|parent| parent.span_id),
        "startedAt": Millis::now().iso(), "attributes": { "url.path": call.path, "padding": ".".repeat(size - 250) },
    });
    let file = OpenOptions::new().append(true).create(true).open(instance.home.trace());
    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
}

/// What a `traceparent` header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parent<'a> {
    trace_id: &'a str,
    span_id: &'a str,
    sampled: bool,
}

fn parent(headers: &HeaderMap) -> Option<Parent<'_>> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-').skip(1);
    let (trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (trace_id.len() == 32).then_some(Parent { trace_id, span_id, sampled: flags & 1 == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(traceparent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", traceparent.parse().expect("a header value"));
        headers
    }

    #[test]
    fn an_unsampled_parent_is_recognised() {
        let id = "0123456789abcdef0123456789abcdef";
        let parent_of = |flags| headers(&format!("00-{id}-0123456789abcdef-{flags}"));
        let said = |sampled| Parent { trace_id: id, span_id: "0123456789abcdef", sampled };
        assert_eq!(parent(&parent_of("00")), Some(said(false)));
        assert_eq!(parent(&parent_of("01")), Some(said(true)));
        assert_eq!(parent(&headers("nonsense")), None);
    }
}
