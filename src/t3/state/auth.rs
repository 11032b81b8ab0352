//! The two authentication tables: who is logged in, and how far the tables have grown. t3 never deletes a row of them
//! (CONTRACT §4), so their growth is watched.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::{self, Connection};

use super::super::schema::SchemaLevel;
use super::{as_written, count, has_column, has_table};
use crate::outcome::SessionKind;

/// From this migration on a grant is a list of scopes; before, a role (CONTRACT §7).
const SCOPES_SINCE: SchemaLevel = SchemaLevel(31);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthTables {
    /// Live sessions by who made them, in the order of `SessionKind::ALL`; every kind is there.
    pub sessions: Vec<(SessionKind, u64)>,
    /// Pairing links that could still be used.
    pub links: u64,
    /// Rows in all, dead ones included.
    pub session_rows: u64,
    pub link_rows: u64,
    /// What makes the tables unusable at this level, where something does.
    pub flaw: Option<String>,
}

impl AuthTables {
    pub fn of(connection: &Connection, level: SchemaLevel, now: SystemTime) -> rusqlite::Result<Self> {
        if let Some(flaw) = flaw(connection, level)? {
            return Ok(Self { sessions: by_kind(&[]), flaw: Some(flaw), ..Self::default() });
        }
        let now = as_written(now);
        let label =
            if has_column(connection, "auth_sessions", "client_label")? { "client_label" } else { "NULL" };
        let sql = format!(
            "SELECT {label}, count(*) FROM auth_sessions WHERE revoked_at IS NULL AND expires_at > ?1 GROUP BY 1"
        );
        let mut statement = connection.prepare(&sql)?;
        let labels = statement.query_map([&now], |row| Ok((row.get(0)?, count(row, 1)?)))?;
        let labels: Vec<(Option<String>, u64)> = labels.collect::<rusqlite::Result<_>>()?;
        let rows = |sql: &str| connection.query_row(sql, [], |row| count(row, 0));
        let links = "SELECT count(*) FROM auth_pairing_links
                     WHERE revoked_at IS NULL AND consumed_at IS NULL AND expires_at > ?1";
        Ok(Self {
            sessions: by_kind(&labels),
            links: connection.query_row(links, [&now], |row| count(row, 0))?,
            session_rows: rows("SELECT count(*) FROM auth_sessions")?,
            link_rows: rows("SELECT count(*) FROM auth_pairing_links")?,
            flaw: None,
        })
    }
}

/// The tables are there and have the shape that their level gives them.
fn flaw(connection: &Connection, level: SchemaLevel) -> rusqlite::Result<Option<String>> {
    let grant = if level < SCOPES_SINCE { "role" } else { "scopes" };
    for table in ["auth_sessions", "auth_pairing_links"] {
        if !has_table(connection, table)? {
            return Ok(Some(format!("there is no table {table}")));
        }
        for column in [grant, "expires_at", "revoked_at"] {
            if !has_column(connection, table, column)? {
                return Ok(Some(format!("{table} has no column {column}, which level {level} gives it")));
            }
        }
    }
    Ok(None)
}

fn by_kind(labels: &[(Option<String>, u64)]) -> Vec<(SessionKind, u64)> {
    let count = |kind: SessionKind| {
        let of_kind = labels.iter().filter(|(label, _)| SessionKind::of(label.as_deref()) == kind);
        (kind, of_kind.map(|(_, count)| count).sum())
    };
    SessionKind::ALL.iter().copied().map(count).collect()
}

impl SessionKind {
    /// A pairing label becomes the label of the session that is made from it (CONTRACT §2.2).
    fn of(label: Option<&str>) -> Self {
        match label {
            Some(super::super::keeper::LABEL) => Self::Keeper,
            Some("t3-prober front") => Self::Front,
            Some(label) if label == "t3-prober" || label.starts_with("t3-prober ") => Self::Probe,
            _ => Self::Other,
        }
    }
}
