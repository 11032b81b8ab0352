//! The secrets of the front door: what the edge shows to be believed, and what marks the prober's requests.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use super::Section;
use crate::t3::door::Door;

/// Whoever reads them may come in as anybody. Their `Debug` shows nothing.
#[derive(Clone, Default)]
pub struct Keys {
    /// `[dispatch] secret_file`.
    pub edge: Option<Vec<u8>>,
    /// `[dispatch] probe_key_file`.
    pub probe: Option<Vec<u8>>,
}

impl Keys {
    pub fn read(section: &Section) -> anyhow::Result<Self> {
        Ok(Self {
            edge: section.secret_file.as_deref().map(read).transpose()?,
            probe: section.probe_key_file.as_deref().map(read).transpose()?,
        })
    }

    /// A key of this process's own where none is configured: enough where the prober and the dispatch are one process.
    pub fn with_a_probe_key(mut self) -> Self {
        self.probe.get_or_insert_with(|| {
            format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>()).into()
        });
        self
    }

    /// The way in for the prober: through the listener at this address, which must belong to root, to us, or to one of
    /// these uids.
    pub fn door(&self, address: SocketAddr, besides: &[u32]) -> anyhow::Result<Door> {
        let uids = [0, nix::unistd::geteuid().as_raw()].into_iter().chain(besides.iter().copied()).collect();
        let key =
            self.probe.as_deref().context("without a [dispatch] probe_key_file a probe would be a user")?;
        Door::new(address, uids, key, self.edge.as_deref()).context(
            "the probe's key or the edge's secret holds characters that no header may hold; write others",
        )
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let text = fs::read(path).with_context(|| format!("cannot read the secret in {}", path.display()))?;
    let secret = text.trim_ascii();
    anyhow::ensure!(
        secret.len() >= 16,
        "the secret in {} is shorter than 16 characters; write a longer one",
        path.display()
    );
    Ok(secret.to_vec())
}
