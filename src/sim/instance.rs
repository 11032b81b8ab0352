//! One running server: its base directory, its address, its database, and what it says about itself (CONTRACT §4, §5).

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::Millis;
use super::fault::{Fault, Faults};
use super::home::Home;
use super::mutation::{Mutation, Mutations};
use super::release::{Generation, Release};
use super::store::{Store, StoreError};
use super::timing::Delays;
use super::token::{self, Key};

/// A server, running or about to.
pub struct Instance {
    pub release: Release,
    pub home: Home,
    pub key: Key,
    pub faults: Faults,
    pub delays: Delays,
    /// Cancelled when the server is to stop.
    pub stopping: CancellationToken,
    /// Every connection and every WebSocket.
    pub tasks: TaskTracker,
    address: Address,
    environment_id: String,
    mutations: Mutations,
    store: Mutex<Option<Store>>,
    sockets: Mutex<HashMap<String, usize>>,
    logins: Mutex<u64>,
    started: Instant,
    quiet: bool,
}

/// Where a server listens, as it was asked to.
#[derive(Clone)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// The build and the place of a server.
pub struct Setup {
    pub release: Release,
    pub home: Home,
    pub address: Address,
    pub mutations: Mutations,
    pub delays: Delays,
    /// No log on stdout: a fleet's would mix a thousand servers.
    pub quiet: bool,
}

impl Address {
    fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "127.0.0.1" | "localhost" | "::1")
    }
}

impl Instance {
    /// Makes the files a server has; the database is opened at its first use.
    pub fn new(setup: Setup) -> io::Result<Self> {
        setup.home.prepare_server(&setup.release)?;
        Ok(Self {
            key: setup.home.key()?,
            environment_id: setup.home.environment_id()?,
            faults: Faults::new(setup.home.faults(), setup.mutations.clone()),
            release: setup.release,
            home: setup.home,
            delays: setup.delays,
            address: setup.address,
            mutations: setup.mutations,
            quiet: setup.quiet,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            store: Mutex::default(),
            sockets: Mutex::default(),
            logins: Mutex::default(),
            started: Instant::now(),
        })
    }

    /// Opens the database now; the names of the migrations that ran.
    pub fn open(&self) -> Result<Vec<String>, StoreError> {
        let (store, ran) = Store::open(&self.home, &self.release, &self.mutations, &self.faults)?;
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(store);
        Ok(ran)
    }

    /// Closes it: the last one out removes the write-ahead log.
    pub fn close(&self) {
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// One call to the database; like the real server's, it blocks everything else while it runs.
    pub fn with_store<T>(
        &self,
        call: impl FnOnce(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut guard = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let store = match guard.as_mut() {
            Some(store) => store,
            None => {
                let (store, _) = Store::open(&self.home, &self.release, &self.mutations, &self.faults)?;
                guard.insert(store)
            }
        };
        call(store)
    }

    pub fn cookie_name(&self) -> String {
        let release = &self.release;
        if self.address.is_loopback() && release.since(29) {
            let path = self.home.userdata();
            return format!("t3_session_{}_{}", self.address.port, token::path_hash(&path.to_string_lossy()));
        }
        if release.after_recordings() {
            return format!("t3_session_{}", self.environment_id.replace('-', "").get(..12).unwrap_or("0"));
        }
        "t3_session".to_owned()
    }

    /// The names under which a session token is taken, the announced one first.
    pub fn cookie_names(&self) -> Vec<String> {
        let plain =
            (self.release.after_recordings() && !self.address.is_loopback()).then(|| "t3_session".to_owned());
        [self.cookie_name()].into_iter().chain(plain).collect()
    }

    /// The `auth` part of the session document.
    pub fn auth(&self) -> Value {
        let methods: &[&str] = match self.release.generation() {
            Generation::A => &["browser-session-cookie", "bearer-session-token"],
            Generation::B => &["browser-session-cookie", "bearer-access-token", "dpop-access-token"],
        };
        json!({
            "policy": if self.address.is_loopback() { "loopback-browser" } else { "remote-reachable" },
            "bootstrapMethods": ["one-time-token"],
            "sessionMethods": methods,
            "sessionCookieName": self.cookie_name(),
        })
    }

    /// The descriptor of `/.well-known/t3/environment`.
    pub fn descriptor(&self) -> Value {
        let mut capabilities = json!({ "repositoryIdentity": true });
        if self.release.since(33) {
            for name in
                ["connectionProbe", "threadSettlement", "threadSnooze", "threadPinning", "threadPinReorder"]
            {
                capabilities[name] = json!(true);
            }
            capabilities["threadTitleRegeneration"] = json!(true);
        }
        let version = self
            .faults
            .strikes(Fault::WrongVersion)
            .map_or_else(|| self.release.to_string(), |on| on.0.unwrap_or_else(|| "0.0.99".to_owned()));
        let foreign = self.faults.on(Fault::WrongEnvironment);
        json!({
            "environmentId": if foreign { token::uuid() } else { self.environment_id.clone() },
            "label": "stand-in",
            "platform": { "os": "linux", "arch": "x64" },
            "serverVersion": version,
            "capabilities": capabilities,
        })
    }

    /// Whether this build lets nobody in at this moment, good credential or not.
    pub fn refuses_logins(&self) -> bool {
        if let Some(on) = self.faults.mutation(Mutation::FailsLater) {
            return self.started.elapsed() >= Duration::from_secs(on.number(90));
        }
        if let Some(on) = self.faults.mutation(Mutation::FailsForOneUser) {
            let part = on.0.unwrap_or_else(|| "/".to_owned());
            return self.with_store(|store| store.has_project_in(&part)).unwrap_or(true);
        }
        false
    }

    /// Counts a login with a good credential; false where this build is tired of them.
    pub fn count_login(&self) -> bool {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        *logins += 1;
        self.faults.mutation(Mutation::FailsOnThirdLogin).is_none_or(|on| *logins < on.number(3))
    }

    /// Counts an open WebSocket of a session, until the guard is dropped.
    pub fn socket_opened(self: &std::sync::Arc<Self>, session: &str) -> OpenSocket {
        *self
            .sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(session.to_owned())
            .or_default() += 1;
        OpenSocket { instance: self.clone(), session: session.to_owned() }
    }

    pub fn is_connected(&self, session: &str) -> bool {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).contains_key(session)
    }

    /// A line of the log, as t3 writes it to stdout.
    pub fn log(&self, level: &str, message: &str) {
        if !self.quiet {
            say(&format!("[{}] {level} (#300): {message}\n", Millis::now().time_of_day()));
        }
    }
}

/// An open WebSocket in the books.
pub struct OpenSocket {
    instance: std::sync::Arc<Instance>,
    session: String,
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        let mut sockets = self.instance.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sockets.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                sockets.remove(&self.session);
            }
        }
    }
}

/// Writes to stdout; a reader that has gone is no reason to stop serving.
pub fn say(text: &str) {
    use std::io::Write;
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
