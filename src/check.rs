//! Everything that would fail later, said now: each small function looks at one thing and adds a line per finding.
//! Exit 0 where there is nothing worse than a warning, 1 with an error, 78 where the configuration itself is refused.

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use nix::unistd::AccessFlags;

use crate::cli::exit;
use crate::config::{Config, Source};
use crate::dispatch;
use crate::inventory;
use crate::outcome::Finding;

mod builds;
mod credential;
mod data;

/// How bad a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warn,
    Error,
}

/// One line: what was looked at, and what is the matter with it and what to do, or that all is well.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    level: Level,
    subject: &'static str,
    message: String,
}

/// Prints what would fail later.
pub fn run(config: &Config, source: &Source) -> ExitCode {
    let mut items = vec![configuration(source)];
    items.extend(inventory(&config.inventory));
    items.push(installs(&config.t3.installs));
    items.push(state_dir(&config.state_dir));
    items.extend(data::items(config));
    items.push(listener("operator.listen", config.operator.listen));
    items.extend(config.operator.socket.as_deref().map(|path| socket("operator.socket", path)));
    items.extend(config.operator.token_file.as_deref().map(|path| secret_file("operator.token_file", path)));
    items.extend(dispatch(&config.dispatch));
    items.extend(front(config));
    items.extend(builds::tags(config));

    items.extend(credential::credentials(&config.credential, SystemTime::now()));

    let worst = items.iter().map(|item| item.level).max();
    // Whoever reads may have gone (`check | head`); the exit code is the answer all the same.
    let _ = print(&items);
    if worst == Some(Level::Error) { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS }
}

fn print(items: &[Item]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for item in items {
        writeln!(out, "{item}")?;
    }
    let count = |level| items.iter().filter(|item| item.level == level).count();
    writeln!(out, "errors: {}, warnings: {}", count(Level::Error), count(Level::Warn))
}

fn configuration(source: &Source) -> Item {
    let path = source.path();
    let message = if path.exists() {
        format!("{} is read without complaint", path.display())
    } else {
        format!("{} does not exist, so every key has its default", path.display())
    };
    Item::new(Level::Ok, "config", message)
}

fn inventory(section: &inventory::Section) -> Vec<Item> {
    let subject = "inventory";
    let inventory = match inventory::read_once(section) {
        Ok(inventory) => inventory,
        Err(error) => return vec![Item::new(Level::Error, subject, error.to_string())],
    };
    let served = inventory.targets().iter().filter(|target| target.withheld.is_none()).count();
    let withheld = inventory.targets().len() - served;
    let table = section.dispatch_table.display();
    let summary = match (served, withheld) {
        (0, 0) => Item::new(
            Level::Warn,
            subject,
            format!("{table} serves nobody; nothing is probed until it has an entry"),
        ),
        (_, 0) => Item::new(Level::Ok, subject, format!("{table}: users served: {served}")),
        _ => Item::new(Level::Ok, subject, format!("{table}: users served: {served}, withheld: {withheld}")),
    };
    let findings = inventory.findings().iter();
    let findings = findings.map(|found| Item::new(level(found.finding), subject, found.to_string()));
    std::iter::once(summary).chain(findings).collect()
}

/// An error takes somebody's service away, may hand one user what is another's, or shows credentials to all.
fn level(finding: Finding) -> Level {
    match finding {
        Finding::SharedPort
        | Finding::TwoPorts
        | Finding::DuplicateIdentity
        | Finding::UserDiffers
        | Finding::InvalidIdentity
        | Finding::InvalidUser
        | Finding::InvalidPort
        | Finding::InvalidEntry
        | Finding::UnknownAccount
        | Finding::StateExposed => Level::Error,
        Finding::NoInstance
        | Finding::NotInMap
        | Finding::MapConflict
        | Finding::MapUnreadable
        | Finding::InvalidLine
        | Finding::SharedUser
        | Finding::IdentityCase
        | Finding::PortDiffers
        | Finding::EnvMissing
        | Finding::EnvInvalid => Level::Warn,
        // The files hold tokens: that we may not read them is how it should be.
        Finding::EnvUnreadable => Level::Ok,
    }
}

