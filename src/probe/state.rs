//! The state tier: every minute the database itself, read-only. It sees a database that was migrated under a running
//! server before anybody tries to log in, and history that was there a minute ago and is gone.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::Instrument;

use super::Steps;
use crate::outcome::{Facts, Failure, Kind, NotDone, Reason, Run, StateFacts, Step, Trigger};
use crate::t3::Instance;
use crate::t3::access::Access;
use crate::t3::schema::SchemaLevel;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::server::Server;
use crate::t3::state::stamp::Stamp;
use crate::t3::state::{self, Level, State};
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;

/// A loss is reported for this long; then what is left is what the next loss is measured against.
const LOSS_IS_NEWS_FOR: Duration = Duration::from_secs(3600);

/// How long the helper may take to look.
const LIMIT: Duration = Duration::from_secs(10);

/// What earlier rounds of this user learned.
#[derive(Debug, Default)]
pub struct Memory {
    database: Database,
    history: History,
}

/// The last reading, and what the files looked like then.
#[derive(Debug, Default)]
struct Database(Option<Reading>);

#[derive(Debug)]
struct Reading {
    /// Absent where somebody else read it.
    stamp: Option<Stamp>,
    server: Server,
    at: SystemTime,
    state: State,
}

/// The most that was ever seen of the history.
#[derive(Debug, Default)]
struct History {
    seen: Option<Fingerprint>,
    shrank: Option<Instant>,
}

impl Memory {
    /// Whoever put a snapshot back was told what that costs: from here on what it held is the measure.
    pub fn restored(&mut self) {
        self.history = History::default();
    }
}

/// Looks at the database of one instance: ourselves, or by the helper as its owner, in a round over everybody.
pub async fn run(
    instance: &Instance,
    access: &Access,
    round: Duration,
    memory: &mut Memory,
    version: Option<&Version>,
    trigger: Trigger,
) -> Run {
    let span = tracing::info_span!("state", user = instance.name);
    let trace = TraceContext::of(&span);
    let mut steps = Steps::begin(Kind::State, trigger, instance, &[Step::Database]);
    let mut facts = Facts::default();
    let look = async {
        let state = memory.database.look(instance, access, round).await?;
        facts = facts_of(state, version);
        Ok::<_, NotDone>(judge(&instance.name, state, version, &mut memory.history)?)
    };
    steps.take(Step::Database, look).instrument(span).await;
    steps.facts = facts;
    steps.end(&trace)
}

impl Database {
    async fn look(
        &mut self,
        instance: &Instance,
        access: &Access,
        round: Duration,
    ) -> Result<&State, NotDone> {
        match access {
            Access::Own(_) if access.may_read(instance) => Ok(self.current(&instance.database()).await?),
            // The helper tells no file from another; what it found is taken as it is.
            Access::Own(_) | Access::Helper(..) => {
                let state = access.inspect_in_round(instance, round, LIMIT).await?.state?;
                let reading = Reading { state, stamp: None, server: Server::Unknown, at: SystemTime::now() };
                Ok(&self.0.insert(reading).state)
            }
        }
    }

    /// The database as it is; read again only where something about it changed.
    async fn current(&mut self, database: &Path) -> Result<&State, Failure> {
        let (stamp, server, now) = (Stamp::of(database), Server::of(database), SystemTime::now());
        // What changes twice within one tick of the file system's clock would look unchanged.
        let unchanged = |reading: &Reading| {
            reading.stamp.as_ref() == Some(&stamp) && reading.server == server && stamp.is_settled(reading.at)
        };
        let reading = match self.0.take().filter(unchanged) {
            Some(reading) => reading,
            None => Reading { state: state::read(database, now).await?, stamp: Some(stamp), server, at: now },
        };
        Ok(&self.0.insert(reading).state)
    }
}

fn facts_of(state: &State, version: Option<&Version>) -> Facts {
    let State { level, auth, activity, fingerprint, sizes } = state;
    let facts = StateFacts {
        level: level.level.0,
        level_name: level.name.clone(),
        expected_level: version.and_then(SchemaLevel::expected).map(|level| level.0),
        busy: activity.is_busy(),
        turns: activity.turns,
        approvals: activity.approvals,
        providers: activity.providers,
        sessions: auth.sessions.clone(),
        links: auth.links,
        session_rows: auth.session_rows,
        link_rows: auth.link_rows,
        main_bytes: sizes.main,
        wal_bytes: sizes.wal,
        events: fingerprint.events(),
        messages: fingerprint.messages(),
        last_sequence: fingerprint.last_sequence,
    };
    Facts { state: Some(Box::new(facts)), ..Facts::default() }
}

/// The gravest first: history that is gone, a schema that does not fit, tables that cannot be used.
fn judge(user: &str, state: &State, version: Option<&Version>, history: &mut History) -> Result<(), Failure> {
    if let Some(lost) = history.compare(&state.fingerprint, Instant::now()) {
        let detail = format!(
            "history is gone: {}; `t3-prober backup list` shows what can be restored",
            lost.join("; ")
        );
        return Err(Failure::new(Reason::HistoryShrank, detail));
    }
    if let Some(failure) = schema_failure(user, &state.level, version) {
        return Err(failure);
    }
    match &state.auth.flaw {
        Some(flaw) => Err(Failure::new(Reason::AuthStore, format!("nobody can log in: {flaw}"))),
        None => Ok(()),
    }
}

impl History {
    /// What was lost, for as long as it is news.
    fn compare(&mut self, found: &Fingerprint, now: Instant) -> Option<Vec<String>> {
        let lost = self.seen.as_ref().map(|seen| found.lost_since(seen)).unwrap_or_default();
        let since = *self.shrank.get_or_insert(now);
        if lost.is_empty() || now.duration_since(since) >= LOSS_IS_NEWS_FOR {
            *self = Self { seen: Some(found.clone()), shrank: None };
            return None;
        }
        Some(lost)
    }
}

/// Why a database at this level does not fit the running version, and the way back; `None` where it does, or where
/// nobody can know.
pub fn schema_failure(user: &str, found: &Level, version: Option<&Version>) -> Option<Failure> {
    let Level { level, name } = found;
    let expected = version.and_then(|version| Some((version, SchemaLevel::expected(version)?)));
    let foreign = || {
        Some(Failure::new(
            Reason::SchemaForeign,
            format!("the database is at level {level} under the name {name}, which no known t3 uses"),
        ))
    };
    match expected {
        _ if !found.is_known() && *level <= SchemaLevel::NEWEST => foreign(),
        // A version newer than this program may well bring a level newer than this program.
        None if version.is_some() && *level > SchemaLevel::NEWEST => None,
        Some((version, expected)) if *level > expected => {
            let way_back = match level.only_authentication_above(expected) {
                Ok(()) => {
                    format!("`t3-prober backup restore {user} --auth-only` repairs it and loses no history")
                }
                _ => format!(
                    "restart the instance with a t3 of level {level}, or restore a snapshot of level {expected}"
                ),
            };
            Some(Failure::new(
                Reason::SchemaAhead,
                format!(
                    "the database is at level {level} ({name}), the running {version} expects {expected}: another t3 has migrated it; {way_back}"
                ),
            ))
        }
        None if !found.is_known() => foreign(),
        Some((version, expected)) if *level < expected => Some(Failure::new(
            Reason::SchemaBehind,
            format!(
                "the database is at level {level} ({name}), the running {version} expects {expected}: it has not been migrated"
            ),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
