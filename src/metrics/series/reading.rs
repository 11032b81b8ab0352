//! Single values of our own: readings that may be absent, and durations with exemplars.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::Series;
use crate::metrics::labels::NoLabels;

/// A gauge that is absent until it is known; NaN makes it absent again.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The bits of an `f64`.
    bits: Arc<AtomicU64>,
}

/// A counter that somebody else counts; absent until it was read.
#[derive(Clone, Debug, Default)]
pub struct CounterReading(Reading);

/// How long something took, a millisecond to twenty seconds, with the trace of a recent case in each bucket.
#[derive(Clone, Debug)]
pub struct Seconds(HistogramWithExemplars<Trace>);

/// The exemplar's label.
#[derive(Clone, Debug, EncodeLabelSet)]
struct Trace {
    trace_id: Arc<str>,
}

impl Reading {
    pub fn set(&self, value: f64) {
        self.bits.store(value.to_bits(), Ordering::Relaxed);
    }

    fn value(&self) -> Option<f64> {
        Some(f64::from_bits(self.bits.load(Ordering::Relaxed))).filter(|value| !value.is_nan())
    }
}

impl CounterReading {
    pub fn set(&self, total: f64) {
        self.0.set(total);
    }
}

impl Seconds {
    const BUCKETS: [f64; 14] =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

    /// Counts one case; without a trace it leaves no exemplar.
    pub fn observe(&self, took: Duration, trace_id: Option<Arc<str>>, ended: SystemTime) {
        self.0.observe(took.as_secs_f64(), trace_id.map(|trace_id| Trace { trace_id }), Some(ended));
    }

    /// The same for what ended this moment; the clock is asked only for an exemplar.
    pub fn observe_now(&self, took: Duration, trace_id: Option<Arc<str>>) {
        let ended = trace_id.as_ref().map_or(SystemTime::UNIX_EPOCH, |_| SystemTime::now());
        self.observe(took, trace_id, ended);
    }
}

/// Seconds since 1970; NaN for a clock that stands before it.
pub fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(f64::NAN, |since| since.as_secs_f64())
}

impl EncodeMetric for Reading {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        self.value().map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        self.value().is_none()
    }
}

impl EncodeMetric for CounterReading {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        let Some(total) = self.0.value() else { return Ok(()) };
        encoder.encode_counter::<NoLabels, _, f64>(&total, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl EncodeMetric for Seconds {
    fn encode(&self, encoder: MetricEncoder) -> std::fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Reading {
    const TYPE: MetricType = MetricType::Gauge;
}

impl TypedMetric for CounterReading {
    const TYPE: MetricType = MetricType::Counter;
}

impl TypedMetric for Seconds {
    const TYPE: MetricType = MetricType::Histogram;
}

impl Series for Seconds {}

impl Series for Reading {}

impl Series for CounterReading {}

impl Default for Reading {
    fn default() -> Self {
        Self { bits: Arc::new(AtomicU64::new(f64::NAN.to_bits())) }
    }
}

impl Default for Seconds {
    fn default() -> Self {
        Self(HistogramWithExemplars::new(Self::BUCKETS.into_iter()))
    }
}
