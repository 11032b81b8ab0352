//! What is known of each credential, kept over a restart: a source that was lost meanwhile is stale, and not one that was
//! never seen, and its last known end is still warned of.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Expiry, Known, Watch};
use crate::inventory::source_file;
use crate::outcome::{Evidence, utc};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(with = "utc")]
    ends: SystemTime,
    evidence: Evidence,
    #[serde(with = "utc")]
    seen: SystemTime,
}

/// What the file says; nothing where there is none, or none that this version wrote: every source is looked at anyway.
pub fn load(path: &Path) -> Vec<Remembered> {
    let content = source_file::read(path).unwrap_or_default();
    serde_json::from_slice(&content).unwrap_or_default()
}

/// Replaces the file, whole or not at all.
pub fn store(path: &Path, remembered: &[Remembered]) -> io::Result<()> {
    source_file::replace(path, &remembered, 0o600)
}

impl Watch {
    /// Takes over what was known before, where nothing is known yet.
    pub fn recall(&mut self, remembered: &[Remembered]) {
        for watched in self.0.iter_mut().filter(|watched| watched.known.is_none()) {
            let is_it = |known: &&Remembered| {
                known.name == watched.credential.name && known.user == watched.credential.user
            };
            watched.known = remembered.iter().find(is_it).map(|known| Known {
                expiry: Expiry { at: known.ends, evidence: known.evidence },
                seen: known.seen,
            });
        }
    }

    /// What is known now.
    pub fn remember(&self) -> Vec<Remembered> {
        let known = self.0.iter().filter_map(|watched| {
            let Known { expiry, seen } = watched.known?;
            Some(Remembered {
                name: watched.credential.name.clone(),
                user: watched.credential.user.clone(),
                ends: expiry.at,
                evidence: expiry.evidence,
                seen,
            })
        });
        known.collect()
    }
}
