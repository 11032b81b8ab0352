//! Versions of t3 and the generation of the login contract that each speaks (CONTRACT §1).
//! The generation is chosen from the version that *runs*, never from the version of a command on the path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A version of t3 as it names itself: `0.0.24`, `0.0.34-nightly.20260401.1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(semver::Version);

/// Far beyond any nightly's name.
const LONGEST: usize = 64;

/// The two login contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// Before 0.0.26: `POST /api/auth/bootstrap`, roles, `wsToken`.
    A,
    /// From 0.0.26: `POST /api/auth/browser-session`, scopes, `wsTicket`.
    B,
}

#[derive(Debug, thiserror::Error)]
#[error("'{text}' is not a t3 version; expected something like 0.0.26")]
pub struct NotAVersion {
    text: String,
    source: semver::Error,
}

impl Version {
    pub const fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self(semver::Version::new(major, minor, patch))
    }

    pub fn generation(&self) -> Generation {
        if *self < Self::new(0, 0, 26) { Generation::A } else { Generation::B }
    }

    /// A nightly or other prerelease sorts below the release it leads to.
    pub fn is_prerelease(&self) -> bool {
        !self.0.pre.is_empty()
    }
}

impl FromStr for Version {
    type Err = NotAVersion;

    /// Takes what `t3 --version` prints, with or without the program's name and the `v` (CONTRACT §2.1).
    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let trimmed: String = text.trim().chars().take(LONGEST + 1).collect();
        let trimmed = trimmed.as_str();
        let bare = trimmed.strip_prefix("t3 ").unwrap_or(trimmed);
        let bare = bare.strip_prefix('v').unwrap_or(bare);
        // A running instance says what it likes, and a version is a label.
        let bare = if bare.len() > LONGEST { "" } else { bare };
        semver::Version::parse(bare)
            .map(Self)
            .map_err(|source| NotAVersion { text: trimmed.to_owned(), source })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().expect("a version")
    }

    #[test]
    fn the_generation_changes_at_0_0_26() {
        assert_eq!(version("0.0.24").generation(), Generation::A);
        assert_eq!(version("0.0.26").generation(), Generation::B);
        assert_eq!(version("1.2.3").generation(), Generation::B);
    }

    #[test]
    fn what_the_command_prints_is_a_version() {
        assert_eq!(version("t3 v0.0.24\n").to_string(), "0.0.24");
        assert_eq!(version("0.0.34-nightly.20260401.1").to_string(), "0.0.34-nightly.20260401.1");
    }

    #[test]
    fn a_nightly_sorts_between_the_releases_around_it() {
        let nightly = version("0.0.34-nightly.3");
        assert!(version("0.0.33") < nightly && nightly < version("0.0.34"));
        assert!(nightly.is_prerelease());
    }

    #[test]
    fn a_word_is_no_version() {
        let error = "latest".parse::<Version>().expect_err("a tag");
        assert_eq!(error.to_string(), "'latest' is not a t3 version; expected something like 0.0.26");
    }
}
