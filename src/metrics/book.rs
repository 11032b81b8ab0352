//! Where groups register: the book keeps the library's registry, who must hear of users that come and go, and what
//! METRICS.md says. A metric is written down once, in its group, and nothing of it can be forgotten elsewhere.

use std::sync::Arc;

use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use super::labels::LabelDoc;
use super::series::{PerUser, Series};

/// Everything that is exported, under construction.
#[derive(Debug, Default)]
pub struct Book {
    pub registry: Registry,
    per_user: Vec<Box<dyn PerUser>>,
    pub entries: Vec<Entry>,
}

/// One metric, as METRICS.md shows it.
#[derive(Debug)]
pub struct Entry {
    /// As it is queried: with `_total` and `_info`.
    pub name: &'static str,
    pub kind: MetricType,
    pub unit: Option<&'static str>,
    pub labels: Vec<LabelDoc>,
    pub help: &'static str,
}

impl Book {
    /// Registers a metric under the name it is queried by. The library wants that name without what it appends itself
    /// (`_total`, `_info`, the unit), but an operator who searches the sources for a metric must find it.
    pub fn add<S: Series>(&mut self, name: &'static str, doc: &'static str, metric: S) -> S {
        let kind = <S as TypedMetric>::TYPE;
        let appended = match kind {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            MetricType::Gauge | MetricType::Histogram | MetricType::Unknown => "",
        };
        let family = name.strip_suffix(appended).unwrap_or(name);
        let help = doc.trim_ascii();
        let unit = if let Some(bare) = family.strip_suffix("_seconds") {
            self.registry.register_with_unit(bare, help, Unit::Seconds, metric.clone());
            Some("seconds")
        } else if let Some(bare) = family.strip_suffix("_bytes") {
            self.registry.register_with_unit(bare, help, Unit::Bytes, metric.clone());
            Some("bytes")
        } else {
            self.registry.register(family, help, metric.clone());
            None
        };
        self.per_user.extend(metric.per_user());
        self.entries.push(Entry { name, kind, unit, labels: S::labels(), help });
        metric
    }

    pub fn admit(&self, user: &Arc<str>) {
        for series in &self.per_user {
            series.admit(user);
        }
    }

    pub fn forget(&self, user: &str) {
        for series in &self.per_user {
            series.forget(user);
        }
    }
}

/// Declares a group: the doc comment of a field is its HELP (without a full stop, the library adds it), the string is
/// the name it is queried by.
macro_rules! metrics {
    ($(#[$meta:meta])* pub struct $group:ident { $($(#[doc = $doc:literal])+ $field:ident: $series:ty = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $group { $($(#[doc = $doc])+ $field: $series,)+ }

        impl $group {
            pub(super) fn register(book: &mut $crate::metrics::book::Book) -> Self {
                Self { $($field: book.add($name, concat!($($doc),+), <$series>::default()),)+ }
            }
        }
    };
}
pub(super) use metrics;
