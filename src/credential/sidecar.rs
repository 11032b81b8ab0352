//! The file that whoever mints a credential writes beside it: `{"expires": "2027-01-31"}`, or
//! `{"minted": "2026-01-31", "lifetime": "365d"}`. Nothing of its content is ever repeated.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::date::Date;
use super::{Expiry, after};
use crate::inventory::source_file;
use crate::outcome::Evidence;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sidecar {
    expires: Option<Date>,
    minted: Option<Date>,
    #[serde(default, with = "humantime_serde")]
    lifetime: Option<Duration>,
}

/// `lifetime` is what the configuration says; the file's own wins.
pub fn read(path: &Path, lifetime: Option<Duration>) -> Result<Expiry, String> {
    let file = path.display();
    let content = source_file::read(path).map_err(|error| {
        format!("{file}: {error}; let whatever mints the credential write it, readable by our account")
    })?;
    let sidecar: Sidecar = serde_json::from_slice(&content).map_err(|error| {
        // The parser's own words quote what they stumble over.
        let (line, column) = (error.line(), error.column());
        format!(
            "{file}:{line}:{column}: this is not what such a file says; write {{\"expires\": \"2027-01-31\"}} or {{\"minted\": \"2026-01-31\", \"lifetime\": \"365d\"}}"
        )
    })?;
    let said = |what: String| format!("{file}:1: {what}");
    match (sidecar.expires, sidecar.minted, sidecar.lifetime.or(lifetime)) {
        (Some(Date(at)), None, _) => Ok(Expiry { at, evidence: Evidence::Expiry }),
        (None, Some(Date(minted)), Some(lifetime)) => {
            Ok(Expiry { at: after(minted, lifetime).map_err(said)?, evidence: Evidence::Minted })
        }
        (None, Some(_), None) => {
            Err(said("minted needs a lifetime; write it here or in the configuration".to_owned()))
        }
        (Some(_), Some(_), _) => Err(said("it says both expires and minted; keep one of them".to_owned())),
        (None, None, _) => Err(said("it says neither expires nor minted; write one of them".to_owned())),
    }
}