/// Without the install of the version that a user runs there is no mint: another version's command would migrate.
fn installs(path: &Path) -> Item {
    let subject = "t3.installs";
    let builds = match path.read_dir() {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = format!(
                "{} does not exist; only [t3] command is used, for users who run its version",
                path.display()
            );
            return Item::new(Level::Warn, subject, message);
        }
        Err(error) => {
            let message = format!("{}: {error}; make it readable by our account", path.display());
            return Item::new(Level::Error, subject, message);
        }
    };
    let is_executable = |command: &Path| nix::unistd::access(command, AccessFlags::X_OK).is_ok();
    let (good, bad): (Vec<_>, Vec<_>) = builds
        .map(|build| build.join("bin/t3"))
        .filter(|command| command.symlink_metadata().is_ok())
        .partition(|command| is_executable(command));
    match bad.first() {
        Some(command) => {
            let message =
                format!("{} cannot be executed by this account; run chmod a+rx on it", command.display());
            Item::new(Level::Error, subject, message)
        }
        None => Item::new(Level::Ok, subject, format!("{}: builds found: {}", path.display(), good.len())),
    }
}

fn state_dir(path: &Path) -> Item {
    let item =
        |level, message: String| Item::new(level, "state_dir", format!("{}: {message}", path.display()));
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) => {
            return item(
                Level::Warn,
                format!(
                    "{error}; the service unit makes it, or make it with install -d -m 0750 for our account"
                ),
            );
        }
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_dir() {
        item(Level::Error, "it is not a directory; move the file away".to_owned())
    } else if mode & 0o002 != 0 {
        item(Level::Error, format!("every account can write to it (mode {mode:04o}); run chmod 0750 on it"))
    } else if nix::unistd::access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        item(
            Level::Error,
            "this account cannot write to it; run the check as the service's account, or change the owner"
                .to_owned(),
        )
    } else if mode & 0o007 != 0 {
        item(Level::Warn, format!("every account can look into it (mode {mode:04o}); run chmod 0750 on it"))
    } else {
        item(Level::Ok, "it is ours to write".to_owned())
    }
}

fn listener(subject: &'static str, address: SocketAddr) -> Item {
    let (level, message) = match TcpListener::bind(address) {
        Ok(_) => (Level::Ok, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => (
            Level::Warn,
            format!(
                "{address} is taken; that is right while t3-prober runs, else see who has it with ss -ltnp"
            ),
        ),
        Err(error) => (
            Level::Error,
            format!(
                "{address} cannot be listened on: {error}; name an address of this machine and a port we may use"
            ),
        ),
    };
    Item::new(level, subject, message)
}

/// The users' front door, where somebody is to come in by it: a file that leaves the section alone has none.
fn dispatch(section: &dispatch::Section) -> Vec<Item> {
    if *section == dispatch::Section::default() {
        return Vec::new();
    }
    let obstacles = section.obstacles();
    let mut items: Vec<_> = section.addresses().map(|address| listener("dispatch.listen", address)).collect();
    items.extend(section.sockets().map(|path| socket("dispatch.listen", path)));
    items.extend(section.secret_file.as_deref().map(|path| secret_file("dispatch.secret_file", path)));
    items.extend(section.probe_key_file.as_deref().map(|path| secret_file("dispatch.probe_key_file", path)));
    items.extend(
        obstacles.into_iter().map(|(subject, error)| Item::new(Level::Error, subject, format!("{error:#}"))),
    );
    if section.allowed_domains.iter().any(|domain| domain == "*") {
        let message = "\"*\" lets whoever can get an account of a user's name, in any domain at the edge, in as that user; name the domains that are yours";
        items.push(Item::new(Level::Warn, "dispatch.allowed_domains", message.to_owned()));
    }
    let own = nix::unistd::geteuid().as_raw();
    items.extend(section.trusted_uids.iter().flatten().filter(|uid| **uid >= 1000 && **uid != own).map(
        |uid| {
            let message = format!(
                "every process of uid {uid} may come in as anybody; name the edge's own account alone"
            );
            Item::new(Level::Warn, "dispatch.trusted_uids", message)
        },
    ));
    items
}

/// The way that the probes take through the dispatch.
fn front(config: &Config) -> Option<Item> {
    let subject = "probe.front";
    let address = config.probe.front?;
    let item = |level, message: String| Some(Item::new(level, subject, message));
    if config.dispatch.probe_key_file.is_none() && !config.dispatch.inside_serve {
        let message = "without a [dispatch] probe_key_file a probe there would count as a user; write a random key into a file that both accounts can read";
        return item(Level::Error, message.to_owned());
    }
    match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
        Ok(_) => item(Level::Ok, format!("{address} answers")),
        Err(error) => item(
            Level::Warn,
            format!(
                "{address}: {error}; name a TCP address of [dispatch] listen, and start t3-prober {}",
                if config.dispatch.inside_serve { "serve" } else { "dispatch" }
            ),
        ),
    }
}

