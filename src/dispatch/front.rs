//! What all connections of the dispatch share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::Section;
use super::pairing::Login;
use super::route::Table;
use super::token::Tokens;
use super::trust::{Secret, Trust};
use crate::metrics::Metrics;
use crate::outcome::{Endpoint, Reason, Step};
use crate::spool::Event;

/// A user logged in, or could not.
#[derive(Clone, Copy, Debug)]
pub enum LoginNews<'a> {
    Done { user: &'a str, endpoint: Endpoint, duration: Duration },
    Failed { user: &'a str, step: Step, reason: Reason },
}

impl LoginNews<'_> {
    /// The same, for whoever keeps it.
    pub fn event(self, at: SystemTime) -> Event {
        match self {
            Self::Done { user, endpoint, duration } => {
                Event::Login { user: user.to_owned(), endpoint, duration, at }
            }
            Self::Failed { user, step, reason } => {
                Event::LoginFailed { user: user.to_owned(), step, reason, at }
            }
        }
    }
}

/// Who is told of logins: they are the same evidence as the probe's handshakes.
pub type OnLogin = Box<dyn Fn(LoginNews<'_>) + Send + Sync>;

pub struct Front {
    pub section: Section,
    pub trust: Trust,
    pub tokens: Option<Tokens>,
    pub probe_key: Option<Secret>,
    pub login: Arc<dyn Login>,
    pub metrics: Arc<Metrics>,
    pub on_login: OnLogin,
    pub connections: AtomicUsize,
    table: RwLock<Arc<Table>>,
    draining: AtomicBool,
}

impl Front {
    pub fn new(
        section: Section,
        trust: Trust,
        tokens: Option<Tokens>,
        probe_key: Option<Secret>,
        login: Arc<dyn Login>,
        metrics: Arc<Metrics>,
        on_login: OnLogin,
    ) -> Self {
        Self {
            section,
            trust,
            tokens,
            probe_key,
            login,
            metrics,
            on_login,
            connections: AtomicUsize::new(0),
            table: RwLock::default(),
            draining: AtomicBool::new(false),
        }
    }

    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_table(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// Whether the program is stopping: every answer from now on is the last of its connection.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
