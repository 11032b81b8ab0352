//! The host's listening sockets, read once a second for all users together: who owns a port, and since when.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::t3::owner::{self, Listener};

const FRESH: Duration = Duration::from_secs(1);

/// A snapshot of the kernel's table that is at most a second old.
#[derive(Default)]
pub struct Listeners {
    snapshot: Mutex<Option<(Instant, HashMap<u16, Listener>)>>,
}

impl Listeners {
    /// The listener on a port; `None` where there is none, or where the table cannot be read.
    pub async fn on(&self, port: u16) -> Option<Listener> {
        let mut snapshot = self.snapshot.lock().await;
        if let Some((read, table)) = &*snapshot
            && read.elapsed() < FRESH
        {
            return table.get(&port).copied();
        }
        let listeners = tokio::task::spawn_blocking(owner::listeners).await.ok()?.unwrap_or_default();
        let table: HashMap<u16, Listener> =
            listeners.into_iter().map(|listener| (listener.port, listener)).collect();
        let found = table.get(&port).copied();
        *snapshot = Some((Instant::now(), table));
        found
    }

    /// The listener on a port at this very moment.
    pub async fn now_on(&self, port: u16) -> Option<Listener> {
        *self.snapshot.lock().await = None;
        self.on(port).await
    }
}
