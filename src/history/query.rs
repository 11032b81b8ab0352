//! The questions as SQL, and rows as the types they were written from. A word that this version does not know costs its
//! own row and no other.

use std::time::{Duration, SystemTime};

use tokio_rusqlite::rusqlite::types::Value;
use tokio_rusqlite::rusqlite::{self, Connection, Row, params_from_iter};

use crate::outcome::{Ended, Facts, Outcome, Run, StepResult};

use super::{Event, EventFilter, Filter, Page, Recorded, Standing, store};

/// Rows on one page at most.
const PAGE: u32 = 500;

const RUN_COLUMNS: &str =
    "id, user, kind, \"trigger\", started, last, count, duration_us, slowest_us, trace_id, facts";

/// All standings; also how the writer learns what an earlier process knew.
pub fn standings(db: &Connection) -> rusqlite::Result<Vec<Standing>> {
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

/// A page of runs, newest first.
pub fn runs(db: &Connection, filter: &Filter) -> rusqlite::Result<Page<Recorded>> {
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

/// The newest failure of each user and kind.
pub fn last_failures(db: &Connection) -> rusqlite::Result<Vec<Recorded>> {
    // With max(), SQLite takes the other columns from the row that has it.
    let sql = format!(
        "SELECT {RUN_COLUMNS}, max(last) FROM run WHERE outcome = 'failed' GROUP BY user, kind ORDER BY user, kind"
    );
    Ok(collect(db, &sql, Vec::new(), usize::MAX)?.rows)
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

/// A page of events, newest first.
pub fn events(db: &Connection, filter: &EventFilter) -> rusqlite::Result<Page<Event>> {
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
