//! The authentication tables, as each generation's own statements see them: `role` columns in A, `scopes` in B.
//! Statements are prepared per call and nothing waits for a lock, so the outage of CONTRACT §10 happens by itself.

use std::io;
use std::time::Duration;

use tokio_rusqlite::rusqlite::{self, Connection, OptionalExtension, Row};

use super::clock::Millis;
use super::fault::{Fault, Faults};
use super::home::Home;
use super::mutation::{Mutation, Mutations};
use super::release::{Grant, Release};
use super::{schema, token};

/// Subjects of credentials and sessions.
pub const PAIRED: &str = "one-time-token";
pub const ISSUED: &str = "cli-issued-session";

/// An open database.
pub struct Store {
    pub(super) connection: Connection,
    pub(super) release: Release,
    faults: Faults,
}

/// A database call that failed, with SQLite's own words.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}", message(.0))]
    Sqlite(#[from] rusqlite::Error),
    #[error("database is locked")]
    Locked,
}

/// A pairing credential.
pub struct Link {
    pub id: String,
    pub credential: String,
    pub grant: Grant,
    pub subject: String,
    pub label: Option<String>,
    pub created_at: String,
    pub expires_at: String,
}

/// A session.
#[derive(Clone)]
pub struct Session {
    pub id: String,
    pub subject: String,
    pub grant: Grant,
    pub method: String,
    pub label: Option<String>,
    pub ip_address: Option<String>,
    pub user_agent: Option<String>,
    pub device_type: String,
    pub issued_at: String,
    pub expires_at: String,
    pub last_connected_at: Option<String>,
    pub revoked: bool,
}

impl Store {
    /// Opens the database as every t3 process does: made where absent, migrated to this release's level.
    pub fn open(
        home: &Home,
        release: &Release,
        mutations: &Mutations,
        faults: &Faults,
    ) -> Result<(Self, Vec<String>), StoreError> {
        let mut connection = Connection::open(home.database())?;
        let patience = if release.after_recordings() { Duration::from_secs(5) } else { Duration::ZERO };
        connection.busy_timeout(patience)?;
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        // Nothing here must survive a power cut, and a fleet makes a thousand databases at once.
        connection.pragma_update(None, "synchronous", "off")?;
        let ran = schema::migrate(&mut connection, release, mutations)?;
        // A fleet also keeps a thousand of them open.
        connection.pragma_update(None, "cache_size", -32)?;
        connection.execute_batch("PRAGMA shrink_memory")?;
        Ok((Self { connection, release: release.clone(), faults: faults.clone() }, ran))
    }

    pub fn create_link(&self, link: &Link) -> Result<(), StoreError> {
        self.writable()?;
        let sql = format!(
            "INSERT INTO auth_pairing_links (id, credential, method, {}, subject, label, created_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            self.release.grant_column()
        );
        let grant = link.grant.column();
        let values = (
            &link.id,
            &link.credential,
            PAIRED,
            grant,
            &link.subject,
            &link.label,
            &link.created_at,
            &link.expires_at,
        );
        self.connection.execute(&sql, values)?;
        Ok(())
    }

    /// Takes a credential if it is there, live and unused. It writes first: a lock shows before anything is used up.
    pub fn consume(&self, credential: &str) -> Result<Option<Link>, StoreError> {
        self.writable()?;
        let sql = format!(
            "UPDATE auth_pairing_links SET consumed_at = ?2
             WHERE credential = ?1 AND consumed_at IS NULL AND revoked_at IS NULL AND expires_at > ?2
             RETURNING {}",
            self.link_columns()
        );
        let now = Millis::now().iso();
        Ok(self.connection.query_row(&sql, (credential, now), |row| self.link(row)).optional()?)
    }

