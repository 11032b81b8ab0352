//! A small world to try the program in: simulated t3 servers, a dispatch table and a configuration, all below one
//! temporary directory and gone at the end of the test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio_rusqlite::rusqlite::Connection;

use super::free_port::free_port;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_t3-prober");
/// What has not happened by then does not happen; far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct World {
    dir: TempDir,
    instances: Vec<Instance>,
    /// More lines for the configuration, in TOML; they begin in `[t3]`.
    extra: String,
    /// The version of the one t3 command on this host, where the builds are not installed side by side.
    host_command: Option<String>,
    operator: u16,
}

struct Instance {
    user: String,
    port: u16,
    server: Option<Child>,
}

/// A running `t3-prober serve`.
pub struct Serving {
    child: Child,
    pub port: u16,
}

/// What one probe said.
pub struct Probed {
    pub exit: i32,
    pub json: Value,
}

impl World {
    /// Starts one instance a user, each of its version.
    pub fn with(users: &[(&str, &str)]) -> Self {
        let mut world = Self::empty();
        for (user, version) in users {
            world.install(version);
            world.instances.push(Instance { user: (*user).to_owned(), port: free_port(), server: None });
            world.start(user, version);
        }
        world.configure();
        world
    }

    /// Nobody is served.
    pub fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("t3-prober-test-").tempdir().expect("a directory");
        let world = Self {
            dir,
            instances: Vec::new(),
            extra: String::new(),
            host_command: None,
            operator: free_port(),
        };
        world.configure();
        world
    }

    /// Adds to the configuration.
    pub fn configured(mut self, extra: &str) -> Self {
        self.extend(extra);
        self
    }

    /// The same, for a world that is somebody's already.
    pub fn extend(&mut self, extra: &str) {
        self.extra.push_str(extra);
        self.configure();
    }

    /// Makes one version the host's only t3 command.
    pub fn with_host_command(mut self, version: &str) -> Self {
        self.install(version);
        self.host_command = Some(version.to_owned());
        self.configure();
        self
    }

    /// Adds somebody to the dispatch table whose port nothing of this world listens on; answers the port.
    pub fn add(&mut self, user: &str) -> u16 {
        let port = free_port();
        self.instances.push(Instance { user: user.to_owned(), port, server: None });
        self.configure();
        port
    }

    /// Ends somebody's instance and takes them out of the dispatch table.
    pub fn remove(&mut self, user: &str) {
        self.kill(user);
        self.instances.retain(|instance| instance.user != user);
        self.configure();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn base_dir(&self, user: &str) -> PathBuf {
        self.path("home").join(user).join(".t3")
    }

    pub fn port(&self, user: &str) -> u16 {
        self.instance(user).port
    }

    /// The command of an installed version.
    pub fn t3(&self, version: &str) -> PathBuf {
        self.path("installs").join(version).join("bin/t3")
    }

    pub fn install(&self, version: &str) {
        let into = self.path("installs").join(version);
        if !into.exists() {
            run(Command::new(PROGRAM).args(["sim", "install"]).arg(into).arg(version));
        }
    }

    /// Starts (again) a user's instance, of any version.
    pub fn start(&mut self, user: &str, version: &str) {
        self.install(version);
        let (t3, base_dir) = (self.t3(version), self.base_dir(user));
        std::fs::create_dir_all(&base_dir).expect("base dir");
        let log = std::fs::File::create(self.path(&format!("{user}.log"))).expect("log");
        let mut command = Command::new(t3);
        self.start_with(user, command.stdout(log).arg("serve"), &base_dir);
    }

    /// Starts a user's instance by a command of one's own, to which the flags of `t3 serve` are added.
    pub fn start_with(&mut self, user: &str, command: &mut Command, base_dir: &Path) {
        let instance =
            self.instances.iter_mut().find(|instance| instance.user == user).expect("a user of this world");
        let port = instance.port;
        let server = command
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--base-dir"])
            .arg(base_dir)
            .stderr(Stdio::null())
            .spawn()
            .expect("the stand-in t3");
        instance.server = Some(server);
        // A connection accepted while t3 starts is never answered: ask again soon, on another one.
        let soon = Duration::from_millis(250);
        let ask = || http_within(soon, port, "GET", "/api/auth/session", &[], "");
        let ready = || ask().is_ok_and(|answer| answer.status == 200);
        wait_for(&format!("t3 of {user} to answer"), || ready().then_some(()));
    }

    /// Ends a user's instance without asking it.
    pub fn kill(&mut self, user: &str) {
        let instance =
            self.instances.iter_mut().find(|instance| instance.user == user).expect("a user of this world");
        end(instance.server.take());
    }

    /// Switches a fault on.
    pub fn fault(&self, user: &str, name: &str) {
        self.switch(user, name, "on");
    }

    /// Switches a fault on for a number of times.
    pub fn fault_for(&self, user: &str, name: &str, times: u32) {
        self.fault_with(user, name, &times.to_string());
    }

    /// Switches a fault on with a value.
    pub fn fault_with(&self, user: &str, name: &str, value: &str) {
        let values = [name, "on", "--value", value];
        run(Command::new(PROGRAM).args(["sim", "fault"]).arg(self.base_dir(user)).args(values));
    }

    /// The faults that are on, as the stand-in's own file says.
    pub fn faults_on(&self, user: &str) -> Vec<String> {
        let path = self.base_dir(user).join("userdata/sim-faults.json");
        let text = std::fs::read(path).unwrap_or_else(|_| b"{}".to_vec());
        let faults: serde_json::Map<String, Value> = serde_json::from_slice(&text).expect("the faults");
        faults.keys().cloned().collect()
    }

    /// Takes the write lock of a user's database and keeps it.
    pub fn lock_database(&self, user: &str) -> Connection {
        let database = Connection::open(self.database(user)).expect("the database");
        database.execute_batch("BEGIN IMMEDIATE").expect("the write lock");
        database
    }

    pub fn database(&self, user: &str) -> PathBuf {
        self.base_dir(user).join("userdata/state.sqlite")
    }

    /// The schema level of a user's database.
    pub fn level(&self, user: &str) -> i64 {
        let database = Connection::open(self.database(user)).expect("the database");
        let level = "SELECT max(migration_id) FROM effect_sql_migrations";
        database.query_row(level, [], |row| row.get(0)).expect("a level")
    }

    /// Switches a fault off.
    pub fn mend(&self, user: &str, name: &str) {
        self.switch(user, name, "off");
    }

    /// Runs a t3 command of a version on a user's base directory, as somebody with a shell would.
    pub fn foreign_mint(&self, user: &str, version: &str) {
        self.install(version);
        let command = &["auth", "pairing", "create", "--json", "--base-dir"];
        run(Command::new(self.t3(version)).args(command).arg(self.base_dir(user)));
    }

    /// The program with this world's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.path("config.toml")).args(args).env_remove("RUST_LOG");
        command
    }

    /// `probe USER --json`.
    pub fn probe(&self, user: &str) -> Probed {
        let output = self.command(&["probe", "--json", user]).output().expect("the program");
        Probed::read(&output)
    }

    /// Starts `serve` and waits until it is ready.
    pub fn serve(&self) -> Serving {
        self.serve_as(&mut self.command(&["serve"]))
    }

    /// The same by a command of one's own.
    pub fn serve_as(&self, command: &mut Command) -> Serving {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("serve.log"));
        let log = log.expect("log");
        let out = log.try_clone().expect("log");
        let child = command.stdout(out).stderr(log).spawn().expect("the program");
        let serving = Serving { child, port: self.operator };
        wait_for("serve to be ready", || (serving.get("/-/healthy").status == 200).then_some(()));
        serving
    }

    /// Drops an event into the spool as another process does: whole, by a rename.
    pub fn spool(&self, name: &str, event: &Value) {
        let hidden = self.path(&format!("state/spool/.{name}"));
        std::fs::write(&hidden, event.to_string()).expect("an event");
        std::fs::rename(hidden, self.path(&format!("state/spool/{name}.json"))).expect("a rename");
    }

    /// What `serve` has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("serve.log")).unwrap_or_default()
    }

    /// Writes the dispatch table and the configuration anew.
    fn configure(&self) {
        let table: serde_json::Map<String, Value> = self
            .instances
            .iter()
            .map(|Instance { user, port, .. }| {
                (format!("{user}@example.com"), serde_json::json!({ "os_user": user, "port": port }))
            })
            .collect();
        let dir = self.dir.path().display();
        let (command, installs) = match &self.host_command {
            None => ("installs/none/bin/t3".to_owned(), "installs"),
            Some(version) => (format!("installs/{version}/bin/t3"), "not-installed"),
        };
        let config = format!(
            "state_dir = \"{dir}/state\"\n\
             [inventory]\ndispatch_table = \"{dir}/dispatch.json\"\nbase_dir = \"{dir}/home/{{user}}/.t3\"\naccounts = false\n\
             [operator]\nlisten = \"127.0.0.1:{}\"\n\
             [t3]\ncommand = [\"{dir}/{command}\"]\ninstalls = \"{dir}/{installs}\"\n{}",
            self.operator, self.extra
        );
        replace(&self.path("dispatch.json"), &serde_json::to_string(&table).expect("json"));
        replace(&self.path("config.toml"), &config);
    }

    fn switch(&self, user: &str, name: &str, state: &str) {
        run(Command::new(PROGRAM).args(["sim", "fault"]).arg(self.base_dir(user)).args([name, state]));
    }

    fn instance(&self, user: &str) -> &Instance {
        self.instances.iter().find(|instance| instance.user == user).expect("a user of this world")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for instance in &mut self.instances {
            end(instance.server.take());
        }
    }
}

