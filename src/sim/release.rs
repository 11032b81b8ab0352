//! Which t3 is being played: everything that depends on the version is asked of `Release` (CONTRACT §1).

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The level that each release brings a database to, by patch number; later versions bring the highest known.
const LEVELS: &[(u64, usize)] =
    &[(20, 24), (21, 26), (22, 29), (23, 30), (26, 32), (29, 34), (32, 37), (33, 40)];
const LEVEL_AFTER: usize = 41;

const CLIENT_SCOPES: &[&str] =
    &["orchestration:read", "orchestration:operate", "terminal:operate", "review:write", "relay:read"];
const ADMINISTRATIVE_SCOPES: &[&str] = &["access:read", "access:write", "relay:write"];

/// One released (or nightly) version of t3.
#[derive(Clone, Debug)]
pub struct Release(semver::Version);

/// The two login contracts (CONTRACT §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Before 0.0.26: roles and `/api/auth/bootstrap`.
    A,
    /// From 0.0.26: scopes and `/api/auth/browser-session`.
    B,
}

/// What a credential or a session may do, written as its generation writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Grant {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
}

impl Release {
    pub fn generation(&self) -> Generation {
        if self.0 < semver::Version::new(0, 0, 26) { Generation::A } else { Generation::B }
    }

    /// At or after 0.0.`patch`; a nightly counts as older than the release it leads to.
    pub fn since(&self, patch: u64) -> bool {
        self.0 >= semver::Version::new(0, 0, patch)
    }

    /// Newer than the newest release whose behaviour is recorded.
    pub fn after_recordings(&self) -> bool {
        self.0 > semver::Version::new(0, 0, 33)
    }

    /// How many of the known migrations this version carries.
    pub fn level(&self) -> usize {
        if self.after_recordings() {
            return LEVEL_AFTER;
        }
        LEVELS.iter().rev().find(|(patch, _)| self.since(*patch)).map_or(LEVELS[0].1, |(_, level)| *level)
    }

    /// The release whose command line tool somebody installs too early.
    pub fn successor(&self) -> Self {
        let patch = match () {
            () if self.since(33) => 34,
            () if self.since(26) => 33,
            () => 26,
        };
        Self(semver::Version::new(0, 0, patch))
    }

    pub fn grant_column(&self) -> &'static str {
        match self.generation() {
            Generation::A => "role",
            Generation::B => "scopes",
        }
    }

    pub fn client_grant(&self) -> Grant {
        match self.generation() {
            Generation::A => Grant::role("client"),
            Generation::B => Grant::scopes(CLIENT_SCOPES),
        }
    }

    pub fn administrative_grant(&self) -> Grant {
        match self.generation() {
            Generation::A => Grant::role("owner"),
            Generation::B => Grant::scopes(&[CLIENT_SCOPES, ADMINISTRATIVE_SCOPES].concat()),
        }
    }

    /// The method a bearer session carries.
    pub fn bearer_method(&self) -> &'static str {
        match self.generation() {
            Generation::A => "bearer-session-token",
            Generation::B => "bearer-access-token",
        }
    }

    /// The address bound when `--host` is absent (changed in 0.0.28).
    pub fn default_host(&self) -> &'static str {
        if self.since(28) { "127.0.0.1" } else { "0.0.0.0" }
    }
}

impl FromStr for Release {
    type Err = semver::Error;

    fn from_str(text: &str) -> Result<Self, semver::Error> {
        semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).map(Self)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Grant {
    pub fn role(role: &str) -> Self {
        Self { role: Some(role.to_owned()), scopes: None }
    }

    pub fn scopes(scopes: &[&str]) -> Self {
        Self { role: None, scopes: Some(scopes.iter().map(|scope| (*scope).to_owned()).collect()) }
    }

    /// As it stands in the database's `role` or `scopes` column.
    pub fn column(&self) -> String {
        match (&self.role, &self.scopes) {
            (Some(role), _) => role.clone(),
            (None, Some(scopes)) => serde_json::json!(scopes).to_string(),
            (None, None) => String::new(),
        }
    }

    pub fn from_column(release: &Release, text: &str) -> Self {
        match release.generation() {
            Generation::A => Self::role(text),
            Generation::B => Self { role: None, scopes: serde_json::from_str(text).ok() },
        }
    }

    /// Owners may do everything; in generation B each scope stands for itself.
    pub fn allows(&self, scope: &str) -> bool {
        self.role.as_deref() == Some("owner")
            || self.scopes.as_ref().is_some_and(|scopes| scopes.iter().any(|granted| granted == scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Release {
        text.parse().expect("a version")
    }

    #[test]
    fn levels_are_those_of_the_contract() {
        for (version, level) in [
            ("0.0.20", 24),
            ("0.0.24", 30),
            ("0.0.27", 32),
            ("0.0.29", 34),
            ("0.0.33", 40),
            ("0.0.34-nightly.1", 41),
        ] {
            assert_eq!(release(version).level(), level, "{version}");
        }
    }

    #[test]
    fn an_administrative_grant_allows_what_a_client_grant_does_not() {
        for version in ["0.0.24", "0.0.26"] {
            assert!(release(version).administrative_grant().allows("access:write"), "{version}");
            assert!(!release(version).client_grant().allows("access:write"), "{version}");
        }
    }

    #[test]
    fn a_grant_survives_its_column() {
        for version in ["0.0.24", "0.0.26"] {
            let release = release(version);
            let grant = release.client_grant();
            assert_eq!(Grant::from_column(&release, &grant.column()), grant);
        }
    }
}
