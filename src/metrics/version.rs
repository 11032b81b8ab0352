//! `t3_version_…`: which versions are wanted, installed, proven and followed, and who runs another one.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::{NoLabels, labels};
use super::series::{ByLabels, ByUser, Info, Reading, unix_seconds};
use crate::outcome::Place;

labels! {
    pub struct OfPlace {
        /// the place that names a version
        pub place: Place,
    }
}

labels! {
    pub struct OfPlaceAndVersion {
        /// the place that names the version
        pub place: Place,
        /// the version it names
        pub version: Arc<str>,
    }
}

metrics! {
    pub struct Version {
        /// What each place names; a place that names nothing is absent
        info: Info<OfPlaceAndVersion> = "t3_version_info",
        /// Whether the place names another version than the installed one (1)
        drift: ByLabels<OfPlace, Gauge> = "t3_version_drift",
        /// Whether the user's instance runs another version than the installed one (1)
        skew: ByUser<NoLabels, Gauge> = "t3_version_skew",
        /// Since when this program has seen the place differ from the installed version; absent where it does not
        drift_since: ByLabels<OfPlace, Reading> = "t3_version_drift_since_timestamp_seconds",
        /// Since when this program has seen the instance run another version than the installed one; absent where it
        /// does not
        skew_since: ByUser<NoLabels, Reading> = "t3_version_skew_since_timestamp_seconds",
    }
}

impl Version {
    /// States what each place names, and since when it differs from the installed version; what was stated before and
    /// is not named any more vanishes.
    pub fn state(&self, known: &[(Place, String)], drifts: &[(Place, Option<SystemTime>)]) {
        let info = known
            .iter()
            .map(|(place, version)| OfPlaceAndVersion { place: *place, version: version.as_str().into() });
        self.info.state(info.collect());
        let stays = |series: &OfPlace| drifts.iter().any(|(place, _)| *place == series.place);
        self.drift.retain(stays);
        self.drift_since.retain(stays);
        for (place, since) in drifts {
            self.drift.with(OfPlace { place: *place }, |gauge| {
                gauge.set(i64::from(since.is_some()));
            });
            self.drift_since
                .with(OfPlace { place: *place }, |at| at.set(since.map_or(f64::NAN, unix_seconds)));
        }
    }

    /// States since when the user's instance runs another version than the installed one.
    pub fn set_skew(&self, user: &str, since: Option<SystemTime>) {
        self.skew.with(user, NoLabels, |gauge| {
            gauge.set(i64::from(since.is_some()));
        });
        self.skew_since.with(user, NoLabels, |at| at.set(since.map_or(f64::NAN, unix_seconds)));
    }
}
