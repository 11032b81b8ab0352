//! A server's life: bind, open the database, say so, serve, and stop the way t3 stops (CONTRACT §9).

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::clock::{MINUTE, Millis};
use super::command::Given;
use super::failure::Failure;
use super::home::Runtime;
use super::http;
use super::instance::{Address, Instance, Setup, say};
use super::mutation::Mutation;
use super::release::{Generation, Release};
use super::store::Link;
use super::tool::{self, Build};

const INTERRUPTED: u8 = 130;

/// `t3 serve`.
pub async fn run(build: &Build, given: &Given) -> ExitCode {
    match start(build, given).await {
        Ok(code) => code,
        Err(failure) => {
            say(&failure.report(&build.release));
            ExitCode::FAILURE
        }
    }
}

async fn start(build: &Build, given: &Given) -> Result<ExitCode, Failure> {
    let (release, delays) = (&build.release, build.delays);
    let platform = |what: &'static str| move |error: std::io::Error| Failure::new(what, error);
    let mut signals = Signals::new().map_err(platform("PlatformError: signals not handled"))?;
    let home = tool::home(given).map_err(platform("PlatformError: no base directory"))?;
    if let Some(folder) = given.arguments.first() {
        std::fs::create_dir_all(folder).map_err(platform("PlatformError: working directory not made"))?;
    }
    tokio::time::sleep(delays.boot).await;
    // The login shell that t3 asks for the user's environment complains in these words.
    eprintln!("/bin/sh: 0: can't access tty; job control turned off");
    let address = address(release, given);
    let setup = Setup {
        release: release.clone(),
        home,
        address: address.clone(),
        mutations: build.mutations.clone(),
        delays,
        quiet: false,
    };
    let listener = bind(&address).await.map_err(|error| in_use(&address, &error))?;
    let port = listener.local_addr().map_or(address.port, |bound| bound.port());
    let address = Address { port, ..address };
    let setup = Setup { address: address.clone(), ..setup };
    let instance = Instance::new(setup).map_err(platform("PlatformError: base directory not usable"))?;
    let instance = Arc::new(instance);
    let slow = seconds(&instance, Mutation::SlowStart, 30).unwrap_or_default();
    let stuck = accept_and_ignore(&listener, delays.early + slow, &mut signals).await;
    let ran = instance
        .open()
        .map_err(|error| Failure::store("SqlError: the database could not be opened", &error))?;
    announce(&instance, &address, &ran).map_err(platform("PlatformError: runtime file not written"))?;

    let crash = seconds(&instance, Mutation::CrashesSoon, 5);
    instance.tasks.spawn(http::accept(instance.clone(), listener));
    tokio::select! {
        () = signals.stop(instance.faults.mutation(Mutation::IgnoresSigterm).is_some()) => {}
        () = after(crash) => return Err(Failure::new("Defect: the server ended", "as this build does")),
    }
    stop(&instance, &stuck).await;
    Ok(ExitCode::from(INTERRUPTED))
}

/// Connections of the moment before the server is ready are held and never answered.
async fn accept_and_ignore(listener: &TcpListener, span: Duration, signals: &mut Signals) -> Vec<TcpStream> {
    let mut stuck = Vec::new();
    let ready = tokio::time::sleep(span);
    tokio::pin!(ready);
    loop {
        tokio::select! {
            () = &mut ready => return stuck,
            () = signals.stop(false) => { signals.pending = true; return stuck; }
            accepted = listener.accept() => stuck.extend(accepted.ok().map(|(stream, _)| stream)),
        }
    }
}

/// Says on stdout and in the runtime file that the server is there; without a usable credential, no ready block.
fn announce(instance: &Instance, address: &Address, ran: &[String]) -> std::io::Result<()> {
    let release = &instance.release;
    let now = || Millis::now().time_of_day();
    let always = !release.since(29);
    if always {
        say(&format!("[{}] INFO (#3): Running all migrations...\n", now()));
    }
    if always || !ran.is_empty() {
        let list = tool::listing::migration_list(ran);
        say(&format!("[{}] INFO (#3): Migrations ran successfully\n  {list}\n", now()));
    }
    let Address { host, port } = address;
    instance.home.write_runtime(&Runtime { host, port: *port })?;
    say(&format!("[{}] INFO (#174): Listening on http://{host}:{port}\n", now()));
    let subject = match release.generation() {
        Generation::A => "owner-bootstrap",
        Generation::B => "administrative-bootstrap",
    };
    let link = Link::new(release.administrative_grant(), subject, None, 5 * MINUTE);
    if instance.with_store(|store| store.create_link(&link)).is_ok() {
        let shown = if host == "0.0.0.0" { "127.0.0.1" } else { host };
        let origin = format!("http://{shown}:{port}");
        let token = &link.credential;
        say(&format!(
            "T3 Code server is ready.\nConnection string: {origin}\nToken: {token}\nPairing URL: {origin}/pair#token={token}\n\n\n"
        ));
    }
    Ok(())
}

/// Open WebSockets and stuck connections hold the end up, as long as the release lets them.
async fn stop(instance: &Instance, stuck: &[TcpStream]) {
    let asked = Instant::now();
    instance.stopping.cancel();
    instance.tasks.close();
    instance.tasks.wait().await;
    if stuck.iter().any(is_open) {
        tokio::time::sleep_until(asked + instance.delays.stop_stuck).await;
    }
    instance.close();
    if let Err(error) = std::fs::remove_file(instance.home.runtime()) {
        eprintln!("sim: the runtime file stays behind: {error}");
    }
}

/// Whether the client still waits at the other end.
fn is_open(stream: &TcpStream) -> bool {
    let mut request = [0; 1024];
    loop {
        match stream.try_read(&mut request) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

fn address(release: &Release, given: &Given) -> Address {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = given.text("host").map(str::to_owned).or_else(|| environment("T3CODE_HOST"));
    let port = given.text("port").map(str::to_owned).or_else(|| environment("T3CODE_PORT"));
    Address {
        host: host.unwrap_or_else(|| release.default_host().to_owned()),
        port: port.and_then(|port| port.parse().ok()).unwrap_or(3773),
    }
}

/// Binds the address as asked for.
pub async fn bind(address: &Address) -> std::io::Result<TcpListener> {
    let host = match address.host.as_str() {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse().map_err(std::io::Error::other)?,
    };
    TcpListener::bind((host, address.port)).await
}

fn in_use(address: &Address, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        let Address { host, port } = address;
        return Failure::new(
            "ServeError: ",
            format!("listen EADDRINUSE: address already in use {host}:{port}"),
        );
    }
    Failure::new("ServeError: ", error)
}

fn seconds(instance: &Instance, mutation: Mutation, default: u64) -> Option<Duration> {
    let on = instance.faults.mutation(mutation)?;
    Some(Duration::from_secs(on.number(default)))
}

async fn after(span: Option<Duration>) {
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => std::future::pending().await,
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// One came before anybody waited for it to be acted upon.
    pending: bool,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            pending: false,
        })
    }

    async fn stop(&mut self, deaf: bool) {
        if self.pending {
            return;
        }
        loop {
            tokio::select! {
                _ = self.terminate.recv() => if !deaf { return },
                _ = self.interrupt.recv() => if !deaf { return },
            }
        }
    }
}
