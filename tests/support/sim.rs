//! A stand-in t3 for one test: its own base directory and port, a few verbs, and gone when it is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, SET_COOKIE};
use reqwest::{Client, Response, redirect};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::free_port::free_port;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_t3-prober");
/// Well-formed, and impossible: 0 is not in the alphabet.
pub const BOGUS: &str = "PROBE0000000";
/// What may take a moment on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// One stand-in, running or stopped.
pub struct Sim {
    folder: TempDir,
    version: String,
    manner: Vec<String>,
    host: &'static str,
    port: u16,
    server: Option<Child>,
}

/// How a command of t3 ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Sim {
    /// A server of that version, ready to answer.
    pub async fn start(version: &str) -> Self {
        Self::start_with(version, &[]).await
    }

    /// The same, with options of `sim t3` such as `--mutation`.
    pub async fn start_with(version: &str, manner: &[&str]) -> Self {
        let mut sim = Self::stopped(version, manner);
        sim.serve().await;
        sim
    }

    /// Bound as production binds it.
    pub async fn start_on_all_interfaces(version: &str) -> Self {
        let mut sim = Self::stopped(version, &[]);
        sim.host = "0.0.0.0";
        sim.serve().await;
        sim
    }

    /// Not started yet.
    pub fn stopped(version: &str, manner: &[&str]) -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary directory"),
            version: version.to_owned(),
            manner: manner.iter().map(|option| (*option).to_owned()).collect(),
            host: "127.0.0.1",
            port: free_port(),
            server: None,
        }
    }

    /// Starts the server and waits until it answers.
    pub async fn serve(&mut self) {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        let client = client(Duration::from_millis(250));
        while client.get(self.url("/")).send().await.is_err() {
            if let Some(status) = self.server.as_mut().and_then(|server| server.try_wait().expect("a child"))
            {
                panic!("the server ended with {status}: {}", self.log());
            }
            assert!(Instant::now() < deadline, "the server does not answer: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the server and waits for nothing.
    pub fn spawn(&mut self) {
        let log = File::create(self.folder.path().join("log")).expect("a log file");
        let server = self
            .t3(&self.version, &["serve", "--host", self.host, "--port", &self.port.to_string()])
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        self.server = Some(server.expect("the program starts"));
    }

    /// Stops the server and starts that version on the same base directory.
    pub async fn restart_as(&mut self, version: &str) {
        self.terminate();
        version.clone_into(&mut self.version);
        self.serve().await;
    }

    /// SIGTERM, and how the server ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended()
    }

    pub fn signal(&self, signal: &str) {
        let server = self.server.as_ref().expect("a running server").id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &server]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for the server to end.
    pub fn ended(&mut self) -> ExitStatus {
        self.server.take().expect("a running server").wait().expect("a child")
    }

    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.try_wait().expect("a child").is_none())
    }

    /// A command of the server's own version.
    pub fn cli(&self, arguments: &[&str]) -> Ended {
        self.cli_as(&self.version, arguments)
    }

    /// A command of another version on the same base directory.
    pub fn cli_as(&self, version: &str, arguments: &[&str]) -> Ended {
        Ended::of(self.t3(version, arguments).stdin(Stdio::null()).output().expect("the program starts"))
    }

    /// A fresh credential, from the command line.
    pub fn mint(&self) -> String {
        let minted = self.cli(&["auth", "pairing", "create", "--json"]).json();
        minted["credential"].as_str().expect("a credential").to_owned()
    }

    /// The token of an administrative session.
    pub fn keeper(&self) -> String {
        let issued = self.cli(&["auth", "session", "issue", "--label", "t3-prober keeper", "--json"]).json();
        issued["token"].as_str().expect("a token").to_owned()
    }

    pub fn fault(&self, name: &str) {
        self.switch(&[name, "on"]);
    }

    pub fn fault_value(&self, name: &str, value: &str) {
        self.switch(&[name, "on", "--value", value]);
    }

    pub fn mend(&self, name: &str) {
        self.switch(&[name, "off"]);
    }

    /// What `sim fault` lists as on.
    pub fn faults(&self) -> String {
        self.switch(&[])
    }

    pub async fn get(&self, path: &str) -> reqwest::Result<Response> {
        http().get(self.url(path)).send().await
    }

    pub async fn get_with_cookie(&self, path: &str, cookie: &str) -> reqwest::Result<Response> {
        http().get(self.url(path)).header(COOKIE, cookie).send().await
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Result<Response> {
        http()
            .post(self.url(path))
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string())
            .send()
            .await
    }

    pub async fn post_as(&self, token: &str, path: &str, body: &Value) -> reqwest::Result<Response> {
        let request = http().post(self.url(path)).header(AUTHORIZATION, format!("Bearer {token}"));
        request.header(CONTENT_TYPE, "application/json").body(body.to_string()).send().await
    }

    /// Posts a credential to the exchange endpoint of the version.
    pub async fn exchange(&self, credential: &str) -> reqwest::Result<Response> {
        let path = if self.is_generation_a() { "/api/auth/bootstrap" } else { "/api/auth/browser-session" };
        self.post(path, &json!({ "credential": credential })).await
    }

    /// Mints, exchanges, and returns the cookie as a browser would send it.
    pub async fn login(&self) -> String {
        let answer = self.exchange(&self.mint()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        cookie(&answer).expect("a cookie").split(';').next().expect("a pair").to_owned()
    }

    /// Whether the server knows the cookie's session.
    pub async fn is_authenticated(&self, cookie: &str) -> bool {
        let answer = self.get_with_cookie("/api/auth/session", cookie).await.expect("an answer");
        body(answer).await["authenticated"].as_bool().expect("a truth value")
    }

    /// A ticket for a WebSocket, as a query string.
    pub async fn ticket(&self, cookie: &str) -> String {
        let (path, name) =
            if self.is_generation_a() { ("ws-token", "token") } else { ("websocket-ticket", "ticket") };
        let request = http().post(self.url(&format!("/api/auth/{path}"))).header(COOKIE, cookie);
        let answer = body(request.send().await.expect("an answer")).await;
        let query = if self.is_generation_a() { "wsToken" } else { "wsTicket" };
        format!("{query}={}", answer[name].as_str().expect("a ticket"))
    }

    /// Opens a WebSocket with a ticket; the status of a refusal.
    pub async fn socket(&self, query: &str) -> Result<Socket, u16> {
        let request =
            format!("ws://127.0.0.1:{}/ws?{query}", self.port).into_client_request().expect("a request");
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(other) => panic!("the upgrade was not answered: {other}"),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn base_dir(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub fn userdata(&self, file: &str) -> PathBuf {
        self.base_dir().join("userdata").join(file)
    }

    /// The database, opened as another process would, waiting for nobody.
    pub fn database(&self) -> tokio_rusqlite::rusqlite::Connection {
        let database = tokio_rusqlite::rusqlite::Connection::open(self.userdata("state.sqlite"));
        let database = database.expect("the database opens");
        database.busy_timeout(Duration::ZERO).expect("a connection");
        database
    }

    /// One number from the database.
    pub fn count(&self, sql: &str) -> u32 {
        self.database().query_row(sql, [], |row| row.get(0)).expect("a number")
    }

    pub fn level(&self) -> u32 {
        self.count("SELECT max(migration_id) FROM effect_sql_migrations")
    }

    /// What the server has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn is_generation_a(&self) -> bool {
        self.version.as_str() < "0.0.26"
    }

    /// A command of the server's version without its mutations.
    pub fn unbroken(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.build(&self.version, &[], arguments).output().expect("the program starts"))
    }

    /// A command of the server's own version, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.t3(&self.version, arguments)
    }

    fn t3(&self, version: &str, arguments: &[&str]) -> Command {
        self.build(version, &self.manner, arguments)
    }

    fn build(&self, version: &str, manner: &[String], arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["sim", "t3", "--as", version]).args(manner).arg("--").args(arguments);
        command.env("HOME", self.folder.path()).env("T3CODE_HOME", self.base_dir()).env_remove("T3CODE_PORT");
        command
    }

    fn switch(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(PROGRAM);
        let output = command.args(["sim", "fault"]).arg(self.base_dir()).args(arguments).output();
        let ended = Ended::of(output.expect("the program starts"));
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended.stdout
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may have ended by itself, which is what the test was about.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Ended {
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The answer of a command that was given `--json` and succeeded.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).expect("JSON")
    }

    /// The root cause of a failure: the last that is named.
    pub fn cause(&self) -> &str {
        let line = self.stdout.lines().rfind(|line| line.contains("[cause]:")).unwrap_or_default();
        line.trim().trim_start_matches("[cause]: Error: ")
    }
}

/// The Set-Cookie line of an answer.
pub fn cookie(answer: &Response) -> Option<String> {
    answer.headers().get(SET_COOKIE).map(|value| value.to_str().expect("text").to_owned())
}

/// The JSON of an answer.
pub async fn body(answer: Response) -> Value {
    answer.json().await.expect("JSON")
}

/// Runs `sim` with these arguments.
pub fn sim(arguments: &[&str]) -> Ended {
    Ended::of(Command::new(PROGRAM).arg("sim").args(arguments).output().expect("the program starts"))
}

/// Opens a database file for reading what a server left.
pub fn open(path: &Path) -> tokio_rusqlite::rusqlite::Connection {
    tokio_rusqlite::rusqlite::Connection::open(path).expect("the database opens")
}

fn http() -> Client {
    client(PATIENCE)
}

// A new connection for every request: one that was accepted too early is never answered.
fn client(timeout: Duration) -> Client {
    let builder = Client::builder().no_proxy().redirect(redirect::Policy::none()).pool_max_idle_per_host(0);
    builder.timeout(timeout).build().expect("a client")
}
