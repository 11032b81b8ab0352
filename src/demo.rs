//! The whole thing on a laptop with no t3: a simulated fleet, faults to switch on, all surfaces live, and nothing left
//! behind at the end.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use axum::http::HeaderValue;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Source};
use crate::serve::Signals;

use self::edge::Edge;

mod edge;
mod guide;
mod nightly;
mod settings;
mod supervisor;

/// Who lives in the demo, and what they run: one is behind, as somebody always is.
const FLEET: &[(&str, &str)] = &[("ann", "0.0.33"), ("bob", "0.0.33"), ("cid", "0.0.24")];
/// Projects, threads and messages of each of them, in this order: a history that somebody would miss.
const HISTORY: &[(usize, usize, usize)] = &[(2, 5, 74), (1, 3, 41), (3, 9, 160)];
/// The build that a host-wide `t3` has become.
const HOST_COMMAND: &str = "0.0.33";
/// The build that caused the outage: its migrations touch nothing but the authentication tables.
const CULPRIT: &str = "0.0.26";
/// Builds that nobody has yet: a good one, and one whose logins set no cookie.
const CANDIDATES: [(&str, &[&str]); 2] =
    [("0.0.34-nightly.1", &[]), ("0.0.34-nightly.2", &["--mutation", "no-cookie"])];
/// What 'nightly' stands for: no gate can see what is wrong with it, because it works for half a minute.
const NIGHTLY: &str = "0.0.34-nightly.3";
const WRONG_WITH_IT: &str = "fails-later=30";
/// Where the front door is, or the next free port after it.
const FRONT_DOOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9080);
const STARTED_WITHIN: Duration = Duration::from_secs(20);
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Args {
    /// The operator's address; the next free port is taken when it is in use
    #[arg(long, default_value = "127.0.0.1:9780")]
    listen: SocketAddr,
    /// Keep everything below DIR instead of a temporary directory; it must not exist, and is removed at the end
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Play the bad nightly at 4 a.m. once: rolled out, seen to break, put back, frozen
    #[arg(long)]
    nightly: bool,
}

/// The demo's own directory; it goes when this is dropped.
struct World {
    dir: PathBuf,
    program: PathBuf,
}

/// One simulated server.
struct Instance {
    user: &'static str,
    version: &'static str,
    port: u16,
    child: Child,
}

