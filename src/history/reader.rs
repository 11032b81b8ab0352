//! Reading the history, on a read-only connection of its own: a slow page never holds up the writer. One question at a
//! time, each with a deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::Mutex;
use tokio_rusqlite::rusqlite::types::Value;
use tokio_rusqlite::rusqlite::{self, Connection, InterruptHandle, OpenFlags, Row, params_from_iter};

use crate::outcome::{Ended, EventKind, Facts, Kind, Outcome, Run, StepResult};

use super::{Event, Recorded, Shared, Standing, store};

/// How long a question may take, waiting for the one before it included.
const DEADLINE: Duration = Duration::from_secs(3);

/// Rows on one page at most.
const PAGE: u32 = 500;

const RUN_COLUMNS: &str =
    "id, user, kind, \"trigger\", started, last, count, duration_us, slowest_us, trace_id, facts";

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
        self.ask(move |db| runs(db, &filter)).await
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
        self.ask(|db| {
            let sql = format!(
                "SELECT {RUN_COLUMNS}, max(last) FROM run WHERE outcome = 'failed' GROUP BY user, kind ORDER BY user, kind"
            );
            Ok(collect(db, &sql, Vec::new(), usize::MAX)?.rows)
        })
        .await
    }

    /// How every user's probes stand, and since when.
    pub async fn standings(&self) -> Result<Vec<Standing>, ReadError> {
        self.ask(standings).await
    }

    /// Since when this user's probes of this kind fail; `None` while they do not.
    pub async fn since_when_failing(&self, user: &str, kind: Kind) -> Result<Option<SystemTime>, ReadError> {
        let standings = self.standings().await?;
        Ok(standings
            .into_iter()
            .find(|standing| standing.user == user && standing.kind == kind)
            .filter(|standing| standing.definite == Some(Ended::Failed))
            .and_then(|standing| standing.since))
    }

    /// A page of events.
    pub async fn events(&self, filter: EventFilter) -> Result<Page<Event>, ReadError> {
        self.ask(move |db| events(db, &filter)).await
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

/// All standings; also how the writer learns what an earlier process knew.
pub(super) fn standings(db: &Connection) -> rusqlite::Result<Vec<Standing>> {
    let mut statement = db.prepare_cached(
        "SELECT user, kind, definite, since, skipped_since, last FROM standing ORDER BY user, kind",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Standing {
            user: row.get(0)?,
            kind: word(row, 1)?,
            definite: row.get::<_, Option<String>>(2)?.map(|word| parse(2, &word)).transpose()?,
            since: row.get::<_, Option<i64>>(3)?.map(time),
            skipped_since: row.get::<_, Option<i64>>(4)?.map(time),
            last: time(row.get(5)?),
        })
    })?;
    Ok(known(rows)?.0)
}

fn runs(db: &Connection, filter: &Filter) -> rusqlite::Result<Page<Recorded>> {
    let mut conditions = Conditions::default();
    conditions.add("user = ?", filter.user.clone());
    conditions.add("kind = ?", filter.kind.map(|kind| kind.as_str().to_owned()));
    conditions.add("outcome = ?", filter.outcome.map(|ended| ended.as_str().to_owned()));
    conditions.add("last >= ?", filter.from.map(store::millis));
    conditions.add("started < ?", filter.until.map(store::millis));
    conditions.add("trace_id = ?", filter.trace_id.clone());
    conditions.add("id < ?", filter.before);
    let limit = page_size(filter.limit);
    let sql =
        format!("SELECT {RUN_COLUMNS} FROM run {} ORDER BY id DESC LIMIT {}", conditions.sql(), limit + 1);
    collect(db, &sql, conditions.values, limit)
}

fn collect(db: &Connection, sql: &str, values: Vec<Value>, limit: usize) -> rusqlite::Result<Page<Recorded>> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut page = Page { rows: Vec::new(), next: None, unknown: 0 };
    let mut last_id = None;
    while let Some(row) = rows.next()? {
        if page.rows.len() + page.unknown == limit {
            page.next = last_id;
            break;
        }
        last_id = Some(row.get(0)?);
        match recorded(db, row) {
            Err(rusqlite::Error::FromSqlConversionFailure(..)) => page.unknown += 1,
            read => page.rows.push(read?),
        }
    }
    Ok(page)
}

