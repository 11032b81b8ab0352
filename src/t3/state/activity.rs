//! Whether an instance is at work: stopping it now would cut somebody off (CONTRACT §7).

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
    /// Rows that look like one of these and are left over from a server that was killed.
    pub left_over: u64,
}

/// A kind of work: the table, the rows that mean it, and the column that says when they last changed.
struct Work {
    table: &'static str,
    condition: &'static str,
    changed: &'static str,
}

// `projection_turns.state = 'pending'` is not among these: on 0.0.24 such a turn may stay pending for ever.
const TURNS: Work = Work {
    table: "projection_thread_sessions",
    condition: "(active_turn_id IS NOT NULL OR status IN ('starting', 'running'))",
    changed: "updated_at",
};
const APPROVALS: Work =
    Work { table: "projection_pending_approvals", condition: "status = 'pending'", changed: "created_at" };
const PROVIDERS: Work = Work {
    table: "provider_session_runtime",
    condition: "status IN ('starting', 'running')",
    changed: "last_seen_at",
};

impl Activity {
    pub fn is_busy(&self) -> bool {
        self.turns + self.approvals + self.providers > 0
    }

    pub fn of(connection: &Connection, server: &Server) -> rusqlite::Result<Self> {
        let (turns, old_turns) = TURNS.count(connection, server)?;
        let (approvals, old_approvals) = APPROVALS.count(connection, server)?;
        let (providers, old_providers) = PROVIDERS.count(connection, server)?;
        Ok(Self { turns, approvals, providers, left_over: old_turns + old_approvals + old_providers })
    }
}

impl Work {
    /// Rows of this server, and rows of servers before it: a crash leaves them as they were.
    fn count(&self, connection: &Connection, server: &Server) -> rusqlite::Result<(u64, u64)> {
        if !has_table(connection, self.table)? {
            return Ok((0, 0));
        }
        let since = match server {
            Server::Running { since, .. } => as_written(*since),
            // Sorts after, and before, every time.
            Server::Killed => "~".to_owned(),
            Server::Unknown => String::new(),
        };
        let Self { table, condition, changed } = self;
        let sql = format!(
            "SELECT count(*) FILTER (WHERE {changed} >= ?1), count(*) FILTER (WHERE {changed} < ?1)
             FROM {table} WHERE {condition}"
        );
        connection.query_row(&sql, [since], |row| Ok((count(row, 0)?, count(row, 1)?)))
    }
}
