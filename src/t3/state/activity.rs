//! Whether an instance is at work: stopping it now would cut somebody off (CONTRACT §7).

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::{self, Connection};

use super::server::Server;
use super::{as_written, count, has_table};

/// What the database says is under way. Terminals and background work between turns are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Threads whose session is starting, running or in a turn.
    pub turns: u64,
    /// Requests that wait for the user's approval.
    pub approvals: u64,
    /// Provider processes that are starting or running.
    pub providers: u64,
    /// Rows that look like one of these and are left over, from a server that was killed or a session that has ended.
    pub left_over: u64,
}

/// A kind of work: the table, the rows that mean it, the column that says when they last changed, and for how long they
/// are believed without a change.
struct Work {
    table: &'static str,
    condition: &'static str,
    changed: &'static str,
    believed: Option<Duration>,
}

// `projection_turns.state = 'pending'` is not among these: on 0.0.24 such a turn may stay pending for ever.
const TURNS: Work = Work {
    table: "projection_thread_sessions",
    condition: "(active_turn_id IS NOT NULL OR status IN ('starting', 'running'))",
    changed: "updated_at",
    believed: None,
};
const APPROVALS: Work = Work {
    table: "projection_pending_approvals",
    condition: "status = 'pending'",
    changed: "created_at",
    believed: None,
};
// t3 ends a session that has not been seen for half an hour, and a turn that takes longer is a row of its own.
const PROVIDERS: Work = Work {
    table: "provider_session_runtime",
    condition: "status IN ('starting', 'running')",
    changed: "last_seen_at",
    believed: Some(Duration::from_secs(30 * 60)),
};

impl Activity {
    pub fn is_busy(&self) -> bool {
        self.turns + self.approvals + self.providers > 0
    }

    pub fn of(connection: &Connection, server: &Server, now: SystemTime) -> rusqlite::Result<Self> {
        let (turns, old_turns) = TURNS.count(connection, server, now)?;
        let (approvals, old_approvals) = APPROVALS.count(connection, server, now)?;
        let (providers, old_providers) = PROVIDERS.count(connection, server, now)?;
        Ok(Self { turns, approvals, providers, left_over: old_turns + old_approvals + old_providers })
    }
}

impl Work {
    /// Rows of this server, and rows of servers before it: a crash leaves them as they were.
    fn count(
        &self,
        connection: &Connection,
        server: &Server,
        now: SystemTime,
    ) -> rusqlite::Result<(u64, u64)> {
        if !has_table(connection, self.table)? {
            return Ok((0, 0));
        }
        let since = match server {
            Server::Running { since, .. } => as_written(*since),
            // Sorts after, and before, every time.
            Server::Killed => "~".to_owned(),
            Server::Unknown => String::new(),
        };
        let believed = self.believed.map(|believed| as_written(now - believed)).unwrap_or_default();
        let since = since.max(believed);
        let Self { table, condition, changed, .. } = self;
        let sql = format!(
            "SELECT count(*) FILTER (WHERE {changed} >= ?1), count(*) FILTER (WHERE {changed} < ?1)
             FROM {table} WHERE {condition}"
        );
        connection.query_row(&sql, [since], |row| Ok((count(row, 0)?, count(row, 1)?)))
    }
}
