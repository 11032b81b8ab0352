//! A host for one test: throw-away accounts, their t3 servers, the files of a provisioner, and a helper behind a
//! socket. Everything is gone when it is dropped.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::unistd::User;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rusqlite::rusqlite::Connection;

use super::root::setting;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_t3-prober");
/// What may take a moment on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

static ACCOUNTS: AtomicU32 = AtomicU32::new(0);
/// useradd and userdel lock the same files and do not wait for each other.
static ACCOUNT_FILES: Mutex<()> = Mutex::new(());

/// An account that exists as long as this does, with a home that nobody else may enter.
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    server: Option<Child>,
    pub port: u16,
}

/// See above.
pub struct Host {
    pub dir: TempDir,
    pub program: PathBuf,
    entries: Vec<(String, u16)>,
    mapped: Vec<String>,
    callers: Vec<(String, String)>,
    /// Further lines of the configuration.
    pub extra: String,
    helpers: Vec<Helper>,
}

/// An accept loop that does what systemd does with `Accept=yes` and `StandardInput=socket`.
struct Helper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Account {
    pub fn new(host: &Path) -> Self {
        Self::with(host, &[])
    }

    /// The same, with options of useradd.
    pub fn with(host: &Path, options: &[&str]) -> Self {
        let turn = ACCOUNTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("t3t{}x{turn}", std::process::id());
        let home = host.join("home").join(&name);
        let mut arguments = vec!["--no-create-home", "--user-group", "--home-dir", text(&home)];
        arguments.extend(options);
        arguments.push(&name);
        manage_accounts("useradd", &arguments);
        let user = User::from_name(&name).expect("an answer").expect("the account");
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        fs::create_dir_all(&home).expect("a home");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("mode");
        chown(&home, Some(uid), Some(gid)).expect("owner");
        Self { name, uid, gid, home, server: None, port: 0 }
    }

