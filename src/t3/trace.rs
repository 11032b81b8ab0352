//! The W3C trace context a request carries. An unsampled parent keeps t3 from writing the request into the user's own
//! trace ring (CONTRACT §13), so a probe's context is unsampled unless somebody really collects traces.

use std::fmt;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    sampled: bool,
}

/// The place in its trace of a span that is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    trace_id: u128,
    span_id: u64,
}

impl TraceContext {
    /// A new trace that nobody records.
    pub fn unsampled() -> Self {
        // All zeros is an invalid id in the W3C format.
        Self { trace_id: rand::random::<u128>().max(1), sampled: false }
    }

    /// The context of the span that is being recorded, or an unsampled one where nobody records.
    pub fn of(span: &Span) -> Self {
        match Recorded::of(span) {
            Some(recorded) => Self { trace_id: recorded.trace_id, sampled: true },
            None => Self::unsampled(),
        }
    }

    /// 32 hex digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The value of a `traceparent` header: below the span that the caller is in, where that is recorded in this trace,
    /// else with a span id of its own.
    pub fn traceparent(&self) -> String {
        let here = self.sampled.then(|| Recorded::of(&Span::current())).flatten();
        let here = here.filter(|here| here.trace_id == self.trace_id);
        let span_id = here.map_or_else(|| rand::random::<u64>().max(1), |here| here.span_id);
        header(self.trace_id, span_id, self.sampled)
    }
}

impl Recorded {
    /// `None` where nobody records the span.
    pub fn of(span: &Span) -> Option<Self> {
        if span.is_disabled() {
            return None;
        }
        let context = span.context();
        let recorded = context.span().span_context().clone();
        (recorded.is_valid() && recorded.is_sampled()).then(|| Self {
            trace_id: u128::from_be_bytes(recorded.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(recorded.span_id().to_bytes()),
        })
    }

    /// 32 hex digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The value of a `traceparent` header for what happens below the span.
    pub fn traceparent(&self) -> String {
        header(self.trace_id, self.span_id, true)
    }
}

/// Puts a span below the one that a valid `traceparent` header names. Comes before anybody asks for the span's place.
pub fn put_below(span: &Span, traceparent: &str) {
    let mut parts = traceparent.split('-').skip(1);
    let (Some(trace), Some(parent), Some(flags)) = (parts.next(), parts.next(), parts.next()) else { return };
    let (Ok(trace), Ok(parent), Ok(flags)) =
        (TraceId::from_hex(trace), SpanId::from_hex(parent), u8::from_str_radix(flags, 16))
    else {
        return;
    };
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    let remote = SpanContext::new(trace, parent, flags, true, TraceState::default());
    // Refused only where nobody records.
    let _ = span.set_parent(Context::new().with_remote_span_context(remote));
}

fn header(trace_id: u128, span_id: u64, sampled: bool) -> String {
    format!("00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(sampled))
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.trace_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsampled_context_says_so_in_its_last_field() {
        let context = TraceContext::unsampled();
        let header = context.traceparent();
        assert!(header.starts_with(&format!("00-{}-", context.trace_id())), "{header}");
        assert!(header.ends_with("-00"), "{header}");
        assert_eq!(header.len(), 55);
    }

    /// Runs it where every span is recorded.
    fn recording(run: impl FnOnce()) {
        use opentelemetry::trace::TracerProvider;
        use tracing_subscriber::layer::SubscriberExt;

        let provider = opentelemetry_sdk::trace::SdkTracerProvider::default();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), run);
    }

    #[test]
    fn a_span_that_is_recorded_gives_its_trace_and_is_sampled() {
        recording(|| {
            let span = tracing::info_span!("probe");
            let (one, other) = (TraceContext::of(&span), TraceContext::of(&span));
            assert_eq!(one, other);
            assert!(one.traceparent().ends_with("-01"), "{}", one.traceparent());
        });
    }

    #[test]
    fn what_is_asked_within_a_step_is_below_the_step() {
        recording(|| {
            let probe = tracing::info_span!("probe");
            let trace = TraceContext::of(&probe);
            let _in_probe = probe.entered();
            let step = tracing::info_span!("step").entered();
            let below = Recorded::of(&step).expect("a recorded span").traceparent();
            assert_eq!(trace.traceparent(), below);
            assert!(TraceContext::unsampled().traceparent().ends_with("-00"));
        });
    }

    #[test]
    fn a_span_below_a_remote_one_is_of_its_trace_and_recorded_only_if_that_is() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        recording(|| {
            let below = |flags: &str| {
                let span = tracing::info_span!("request");
                put_below(&span, &format!("00-{TRACE}-b7ad6b7169203331-{flags}"));
                Recorded::of(&span).map(|recorded| recorded.trace_id())
            };
            assert_eq!(below("01").as_deref(), Some(TRACE));
            assert_eq!(below("00"), None);
        });
    }

    #[test]
    fn without_a_recorder_nothing_is_sampled() {
        let context = TraceContext::of(&tracing::info_span!("probe"));
        assert!(context.traceparent().ends_with("-00"));
    }
}
