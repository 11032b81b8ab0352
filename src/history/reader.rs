//! Reading the history, on a read-only connection of its own: a slow page never holds up the writer. One question at a
//! time, each with a deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::Mutex;
use tokio_rusqlite::rusqlite::{self, Connection, InterruptHandle, OpenFlags};

use crate::outcome::{Ended, EventKind, Kind};

use super::{Event, Recorded, Shared, Standing, query, store};

/// How long a question may take, waiting for the one before it included.
const DEADLINE: Duration = Duration::from_secs(3);

/// Which runs are wanted; what is `None` is not asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub user: Option<String>,
    pub kind: Option<Kind>,
    pub outcome: Option<Ended>,
    /// Runs that were still under way at this time, or later.
    pub from: Option<SystemTime>,
    /// Runs that began before this time.
    pub until: Option<SystemTime>,
    pub trace_id: Option<String>,
    /// Runs before this id: the `next` of the page before.
    pub before: Option<i64>,
    /// How many, at most 500; 0 means that.
    pub limit: u32,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    pub user: Option<String>,
    pub kind: Option<EventKind>,
    pub from: Option<SystemTime>,
    pub until: Option<SystemTime>,
    pub before: Option<i64>,
    pub limit: u32,
}

/// Some rows, newest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page<T> {
    pub rows: Vec<T>,
    /// What to ask for as `before` to see the next; `None` on the last page.
    pub next: Option<i64>,
    /// Rows left out because another version wrote words that this one does not know.
    pub unknown: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading the history took longer than {}; ask for less", humantime::format_duration(DEADLINE))]
    Late,
    #[error("the history cannot be read; the status page and the log say why")]
    Unavailable(#[source] rusqlite::Error),
    #[error("the history was written by a newer t3-prober (schema {0})")]
    Newer(i64),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unavailable(error)
    }
}

/// Answers questions about what happened.
pub struct Reader {
    shared: Arc<Shared>,
    open: Mutex<Option<Open>>,
}

struct Open {
    generation: u64,
    connection: tokio_rusqlite::Connection,
    interrupt: InterruptHandle,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: Mutex::new(None) }
    }

    /// A page of runs.
    pub async fn runs(&self, filter: Filter) -> Result<Page<Recorded>, ReadError> {
        self.ask(move |db| query::runs(db, &filter)).await
    }

    /// One run with its steps.
    pub async fn get(&self, id: i64) -> Result<Option<Recorded>, ReadError> {
        let filter = Filter { before: id.checked_add(1), limit: 1, ..Filter::default() };
        let page = self.runs(filter).await?;
        Ok(page.rows.into_iter().find(|row| row.id == id))
    }

    /// The run whose requests carried this trace id. Of a row that stands for many runs only the first has one.
    pub async fn by_trace(&self, trace_id: &str) -> Result<Option<Recorded>, ReadError> {
        let filter = Filter { trace_id: Some(trace_id.to_owned()), limit: 1, ..Filter::default() };
        Ok(self.runs(filter).await?.rows.pop())
    }

    /// The last failure of each user and kind, however long ago.
    pub async fn last_failures(&self) -> Result<Vec<Recorded>, ReadError> {
        self.ask(query::last_failures).await
    }

    /// How every user's probes stand, and since when.
    pub async fn standings(&self) -> Result<Vec<Standing>, ReadError> {
        self.ask(query::standings).await
    }

    /// A page of events.
    pub async fn events(&self, filter: EventFilter) -> Result<Page<Event>, ReadError> {
        self.ask(move |db| query::events(db, &filter)).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let started = tokio::time::Instant::now();
        let late = |_| ReadError::Late;
        let mut open = tokio::time::timeout(DEADLINE, self.open.lock()).await.map_err(late)?;
        let generation = self.shared.generation.load(Ordering::Relaxed);
        let current = match open.take().filter(|open| open.generation == generation) {
            Some(open) => open,
            None => self.connect(generation).await?,
        };
        match tokio::time::timeout_at(started + DEADLINE, current.connection.call(move |db| question(db)))
            .await
        {
            Ok(Ok(answer)) => {
                *open = Some(current);
                Ok(answer)
            }
            // The call goes on running, and would block the next one on this connection.
            Err(_) => {
                current.interrupt.interrupt();
                Err(ReadError::Late)
            }
            Ok(Err(tokio_rusqlite::Error::Error(error))) => {
                if is_damage(&error) {
                    self.shared.damage.notify_one();
                }
                Err(error.into())
            }
            Ok(Err(_)) => Err(rusqlite::Error::InvalidQuery.into()),
        }
    }

    async fn connect(&self, generation: u64) -> Result<Open, ReadError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = tokio_rusqlite::Connection::open_with_flags(&self.shared.path, flags).await?;
        let opened = connection.call(|db| {
            db.busy_timeout(Duration::from_secs(1))?;
            db.execute_batch("PRAGMA cache_size = -512")?;
            Ok::<_, rusqlite::Error>((store::level(db)?, db.get_interrupt_handle()))
        });
        match opened.await {
            Ok((level, _)) if level > store::known_level() => Err(ReadError::Newer(level)),
            Ok((_, interrupt)) => Ok(Open { generation, connection, interrupt }),
            Err(tokio_rusqlite::Error::Error(error)) => {
                if is_damage(&error) {
                    self.shared.damage.notify_one();
                }
                Err(error.into())
            }
            Err(_) => Err(rusqlite::Error::InvalidQuery.into()),
        }
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Section};

    #[tokio::test]
    async fn a_question_that_takes_too_long_is_given_up_and_the_next_is_answered_at_once() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let history = History::open(&directory.path().join("history.sqlite"), &Section::default()).await;
        let endless = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
        let answer = history.reader().ask(|db| db.query_row(endless, [], |row| row.get::<_, i64>(0))).await;
        assert!(matches!(answer, Err(ReadError::Late)), "{answer:?}");
        let started = std::time::Instant::now();
        history.reader().standings().await.expect("read");
        assert!(started.elapsed() < DEADLINE / 2, "the next answer took {:?}", started.elapsed());
        history.close(Duration::from_secs(10)).await.expect("closed");
    }
}
