//! `t3_version_…`: which versions are wanted, installed, proven and followed, and who runs another one.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::{NoLabels, labels};
use super::series::{ByLabels, ByUser, Info};
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
    }
}

impl Version {
    /// States what each place names, and whether it differs from the installed version; what was stated before and is
    /// not named any more vanishes.
    pub fn state(&self, known: &[(Place, String)], drifts: &[(Place, bool)]) {
        let info = known
            .iter()
            .map(|(place, version)| OfPlaceAndVersion { place: *place, version: version.as_str().into() });
        self.info.state(info.collect());
        self.drift.retain(|series| drifts.iter().any(|(place, _)| *place == series.place));
        for (place, differs) in drifts {
            self.drift.with(OfPlace { place: *place }, |gauge| {
                gauge.set(i64::from(*differs));
            });
        }
    }

    pub fn set_skew(&self, user: &str, differs: bool) {
        self.skew.with(user, NoLabels, |gauge| {
            gauge.set(i64::from(differs));
        });
    }
}
