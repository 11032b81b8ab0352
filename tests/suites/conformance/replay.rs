//! Does what a recording did, in order, against the stand-in, and gathers the differences.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rusqlite::rusqlite::Connection;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::base_dir;
use super::between::{self, Event};
use super::bindings::Bindings;
use super::compare::{Comparer, compare};
use super::difference::Difference;
use super::recording::{Cli, Frame, Recording, Request, Response, Serve, Step, Stop, What};
use super::standin::{Server, Site};
use super::text::{Kind, Piece, is_of_credentials, pieces};
use crate::support::free_port::free_port;
use crate::support::raw_http;

/// No frame is waited for longer.
const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// Replays one recording in a place of its own; the name tells what happened between the steps.
pub async fn replay(name: &str, recording: &Recording) -> Vec<Difference> {
    let mut replay = Replay::new(name, recording).expect("a place to replay in");
    for step in &recording.steps {
        if let Err(error) = replay.step(step).await {
            replay.broke(&step.title(), &error);
        }
    }
    if let Err(error) = replay.what_is_left() {
        replay.broke("at the end", &error);
    }
    replay.differences
}

struct Replay<'a> {
    name: &'a str,
    recording: &'a Recording,
    /// Removed when dropped.
    _directory: TempDir,
    site: Site,
    bindings: Bindings,
    server: Option<Server>,
    socket: Option<WebSocketStream<TcpStream>>,
    keep_socket: bool,
    lock: Option<Connection>,
    /// stdout of the last command.
    last_answer: String,
    last_millisecond: u128,
    differences: Vec<Difference>,
}

