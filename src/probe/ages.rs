//! How old the listeners of silent instances are. Where the whole machine stalls all of them are asked about at once, and
//! looking it up is work: it is done for all together, at most once a second.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::t3::owner;

const FRESH: Duration = Duration::from_secs(1);

/// The last look at all processes.
#[derive(Default)]
pub struct Ages {
    looked: Mutex<Option<(Instant, HashMap<u32, Duration>)>>,
}

impl Ages {
    /// When the process behind a listening socket started; `None` where its files may not be looked at.
    pub async fn started(&self, inode: u32) -> Option<Instant> {
        let mut looked = self.looked.lock().await;
        if looked.as_ref().is_none_or(|(at, _)| at.elapsed() >= FRESH) {
            let ages = tokio::task::spawn_blocking(owner::ages).await.ok()?;
            *looked = Some((Instant::now(), ages));
        }
        let (at, ages) = looked.as_ref()?;
        at.checked_sub(*ages.get(&inode)?)
    }
}
