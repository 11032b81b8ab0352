//! Who is served: each user, their identity at the SSO edge, their port and their base directory.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An OS account name, checked when it was read: `[a-z_][a-z0-9_.-]{0,31}`, never `root`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct UserName(String);

/// A TCP port an instance listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(NonZeroU16);

/// One user's instance, as the dispatch table names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub user: UserName,
    /// The identity the SSO edge sends for this user (`X-authentik-username`).
    pub identity: String,
    pub port: Port,
    /// t3's `--base-dir`: `userdata/state.sqlite` lies below it.
    pub base_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is not an OS user name; expected 1 to 32 of a-z, 0-9, '_', '-', '.', beginning with a letter or '_', and not root"
)]
pub struct NotAUserName(String);

impl UserName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for UserName {
    type Err = NotAUserName;

    fn from_str(name: &str) -> Result<Self, NotAUserName> {
        let mut letters = name.bytes();
        let first_fits = letters.next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let rest_fits =
            letters.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte));
        if first_fits && rest_fits && name.len() <= 32 && name != "root" {
            Ok(Self(name.to_owned()))
        } else {
            Err(NotAUserName(name.to_owned()))
        }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Port {
    pub fn new(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self)
    }

    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
