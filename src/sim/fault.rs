//! Faults: what can be broken in a running stand-in and mended again, by a file beside the database that server and
//! command line tool read at the moment it matters. A mutation is a fault that a build carries in itself.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use clap::ValueEnum;

use super::mutation::{Mutation, Mutations};

/// What can be broken. `--value` is a number of times unless the line says otherwise; without it, until switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// Connections are accepted and requests never answered
    Hang,
    /// Connections are accepted and closed at once
    Drop,
    /// Connections are answered with bytes that are not HTTP
    NotHttp,
    /// Every answer takes longer by --value milliseconds (default 500)
    Slow,
    /// Every request is answered 500 with an empty body
    #[value(name = "status-500")]
    Status500,
    /// Every request is answered 503 with an empty body
    #[value(name = "status-503")]
    Status503,
    /// Every API call is answered 200 with the HTML of the app
    HtmlOnApi,
    /// Every request is redirected to /login
    Redirect,
    /// Answers to API calls end in the middle of the body
    CloseMidBody,
    /// Answers to API calls are 100 MB long
    HugeBody,
    /// The session call is answered with something that is not the session document
    BadJson,
    /// The descriptor names --value (default 0.0.99) as the running version
    WrongVersion,
    /// The descriptor names another environment: a server of another base directory
    WrongEnvironment,
    /// The descriptor is answered with the HTML of the app
    #[value(name = "descriptor-html")]
    DescriptorHtml,
    /// The exchange endpoint does not exist
    #[value(name = "exchange-404")]
    Exchange404,
    /// The exchange is where the other generation has it, and nowhere else
    ExchangeMoved,
    /// The exchange is answered 500
    #[value(name = "exchange-500")]
    Exchange500,
    /// The exchange is never answered
    ExchangeHang,
    /// The exchange refuses every credential, good ones too
    ExchangeRefuses,
    /// The exchange takes every credential, bogus ones too
    ExchangeAcceptsAll,
    /// The exchange sets no cookie
    NoCookie,
    /// The exchange sets a cookie of another name than the server announces
    CookieRenamed,
    /// The cookie lacks HttpOnly
    CookieWithoutHttpOnly,
    /// The session call says false to every cookie
    SessionFalse,
    /// The WebSocket ticket call is answered 500
    #[value(name = "ticket-500")]
    Ticket500,
    /// The upgrade is answered 200 with the HTML of the app
    #[value(name = "socket-200")]
    Socket200,
    /// The upgrade is refused with 403
    #[value(name = "socket-403")]
    Socket403,
    /// The WebSocket opens and never answers
    SocketSilent,
    /// The WebSocket opens and closes at once
    SocketCloses,
    /// Calls over the WebSocket are answered with an error; pings are answered
    RpcError,
    /// Calls over the WebSocket are never answered; pings are
    RpcSilent,
    /// Revoking a session over HTTP is answered 500
    RevokeFails,
    /// Administrative sessions are refused
    KeeperRefused,
    /// Minting over HTTP is answered 500
    #[value(name = "mint-500")]
    Mint500,
    /// Minting over HTTP is answered 200 with a credential that does not exist
    MintForeign,
    /// The history cannot be loaded: the snapshot is answered 500
    HistoryUnloadable,
    /// Commands never end
    CliHang,
    /// Commands take longer by --value milliseconds (default 2000)
    CliSlow,
    /// Commands print something that is not JSON and exit 0
    CliGarbage,
    /// Commands print an error on stdout and exit 1
    CliFails,
    /// Minting by command prints a credential that is not in the database
    CliMintForeign,
    /// Commands migrate the database as the release after this one would
    CliMigrates,
    /// Revoking by command fails
    CliRevokeFails,
    /// Adding a project by command is refused
    CliProjectFails,
    /// Every write finds the database locked
    Locked,
    /// The authentication tables are away
    AuthTables,
    /// The database carries a migration that no known t3 has
    ForeignMigration,
}

/// The faults of one base directory, as far as they are known without reading the file again.
#[derive(Clone)]
pub struct Faults(Arc<Inner>);

struct Inner {
    path: PathBuf,
    mutations: Mutations,
    read: Mutex<(Stamp, Switches)>,
}

/// Name to value, as in the file.
pub type Switches = BTreeMap<String, Option<String>>;

/// Changes whenever the file does: it is replaced, never written into.
type Stamp = Option<(u64, i64, i64, u64)>;

