//! The only code with privilege. It acts for users in the user map and for callers that are listed, drops to the user
//! before it touches anything of theirs, and alone holds the keepers' sessions.
//!
//! Two forms: a root service behind a unix socket (`Accept=yes`; the caller is who the kernel says it is), and one
//! `sudo` line per verb (the caller is `SUDO_UID`). One JSON line in, one JSON line out.

mod account;
mod as_user;
mod caller;
mod child;
mod connection;
mod crew;
mod owner;
mod verbs;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde::Deserialize;
use tokio::runtime::Runtime;

use self::caller::Caller;
pub use self::crew::Crew;
pub use self::owner::Rightful;
use self::verbs::Verbs;
use crate::config::{Config, Source};
use crate::inventory;
use crate::outcome::HelperVerb;
use crate::t3;
use crate::t3::access::helper::Helper;
use crate::t3::access::wire::{Builds, End, LARGEST_REQUEST, Reply, Request};
use crate::t3::access::{Access, Way};
use crate::t3::keeper::Limits;
use crate::t3::leash::Leash;

/// `[helper]`: how the privileged helper is reached, and what it does for whom. With neither `socket` nor `command`
/// everything is done as oneself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The helper's socket. No default; absent, no socket is used.
    pub socket: Option<PathBuf>,
    /// The socket on which builds are rehearsed, as in `t3-prober-box.socket`: a unit of its own, because boxes need what
    /// is forbidden to the helper otherwise. Default none: they are asked for like everything else. Without a helper it
    /// means nothing.
    pub box_socket: Option<PathBuf>,
    /// Instead of a socket, the command that starts the helper with privilege; the verb is added. Default none.
    pub command: Vec<String>,
    /// Where the helper keeps administrative sessions, one file per user. Default `/var/lib/t3-prober-helper/keepers`.
    pub keepers: PathBuf,
    /// Which account (name or uid) may ask for which verbs. Root may ask for all. Default `t3-dispatch` for `mint`,
    /// `t3-gate` for `rehearse`, `t3-prober` for all there are.
    pub callers: BTreeMap<String, Vec<HelperVerb>>,
    /// Where t3's command and the Node that runs it are found when the helper acts as a user; no caller has a say in
    /// it. Default `/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`.
    pub path: String,
    /// No request takes longer, whatever its caller allows. Default 90s.
    #[serde(with = "humantime_serde")]
    pub longest: Duration,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            socket: None,
            box_socket: None,
            command: Vec::new(),
            keepers: PathBuf::from("/var/lib/t3-prober-helper/keepers"),
            callers: BTreeMap::from([
                ("t3-dispatch".to_owned(), vec![HelperVerb::Mint]),
                ("t3-gate".to_owned(), vec![HelperVerb::Rehearse]),
                ("t3-prober".to_owned(), HelperVerb::ALL.to_vec()),
            ]),
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            longest: Duration::from_secs(90),
        }
    }
}

impl Section {
    /// How the helper is reached; `None` where there is none.
    fn way(&self) -> Option<Way> {
        match &self.socket {
            Some(socket) => Some(Way::Socket(socket.clone())),
            None if self.command.is_empty() => None,
            None => Some(Way::Command(self.command.clone())),
        }
    }

    /// Whoever rehearses builds as users; `None` where there is no helper.
    pub fn rehearser(&self) -> Option<Helper> {
        let of_its_own = self.box_socket.clone().map(Way::Socket);
        self.way().map(|way| Helper::new(of_its_own.unwrap_or(way)))
    }

    /// Whether anything is done through the helper.
    pub fn is_used(&self) -> bool {
        self.way().is_some()
    }

    /// The accounts that act for users by the helper: what these report of users is believed.
    pub fn caller_uids(&self) -> impl Iterator<Item = u32> {
        self.callers.keys().filter_map(|name| caller::uid_of(name))
    }

    /// Who mints and looks at databases: the helper where there is one, else we ourselves.
    pub fn access(&self, t3: &t3::Section, state_dir: &Path) -> Access {
        self.way().map_or_else(|| Access::own(state_dir.join("keepers"), t3), Access::helper)
    }

    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        if self.socket.is_some() && !self.command.is_empty() {
            let sentence = "there is a socket as well; keep one of the two ways to the helper";
            complaints.push(("command", sentence.to_owned()));
        }
        let paths = [
            ("socket", self.socket.as_ref()),
            ("box_socket", self.box_socket.as_ref()),
            ("keepers", Some(&self.keepers)),
        ];
        for (key, path) in paths {
            if let Some(path) = path.filter(|path| path.is_relative()) {
                let path = path.display();
                complaints.push((key, format!("'{path}' is not an absolute path; begin it with /")));
            }
        }
        complaints
    }
}

/// `t3-prober helper …`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    form: Form,
}

#[derive(Subcommand)]
enum Form {
    /// Serve one connection of the socket unit, which is stdin
    Connection,
    /// Act as one user; started by the helper itself
    #[command(hide = true)]
    AsUser,
    #[command(flatten)]
    Verb(VerbArgs),
}

/// With arguments for a person, without them for a program: the request is then one JSON line on stdin, and a sudoers
/// line needs no wildcard.
#[derive(Subcommand)]
enum VerbArgs {
    /// Make a pairing credential
    Mint { user: Option<String> },
    /// End a session
    Revoke { user: Option<String>, session: Option<String> },
    /// Name the sessions with the probe's label
    Labelled { user: Option<String> },
    /// Read a user's database, or with --all everybody's
    Inspect {
        #[arg(conflicts_with = "all")]
        user: Option<String>,
        #[arg(long)]
        all: bool,
    },
    /// Name the port in the user's env file
    Port { user: Option<String> },
    /// Take a snapshot of a user's database, and verify it
    Snapshot { user: Option<String> },
    /// Look at every byte of a user's newest snapshot
    Verify { user: Option<String> },
    /// Run two builds in boxes, as a user, on copies of their data
    Rehearse { user: Option<String>, candidate: Option<PathBuf>, control: Option<PathBuf> },
}

