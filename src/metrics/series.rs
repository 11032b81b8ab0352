//! The shapes a metric can have. Maps are sorted, so that two scrapes read alike; what is not known is absent, because
//! a zero would be a claim.

mod by_user;
mod reading;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Metric;

pub use self::by_user::{ByUser, InfoByUser, PerUser};
pub use self::reading::{CounterReading, Reading, Seconds, unix_seconds};
use super::labels::{LabelDoc, LabelSet};

/// What every metric is to the library: encodable, of a known type, a cheap handle to shared values.
pub trait Value: Metric + TypedMetric + Clone + Default {}

impl<M: Metric + TypedMetric + Clone + Default> Value for M {}

/// What a group may register: a value, and what METRICS.md and the inventory need to know of it.
pub trait Series: Value {
    fn labels() -> Vec<LabelDoc> {
        Vec::new()
    }

    /// The handle by which users come and go; `None` where the metric has no user.
    fn per_user(&self) -> Option<Box<dyn PerUser>> {
        None
    }
}

impl Series for Counter {}

/// A gauge of seconds.
pub type Number = Gauge<f64, AtomicU64>;

/// A counter of seconds.
pub type Total = Counter<f64, AtomicU64>;

/// One value per label set.
#[derive(Clone, Debug)]
pub struct ByLabels<L, M> {
    series: Arc<RwLock<BTreeMap<L, M>>>,
}

/// Facts as labels of series that are always 1.
#[derive(Clone, Debug)]
pub struct Info<L> {
    facts: Arc<RwLock<Vec<L>>>,
}

impl<L: LabelSet, M: Value> ByLabels<L, M> {
    /// Hands over the value of these labels, made now where there was none.
    pub fn with(&self, labels: L, change: impl FnOnce(&M)) {
        if let Some(value) = read(&self.series).get(&labels) {
            return change(value);
        }
        change(write(&self.series).entry(labels).or_default());
    }

    /// Keeps the series whose labels pass; the others vanish.
    pub fn retain(&self, stays: impl Fn(&L) -> bool) {
        write(&self.series).retain(|labels, _| stays(labels));
    }

    /// Hands over every value there is.
    pub fn each(&self, mut change: impl FnMut(&L, &M)) {
        for (labels, value) in read(&self.series).iter() {
            change(labels, value);
        }
    }
}

impl<L: LabelSet> Info<L> {
    /// States the facts that hold now, each a series; what was stated before is forgotten.
    pub fn state(&self, facts: Vec<L>) {
        *write(&self.facts) = facts;
    }
}

/// A panic elsewhere must not take the metrics with it: every value behind these locks is whole between two statements.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl<L: LabelSet, M: Value> EncodeMetric for ByLabels<L, M> {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        for (labels, value) in read(&self.series).iter() {
            value.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        read(&self.series).is_empty()
    }
}

impl<L: LabelSet> EncodeMetric for Info<L> {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        read(&self.facts).iter().try_for_each(|facts| encoder.encode_info(facts))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        read(&self.facts).is_empty()
    }
}

impl<L, M: TypedMetric> TypedMetric for ByLabels<L, M> {
    const TYPE: MetricType = M::TYPE;
}

impl<L> TypedMetric for Info<L> {
    const TYPE: MetricType = MetricType::Info;
}

impl<L: LabelSet, M: Value> Series for ByLabels<L, M> {
    fn labels() -> Vec<LabelDoc> {
        L::described()
    }
}

impl<L: LabelSet> Series for Info<L> {
    fn labels() -> Vec<LabelDoc> {
        L::described()
    }
}

// Derived, these would ask for a default label set, which has no meaning.
impl<L, M> Default for ByLabels<L, M> {
    fn default() -> Self {
        Self { series: Arc::default() }
    }
}

impl<L> Default for Info<L> {
    fn default() -> Self {
        Self { facts: Arc::default() }
    }
}
