//! The caller's side of the helper: over its socket, where one connection serves many requests (a root process is
//! started once, not at every login), or through a command such as `sudo -n t3-prober helper`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::wire::{LARGEST_REPLY, Reply, Request};
use crate::outcome::{Failure, NotDone, Reason};
use crate::t3::cli::Verb;

/// The helper ends by itself at the request's own limit; its answer about that is worth this wait.
const GRACE: Duration = Duration::from_secs(2);
/// Shorter than the helper's own patience with a silent connection.
const IDLE: Duration = Duration::from_secs(30);
/// Connections kept for the next request; more than this many at once are opened and closed as needed.
const KEPT: usize = 4;

/// How the helper is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Socket(PathBuf),
    /// Program and leading arguments; the verb is added.
    Command(Vec<String>),
}

/// The helper, as its callers see it.
pub struct Helper {
    way: Way,
    idle: Mutex<Vec<(Instant, BufReader<UnixStream>)>>,
    cpu: Mutex<Vec<(Verb, Duration)>>,
}

impl Helper {
    pub fn new(way: Way) -> Self {
        Self { way, idle: Mutex::default(), cpu: Mutex::default() }
    }

    pub fn take_cpu(&self) -> Vec<(Verb, Duration)> {
        std::mem::take(&mut *self.cpu.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks, and takes the answer apart. Whatever is wrong with the helper itself is the reason `helper`.
    pub async fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, NotDone> {
        let limit = request.limit() + GRACE;
        let asked = async {
            match &self.way {
                Way::Socket(path) => self.over_socket(path, request).await,
                Way::Command(command) => over_command(command, request).await,
            }
        };
        let line = match timeout(limit, asked).await {
            Ok(line) => line?,
            Err(_) => {
                let limit = humantime::format_duration(limit);
                return Err(broken(format!("the helper did not answer within {limit}")).into());
            }
        };
        // The parser's own message may quote the line, which may hold a credential.
        let unlike = |error: serde_json::Error| {
            let place = format!("line {} column {}", error.line(), error.column());
            broken(format!("the helper's answer is not of this version's form at {place}"))
        };
        let reply: Reply = serde_json::from_slice(&line).map_err(unlike)?;
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner).extend(reply.cpu);
        let value = Result::from(reply.end)?;
        Ok(serde_json::from_value(value).map_err(unlike)?)
    }

    async fn over_socket(&self, path: &Path, request: &Request) -> Result<Vec<u8>, Failure> {
        let mut line = serde_json::to_vec(request).map_err(|error| broken(error.to_string()))?;
        line.push(b'\n');
        if let Some(mut kept) = self.kept() {
            // A kept connection may have ended meanwhile; without a byte of an answer, a new one is tried.
            if let Some(reply) = exchange(&mut kept, &line).await.ok().filter(|reply| !reply.is_empty()) {
                self.keep(kept);
                return Ok(reply);
            }
        }
        let cannot = |error: io::Error| {
            broken(format!(
                "the helper's socket {}: {error}; see whether t3-prober-helper.socket is active and whether this account may use it",
                path.display()
            ))
        };
        let mut connection = BufReader::new(UnixStream::connect(path).await.map_err(cannot)?);
        let reply = exchange(&mut connection, &line).await.map_err(cannot)?;
        if reply.is_empty() {
            return Err(cannot(io::ErrorKind::UnexpectedEof.into()));
        }
        self.keep(connection);
        Ok(reply)
    }

    fn kept(&self) -> Option<BufReader<UnixStream>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < IDLE);
        idle.pop().map(|(_, connection)| connection)
    }

    fn keep(&self, connection: BufReader<UnixStream>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push((Instant::now(), connection));
        }
    }
}

/// One line out, one line in; empty where the connection ended first.
async fn exchange(connection: &mut BufReader<UnixStream>, line: &[u8]) -> io::Result<Vec<u8>> {
    connection.get_mut().write_all(line).await?;
    let mut reply = Vec::new();
    connection.take(LARGEST_REPLY as u64).read_until(b'\n', &mut reply).await?;
    if reply.is_empty() || reply.ends_with(b"\n") {
        Ok(reply)
    } else {
        Err(io::Error::other("the answer broke off"))
    }
}