/// Plays until Ctrl-C.
pub async fn run(args: Args) -> anyhow::Result<()> {
    // Before there is anything to clear away.
    let mut signals = Signals::listen()?;
    let world = World::create(args.dir.clone())?;
    let mut fleet = Vec::new();
    let started = tokio::select! {
        started = world.people(&mut fleet) => started.map(|()| true),
        () = signals.stop() => Ok(false),
    };
    let ended = match started {
        Ok(true) => world.play(&fleet, &args, signals).await,
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    for instance in fleet {
        instance.stop().await;
    }
    // A restore or the enforcer may have started others in their place.
    supervisor::stop_all(&world.dir).await;
    ended
}

impl World {
    fn create(dir: Option<PathBuf>) -> anyhow::Result<Self> {
        let dir = dir
            .unwrap_or_else(|| std::env::temp_dir().join(format!("t3-prober-demo-{}", std::process::id())));
        // Never somebody's directory: it will be removed.
        std::fs::create_dir(&dir).with_context(|| {
            format!("cannot create {} for the demo; it must not exist yet", dir.display())
        })?;
        let dir = dir.canonicalize().context("cannot resolve the demo's directory")?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        Ok(Self { dir, program })
    }

    /// Starts the fleet, and waits until it answers. Whoever was started is in `fleet`, however this ends.
    async fn people(&self, fleet: &mut Vec<Instance>) -> anyhow::Result<()> {
        for version in FLEET.iter().map(|(_, version)| *version).chain([CULPRIT]) {
            self.install(version, &[]).await?;
        }
        for (version, manner) in CANDIDATES {
            self.install(version, manner).await?;
        }
        self.install(NIGHTLY, &["--mutation", WRONG_WITH_IT]).await?;
        self.link()?;
        for ((user, version), history) in FLEET.iter().zip(HISTORY) {
            self.make_home(user)?;
            self.write_history(user, version, *history).await?;
            fleet.push(self.start(user, version)?);
        }
        for instance in fleet {
            instance.answers().await?;
        }
        Ok(())
    }

    /// The service on top, until it is told to stop.
    async fn play(&self, fleet: &[Instance], args: &Args, signals: Signals) -> anyhow::Result<()> {
        let door = free(FRONT_DOOR)?;
        let config = self.configure(fleet, free(args.listen)?, door)?;
        let mut source = Source::new(Some(config.clone()));
        let loaded = Config::load(&mut source)?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut edges = Vec::new();
        for Instance { user, .. } in fleet {
            let identity = HeaderValue::try_from(identity(user)).context("a name that no header may hold")?;
            let edge = Edge { identity, dispatch: door, tasks: tasks.clone(), stop: stop.clone() };
            edges.push((*user, edge.open().await?));
        }
        let ended = crate::serve::run(source, loaded, signals, |address| {
            println!("{}", self.guide(fleet, address, door, &edges, &config));
            if args.nightly {
                let nightly = self.nightly(&config, format!("http://{address}/"));
                tasks.spawn(nightly.play(stop.clone()));
            }
        })
        .await;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        ended
    }

    fn t3(&self, version: &str) -> PathBuf {
        self.dir.join("installs").join(version).join("bin/t3")
    }

    fn base_dir(&self, user: &str) -> PathBuf {
        self.dir.join("home").join(user).join(".t3")
    }

    async fn install(&self, version: &str, manner: &[&str]) -> anyhow::Result<()> {
        let into = self.dir.join("installs").join(version);
        let mut install = Command::new(&self.program);
        install.args(["sim", "install"]).arg(into).arg(version).args(manner).kill_on_drop(true);
        let status = install.status().await;
        anyhow::ensure!(
            status.context("cannot run the stand-in t3")?.success(),
            "cannot install the stand-in t3 {version}"
        );
        Ok(())
    }

    /// As a home directory should be: a world-readable database would be a finding.
    fn make_home(&self, user: &str) -> anyhow::Result<()> {
        let home = self.base_dir(user);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&home);
        made.with_context(|| format!("cannot create {}", home.display()))
    }

    /// What they have done so far.
    async fn write_history(
        &self,
        user: &str,
        version: &str,
        (projects, threads, messages): (usize, usize, usize),
    ) -> anyhow::Result<()> {
        let mut write = Command::new(&self.program);
        write.args(["sim", "write", "--as", version]).arg(self.base_dir(user)).kill_on_drop(true);
        for (what, count) in [("--projects", projects), ("--threads", threads), ("--messages", messages)] {
            write.arg(what).arg(count.to_string());
        }
        let status = write.stdout(Stdio::null()).status().await;
        anyhow::ensure!(
            status.context("cannot run the stand-in t3")?.success(),
            "cannot write a history for {user}"
        );
        Ok(())
    }

    fn start(&self, user: &'static str, version: &'static str) -> anyhow::Result<Instance> {
        let port = free((Ipv4Addr::LOCALHOST, 0).into())?.port();
        let home = self.base_dir(user);
        let log =
            std::fs::File::create(self.dir.join(format!("{user}.log"))).context("cannot create a log")?;
        let child = Command::new(self.dir.join("installs/users").join(user).join("bin/t3"))
            .args(["serve", "--host", "127.0.0.1", "--port", &port.to_string(), "--base-dir"])
            .arg(&home)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            // Ctrl-C is for us: the fleet is stopped after the probes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the stand-in t3 of {user}"))?;
        Ok(Instance { user, version, port, child })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Somebody who was killed a moment ago may still be writing.
        for _ in 0..20 {
            match std::fs::remove_dir_all(&self.dir) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                    std::thread::park_timeout(Duration::from_millis(50));
                }
                Err(error) => return eprintln!("could not remove {}: {error}", self.dir.display()),
                Ok(()) => return,
            }
        }
        eprintln!("could not remove {}: something still writes there", self.dir.display());
    }
}

impl Instance {
    async fn answers(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STARTED_WITHIN;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
            anyhow::ensure!(
                Instant::now() < deadline,
                "the stand-in t3 of {} does not listen on port {}",
                self.user,
                self.port
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn stop(mut self) {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        if tokio::time::timeout(STOPPED_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// What the edge calls a user.
fn identity(user: &str) -> String {
    format!("{user}@example.com")
}

/// The address, or the next free port after it.
fn free(wanted: SocketAddr) -> anyhow::Result<SocketAddr> {
    let mut address = wanted;
    for _ in 0..50 {
        if let Ok(listener) = TcpListener::bind(address) {
            return listener.local_addr().context("cannot read the address of a listener");
        }
        address.set_port(address.port().saturating_add(1));
    }
    anyhow::bail!("no free port from {wanted} on; name another one with --listen")
}
