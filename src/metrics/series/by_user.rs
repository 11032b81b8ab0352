//! What belongs to a user hangs under that user: a series can only be made while its user is served, and all of them
//! go in one removal. (The library's own family removes per label set only, and a late probe of a removed user would
//! leave a series for ever.)

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, RwLock};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::{Series, Value, read, write};
use crate::metrics::labels::{LabelDoc, LabelSet, OfUser};

/// A metric whose series live and die with their user.
pub trait PerUser: Debug + Send + Sync {
    fn admit(&self, user: &Arc<str>);
    fn forget(&self, user: &str);
}

/// What hangs under each user that is served.
type OfUsers<T> = Arc<RwLock<BTreeMap<Arc<str>, T>>>;

/// One value per user and label set. A user has few of a metric, often one, and a fleet has many users: sorted vectors
/// of exact size, since a node of a tree has room for eleven.
#[derive(Clone, Debug)]
pub struct ByUser<L, M> {
    series: OfUsers<Vec<(L, M)>>,
}

/// Facts about a user, as labels of a series that is always 1: at most one series per user at any time.
#[derive(Clone, Debug)]
pub struct InfoByUser<L> {
    facts: OfUsers<Option<L>>,
}

impl<L: LabelSet, M: Value> ByUser<L, M> {
    /// Hands over the value of this user and these labels, made now where there was none; does nothing for somebody
    /// who is not served.
    pub fn with(&self, user: &str, labels: L, change: impl FnOnce(&M)) {
        if let Some(of_user) = read(&self.series).get(user)
            && let Ok(at) = find(of_user, &labels)
        {
            return change(&of_user[at].1);
        }
        if let Some(of_user) = write(&self.series).get_mut(user) {
            let at = match find(of_user, &labels) {
                Ok(at) => at,
                Err(at) => {
                    of_user.reserve_exact(1);
                    of_user.insert(at, (labels, M::default()));
                    at
                }
            };
            change(&of_user[at].1);
        }
    }

    /// Hands over every value of this user.
    pub fn each(&self, user: &str, mut change: impl FnMut(&L, &M)) {
        for (labels, value) in read(&self.series).get(user).into_iter().flatten() {
            change(labels, value);
        }
    }
}

/// Where these labels are, else where they belong.
fn find<L: Ord, M>(of_user: &[(L, M)], labels: &L) -> Result<usize, usize> {
    of_user.binary_search_by(|(known, _)| known.cmp(labels))
}

impl<L: LabelSet> InfoByUser<L> {
    /// Changes what is known about this user; does nothing for somebody who is not served.
    pub fn change(&self, user: &str, change: impl FnOnce(&mut Option<L>)) {
        if let Some(facts) = write(&self.facts).get_mut(user) {
            change(facts);
        }
    }
}

impl<L: LabelSet, M: Value> EncodeMetric for ByUser<L, M> {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        for (user, of_user) in read(&self.series).iter() {
            for (labels, value) in of_user {
                value.encode(encoder.encode_family(&OfUser(user, labels))?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        read(&self.series).values().all(Vec::is_empty)
    }
}

impl<L: LabelSet> EncodeMetric for InfoByUser<L> {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        for (user, facts) in read(&self.facts).iter() {
            if let Some(facts) = facts {
                encoder.encode_info(&OfUser(user, facts))?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        read(&self.facts).values().all(Option::is_none)
    }
}

impl<L, M: TypedMetric> TypedMetric for ByUser<L, M> {
    const TYPE: MetricType = M::TYPE;
}

impl<L> TypedMetric for InfoByUser<L> {
    const TYPE: MetricType = MetricType::Info;
}

impl<L: LabelSet, M: Value> Series for ByUser<L, M> {
    fn labels() -> Vec<LabelDoc> {
        OfUser::<L>::described()
    }

    fn per_user(&self) -> Option<Box<dyn PerUser>> {
        Some(Box::new(self.clone()))
    }
}

impl<L: LabelSet> Series for InfoByUser<L> {
    fn labels() -> Vec<LabelDoc> {
        OfUser::<L>::described()
    }

    fn per_user(&self) -> Option<Box<dyn PerUser>> {
        Some(Box::new(self.clone()))
    }
}

impl<L: LabelSet, M: Value> PerUser for ByUser<L, M> {
    fn admit(&self, user: &Arc<str>) {
        write(&self.series).entry(Arc::clone(user)).or_default();
    }

    fn forget(&self, user: &str) {
        write(&self.series).remove(user);
    }
}

impl<L: LabelSet> PerUser for InfoByUser<L> {
    fn admit(&self, user: &Arc<str>) {
        write(&self.facts).entry(Arc::clone(user)).or_default();
    }

    fn forget(&self, user: &str) {
        write(&self.facts).remove(user);
    }
}

// Derived, these would ask for a default label set, which has no meaning.
impl<L, M> Default for ByUser<L, M> {
    fn default() -> Self {
        Self { series: Arc::default() }
    }
}

impl<L> Default for InfoByUser<L> {
    fn default() -> Self {
        Self { facts: Arc::default() }
    }
}
