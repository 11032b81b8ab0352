//! The W3C trace context a request carries. An unsampled parent keeps t3 from writing the request into the user's own
//! trace ring (CONTRACT §13), so a probe's context is unsampled unless somebody really collects traces.

use std::fmt;

use opentelemetry::trace::TraceContextExt;
use tracing_opentelemetry::OpenTelemetrySpanExt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    sampled: bool,
}

impl TraceContext {
    /// A new trace that nobody records.
    pub fn unsampled() -> Self {
        // All zeros is an invalid id in the W3C format.
        Self { trace_id: rand::random::<u128>().max(1), sampled: false }
    }

    /// The context of the span that is being recorded, or an unsampled one where nobody records.
    pub fn of(span: &tracing::Span) -> Self {
        let context = span.context();
        let recorded = context.span().span_context().clone();
        if recorded.is_valid() && recorded.is_sampled() {
            Self { trace_id: u128::from_be_bytes(recorded.trace_id().to_bytes()), sampled: true }
        } else {
            Self::unsampled()
        }
    }

    /// 32 hex digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The value of a `traceparent` header, with a span id of its own for every request.
    pub fn traceparent(&self) -> String {
        let span: u64 = rand::random::<u64>().max(1);
        format!("00-{:032x}-{span:016x}-{:02x}", self.trace_id, u8::from(self.sampled))
    }
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

    #[test]
    fn a_span_that_is_recorded_gives_its_trace_and_is_sampled() {
        use opentelemetry::trace::TracerProvider;
        use tracing_subscriber::layer::SubscriberExt;

        let provider = opentelemetry_sdk::trace::SdkTracerProvider::default();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("probe");
            let (one, other) = (TraceContext::of(&span), TraceContext::of(&span));
            assert_eq!(one, other);
            assert!(one.traceparent().ends_with("-01"), "{}", one.traceparent());
        });
    }

    #[test]
    fn without_a_recorder_nothing_is_sampled() {
        let context = TraceContext::of(&tracing::info_span!("probe"));
        assert!(context.traceparent().ends_with("-00"));
    }
}
