//! Who reads a user's files and runs t3 on copies of them. Root does neither itself: whatever lies in a user's directory
//! is the user's own, links and all, and t3 runs as nobody but the owner of the data.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::drill::{Tried, Trying};
use super::reading::{Found, Reading};
use super::repair;
use super::restore::Present;
use super::snapshot::{self, Copied};
use super::verify::Defect;
use crate::outcome::{Failure, Reason};
use crate::t3::Instance;
use crate::t3::boxed::Boxing;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::stamp::Sizes;
use crate::t3::version::Version;

/// Whoever has the right to it.
pub trait Hands {
    /// The account that files are handed to; `None` where that is our own.
    fn account(&self) -> Option<(u32, u32)>;

    /// Copies the user's database.
    async fn copy(&self, instance: &Instance, order: Copying) -> Result<Copied, Failure>;

    /// Looks at the user's database: its level, and what was written to it since a copy with this fingerprint.
    async fn look(&self, instance: &Instance, taken: Fingerprint) -> Result<Present, Failure>;

    /// Makes the authentication tables of the user's database anew, where that is enough for this version.
    async fn repair(&self, instance: &Instance, version: Version) -> Result<(), Failure>;

    /// Has SQLite look into a copy of the user's database.
    async fn read(&self, order: Reading) -> Result<Result<Found, Defect>, Failure>;

    /// Starts t3 on a restored copy, logs in and loads the history.
    async fn try_out(&self, order: Trying) -> Result<Tried, Failure>;
}

/// A copy that is to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Copying {
    pub into: std::path::PathBuf,
    /// Bytes that are free there.
    pub free: u64,
    pub limit: Duration,
}

/// We, with the rights we have.
#[derive(Clone, Debug)]
pub struct Ourselves {
    pub boxing: Boxing,
}

impl Hands for Ourselves {
    fn account(&self) -> Option<(u32, u32)> {
        None
    }

    async fn copy(&self, instance: &Instance, order: Copying) -> Result<Copied, Failure> {
        let instance = instance.clone();
        blocking(move || order.carry_out(&instance)).await
    }

    async fn look(&self, instance: &Instance, taken: Fingerprint) -> Result<Present, Failure> {
        let database = instance.database();
        blocking(move || Present::of(&database, &taken)).await
    }

    async fn repair(&self, instance: &Instance, version: Version) -> Result<(), Failure> {
        let database = instance.database();
        blocking(move || repair::rebuild(&database, &version).map_err(Failure::from)).await
    }

    async fn read(&self, order: Reading) -> Result<Result<Found, Defect>, Failure> {
        blocking(move || order.carry_out()).await
    }

    async fn try_out(&self, order: Trying) -> Result<Tried, Failure> {
        let us = nix::unistd::geteuid().as_raw();
        if order.owner != us {
            let detail =
                format!("t3 runs only as the owner of the data, uid {}, and this is uid {us}", order.owner);
            return Err(Failure::new(Reason::WrongOwner, detail));
        }
        Ok(order.carry_out(&self.boxing).await)
    }
}

/// Work on files, where nothing else waits for it.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let work = tokio::task::spawn_blocking(work).await;
    work.unwrap_or_else(|error| {
        Err(Failure::new(Reason::Panicked, format!("at work on a database: {error}")))
    })
}

impl Copying {
    /// Blocks until the copy is on disk.
    pub fn carry_out(&self, instance: &Instance) -> Result<Copied, Failure> {
        let database = instance.database();
        super::owned(&database, instance.uid)?;
        self.has_room(&database)?;
        snapshot::copy(&database, &self.into, self.limit)
    }

    fn has_room(&self, database: &Path) -> Result<(), Failure> {
        let (room, free) = (2 * Sizes::of(database).total(), self.free);
        if free >= room {
            return Ok(());
        }
        let dir = self.into.parent().unwrap_or(&self.into).display();
        Err(Failure::new(
            Reason::NoSpace,
            format!(
                "{dir} has {free} bytes free, a snapshot needs {room}: twice the database; make room or move `[backup] dir`"
            ),
        ))
    }
}
