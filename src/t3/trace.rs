//! The W3C trace context a request carries. An unsampled parent keeps t3 from writing the request into the user's own
//! trace ring (CONTRACT §13), so a probe's context is unsampled unless somebody really collects traces.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    sampled: bool,
}

impl TraceContext {
    /// A new trace that nobody records.
    pub fn unsampled() -> Self {
        Self { trace_id: nonzero(rand::random()), sampled: false }
    }

    /// The context of a span that is being recorded.
    pub fn sampled(trace_id: u128) -> Self {
        Self { trace_id: nonzero(trace_id), sampled: true }
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

/// All zeros is an invalid id in the W3C format.
fn nonzero(id: u128) -> u128 {
    id.max(1)
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
    fn a_recorded_trace_is_sampled() {
        let header = TraceContext::sampled(0xabc).traceparent();
        assert!(
            header.starts_with("00-00000000000000000000000000000abc-") && header.ends_with("-01"),
            "{header}"
        );
    }
}