impl Probed {
    pub fn read(output: &Output) -> Self {
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "{error} in {:?}, stderr {:?}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        });
        Self { exit: output.status.code().unwrap_or(-1), json }
    }

    /// `step: outcome` of the step that decided a kind of probe; `ok` where all went well.
    pub fn decided(&self, kind: &str) -> String {
        let runs = self.json["runs"].as_array().expect("runs");
        let run = runs
            .iter()
            .find(|run| run["kind"] == kind)
            .unwrap_or_else(|| panic!("no {kind} in {}", self.json));
        decided(run)
    }
}

/// `step: outcome(reason)` of the step that decided a run in JSON; `ok` where all went well.
pub fn decided(run: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = run["steps"].as_array().expect("steps");
    let first = |wanted: &str| steps.iter().find(|step| step["outcome"] == wanted);
    match first("failed").or_else(|| first("skipped")) {
        None => "ok".to_owned(),
        Some(step) => {
            format!("{}: {}({})", word(&step["step"]), word(&step["outcome"]), word(&step["reason"]))
        }
    }
}

impl Serving {
    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[])
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        http(self.port, method, path, headers).unwrap_or_default()
    }

    /// A request with a body.
    pub fn post(&self, path: &str, body: &str) -> Answer {
        http_within(Duration::from_secs(30), self.port, "POST", path, &[], body).unwrap_or_default()
    }

    /// The value of a metric's sample, by its name with labels as exposed.
    pub fn metric(&self, sample: &str) -> Option<f64> {
        let text = self.get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// Waits until a metric has a value.
    pub fn until_metric(&self, sample: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        wait_for(sample, || self.metric(sample).filter(|value| wanted(*value)))
    }

    /// Waits until the probes of a kind of a user that ended this way are more than `beyond`.
    pub fn until_runs(&self, user: &str, kind: &str, outcome: &str, beyond: f64) -> f64 {
        let sample = format!("t3_probe_runs_total{{user=\"{user}\",kind=\"{kind}\",outcome=\"{outcome}\"}}");
        self.until_metric(&sample, |runs| runs > beyond)
    }

    /// Waits until the last probe of a kind was well, or was not.
    pub fn until_ok(&self, user: &str, kind: &str, well: bool) {
        let wanted = if well { 1.0 } else { 0.0 };
        self.until_metric(&format!("t3_probe_ok{{user=\"{user}\",kind=\"{kind}\"}}"), |ok| ok == wanted);
    }

    /// A page as a browser gets it.
    pub fn page(&self, path: &str) -> Answer {
        self.request("GET", path, &[("Accept", "text/html,*/*;q=0.8")])
    }

    /// Rows of `/history…` as a program gets them, newest first.
    pub fn history(&self, path: &str) -> Vec<Value> {
        let answer = self.get(path);
        let page: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{path}: {answer:?}"));
        page["rows"].as_array().expect("rows").clone()
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(id), signal).expect("a running process");
    }

    #[allow(dead_code)] // For the benchmarks.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and answers the exit code.
    pub fn stop(mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        let ended = wait_for("serve to end", || self.child.try_wait().expect("a child"));
        ended.code().unwrap_or(-1)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer, as much of it as a test looks at.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One request on a connection of its own; the answer is read to its end.
pub fn http(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Answer> {
    http_within(Duration::from_secs(30), port, method, path, headers, "")
}

/// The same, giving up when nothing comes for so long.
pub fn http_within(
    limit: Duration,
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(limit))?;
    let named = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = if named { String::new() } else { format!("Host: 127.0.0.1:{port}\r\n") };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Replaces a file whole.
pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("a file");
    std::fs::rename(beside, path).expect("a rename");
}

/// Waits for a condition; panics with what was waited for.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}