fn socket(subject: &'static str, path: &Path) -> Item {
    let is_there = path.parent().is_some_and(Path::is_dir);
    if is_there {
        Item::new(Level::Ok, subject, format!("{} can be made", path.display()))
    } else {
        let message = format!(
            "{}: its directory does not exist; the service unit makes it (RuntimeDirectory=), or make it",
            path.display()
        );
        Item::new(Level::Warn, subject, message)
    }
}

/// A file whose content opens something: there, not empty, and nobody else's to read. Its content is never shown.
fn secret_file(subject: &'static str, path: &Path) -> Item {
    let item = |level, message: String| Item::new(level, subject, format!("{}: {message}", path.display()));
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) => {
            return item(
                Level::Error,
                format!("{error}; write the secret into it, readable by our account alone"),
            );
        }
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_file() {
        item(Level::Error, "it is not an ordinary file; name the file that holds the secret".to_owned())
    } else if mode & 0o007 != 0 {
        item(
            Level::Error,
            format!(
                "every account can use the secret (mode {mode:04o}); make a new one and run chmod 0600 on it"
            ),
        )
    } else if nix::unistd::access(path, AccessFlags::R_OK).is_err() {
        item(
            Level::Error,
            "this account cannot read it; run the check as the service's account, or change the owner"
                .to_owned(),
        )
    } else if metadata.len() == 0 {
        item(
            Level::Error,
            "it is empty, and an empty secret opens nothing; write the secret into it".to_owned(),
        )
    } else {
        item(Level::Ok, "it is ours alone to read".to_owned())
    }
}

impl Item {
    fn new(level: Level, subject: &'static str, message: String) -> Self {
        Self { level, subject, message }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        write!(f, "{level:<5}  {:<20}  {}", self.subject, self.message)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir, set_permissions, write};

    use super::*;

    fn file(content: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("token");
        write(&path, content).expect("written");
        set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
        (dir, path)
    }

    #[test]
    fn a_secret_that_everybody_can_read_an_empty_one_and_none_at_all_are_errors_and_never_shown() {
        for (content, mode, expected) in [
            ("hunter2", 0o600, Level::Ok),
            ("hunter2", 0o640, Level::Ok),
            ("hunter2", 0o644, Level::Error),
            ("", 0o600, Level::Error),
        ] {
            let (_dir, path) = file(content, mode);
            let item = secret_file("operator.token_file", &path);
            assert_eq!(item.level, expected, "{item}");
            assert!(!item.to_string().contains("hunter2"), "{item}");
        }
        let item = secret_file("operator.token_file", Path::new("/nonexistent/token"));
        assert_eq!(item.level, Level::Error, "{item}");
    }