fn recorded(db: &Connection, row: &Row<'_>) -> rusqlite::Result<Recorded> {
    let id: i64 = row.get(0)?;
    let facts: Facts = json(10, &row.get::<_, String>(10)?)?;
    Ok(Recorded {
        id,
        last: time(row.get(5)?),
        count: u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0),
        slowest: duration(row.get(8)?),
        run: Run {
            user: row.get(1)?,
            kind: word(row, 2)?,
            trigger: word(row, 3)?,
            started: time(row.get(4)?),
            duration: duration(row.get(7)?),
            steps: steps(db, id)?,
            facts,
            trace_id: row.get(9)?,
        },
    })
}

fn steps(db: &Connection, run: i64) -> rusqlite::Result<Vec<StepResult>> {
    let mut statement = db.prepare_cached(
        "SELECT step, outcome, reason, detail, duration_us FROM step WHERE run = ? ORDER BY position",
    )?;
    let rows = statement.query_map([run], |row| {
        let outcome = match word(row, 1)? {
            Ended::Ok => Outcome::Ok,
            Ended::Failed => Outcome::Failed(word(row, 2)?),
            Ended::Skipped => Outcome::Skipped(word(row, 2)?),
        };
        Ok(StepResult { step: word(row, 0)?, outcome, duration: duration(row.get(4)?), detail: row.get(3)? })
    })?;
    rows.collect()
}

fn events(db: &Connection, filter: &EventFilter) -> rusqlite::Result<Page<Event>> {
    let mut conditions = Conditions::default();
    conditions.add("user = ?", filter.user.clone());
    conditions.add("kind = ?", filter.kind.map(|kind| kind.as_str().to_owned()));
    conditions.add("at >= ?", filter.from.map(store::millis));
    conditions.add("at < ?", filter.until.map(store::millis));
    conditions.add("id < ?", filter.before);
    let limit = page_size(filter.limit);
    let mut statement = db.prepare_cached(&format!(
        "SELECT id, at, user, kind, subject, outcome, detail FROM event {} ORDER BY id DESC LIMIT {}",
        conditions.sql(),
        limit + 1
    ))?;
    let rows = statement.query_map(params_from_iter(conditions.values), |row| {
        let event = || {
            Ok(Event {
                at: time(row.get(1)?),
                user: row.get(2)?,
                kind: word(row, 3)?,
                subject: row.get(4)?,
                outcome: row.get(5)?,
                detail: json(6, &row.get::<_, String>(6)?)?,
            })
        };
        Ok((row.get::<_, i64>(0)?, event()))
    })?;
    let mut found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().map(|(id, _)| *id).filter(|_| more);
    let (rows, unknown) = known(found.into_iter().map(|(_, event)| event))?;
    Ok(Page { rows, next, unknown })
}

/// Separates what this version can read from the rows whose words it does not know, and counts those.
fn known<T>(rows: impl Iterator<Item = rusqlite::Result<T>>) -> rusqlite::Result<(Vec<T>, usize)> {
    let (mut read, mut unknown) = (Vec::new(), 0);
    for row in rows {
        match row {
            Err(rusqlite::Error::FromSqlConversionFailure(..)) => unknown += 1,
            row => read.push(row?),
        }
    }
    Ok((read, unknown))
}

#[derive(Default)]
struct Conditions {
    clauses: Vec<&'static str>,
    values: Vec<Value>,
}

impl Conditions {
    fn add<T: Into<Value>>(&mut self, clause: &'static str, value: Option<T>) {
        if let Some(value) = value {
            self.clauses.push(clause);
            self.values.push(value.into());
        }
    }

    fn sql(&self) -> String {
        if self.clauses.is_empty() { String::new() } else { format!("WHERE {}", self.clauses.join(" AND ")) }
    }
}

fn page_size(limit: u32) -> usize {
    let limit = if limit == 0 { PAGE } else { limit.min(PAGE) };
    limit as usize
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}

fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn word<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    parse(index, &row.get::<_, String>(index)?)
}

fn parse<T>(index: usize, word: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    word.parse().map_err(|error: T::Err| conversion(index, error))
}

fn json<T: serde::de::DeserializeOwned>(index: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| conversion(index, error))
}

fn conversion(index: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error))
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