/// Starts the command for one request. Nothing of ours is in its environment but where programs are found.
async fn over_command(command: &[String], request: &Request) -> Result<Vec<u8>, Failure> {
    let Some((program, leading)) = command.split_first() else {
        return Err(broken("no helper command is configured"));
    };
    let cannot = |error: io::Error| broken(format!("cannot run the helper's command '{program}': {error}"));
    let mut child = Command::new(program);
    child.args(leading).arg(request.verb().as_str()).env_clear().kill_on_drop(true);
    child.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().map_err(cannot)?;
    let mut line = serde_json::to_vec(request).map_err(|error| broken(error.to_string()))?;
    line.push(b'\n');
    // Open until there is an answer: by its end the helper sees that nobody waits.
    let mut leash = child.stdin.take();
    if let Some(stdin) = &mut leash {
        // A command that refuses at once reads nothing: what it says is the better message.
        let _ = stdin.write_all(&line).await;
    }
    let (mut reply, mut said) = (Vec::new(), Vec::new());
    let read = async {
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else { return Ok(()) };
        let (mut stdout, mut stderr) = (stdout.take(LARGEST_REPLY as u64), stderr.take(4096));
        tokio::try_join!(stdout.read_to_end(&mut reply), stderr.read_to_end(&mut said)).map(|_| ())
    };
    read.await.map_err(cannot)?;
    let status = child.wait().await.map_err(cannot)?;
    drop(leash);
    if !reply.is_empty() {
        return Ok(reply);
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.lines().next_back().unwrap_or("it said nothing").trim();
    Err(broken(format!("the helper's command '{program}' ended with {status} and no answer: {said}")))
}

fn broken(detail: impl Into<String>) -> Failure {
    Failure::new(Reason::Helper, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::t3::access::wire::EnvPort;

    async fn port(way: Way) -> Result<u16, NotDone> {
        let request = Request::Port { user: "ann".to_owned() };
        Helper::new(way).ask::<EnvPort>(&request).await.map(|answer| answer.port)
    }

    fn command(script: &str) -> Way {
        Way::Command(["/bin/sh", "-c", script, "helper"].map(str::to_owned).to_vec())
    }

    #[tokio::test]
    async fn a_command_is_given_the_verb_as_its_argument_and_the_request_on_stdin() {
        let script = r#"read line; [ "$1" = port ] && [ "$line" = '{"verb":"port","user":"ann"}' ] && echo '{"ended":"ok","value":{"port":4001}}'"#;
        assert_eq!(port(command(script)).await, Ok(4001));
    }

    #[tokio::test]
    async fn a_command_that_fails_is_the_reason_helper_with_what_it_said_last() {
        let why =
            port(command("echo 'sudo: a password is required' >&2; exit 1")).await.expect_err("no answer");
        assert_eq!(why.outcome(), crate::outcome::Outcome::Failed(Reason::Helper));
        assert!(
            why.detail().ends_with("exit status: 1 and no answer: sudo: a password is required"),
            "{why}"
        );
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named_with_the_remedy() {
        let why = port(Way::Socket("/no/such/socket".into())).await.expect_err("no socket");
        assert!(why.detail().contains("/no/such/socket") && why.detail().contains("is active"), "{why}");
    }

    #[tokio::test]
    async fn an_answer_of_another_form_is_not_quoted() {
        let why =
            port(command("read line; echo '{\"credential\":\"hunter2\"}'")).await.expect_err("no reply");
        assert!(!why.to_string().contains("hunter2"), "{why}");
        assert_eq!(why.outcome(), crate::outcome::Outcome::Failed(Reason::Helper));
    }

    #[tokio::test]
    async fn one_connection_serves_many_requests_and_one_that_ended_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let serve = async {
            for requests in [2, 1] {
                let (connection, _) = listener.accept().await.expect("a connection");
                let mut connection = BufReader::new(connection);
                for _ in 0..requests {
                    let mut line = String::new();
                    connection.read_line(&mut line).await.expect("a request");
                    let answer = b"{\"ended\":\"ok\",\"value\":{\"port\":4001}}\n";
                    connection.get_mut().write_all(answer).await.expect("written");
                }
            }
        };
        let helper = Helper::new(Way::Socket(path));
        let ask = async {
            for _ in 0..3 {
                let request = Request::Port { user: "ann".to_owned() };
                assert_eq!(helper.ask::<EnvPort>(&request).await.map(|answer| answer.port), Ok(4001));
            }
        };
        tokio::join!(serve, ask);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_helper_is_given_up_at_the_deadline() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        let _listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let why = port(Way::Socket(path)).await.expect_err("silence");
        assert_eq!(why.detail(), "the helper did not answer within 4s");
    }
}