impl<'a> Replay<'a> {
    fn new(name: &'a str, recording: &'a Recording) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let home = directory.path().join("home/ann");
        fs::create_dir_all(&home)?;
        let mut bindings = Bindings::new(home.to_str().context("a temporary directory that is text")?);
        // The port of the server, and the one that a second server was given.
        for port in [recording.port, recording.port + 1] {
            bindings
                .bind(&port.to_string(), &free_port().to_string())
                .map_err(|_| anyhow!("ports are not distinct"))?;
        }
        Ok(Self {
            name,
            recording,
            _directory: directory,
            site: Site { home },
            bindings,
            server: None,
            socket: None,
            keep_socket: false,
            lock: None,
            last_answer: String::new(),
            last_millisecond: 0,
            differences: Vec::new(),
        })
    }

    /// The replay could not do what the recorder did.
    fn broke(&mut self, step: &str, error: &anyhow::Error) {
        self.differences.push(Difference {
            step: step.to_owned(),
            field: "done".to_owned(),
            expected: "an answer".to_owned(),
            got: format!("{error:#}"),
        });
    }

    async fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        for event in between::before(self.name, step) {
            self.event(event).await.with_context(|| format!("{event:?}"))?;
        }
        self.next_millisecond().await;
        let got = self.answer(step).await?;
        self.differences.extend(compare(step, &got, &mut self.bindings));
        Ok(())
    }

    /// Nothing was recorded in the same millisecond as something else, and lists are in order of time.
    async fn next_millisecond(&mut self) {
        let now =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        while now() <= self.last_millisecond {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        self.last_millisecond = now();
    }

    async fn answer(&mut self, step: &Step) -> anyhow::Result<What> {
        Ok(match &step.what {
            What::Http { request, .. } => {
                let method = request.method.as_deref().context("an HTTP step without a method")?;
                let response = self.http(method, request).await?;
                What::Http { request: request.clone(), response }
            }
            What::Ws { request, .. } => {
                What::Ws { request: request.clone(), response: self.upgrade(request).await? }
            }
            What::WsFrames { frames } => What::WsFrames { frames: self.frames(frames).await? },
            What::Cli(cli) => What::Cli(self.cli(cli).await?),
            What::Serve(serve) => What::Serve(self.serve(serve).await?),
            What::Stop(_) => What::Stop(self.stop().await?),
            What::Db(db) => What::Db(base_dir::db(&self.database(), db)?),
            What::Files { .. } => {
                let (directory, beginning) = between::listed(step);
                let mut files = base_dir::files(self.bindings.live_path(directory).as_ref())?;
                files.retain(|file| file.path.starts_with(beginning));
                What::Files { files }
            }
            What::Log { .. } => What::Log { text: self.server()?.take_log()? },
        })
    }

    fn base_dir(&self) -> PathBuf {
        self.bindings.live_path(&self.recording.base_dir).into()
    }

    fn database(&self) -> PathBuf {
        self.base_dir().join("userdata/state.sqlite")
    }

    fn server(&mut self) -> anyhow::Result<&mut Server> {
        self.server.as_mut().context("no server is running")
    }

    fn port(&self) -> anyhow::Result<u16> {
        Ok(self.said(&self.recording.port.to_string())?.parse()?)
    }

    fn said(&self, recorded: &str) -> anyhow::Result<String> {
        self.bindings.live_text(recorded).map_err(|value| anyhow!("no step has produced {value}"))
    }

    async fn http(&mut self, method: &str, request: &Request) -> anyhow::Result<Response> {
        let body = request.body.as_deref().map(|body| self.said(body)).transpose()?;
        let mut headers = Vec::new();
        // What the recorder's client added by itself.
        if !request.headers.contains_key("Host") {
            headers.push(("Host".to_owned(), format!("127.0.0.1:{}", self.port()?)));
        }
        headers.push(("Accept-Encoding".to_owned(), "identity".to_owned()));
        if body.is_some() || matches!(method, "POST" | "PUT" | "PATCH") {
            headers.push(("Content-Length".to_owned(), body.as_ref().map_or(0, String::len).to_string()));
        }
        for (name, value) in &request.headers {
            headers.push((name.clone(), self.said(value)?));
        }
        let path = self.said(&request.path)?;
        let response = raw_http::exchange(self.port()?, method, &path, &headers, body.as_deref()).await?;
        Ok(recorded(&response))
    }

    async fn upgrade(&mut self, request: &Request) -> anyhow::Result<Response> {
        let mut headers = Vec::new();
        for (name, value) in &request.headers {
            // The key is sent as it was, so that the answer to it is the recorded one.
            let value = if name == "Sec-WebSocket-Key" { value.clone() } else { self.said(value)? };
            headers.push((name.clone(), value));
        }
        let path = self.said(&request.path)?;
        let (response, stream) = raw_http::upgrade(self.port()?, "GET", &path, &headers, None).await?;
        if std::mem::take(&mut self.keep_socket) && response.status == 101 {
            let rest = response.rest.clone();
            self.socket = Some(WebSocketStream::from_partially_read(stream, rest, Role::Client, None).await);
        }
        Ok(recorded(&response))
    }

    async fn frames(&mut self, frames: &[Frame]) -> anyhow::Result<Vec<Frame>> {
        let mut got = Vec::new();
        for frame in frames {
            let send = self.said(&frame.send)?;
            let socket = self.socket.as_mut().context("no WebSocket is open")?;
            socket.send(Message::text(send.clone())).await?;
            let answer = tokio::time::timeout(FRAME_DEADLINE, socket.next())
                .await
                .with_context(|| format!("no answer to {send} within {FRAME_DEADLINE:?}"))?
                .context("the WebSocket was closed")??;
            let opcode = if answer.is_text() { 1 } else { 2 };
            got.push(Frame {
                send,
                recv: answer.into_text()?.to_string(),
                opcode: Some(opcode),
                recv_chars: None,
            });
        }
        Ok(got)
    }

    async fn cli(&mut self, cli: &Cli) -> anyhow::Result<Cli> {
        let args = cli.args.iter().map(|arg| self.said(arg)).collect::<anyhow::Result<Vec<_>>>()?;
        let (exit, stdout, stderr) = self.site.run(&cli.cli_version, &args).await?;
        self.last_answer.clone_from(&stdout);
        Ok(Cli { cli_version: cli.cli_version.clone(), args, exit, stdout, stderr })
    }

    async fn serve(&mut self, serve: &Serve) -> anyhow::Result<Serve> {
        let args = serve.args.iter().map(|arg| self.said(arg)).collect::<anyhow::Result<Vec<_>>>()?;
        let port = self.port()?;
        let server = self.server.insert(self.site.start(&serve.cli_version, &args, port)?);
        let last = if serve.stdout.contains("Pairing URL: ") { "Pairing URL: " } else { "Listening on " };
        server.ready(last).await?;
        Ok(Serve {
            cli_version: serve.cli_version.clone(),
            args,
            alive: server.is_alive(),
            stdout: server.take_log()?,
            stderr: server.stderr()?,
        })
    }

    async fn stop(&mut self) -> anyhow::Result<Stop> {
        let server = self.server()?;
        let exit = server.stop().await?.code();
        let log = server.take_log()?;
        self.server = None;
        Ok(Stop { exit, log })
    }

    async fn event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::MintFor(step) => self.mint_for(step).await?,
            Event::CredentialExpires => self.credential_expires().await?,
            Event::LockDatabase => self.lock = Some(base_dir::lock(&self.database())?),
            Event::UnlockDatabase => self.lock = None,
            Event::RenameAuthTables => base_dir::rename_auth_tables(&self.database(), "", "away_")?,
            Event::RenameAuthTablesBack => base_dir::rename_auth_tables(&self.database(), "away_", "")?,
            Event::KeepSocketOpen => self.keep_socket = true,
            Event::CloseSocket => {
                if let Some(mut socket) = self.socket.take() {
                    socket.close(None).await?;
                    // Until the server has closed too.
                    let end = async { while let Some(Ok(_)) = socket.next().await {} };
                    tokio::time::timeout(FRAME_DEADLINE, end)
                        .await
                        .context("the close frame was not answered")?;
                }
            }
            Event::MakeEmptyDirectory(name) => fs::create_dir(self.site.home.join(name))?,
            Event::MakeGarbageDatabase(name) => {
                let userdata = self.site.home.join(name).join("userdata");
                fs::create_dir_all(&userdata)?;
                fs::write(
                    userdata.join("state.sqlite"),
                    "this is not a database, whatever its name says\n".repeat(100),
                )?;
            }
            Event::RemoveBaseDir => fs::remove_dir_all(self.base_dir())?,
            Event::CopyBaseDir => base_dir::copy(&self.base_dir(), &self.site.home.join("copy"))?,
            Event::RestoreBaseDir => {
                fs::remove_dir_all(self.base_dir())?;
                base_dir::copy(&self.site.home.join("copy"), &self.base_dir())?;
            }
            Event::ReadRunningFiles => self.read_running_files()?,
        }
        Ok(())
    }

    /// A mint like the first recorded one. Its credential is the one in the request of the step that uses it, which may
    /// show it in lower case.
    async fn mint_for(&mut self, step: &str) -> anyhow::Result<()> {
        let What::Http { request, .. } = &self.recording.step(step).what else {
            return Err(anyhow!("{step} is no HTTP step"));
        };
        let credential = credential_in(request.body.as_deref().unwrap_or_default())
            .with_context(|| format!("no credential in the request of {step}"))?;
        let What::Cli(mint) = &self.recording.step("mint").what else {
            return Err(anyhow!("no mint was recorded"));
        };
        let minted = self.cli(mint).await?;
        let answer: Value = serde_json::from_str(&minted.stdout).context("the answer of a mint")?;
        let live = answer["credential"].as_str().context("a mint without a credential")?;
        self.bindings.bind(&credential, live).map_err(|_| anyhow!("{credential} was minted twice"))
    }

    async fn credential_expires(&self) -> anyhow::Result<()> {
        let answer: Value = serde_json::from_str(&self.last_answer).context("the answer of a mint")?;
        let expires =
            humantime::parse_rfc3339(answer["expiresAt"].as_str().context("a mint without an end")?)?;
        while SystemTime::now() <= expires {
            tokio::time::sleep(expires.duration_since(SystemTime::now()).unwrap_or(Duration::from_millis(1)))
                .await;
        }
        Ok(())
    }

    fn read_running_files(&mut self) -> anyhow::Result<()> {
        let userdata = self.base_dir().join("userdata");
        let files = base_dir::files(&self.base_dir())?;
        let runtime = fs::read_to_string(userdata.join("server-runtime.json"))?;
        let environment = fs::read_to_string(userdata.join("environment-id"))?;
        let mut comparer = Comparer::new("while the server runs", &mut self.bindings);
        comparer.files("file", self.recording.files_running.as_deref().unwrap_or_default(), &files);
        comparer.json(
            "server-runtime.json",
            self.recording.server_runtime_json.as_deref().unwrap_or_default(),
            &runtime,
        );
        comparer.json(
            "environment-id",
            self.recording.environment_id.as_deref().unwrap_or_default(),
            &environment,
        );
        self.differences.extend(comparer.found());
        Ok(())
    }

    /// The top level of a full recording: what was there when everything was over.
    fn what_is_left(&mut self) -> anyhow::Result<()> {
        let (database, base_dir) = (self.database(), self.base_dir());
        let mut comparer = Comparer::new("at the end", &mut self.bindings);
        if let Some(expected) = &self.recording.files_stopped {
            comparer.files("file", expected, &base_dir::files(&base_dir)?);
        }
        if let Some(expected) = &self.recording.sqlite {
            comparer.sqlite(expected, &base_dir::sqlite(&database, expected)?);
        }
        self.differences.extend(comparer.found());
        Ok(())
    }
}

/// An answer in the shape of the recordings.
fn recorded(response: &raw_http::Response) -> Response {
    Response {
        status: response.status,
        headers: response.headers.clone().into_iter().collect::<BTreeMap<_, _>>(),
        body: Some(String::from_utf8_lossy(&response.body).into_owned()),
    }
}

/// The credential that a request body carries, in capitals.
fn credential_in(body: &str) -> Option<String> {
    let upper = pieces(body).into_iter().find_map(|piece| match piece {
        Piece::Value(Kind::Credential, value) => Some(value.to_owned()),
        _ => None,
    });
    upper.or_else(|| {
        let mut words = body.split('"').map(str::to_ascii_uppercase);
        words.find(|word| word.len() == 12 && word.bytes().all(is_of_credentials))
    })
}
