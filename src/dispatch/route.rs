//! One user's way to their instance: the address, whose process it must be, idle connections to it, and what has been
//! learned of it. A route lives as long as its entry in the inventory stays the same.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::identity::{Directory, Domains};
use super::instance::Idle;
use super::pairing::Pairing;
use crate::inventory::{Inventory, Target, UserName};
use crate::metrics::{DispatchUser, Metrics};
use crate::outcome::Asker;

/// A listener that has been seen for so long answers what it accepts.
const SETTLED: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Route {
    pub target: Target,
    pub address: SocketAddr,
    /// The uid a listener must have before anything is sent to it.
    pub uid: u32,
    pub metrics: DispatchUser,
    /// By asker: no user is ever handed a session that the prober will end.
    pairings: [Pairing; 2],
    /// Idle connections, one list per worker: a connection stays on the runtime that opened it.
    pub idle: Box<[Mutex<Vec<Idle>>]>,
    session: RwLock<Option<Arc<str>>>,
    /// What listened on the port when it was looked at last; nothing before the first look.
    listener: Mutex<Option<Listener>>,
    /// The identity that came first by its local part.
    claimed: Mutex<Option<String>>,
    gone: AtomicBool,
}

/// A start of the instance.
#[derive(Clone, Copy, Debug)]
struct Listener {
    /// Of its socket; `None` where nothing listened.
    inode: Option<u32>,
    seen: Instant,
    /// It took the place of another one, or of none, and has answered nothing yet.
    is_new: bool,
}

impl Route {
    pub fn new(target: Target, metrics: DispatchUser, workers: usize) -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, target.port.get()).into(),
            uid: target.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
            metrics,
            pairings: [Pairing::for_users(), Pairing::for_the_prober()],
            idle: (0..workers).map(|_| Mutex::default()).collect(),
            session: RwLock::default(),
            listener: Mutex::default(),
            claimed: Mutex::default(),
            gone: AtomicBool::new(false),
            target,
        }
    }

    pub fn user(&self) -> &str {
        self.target.user.as_str()
    }

    pub fn pairing(&self, asker: Asker) -> &Pairing {
        let [users, prober] = &self.pairings;
        match asker {
            Asker::User => users,
            Asker::Probe => prober,
        }
    }

    /// The name of the instance's session cookie, as it last said.
    pub fn session(&self) -> Option<Arc<str>> {
        self.session.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn learn_session(&self, name: &str) {
        if self.session().as_deref() != Some(name) {
            *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(name.into());
        }
    }

    /// Takes in what listens on the port now.
    pub fn saw_listener(&self, inode: Option<u32>, now: Instant) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if listener.is_none_or(|known| known.inode != inode) {
            *listener = Some(Listener { inode, seen: now, is_new: listener.is_some() });
        }
    }

    /// Whether the instance may still be starting: what it accepts then it never answers (CONTRACT §9).
    pub fn is_unsettled(&self, now: Instant) -> bool {
        let listener = *self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        listener.is_some_and(|known| known.inode.is_some() && now - known.seen < SETTLED)
    }

    /// The same, where the start was seen and no answer yet.
    pub fn is_starting(&self, now: Instant) -> bool {
        let listener = *self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_unsettled(now) && listener.is_some_and(|known| known.is_new)
    }

    pub fn has_started(&self) {
        if let Some(known) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            known.is_new = false;
        }
    }

    /// Whether this identity may come by its local part: only the first one does, or two people would share a t3.
    pub fn is_claimed_by(&self, identity: &str) -> bool {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.get_or_insert_with(|| identity.to_owned()) == identity
    }

    /// Whether the user left the inventory or their entry changed: nothing may go on over this route.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// Everybody's routes.
pub type Table = Directory<Arc<Route>>;

/// The table for an inventory; routes whose entry stays the same stay the same.
pub fn table(
    inventory: &Inventory,
    before: &Table,
    domains: &Domains,
    metrics: &Metrics,
    workers: usize,
) -> Table {
    let kept = |target: &Target| before.entries().find(|route| route.target == *target).cloned();
    let routes = inventory.targets().iter().map(|target| {
        let route = kept(target).unwrap_or_else(|| {
            let of_user = metrics.dispatch.of_user(target.user.as_str());
            Arc::new(Route::new(target.clone(), of_user, workers))
        });
        (target.user.clone(), route)
    });
    let routes: HashMap<UserName, Arc<Route>> = routes.collect();
    let entries = inventory.identities().filter_map(|(identity, target)| {
        routes.get(&target.user).map(|route| (identity.to_owned(), Arc::clone(route)))
    });
    let table = Directory::new(entries, domains.clone());
    for route in before.entries() {
        if !table.entries().any(|stays| Arc::ptr_eq(stays, route)) {
            route.gone.store(true, Ordering::Relaxed);
        }
    }
    table
}
