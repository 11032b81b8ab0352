//! What a restore would do and what it would cost, said before anything is done.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::{self, Connection};

use super::super::repair::{self, Refusal};
use super::super::{Hands, Manifest, Section, Snapshot};
use crate::outcome::{Failure, Reason};
use crate::t3::Instance;
use crate::t3::schema::SchemaLevel;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::{Level, count, has_table, reader};
use crate::t3::version::Version;

/// The database that a restore would replace. Whoever may read it says so: it is the user's, and can be made to say
/// anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Present {
    pub level: Level,
    pub fingerprint: Fingerprint,
    pub loss: Loss,
}

/// What is in the present database and not in the snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Loss {
    pub events: u64,
    pub messages: u64,
    /// When the first and the last of these events happened, as t3 wrote it.
    pub first: Option<String>,
    pub last: Option<String>,
}

/// What a restore would do.
#[derive(Debug)]
pub struct Plan {
    user: String,
    snapshot: String,
    taken: Manifest,
    age: Duration,
    verified: bool,
    present: Result<Present, Failure>,
    version: Option<Version>,
    auth_only: Result<SchemaLevel, Refusal>,
    stops: bool,
    starts: bool,
}

impl Plan {
    /// Looks only.
    pub async fn of(
        section: &Section,
        instance: &Instance,
        hands: &impl Hands,
        snapshot: &Snapshot,
        version: Option<&Version>,
        now: SystemTime,
    ) -> Result<Self, Failure> {
        let manifest = snapshot.manifest.clone().ok_or_else(|| {
            let detail =
                format!("{} has no manifest: nothing says what it is; choose another one", snapshot.name());
            Failure::new(Reason::Corrupt, detail)
        })?;
        let present = hands.look(instance, manifest.fingerprint.clone()).await;
        let auth_only = match &present {
            Ok(Present { level, .. }) => repair::applies(level, version),
            Err(_) => Err(Refusal::VersionUnknown),
        };
        Ok(Self {
            user: instance.name.clone(),
            snapshot: snapshot.name(),
            age: now.duration_since(manifest.taken_at).unwrap_or_default(),
            taken: manifest,
            verified: snapshot.is_verified(),
            present,
            version: version.cloned(),
            auth_only,
            stops: !section.stop_command.is_empty(),
            starts: !section.start_command.is_empty(),
        })
    }
}

impl Present {
    /// Blocks while the database is read.
    pub fn of(database: &Path, taken: &Fingerprint) -> Result<Self, Failure> {
        let found = reader::ask(database, |connection| {
            let Some(level) = Level::of(connection)? else { return Ok(None) };
            let (fingerprint, loss) = (Fingerprint::of(connection)?, newer(connection, taken.last_sequence)?);
            Ok(Some(Self { level, fingerprint, loss }))
        })?;
        found.ok_or_else(|| Failure::new(Reason::SchemaForeign, "the present database is none that t3 made"))
    }
}

fn newer(connection: &Connection, than: u64) -> rusqlite::Result<Loss> {
    if !has_table(connection, "orchestration_events")? {
        return Ok(Loss::default());
    }
    let sql = "SELECT count(*), count(*) FILTER (WHERE event_type = 'thread.message-sent'), min(occurred_at),
                   max(occurred_at)
               FROM orchestration_events WHERE sequence > ?1";
    connection.query_row(sql, [i64::try_from(than).unwrap_or(i64::MAX)], |row| {
        Ok(Loss { events: count(row, 0)?, messages: count(row, 1)?, first: row.get(2)?, last: row.get(3)? })
    })
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.first, &self.last) {
            (Some(first), Some(last)) => {
                let Self { events, messages, .. } = self;
                write!(
                    f,
                    "{messages} messages, {events} events written since the copy, from {first} to {last}"
                )
            }
            _ => f.write_str("nothing was written since the copy"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, snapshot, taken, .. } = self;
        if let (Ok(wanted), Ok(Present { level, .. })) = (&self.auth_only, &self.present) {
            writeln!(f, "First choice: t3-prober backup restore {user} --auth-only --yes")?;
            writeln!(
                f,
                "  makes the authentication tables anew at level {wanted} (the database is at {}); loses no message,",
                level.level
            )?;
            writeln!(f, "  everybody logs in anew, the instance goes on running")?;
            writeln!(f)?;
        }
        let taken_at = humantime::format_rfc3339_seconds(taken.taken_at);
        let age = humantime::format_duration(Duration::from_secs(self.age.as_secs()));
        writeln!(f, "Restore {user} from {snapshot}")?;
        writeln!(f, "  taken    {taken_at}, {age} ago, level {} ({})", taken.level.level, taken.level.name)?;
        writeln!(f, "  holds    {}", taken.fingerprint)?;
        writeln!(
            f,
            "  proven   {}",
            if self.verified { "verified" } else { "not yet; it is verified before anything else" }
        )?;
        match &self.present {
            Ok(Present { level, loss, fingerprint }) => {
                writeln!(f, "  now      level {} ({}), {fingerprint}", level.level, level.name)?;
                match (&loss.first, &loss.last) {
                    (Some(first), Some(last)) => writeln!(
                        f,
                        "  lost     {} messages, {} events, from {first} to {last}; put aside with the present state",
                        loss.messages, loss.events
                    )?,
                    _ => writeln!(f, "  lost     nothing: the snapshot holds every event")?,
                }
            }
            Err(failure) => writeln!(f, "  lost     cannot be told: {}", failure.detail)?,
        }
        if let Some(version) = &self.version
            && let Some(expected) = SchemaLevel::expected(version)
            && expected != taken.level.level
        {
            let what = if expected > taken.level.level {
                "migrates it forward to"
            } else {
                "cannot use it, it expects"
            };
            writeln!(f, "  note     the instance runs {version}, which {what} level {expected}")?;
        }
        let stop = if self.stops { "stop the instance" } else { "wait until you have stopped the instance" };
        let start = if self.starts { "start" } else { "wait until you have started it" };
        writeln!(
            f,
            "Steps: verify, copy beside, {stop}, put the present state aside, place the copy, {start}, log in;"
        )?;
        writeln!(f, "whatever fails, the former state is put back")
    }
}
