//! A fingerprint of the precious history, so that a loss is seen as a loss: how many rows each precious table has, how
//! far the events go and how far each projector has come (CONTRACT §7).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::{self, Connection};

use super::{count, has_table};

/// What is only ever added to. A row less is a loss, whatever else happened.
const APPEND_ONLY: &[&str] = &["orchestration_events", "orchestration_command_receipts"];
/// What is made from the events. New events may take rows away (a thread that is set back loses messages), so a row
/// less is a loss only where there is no new event.
const DERIVED: &[&str] = &[
    "checkpoint_diff_blobs",
    "projection_projects",
    "projection_threads",
    "projection_thread_messages",
    "projection_thread_activities",
    "projection_thread_proposed_plans",
    "projection_thread_sessions",
    "projection_turns",
    "projection_pending_approvals",
    "projection_state",
    "provider_session_runtime",
];

/// Comparable across every level: a table that a level does not have is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Rows of each precious table.
    pub rows: BTreeMap<String, u64>,
    /// The sequence number of the newest event; 0 without one.
    pub last_sequence: u64,
    /// The last event that each projector has taken in.
    pub projectors: BTreeMap<String, u64>,
}

/// What a person asks after.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events, {} messages", self.events(), self.messages())
    }
}

impl Fingerprint {
    pub fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let mut rows = BTreeMap::new();
        for table in APPEND_ONLY.iter().chain(DERIVED) {
            if has_table(connection, table)? {
                let sql = format!("SELECT count(*) FROM {table}");
                rows.insert((*table).to_owned(), connection.query_row(&sql, [], |row| count(row, 0))?);
            }
        }
        let last_sequence = if rows.contains_key("orchestration_events") {
            let sql = "SELECT coalesce(max(sequence), 0) FROM orchestration_events";
            connection.query_row(sql, [], |row| count(row, 0))?
        } else {
            0
        };
        let mut projectors = BTreeMap::new();
        if rows.contains_key("projection_state") {
            let mut statement =
                connection.prepare("SELECT projector, last_applied_sequence FROM projection_state")?;
            let positions = statement.query_map([], |row| Ok((row.get(0)?, count(row, 1)?)))?;
            projectors = positions.collect::<rusqlite::Result<_>>()?;
        }
        Ok(Self { rows, last_sequence, projectors })
    }

    /// Rows of one table; 0 where there is no such table.
    pub fn count(&self, table: &str) -> u64 {
        self.rows.get(table).copied().unwrap_or(0)
    }

    pub fn events(&self) -> u64 {
        self.count("orchestration_events")
    }

    pub fn messages(&self) -> u64 {
        self.count("projection_thread_messages")
    }

    /// What there was earlier and is not there now, in words; empty where nothing was lost.
    pub fn lost_since(&self, earlier: &Self) -> Vec<String> {
        let mut lost = Vec::new();
        if self.last_sequence < earlier.last_sequence {
            lost.push(format!(
                "the newest event is {}, it was {}",
                self.last_sequence, earlier.last_sequence
            ));
        }
        let has_new_events = self.last_sequence > earlier.last_sequence;
        for (table, before) in &earlier.rows {
            let now = self.rows.get(table);
            let may_shrink = has_new_events && now.is_some() && !APPEND_ONLY.contains(&table.as_str());
            match now {
                None => lost.push(format!("the table {table} is gone with {before} rows")),
                Some(now) if now < before && !may_shrink => {
                    lost.push(format!("{table} has {now} rows, it had {before}"));
                }
                Some(_) => {}
            }
        }
        for (projector, before) in &earlier.projectors {
            match self.projectors.get(projector) {
                Some(now) if now < before => {
                    lost.push(format!("{projector} is at event {now}, it was at {before}"));
                }
                _ => {}
            }
        }
        lost
    }
}