    /// Live credentials that somebody asked for, newest first; the one of the start-up is not among them.
    pub fn links(&self) -> Result<Vec<Link>, StoreError> {
        let sql = format!(
            "SELECT {} FROM auth_pairing_links
             WHERE consumed_at IS NULL AND revoked_at IS NULL AND expires_at > ?1 AND subject = ?2
             ORDER BY created_at DESC",
            self.link_columns()
        );
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map((Millis::now().iso(), PAIRED), |row| self.link(row))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether there was an active credential of that id.
    pub fn revoke_link(&self, id: &str) -> Result<bool, StoreError> {
        self.writable()?;
        let sql = "UPDATE auth_pairing_links SET revoked_at = ?2
                   WHERE id = ?1 AND revoked_at IS NULL AND consumed_at IS NULL AND expires_at > ?2";
        Ok(self.connection.execute(sql, (id, Millis::now().iso()))? > 0)
    }

    pub fn create_session(&self, session: &Session) -> Result<(), StoreError> {
        self.writable()?;
        let sql = format!(
            "INSERT INTO auth_sessions (session_id, subject, {}, method, client_label, client_ip_address,
                 client_user_agent, client_device_type, issued_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            self.release.grant_column()
        );
        let values = (
            &session.id,
            &session.subject,
            session.grant.column(),
            &session.method,
            &session.label,
            &session.ip_address,
            &session.user_agent,
            &session.device_type,
            &session.issued_at,
            &session.expires_at,
        );
        self.connection.execute(&sql, values)?;
        Ok(())
    }

    pub fn session(&self, id: &str) -> Result<Option<Session>, StoreError> {
        let sql = format!("SELECT {} FROM auth_sessions WHERE session_id = ?1", self.session_columns());
        Ok(self.connection.query_row(&sql, [id], |row| self.read_session(row)).optional()?)
    }

    /// Live sessions: administrative ones first, then the newest.
    pub fn sessions(&self) -> Result<Vec<Session>, StoreError> {
        let sql = format!(
            "SELECT {} FROM auth_sessions WHERE revoked_at IS NULL AND expires_at > ?1 ORDER BY issued_at DESC",
            self.session_columns()
        );
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map([Millis::now().iso()], |row| self.read_session(row))?;
        let mut sessions = rows.collect::<Result<Vec<_>, _>>()?;
        sessions.sort_by_key(|session| !session.grant.allows("access:read"));
        Ok(sessions)
    }

    /// Whether there was an active session of that id.
    pub fn revoke_session(&self, id: &str) -> Result<bool, StoreError> {
        self.writable()?;
        let sql = "UPDATE auth_sessions SET revoked_at = ?2
                   WHERE session_id = ?1 AND revoked_at IS NULL AND expires_at > ?2";
        Ok(self.connection.execute(sql, (id, Millis::now().iso()))? > 0)
    }

    /// Notes that a WebSocket was opened with the session.
    pub fn touch_session(&self, id: &str) -> Result<(), StoreError> {
        self.writable()?;
        let sql = "UPDATE auth_sessions SET last_connected_at = ?2 WHERE session_id = ?1";
        self.connection.execute(sql, (id, Millis::now().iso()))?;
        Ok(())
    }

    pub(super) fn mutation(&self, mutation: Mutation) -> bool {
        self.faults.mutation(mutation).is_some()
    }

    /// Refuses where the fault says that somebody else holds the write lock.
    pub(super) fn writable(&self) -> Result<(), StoreError> {
        if self.faults.on(Fault::Locked) { Err(StoreError::Locked) } else { Ok(()) }
    }

    fn link_columns(&self) -> String {
        format!("id, credential, {}, subject, label, created_at, expires_at", self.release.grant_column())
    }

    fn link(&self, row: &Row<'_>) -> rusqlite::Result<Link> {
        Ok(Link {
            id: row.get(0)?,
            credential: row.get(1)?,
            grant: Grant::from_column(&self.release, &row.get::<_, String>(2)?),
            subject: row.get(3)?,
            label: row.get(4)?,
            created_at: row.get(5)?,
            expires_at: row.get(6)?,
        })
    }

    fn session_columns(&self) -> String {
        format!(
            "session_id, subject, {}, method, client_label, client_ip_address, client_user_agent,
             client_device_type, issued_at, expires_at, last_connected_at, revoked_at IS NOT NULL",
            self.release.grant_column()
        )
    }

    fn read_session(&self, row: &Row<'_>) -> rusqlite::Result<Session> {
        Ok(Session {
            id: row.get(0)?,
            subject: row.get(1)?,
            grant: Grant::from_column(&self.release, &row.get::<_, String>(2)?),
            method: row.get(3)?,
            label: row.get(4)?,
            ip_address: row.get(5)?,
            user_agent: row.get(6)?,
            device_type: row.get(7)?,
            issued_at: row.get(8)?,
            expires_at: row.get(9)?,
            last_connected_at: row.get(10)?,
            revoked: row.get(11)?,
        })
    }
}

impl Link {
    pub fn new(grant: Grant, subject: &str, label: Option<String>, ttl: Duration) -> Self {
        let now = Millis::now();
        Self {
            id: token::uuid(),
            credential: token::credential(),
            grant,
            subject: subject.to_owned(),
            label,
            created_at: now.iso(),
            expires_at: now.plus(ttl).iso(),
        }
    }
}

impl StoreError {
    /// SQLite's message: what a client matches.
    pub fn message(&self) -> String {
        self.to_string()
    }

    /// Whether the statement never got as far as running.
    pub fn while_preparing(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqlInputError { .. }) => true,
            Self::Sqlite(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase),
            Self::Locked => false,
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}

fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}
