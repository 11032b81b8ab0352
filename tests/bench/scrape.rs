//! One reading of /metrics, to look samples up in.

use std::collections::BTreeMap;

use crate::support::world::Serving;

/// Sample, as exposed with its labels, to value.
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub fn of(serving: &Serving) -> Self {
        Self::read(&serving.get("/metrics").body)
    }

    fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            Some((sample.to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    pub fn value(&self, sample: &str) -> Option<f64> {
        self.0.get(sample).copied()
    }

    /// Every sample whose name with labels begins and contains so.
    pub fn all<'a>(&'a self, begins: &'a str, contains: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0
            .iter()
            .filter(move |(sample, _)| sample.starts_with(begins) && sample.contains(contains))
            .map(|(sample, value)| (sample.as_str(), *value))
    }

    pub fn sum(&self, begins: &str, contains: &str) -> f64 {
        self.all(begins, contains).map(|(_, value)| value).sum()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// The value of a label in a sample as exposed.
pub fn label<'a>(sample: &'a str, name: &str) -> &'a str {
    let (_, rest) = sample.split_once(&format!("{name}=\"")).unwrap_or(("", ""));
    rest.split('"').next().unwrap_or_default()
}
