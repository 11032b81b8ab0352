//! What happened, for as long as it is of use: every outcome of every probe, and the other events, in one SQLite file
//! with one writer. Recording never waits and never fails a probe: what cannot be written is kept for a while, then
//! counted as lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::outcome::{self, Ended, EventKind, Kind, Run};

mod aside;
mod fold;
mod query;
mod reader;
mod store;
mod writer;

pub use reader::{EventFilter, Filter, Page, ReadError, Reader};

/// Outcomes that wait for the writer; a thousand users' pulses for half a minute.
const QUEUE: usize = 8192;

/// The housekeeping's own interval: less could not be kept exactly.
const SHORTEST: Duration = Duration::from_secs(3600);

/// How long `open` waits for the first attempt on the file, which reads all of it.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);

/// `[history]`: how much is kept of what happened.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// How long outcomes and events are kept. Default `30d`. The last failure of each user and kind of probe is kept for
    /// ever. A change needs a restart.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// How large the file may become, in MiB. Default 256. What is oldest goes first, however young. A change needs a
    /// restart.
    pub max_mib: u32,
}

impl Section {
    /// What no single key's type shows, as key and sentence.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let keep = (self.keep < SHORTEST).then(|| {
            (
                "keep",
                format!(
                    "'{}' is too short to look back on; write 1h or more",
                    humantime::format_duration(self.keep)
                ),
            )
        });
        let max_mib = (self.max_mib == 0)
            .then(|| ("max_mib", "0 leaves no room for anything; use 1 or more".to_owned()));
        keep.into_iter().chain(max_mib).collect()
    }
}

impl Default for Section {
    fn default() -> Self {
        Self { keep: Duration::from_secs(30 * 24 * 3600), max_mib: 256 }
    }
}

/// A row of the history: a probe, or so many in a row that ended alike.
///
/// JSON: `id`, `last`, `count`, `slowest_seconds` and all fields of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recorded {
    /// Rises with time, is never given twice, and fits a double.
    pub id: i64,
    /// When the last of these probes began; `run.started` is the first.
    #[serde(with = "outcome::utc")]
    pub last: SystemTime,
    /// How many probes this row stands for.
    pub count: u64,
    /// The longest of them.
    #[serde(rename = "slowest_seconds", with = "outcome::seconds")]
    pub slowest: Duration,
    /// The first of them.
    #[serde(flatten)]
    pub run: Run,
}

/// Since when a user's probes of one kind end as they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub user: String,
    pub kind: Kind,
    /// `ok` or `failed`, whatever the reasons were; skips in between change nothing. `None` until there was either.
    pub definite: Option<Ended>,
    /// When `definite` came to hold.
    pub since: Option<SystemTime>,
    /// When the skips that are still going on began.
    pub skipped_since: Option<SystemTime>,
    /// When the last probe began; behind by up to a minute for a pulse.
    pub last: SystemTime,
}

/// Something that happened and is no probe. JSON: the same names, `at` in RFC 3339.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    #[serde(with = "outcome::utc")]
    pub at: SystemTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    pub kind: EventKind,
    /// What it is about: a version, an endpoint.
    pub subject: String,
    /// How it ended, in the word of the vocabulary that belongs to the kind.
    pub outcome: String,
    /// What else there is to say; never a secret.
    pub detail: serde_json::Value,
}

/// What the writer has done since the program started, as plain numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows and events written; a row that grew counts each time.
    pub written: u64,
    /// Outcomes and events that were never written.
    pub lost: u64,
    /// Attempts to open or write that failed.
    pub errors: u64,
    /// Damaged files put aside.
    pub put_aside: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// Why nothing can be written at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub since: SystemTime,
    /// For people.
    pub detail: String,
}

/// Outcomes that could not be written before the deadline of a shut-down.
#[derive(Debug, thiserror::Error)]
#[error("writing the last of the history took longer than {}; what was not written is lost", humantime::format_duration(*.0))]
pub struct Unflushed(Duration);

/// The handle through which `serve` records and reads.
pub struct History {
    queue: mpsc::Sender<Entry>,
    shared: Arc<Shared>,
    reader: Reader,
    stop: CancellationToken,
    tasks: TaskTracker,
}

enum Entry {
    Run(Box<Run>),
    Event(Event),
}

/// What handle, writer and reader know of each other.
struct Shared {
    path: PathBuf,
    written: AtomicU64,
    lost: AtomicU64,
    errors: AtomicU64,
    put_aside: AtomicU64,
    bytes: AtomicU64,
    /// Rises with every file that is opened: a reader of an older one opens anew.
    generation: AtomicU64,
    /// A reader met damage.
    damage: Notify,
    trouble: watch::Sender<Option<Trouble>>,
}

impl History {
    /// Begins recording to `path`. Never fails: a file that cannot be used is `trouble`, and is tried again.
    pub async fn open(path: &Path, section: &Section) -> Self {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            put_aside: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            damage: Notify::new(),
            trouble: watch::Sender::new(None),
        });
        let (queue, entries) = mpsc::channel(QUEUE);
        let (tried, first_attempt) = oneshot::channel();
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let writer = writer::Writer::new(Arc::clone(&shared), store::Bounds::from(section));
        tasks.spawn(writer.run(entries, stop.clone(), tried));
        tasks.close();
        let _ = tokio::time::timeout(FIRST_ATTEMPT, first_attempt).await;
        Self { queue, reader: Reader::new(Arc::clone(&shared)), shared, stop, tasks }
    }

    /// Hands a run to the writer. Never waits; a run that finds the queue full is counted as lost.
    pub fn record(&self, run: Run) {
        self.enqueue(Entry::Run(Box::new(run)));
    }

    /// Hands an event to the writer, likewise.
    pub fn record_event(&self, event: Event) {
        self.enqueue(Entry::Event(event));
    }

    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            written: read(&self.shared.written),
            lost: read(&self.shared.lost),
            errors: read(&self.shared.errors),
            put_aside: read(&self.shared.put_aside),
            bytes: read(&self.shared.bytes),
        }
    }

    /// Why nothing can be written at the moment; `None` when all is well.
    pub fn trouble(&self) -> Option<Trouble> {
        self.shared.trouble.borrow().clone()
    }

    /// Writes what is waiting and closes the file, within `deadline`.
    pub async fn close(&self, deadline: Duration) -> Result<(), Unflushed> {
        self.stop.cancel();
        tokio::time::timeout(deadline, self.tasks.wait()).await.map_err(|_| Unflushed(deadline))
    }

    fn enqueue(&self, entry: Entry) {
        if self.queue.try_send(entry).is_err() {
            self.shared.lose(1);
        }
    }
}

impl Shared {
    /// Counts losses; the log hears of the first of a series only, and of the sum when writing goes on.
    fn lose(&self, count: u64) {
        if count > 0 && self.lost.fetch_add(count, Ordering::Relaxed) == 0 {
            tracing::warn!("an outcome could not be kept for the history; from now on they are only counted");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
