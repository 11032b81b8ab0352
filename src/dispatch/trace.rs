//! One span for each request that is passed on, where somebody collects traces; where nobody does, no work and no
//! allocation. A request that came in a trace goes on in it. One that came without is given only what is recorded: t3
//! keeps the user's own traces as it would without us.

use std::sync::Arc;

use tracing::field::{Empty, display};

use super::head::Head;
use super::headers;
use crate::outcome::{Asker, CloseCause, Initiator};
use crate::t3::trace::{Recorded, put_below};

/// A request's span. It ends when it is dropped: with the answer's last byte, or with the WebSocket.
#[derive(Clone, Debug)]
pub struct Trace(tracing::Span);

impl Trace {
    /// No path and no query are told: both may hold what opens something (a ticket, a signed address).
    pub fn begin(head: &Head<'_, '_>, user: &str, asker: Asker) -> Self {
        // At the finest level, so that the log's own filter does not make a span of every request.
        let span = tracing::trace_span!(
            "request",
            otel.kind = "server",
            otel.status_code = Empty,
            user,
            client = asker.as_str(),
            http.request.method = head.method,
            http.response.status_code = Empty,
            initiator = Empty,
            cause = Empty,
        );
        if !span.is_disabled()
            && let Some(parent) = headers::trace(head).and_then(|parent| str::from_utf8(parent).ok())
        {
            put_below(&span, parent);
        }
        Self(span)
    }

    /// What happens on the way to the answer is below it.
    pub fn span(&self) -> &tracing::Span {
        &self.0
    }

    /// The `traceparent` for the instance, where the request is recorded.
    pub fn onward(&self) -> Option<String> {
        Recorded::of(&self.0).map(|recorded| recorded.traceparent())
    }

    /// For an exemplar, where the request is recorded.
    pub fn id(&self) -> Option<Arc<str>> {
        Recorded::of(&self.0).map(|recorded| recorded.trace_id().into())
    }

    pub fn answered(&self, status: u16) {
        self.0.record("http.response.status_code", status);
        if status >= 500 {
            self.0.record("otel.status_code", "ERROR");
        }
    }

    /// There was no answer, or not all of it.
    pub fn broken(&self) {
        self.0.record("otel.status_code", "ERROR");
    }

    /// The WebSocket that it became has ended.
    pub fn closed(&self, initiator: Initiator, cause: CloseCause) {
        self.0.record("initiator", display(initiator)).record("cause", display(cause));
    }
}