    /// A command as this account, with no way to more privilege, as hardened units run.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--no-new-privs", "--init-groups", "--reset-env"]);
        command.args([format!("--reuid={}", self.uid), format!("--regid={}", self.gid)]);
        command.arg("--").arg(program.as_ref()).current_dir("/");
        command
    }

    pub fn shell(&self, script: &str) -> Output {
        self.command("/bin/sh").args(["-c", script]).output().expect("setpriv runs")
    }

    pub fn base_dir(&self) -> PathBuf {
        self.home.join(".t3")
    }

    pub fn database(&self) -> PathBuf {
        self.base_dir().join("userdata/state.sqlite")
    }

    /// Starts a t3 of that install on the account's port and waits until it answers.
    pub fn serve(&mut self, install: &Path) {
        let port = self.port;
        let base_dir = self.base_dir();
        let mut server = self.command(install.join("bin/t3"));
        server.args([
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--base-dir",
            text(&base_dir),
        ]);
        self.server = Some(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setpriv runs"));
        until("the server answers", || {
            http(port, "GET /api/auth/session HTTP/1.1", "").contains("sessionCookieName")
        });
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").arg(server.id().to_string()).status();
            server.wait().expect("a child");
        }
    }

    /// Everything below the base directory, with its size, times and content.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut dirs = vec![self.base_dir()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let content = fs::read(&path).unwrap_or_default();
                    files.push((path, content));
                }
            }
        }
        files.sort();
        files
    }

    /// The level of the database, read from a copy: a look by root would leave files behind.
    pub fn level(&self) -> u32 {
        self.count("SELECT max(migration_id) FROM effect_sql_migrations")
    }

    /// A number from such a copy.
    pub fn count(&self, sql: &str) -> u32 {
        let copy = tempfile::tempdir().expect("a directory");
        for name in ["state.sqlite", "state.sqlite-wal"] {
            let _ = fs::copy(self.base_dir().join("userdata").join(name), copy.path().join(name));
        }
        let copy = Connection::open(copy.path().join("state.sqlite")).expect("a database");
        copy.query_row(sql, [], |row| row.get(0)).expect("a number")
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.stop();
        manage_accounts("userdel", &["--force", &self.name]);
    }
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("t3-prober-").tempdir_in("/tmp").expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        let program = public_program(dir.path());
        let (entries, mapped, callers) = (Vec::new(), Vec::new(), Vec::new());
        Self { dir, program, entries, mapped, callers, extra: String::new(), helpers: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An account that is served.
    pub fn user(&mut self) -> Account {
        let mut account = Account::new(self.dir.path());
        account.port = super::free_port::free_port();
        self.entries.push((account.name.clone(), account.port));
        self.mapped.push(account.name.clone());
        account
    }

    /// An account that is in the dispatch table only.
    pub fn unmapped_user(&mut self) -> Account {
        let account = self.user();
        self.mapped.pop();
        account
    }

    /// Puts a name into user map and table that may be anything.
    pub fn map(&mut self, name: &str, port: u16) {
        self.entries.push((name.to_owned(), port));
        self.mapped.push(name.to_owned());
    }

    /// An account that may ask for these verbs.
    pub fn caller(&mut self, verbs: &str) -> Account {
        let account = Account::new(self.dir.path());
        self.callers.push((account.name.clone(), verbs.to_owned()));
        account
    }

    /// A build in `<installs>/<version>`.
    pub fn install(&self, version: &str, options: &[&str]) -> PathBuf {
        let dir = self.path("installs").join(version);
        let mut install = Command::new(&self.program);
        install.args(["sim", "install"]).args(options).arg(&dir).arg(version);
        assert!(install.status().expect("the program runs").success());
        dir
    }

    /// Puts a script in the place of an installed command; `$T3` in it is the command itself.
    pub fn wrap(&self, install: &Path, script: &str) {
        let (command, real) = (install.join("bin/t3"), install.join("bin/real-t3"));
        fs::rename(&command, &real).expect("renamed");
        fs::write(&command, format!("#!/bin/sh\nT3='{}'\n{script}\n", text(&real))).expect("written");
        fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    /// Writes what the provisioner and the operator write. Answers the configuration file.
    pub fn configure(&self) -> PathBuf {
        let table: serde_json::Map<_, _> = self
            .entries
            .iter()
            .map(|(user, port)| (format!("{user}@x"), json!({ "os_user": user, "port": port })))
            .collect();
        let map: String = self.mapped.iter().map(|user| format!("{user}@x={user}\n")).collect();
        let mut config = format!(
            "state_dir = \"{dir}/state\"\n[inventory]\ndispatch_table = \"{dir}/dispatch.json\"\nuser_map = \"{dir}/users.map\"\nenv_dir = \"{dir}/env\"\nbase_dir = \"{{home}}/.t3\"\n[t3]\ninstalls = \"{dir}/installs\"\ncommand = [\"{dir}/installs/none\"]\n[helper]\nsocket = \"{dir}/helper.sock\"\nkeepers = \"{dir}/helper/keepers\"\n{extra}\n[helper.callers]\n",
            dir = text(self.dir.path()),
            extra = self.extra,
        );
        for (caller, verbs) in &self.callers {
            let verbs: Vec<_> = verbs.split_whitespace().collect();
            writeln!(config, "{caller} = {verbs:?}").expect("text");
        }
        self.write("dispatch.json", &Value::Object(table).to_string());
        self.write("users.map", &map);
        self.write("config.toml", &config);
        self.path("config.toml")
    }

    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
    }

    /// Starts the socket; each connection is one process of the helper.
    pub fn start_helper(&mut self) {
        self.configure();
        self.listen("helper.sock", "t3-prober-helper@.service");
    }

    /// The same for the unit in which builds are rehearsed.
    pub fn start_boxes(&mut self) {
        self.extra = format!("box_socket = {:?}\n{}", self.path("box.sock"), self.extra);
        self.configure();
        self.listen("box.sock", "t3-prober-box@.service");
    }

    fn listen(&mut self, socket: &str, unit: &str) {
        let (config, path) = (self.path("config.toml"), self.path(socket));
        let left = setting(unit, "CapabilityBoundingSet").expect("a bounding set").to_lowercase();
        let left: String =
            left.split(' ').map(|name| format!(",+{}", name.trim_start_matches("cap_"))).collect();
        let listener = UnixListener::bind(&path).expect("bind");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("mode");
        listener.set_nonblocking(true).expect("nonblocking");
        let (program, stop) = (self.program.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut helpers: Vec<Child> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let Ok((connection, _)) = listener.accept() else {
                    std::thread::park_timeout(Duration::from_millis(2));
                    continue;
                };
                // With no more than the unit leaves to it.
                let mut helper = Command::new("setpriv");
                helper.args(["--no-new-privs", &format!("--bounding-set=-all{left}"), "--"]);
                helper.arg(&program).args(["helper", "connection", "--config"]).arg(&config);
                helper.env("SECRET_OF_THE_HELPER", "hunter2");
                helper.stdin(OwnedFd::from(connection)).stdout(Stdio::null()).stderr(Stdio::null());
                helpers.push(helper.spawn().expect("the program runs"));
            }
            for mut helper in helpers {
                let _ = helper.kill();
                let _ = helper.wait();
            }
        });
        self.helpers.push(Helper { stop, thread: Some(thread) });
    }

    /// Asks over the socket as that account, on one connection; one answer per request.
    pub fn ask(&self, caller: &Account, requests: &[Value]) -> Vec<Value> {
        let lines: Vec<String> = requests.iter().map(Value::to_string).collect();
        self.ask_lines(caller, &lines)
    }

    pub fn ask_lines(&self, caller: &Account, lines: &[String]) -> Vec<Value> {
        self.ask_on("helper.sock", caller, lines)
    }

    fn ask_on(&self, socket: &str, caller: &Account, lines: &[String]) -> Vec<Value> {
        const CLIENT: &str = "use IO::Socket::UNIX; $| = 1; $SIG{PIPE} = q(IGNORE); $s = IO::Socket::UNIX->new(Peer => shift) or die qq(connect: $!\\n); while (<STDIN>) { print $s $_; $s->flush; $a = <$s>; defined $a or last; print $a }";
        let mut client = caller.command("perl");
        client.args(["-e", CLIENT, text(&self.path(socket))]);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("setpriv runs");
        let mut stdin = client.stdin.take().expect("stdin");
        for line in lines {
            writeln!(stdin, "{line}").expect("written");
        }
        drop(stdin);
        let output = client.wait_with_output().expect("an end");
        let answers = String::from_utf8(output.stdout).expect("text");
        answers.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    pub fn ask_one(&self, caller: &Account, request: &Value) -> Value {
        self.ask(caller, std::slice::from_ref(request)).pop().expect("an answer")
    }

    /// Asks for a rehearsal.
    pub fn ask_boxes(&self, caller: &Account, request: &Value) -> Value {
        self.ask_on("box.sock", caller, &[request.to_string()]).pop().expect("an answer")
    }

    /// A command as that account on a machine whose /etc holds our configuration and these sudoers lines; what is
    /// started is the command itself.
    pub fn with_sudoers(&self, account: &Account, sudoers: &str, command: &[&str]) -> Command {
        let etc = self.path("etc");
        let _ = fs::remove_dir_all(&etc);
        let turn = ACCOUNT_FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A lock file of another test process may vanish while it is copied: what is needed is there, or nothing runs.
        let copied =
            Command::new("cp").args(["--archive", "/etc", text(&etc)]).stderr(Stdio::null()).status();
        copied.expect("cp runs");
        drop(turn);
        self.write("etc/t3-prober/config.toml", &fs::read_to_string(self.configure()).expect("text"));
        self.write("etc/sudoers", sudoers);
        fs::set_permissions(self.path("etc/sudoers"), fs::Permissions::from_mode(0o440)).expect("mode");
        let mut machine = Command::new("unshare");
        machine.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc && exec \"$@\"", text(&etc)]);
        machine.args(["setpriv", "--init-groups", "--reset-env"]);
        machine.args([format!("--reuid={}", account.uid), format!("--regid={}", account.gid)]);
        machine.arg("--").args(command).current_dir("/");
        machine.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        machine
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for mut helper in self.helpers.drain(..) {
            helper.stop.store(true, Ordering::Relaxed);
            let _ = helper.thread.take().map(std::thread::JoinHandle::join);
        }
    }
}

/// The program where every account can start it: the checkout may lie in somebody's home.
fn public_program(dir: &Path) -> PathBuf {
    let program = PathBuf::from(PROGRAM);
    let open = |path: &Path| path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
    if program.ancestors().all(open) {
        return program;
    }
    let copy = dir.join("t3-prober");
    fs::copy(program, &copy).expect("a copy");
    copy
}

fn manage_accounts(program: &str, arguments: &[&str]) {
    let _turn = ACCOUNT_FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Another test process may hold the lock of the account files for a moment.
    until(&format!("{program} succeeds"), || {
        Command::new(program).args(arguments).stderr(Stdio::null()).status().expect(program).success()
    });
}

/// Waits for a condition, with a deadline.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// One HTTP exchange; empty where there was none.
pub fn http(port: u16, request: &str, body: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
        let length = body.len();
        let _ = write!(
            stream,
            "{request}\r\nHost: t3\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}
