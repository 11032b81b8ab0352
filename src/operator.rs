//! The operator's listener: who may come in, and by which door.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

/// `[operator]`: where pages, metrics and commands are served, and who may use what changes something.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The TCP address. Default `127.0.0.1:9780`. A change needs a restart.
    pub listen: SocketAddr,
    /// A unix socket (0660) on which every caller is trusted. No default; absent, there is none. A change needs a
    /// restart.
    pub socket: Option<PathBuf>,
    /// A file with the bearer token that opens everything, readable by nobody else. No default; absent, no token is
    /// accepted.
    pub token_file: Option<PathBuf>,
    /// Accounts whose connections over loopback are trusted, besides root and our own. Default none.
    pub trusted_uids: Vec<u32>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9780)),
            socket: None,
            token_file: None,
            trusted_uids: Vec::new(),
        }
    }
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        [("socket", &self.socket), ("token_file", &self.token_file)]
            .into_iter()
            .filter_map(|(key, path)| {
                let path = path.as_ref().filter(|path| path.is_relative())?;
                Some((key, format!("'{}' is not an absolute path; begin it with /", path.display())))
            })
            .collect()
    }
}