/// What was asked for on a command line; without a request in the arguments it is on stdin.
struct Asked {
    verb: HelperVerb,
    request: Option<Request>,
}

const LABEL: &str = "t3-prober";
const SNAPSHOT: Duration = Duration::from_secs(600);
const LIMITS: Limits = Limits { request: Duration::from_secs(5), command: Duration::from_secs(15) };

/// Runs the helper in one of its forms.
pub fn run(args: Args, source: Source) -> ExitCode {
    let ended = match args.form {
        Form::AsUser => return child::run(),
        Form::Connection => with_root(source, |config, runtime| runtime.block_on(connection::serve(config))),
        Form::Verb(verb) => with_root(source, |config, runtime| once(config, verb.asked(), runtime)),
    };
    ended.unwrap_or_else(|what| print(&Reply::refused(what)).unwrap_or(ExitCode::FAILURE))
}

/// What both forms need: root, a configuration that can be believed, a runtime of one thread.
fn with_root(
    mut source: Source,
    work: impl FnOnce(&Config, &Runtime) -> Result<ExitCode, String>,
) -> Result<ExitCode, String> {
    log_to_stderr();
    if !nix::unistd::geteuid().is_root() {
        return Err("the helper needs root; it is started by its socket unit or by sudo".to_owned());
    }
    believed(&source)?;
    let config = Config::load(&mut source).map_err(|refused| refused.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    work(&config, &runtime.map_err(|error| format!("cannot start: {error}"))?)
}

/// One request from a command line.
fn once(config: &Config, asked: Asked, runtime: &Runtime) -> Result<ExitCode, String> {
    let caller = Caller::of_process(&config.helper)?;
    let verbs = Verbs::new(config, caller)?;
    let reply = runtime.block_on(async {
        let Some(request) = asked.request else {
            let cannot = |error: io::Error| format!("cannot read the request: {error}");
            let mut leash = Leash::on_stdin().map_err(cannot)?;
            let line = leash.line(LARGEST_REQUEST).await.map_err(cannot)?;
            return Ok::<_, String>(verbs.answer(&of_verb(asked.verb, &line)?, &mut leash).await);
        };
        Ok(Some(verbs.done(&request).await))
    });
    reply?.map_or(Ok(ExitCode::FAILURE), |reply| print(&reply))
}

/// The request on stdin must be of the verb on the command line: that is the one that sudo has allowed.
fn of_verb(verb: HelperVerb, line: &[u8]) -> Result<Request, String> {
    let request: Request = serde_json::from_slice(line).map_err(|_| "stdin is no request".to_owned())?;
    if request.verb() == verb { Ok(request) } else { Err(format!("the request on stdin is not for {verb}")) }
}

/// A configuration that others can write, or that a sudo caller named, could make the helper do anything.
fn believed(source: &Source) -> Result<(), String> {
    let path = source.path();
    if path.exists() {
        inventory::is_ours_alone(path).map_err(|what| format!("{} {what}", path.display()))?;
    }
    let by_sudo = std::env::var_os("SUDO_UID").is_some_and(|uid| uid != "0");
    if by_sudo && std::env::args_os().any(|arg| arg.to_string_lossy().starts_with("--config")) {
        return Err(
            "--config is not for callers through sudo; the helper reads its own configuration".to_owned()
        );
    }
    Ok(())
}

fn print(reply: &Reply) -> Result<ExitCode, String> {
    let code = if matches!(reply.end, End::Ok { .. }) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let mut out = io::stdout().lock();
    out.write_all(&reply.line()).and_then(|()| out.flush()).map_err(|error| error.to_string())?;
    Ok(code)
}

/// The journal adds time and unit; stdout is the caller's. No variable of a caller's environment has a say in it.
fn log_to_stderr() {
    // A subscriber that is there already is as good.
    let _ = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .try_init();
}

impl VerbArgs {
    fn asked(self) -> Asked {
        let (label, limits) = (LABEL.to_owned(), LIMITS);
        let (verb, request) = match self {
            Self::Mint { user } => (HelperVerb::Mint, user.map(|user| Request::Mint { user, label, limits })),
            Self::Revoke { user, session } => (
                HelperVerb::Revoke,
                user.zip(session).map(|(user, session)| Request::Revoke { user, session, limits }),
            ),
            Self::Labelled { user } => (
                HelperVerb::Labelled,
                user.map(|user| Request::Labelled { user, label, age: Duration::ZERO, limits }),
            ),
            Self::Inspect { user, all } => (
                HelperVerb::Inspect,
                (all || user.is_some()).then_some(Request::Inspect { user, limit: limits.command }),
            ),
            Self::Port { user } => (HelperVerb::Port, user.map(|user| Request::Port { user })),
            Self::Snapshot { user } => {
                (HelperVerb::Snapshot, user.map(|user| Request::Snapshot { user, limit: SNAPSHOT }))
            }
            Self::Verify { user } => {
                (HelperVerb::Verify, user.map(|user| Request::Verify { user, limit: SNAPSHOT }))
            }
            Self::Rehearse { user, candidate, control } => {
                let builds = candidate.zip(control).map(|(candidate, control)| Builds { candidate, control });
                let request = user.zip(builds).map(|(user, builds)| Request::Rehearse {
                    user,
                    builds,
                    // The helper's own limit is the shorter one.
                    limit: Duration::MAX,
                });
                (HelperVerb::Rehearse, request)
            }
        };
        Asked { verb, request }
    }
}
