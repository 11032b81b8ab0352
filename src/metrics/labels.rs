//! Label sets: typed, their values from closed sets, the inventory or this program's own files, never free text of a
//! failure. What METRICS.md says of a label is the doc comment of its field.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::outcome::{
    Asker, BackupAct, CloseCause, CredentialState, Decision, End, Ended, Endpoint, Evidence, Flaw, Grounds,
    Initiator, Kind, Place, Reason, Refusal, Rehearsal, RehearsalStep, Rollback, RowState, SessionKind, Skip,
    StateFile, Step, Verb, Verdict,
};

/// One label, as METRICS.md shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelDoc {
    pub name: &'static str,
    pub meaning: &'static str,
    /// Every word the label can be and what it means; empty where the set is not this program's to close.
    pub words: Vec<(&'static str, &'static str)>,
}

/// A set of labels without `user`, which [`super::series::ByUser`] puts in front.
pub trait LabelSet: EncodeLabelSet + Clone + Ord + std::fmt::Debug + Send + Sync + 'static {
    fn described() -> Vec<LabelDoc>;
}

/// What a label's value can be.
pub trait LabelValue {
    fn words() -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

impl LabelValue for &'static str {}
impl LabelValue for Arc<str> {}
impl LabelValue for u16 {}

/// A value that is not known yet is the empty string, which Prometheus takes for an absent label.
impl<V: LabelValue> LabelValue for Option<V> {
    fn words() -> Vec<(&'static str, &'static str)> {
        V::words()
    }
}

/// Makes sets of the vocabulary usable as label values. A group that brings another set adds it here.
macro_rules! closed_sets {
    ($($set:ty),+ $(,)?) => {$(
        impl LabelValue for $set {
            fn words() -> Vec<(&'static str, &'static str)> {
                Self::ALL.iter().map(|word| (word.as_str(), word.meaning())).collect()
            }
        }
    )+};
}

closed_sets!(
    Asker,
    BackupAct,
    CloseCause,
    CredentialState,
    Decision,
    End,
    Ended,
    Endpoint,
    Evidence,
    Flaw,
    Grounds,
    Initiator,
    Kind,
    Place,
    Reason,
    Refusal,
    Rehearsal,
    RehearsalStep,
    Rollback,
    RowState,
    SessionKind,
    Skip,
    StateFile,
    Step,
    Verb,
    Verdict
);

/// Declares a label set: the doc comment of each field says what the label means.
macro_rules! labels {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[doc = $doc:literal])+ pub $label:ident: $value:ty,)+ }) => {
        $(#[$meta])*
        #[derive(
            Clone, Debug, PartialEq, Eq, PartialOrd, Ord, prometheus_client::encoding::EncodeLabelSet,
        )]
        pub struct $name { $($(#[doc = $doc])+ pub $label: $value,)+ }

        impl $crate::metrics::labels::LabelSet for $name {
            fn described() -> Vec<$crate::metrics::labels::LabelDoc> {
                vec![$($crate::metrics::labels::LabelDoc {
                    name: stringify!($label),
                    meaning: concat!($($doc),+).trim_ascii(),
                    words: <$value as $crate::metrics::labels::LabelValue>::words(),
                }),+]
            }
        }
    };
}
pub(super) use labels;

/// Nothing beside the user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NoLabels;

impl EncodeLabelSet for NoLabels {
    fn encode(&self, _: &mut LabelSetEncoder) -> std::fmt::Result {
        Ok(())
    }
}

impl LabelSet for NoLabels {
    fn described() -> Vec<LabelDoc> {
        Vec::new()
    }
}

/// A user's name and the labels that follow it.
pub struct OfUser<'a, L>(pub &'a str, pub &'a L);

impl<L: LabelSet> OfUser<'_, L> {
    pub fn described() -> Vec<LabelDoc> {
        let user = LabelDoc { name: "user", meaning: "the OS user, from the inventory", words: Vec::new() };
        std::iter::once(user).chain(L::described()).collect()
    }
}

impl<L: EncodeLabelSet> EncodeLabelSet for OfUser<'_, L> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> std::fmt::Result {
        ("user", self.0).encode(encoder.encode_label())?;
        self.1.encode(encoder)
    }
}