/// A fault or mutation that is on, with its value where one was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct On(pub Option<String>);

impl On {
    /// The value as a number.
    pub fn number(&self, default: u64) -> u64 {
        self.0.as_deref().and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    /// The value as milliseconds.
    pub fn millis(&self, default: u64) -> Duration {
        Duration::from_millis(self.number(default))
    }
}

impl Fault {
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether the value is something else than a number of times.
    fn takes_a_parameter(self) -> bool {
        matches!(self, Self::Slow | Self::CliSlow | Self::WrongVersion)
    }
}

impl Faults {
    pub fn new(path: PathBuf, mutations: Mutations) -> Self {
        Self(Arc::new(Inner { path, mutations, read: Mutex::default() }))
    }

    /// Whether a fault is on; one that was switched on for a number of times is spent by asking.
    pub fn strikes(&self, fault: Fault) -> Option<On> {
        if self.0.mutations.carries(fault) {
            return Some(On::default());
        }
        let name = fault.name();
        let value = self.switches().get(&name)?.clone();
        if !fault.takes_a_parameter()
            && let Some(left) = value.as_deref().and_then(|text| text.parse::<u64>().ok())
        {
            self.spend(&name, left);
        }
        Some(On(value))
    }

    pub fn on(&self, fault: Fault) -> bool {
        self.strikes(fault).is_some()
    }

    pub fn mutation(&self, mutation: Mutation) -> Option<On> {
        self.0.mutations.value(mutation)
    }

    fn spend(&self, name: &str, left: u64) {
        let mut switches = read(&self.0.path);
        if left <= 1 {
            switches.remove(name);
        } else {
            switches.insert(name.to_owned(), Some((left - 1).to_string()));
        }
        if let Err(error) = write(&self.0.path, &switches) {
            eprintln!("sim: the fault {name} could not be counted down: {error}");
        }
    }

    fn switches(&self) -> Switches {
        let mut known = self.0.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.0.path);
        if known.0 != stamp {
            *known = (stamp, stamp.map(|_| read(&self.0.path)).unwrap_or_default());
        }
        known.1.clone()
    }
}

/// What is switched on; an absent file is nothing.
pub fn read(path: &Path) -> Switches {
    fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Replaces the file, so that nobody reads half of it.
pub fn write(path: &Path, switches: &Switches) -> io::Result<()> {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&fresh, serde_json::to_vec(switches)?)?;
    fs::rename(&fresh, path)
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults() -> (tempfile::TempDir, Faults) {
        let folder = tempfile::tempdir().expect("a directory");
        let faults = Faults::new(folder.path().join("sim-faults.json"), Mutations::default());
        (folder, faults)
    }

    fn switch(faults: &Faults, fault: Fault, value: Option<&str>) {
        let switches = Switches::from([(fault.name(), value.map(str::to_owned))]);
        write(&faults.0.path, &switches).expect("the file is written");
    }

    #[test]
    fn a_fault_is_seen_as_soon_as_the_file_says_so() {
        let (_folder, faults) = faults();
        assert!(!faults.on(Fault::Hang));
        switch(&faults, Fault::Hang, None);
        assert!(faults.on(Fault::Hang) && faults.on(Fault::Hang));
        switch(&faults, Fault::Drop, None);
        assert!(!faults.on(Fault::Hang));
    }

    #[test]
    fn a_fault_for_a_number_of_times_ends_by_itself() {
        let (_folder, faults) = faults();
        switch(&faults, Fault::Locked, Some("2"));
        assert_eq!(
            [faults.on(Fault::Locked), faults.on(Fault::Locked), faults.on(Fault::Locked)],
            [true, true, false]
        );
    }

    #[test]
    fn a_parameter_is_not_a_number_of_times() {
        let (_folder, faults) = faults();
        switch(&faults, Fault::Slow, Some("5"));
        assert_eq!(faults.strikes(Fault::Slow).map(|on| on.millis(500)), Some(Duration::from_millis(5)));
        assert!(faults.on(Fault::Slow));
    }

    #[test]
    fn every_fault_says_in_one_line_what_it_does() {
        for fault in Fault::value_variants() {
            let value = fault.to_possible_value().expect("none is hidden");
            assert!(value.get_help().is_some_and(|help| !help.to_string().contains('\n')), "{fault:?}");
        }
    }
}