    #[test]
    fn a_state_dir_that_others_can_write_to_is_an_error_and_one_they_can_read_a_warning() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (mode, expected) in [(0o750, Level::Ok), (0o755, Level::Warn), (0o777, Level::Error)] {
            let path = dir.path().join(format!("{mode:o}"));
            create_dir(&path).expect("a directory");
            set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
            assert_eq!(state_dir(&path).level, expected, "{mode:o}");
        }
        assert_eq!(state_dir(&dir.path().join("none")).level, Level::Warn);
        let (_dir, path) = file("", 0o600);
        assert_eq!(state_dir(&path).level, Level::Error);
    }

    #[test]
    fn an_address_that_is_taken_is_a_warning_and_one_that_is_not_ours_an_error() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("an address");
        assert_eq!(listener("operator.listen", address).level, Level::Warn);
        let foreign = "192.0.2.1:9780".parse().expect("an address");
        assert_eq!(listener("operator.listen", foreign).level, Level::Error);
        let free = "127.0.0.1:0".parse().expect("an address");
        assert_eq!(listener("operator.listen", free).level, Level::Ok);
    }

    #[test]
    fn builds_that_cannot_be_executed_are_an_error_and_no_builds_at_all_a_warning() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(installs(&dir.path().join("none")).level, Level::Warn);
        assert_eq!(installs(dir.path()).level, Level::Ok);
        let command = dir.path().join("0.0.26/bin/t3");
        std::fs::create_dir_all(command.parent().expect("a parent")).expect("directories");
        write(&command, "#!/bin/sh\n").expect("written");
        for (mode, expected) in [(0o755, Level::Ok), (0o644, Level::Error)] {
            set_permissions(&command, Permissions::from_mode(mode)).expect("a mode");
            assert_eq!(installs(dir.path()).level, expected, "{mode:o}");
        }
    }

    #[test]
    fn a_front_door_that_would_not_open_or_opens_to_too_many_is_said_and_none_at_all_is_nothing() {
        let lines = |section: &str| -> Vec<String> {
            let section: dispatch::Section = toml::from_str(section).expect("a section");
            dispatch(&section).iter().map(ToString::to_string).collect()
        };
        assert_eq!(lines(""), Vec::<String>::new());
        let well = lines("listen = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"10.0.0.7\"]");
        assert!(well.iter().all(|line| line.starts_with("ok ")), "{well:?}");
        for (section, level, said) in [
            ("max_connections = 9", "error", "believes nobody"),
            ("trusted_uids = [54321]", "warn", "every process of uid 54321"),
            ("trusted_uids = [0]\nallowed_domains = [\"*\"]", "warn", "name the domains"),
            ("trusted_uids = [0]\nsecret_file = \"/nonexistent/secret\"", "error", "/nonexistent/secret"),
            ("trusted_uids = [0]\nprobe_key_file = \"/nonexistent/key\"", "error", "/nonexistent/key"),
            ("trusted_uids = [0]\njwks_file = \"/nonexistent/jwks\"", "error", "token_audience"),
            ("listen = [\"unix:/nonexistent/socket\"]", "warn", "its directory does not exist"),
        ] {
            let lines = lines(section);
            assert!(
                lines.iter().any(|line| line.starts_with(level) && line.contains(said)),
                "{section}: {lines:?}"
            );
        }
    }

    #[test]
    fn a_way_for_the_probes_that_leads_nowhere_is_said() {
        let mut config = Config::default();
        assert_eq!(front(&config).map(|item| item.level), None);
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        config.probe.front = taken.local_addr().ok();
        assert_eq!(front(&config).map(|item| item.level), Some(Level::Error), "no key");
        config.dispatch.probe_key_file = Some("/etc/t3-prober/probe.key".into());
        assert_eq!(front(&config).map(|item| item.level), Some(Level::Ok));
        drop(taken);
        assert_eq!(front(&config).map(|item| item.level), Some(Level::Warn));
    }
}
