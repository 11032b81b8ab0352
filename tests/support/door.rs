//! The dispatch under test: the real program in front of scripted or simulated instances, talked to in raw bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::free_port::free_port;
use super::world::{Answer, PROGRAM, World, http, replace, wait_for};

/// The dispatch's own section for a world: whoever runs the tests is the edge.
pub fn section(port: u16, operator: u16) -> String {
    let own = nix::unistd::geteuid();
    format!(
        "[dispatch]\nlisten = [\"127.0.0.1:{port}\"]\noperator_listen = \"127.0.0.1:{operator}\"\n\
         trusted_uids = [{own}]\nallowed_domains = [\"example.com\"]\ndrain_timeout = \"5s\"\n"
    )
}

/// A running `t3-prober dispatch`.
pub struct Door {
    pub world: World,
    child: Option<Child>,
    pub port: u16,
    operator: u16,
    environment: Vec<(&'static str, String)>,
}

impl Door {
    /// In front of a world, with more keys for `[dispatch]`.
    pub fn before(world: World, keys: &str) -> Self {
        let (port, operator) = (free_port(), free_port());
        let world = world.configured(&format!("{}{keys}", section(port, operator)));
        Self::opened(world, port, operator)
    }

    /// In front of a world, by another table than its own.
    pub fn in_front_of(world: World, entries: &[(&str, &str, u16)]) -> Self {
        let (port, operator) = (free_port(), free_port());
        let world = world.configured(&section(port, operator));
        table(&world, entries);
        Self::opened(world, port, operator)
    }

    /// In front of one scripted instance, ann's.
    pub fn to(instance: &Instance) -> Self {
        Self::to_with(instance, "")
    }

    pub fn to_with(instance: &Instance, keys: &str) -> Self {
        let world = World::empty();
        let (port, operator) = (free_port(), free_port());
        let world = world.configured(&format!("{}{keys}", section(port, operator)));
        table(&world, &[("ann", "ann", instance.port)]);
        Self::opened(world, port, operator)
    }

    fn opened(world: World, port: u16, operator: u16) -> Self {
        let mut door = Self { world, child: None, port, operator, environment: Vec::new() };
        door.start();
        door
    }

    /// The same once more, in another environment.
    pub fn restarted_with(mut self, environment: Vec<(&'static str, String)>) -> Self {
        self.signal(Signal::SIGTERM);
        self.ended();
        self.environment = environment;
        self.start();
        self
    }

    pub fn start(&mut self) {
        self.child = Some(self.command().spawn().expect("the program"));
        self.until_ready();
    }

    /// Starts with a listener that somebody else holds, as systemd would.
    pub fn start_with(&mut self, listener: &TcpListener) {
        let passed = OwnedFd::from(listener.try_clone().expect("a second handle"));
        let program = self.command();
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"", PROGRAM]);
        shell.args(program.get_args()).stdin(passed).stdout(Stdio::null()).stderr(self.log_file());
        self.child = Some(shell.spawn().expect("a shell"));
        self.until_ready();
    }

    fn until_ready(&self) {
        let ready = || http(self.operator, "GET", "/-/healthy", &[]).is_ok_and(|answer| answer.status == 200);
        wait_for("the dispatch to be ready", || ready().then_some(()));
    }

    fn command(&self) -> Command {
        let mut command = self.world.command(&["dispatch"]);
        command.stdout(Stdio::null()).stderr(self.log_file());
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        command
    }

    fn log_file(&self) -> std::fs::File {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.world.path("dispatch.log"))
            .expect("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.world.path("dispatch.log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().expect("a running dispatch").id();
        kill(Pid::from_raw(i32::try_from(id).expect("a pid")), signal).expect("a running process");
    }

    /// Waits for the program to end, after a signal.
    pub fn ended(&mut self) -> i32 {
        let mut child = self.child.take().expect("a running dispatch");
        wait_for("the dispatch to end", || child.try_wait().expect("a child")).code().unwrap_or(-1)
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> u64 {
        let id = self.child.as_ref().expect("a running dispatch").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub fn descriptors(&self) -> usize {
        let id = self.child.as_ref().expect("a running dispatch").id();
        std::fs::read_dir(format!("/proc/{id}/fd")).expect("fds").count()
    }

    /// A request as ann, on a connection of its own.
    pub fn ann(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut all = vec![("X-authentik-username", "ann")];
        all.extend_from_slice(headers);
        http(self.port, method, path, &all).unwrap_or_default()
    }

    /// Raw bytes, and everything that comes back until the dispatch closes or is silent.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut wire = Wire::connect(self.port);
        wire.send(bytes);
        wire.rest()
    }

    pub fn metric(&self, sample: &str) -> f64 {
        let text = http(self.operator, "GET", "/metrics", &[]).unwrap_or_default().body;
        let found =
            text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.trim().parse().ok());
        found.unwrap_or(0.0)
    }

    pub fn operator_port(&self) -> u16 {
        self.operator
    }

    pub fn until_metric(&self, sample: &str, wanted: f64) {
        wait_for(sample, || (self.metric(sample) == wanted).then_some(()));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Writes the dispatch table: identity, user, port.
pub fn table(world: &World, entries: &[(&str, &str, u16)]) {
    let table: serde_json::Map<_, _> = entries
        .iter()
        .map(|(identity, user, port)| ((*identity).to_owned(), json!({ "os_user": user, "port": port })))
        .collect();
    replace(&world.path("dispatch.json"), &serde_json::Value::Object(table).to_string());
}

/// A client connection, byte by byte.
pub struct Wire(TcpStream);

impl Wire {
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self(stream)
    }

    /// A second handle on the same connection.
    pub fn another(&self) -> Self {
        Self(self.0.try_clone().expect("a second handle"))
    }

    /// What is refused may be closed while it is still being sent.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    pub fn finish_sending(&self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// Everything until the other side closes.
    pub fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads until the text has come; what came with it too.
    pub fn until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        let mut some = [0; 4096];
        loop {
            if all.windows(text.len()).any(|window| window == text.as_bytes()) {
                return String::from_utf8_lossy(&all).into_owned();
            }
            match self.0.read(&mut some) {
                Ok(count @ 1..) => all.extend_from_slice(&some[..count]),
                ended => panic!("{ended:?} before {text:?}, after {:?}", String::from_utf8_lossy(&all)),
            }
        }
    }

    pub fn count(&mut self) -> usize {
        std::io::copy(&mut self.0, &mut std::io::sink())
            .map_or(0, |count| usize::try_from(count).unwrap_or(0))
    }
}

/// A scripted instance: each connection is handed to the script, on a thread of its own.
pub struct Instance {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

/// An instance's end of a connection.
pub struct Talk {
    wire: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Instance {
    pub fn start(script: impl Fn(&mut Talk) + Send + Sync + 'static) -> Self {
        Self::on(0, script)
    }

    /// One on a certain port.
    pub fn on(port: u16, script: impl Fn(&mut Talk) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (seen, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (script, talks, stop) = (Arc::new(script), Arc::clone(&seen), Arc::clone(&ended));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(wire) = stream else { continue };
                let (script, seen) = (Arc::clone(&script), Arc::clone(&talks));
                std::thread::spawn(move || script(&mut Talk { wire, seen }));
            }
        });
        Self { port, seen, ended }
    }

    /// Answers every request with the same bytes, for as long as the connection lives.
    pub fn answering(answer: &'static str) -> Self {
        Self::start(move |talk| {
            while talk.request().is_some() {
                talk.say(answer.as_bytes());
            }
        })
    }

    /// The heads that arrived.
    pub fn heads(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Talk {
    /// The next head; `None` at the end.
    pub fn request(&mut self) -> Option<String> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.wire.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return None,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        self.seen.lock().expect("no panic").push(head.clone());
        Some(head)
    }

    pub fn say(&mut self, bytes: &[u8]) {
        let _ = self.wire.write_all(bytes);
    }

    /// This many bytes of a body, or what came of them.
    pub fn body(&mut self, count: usize) -> Vec<u8> {
        let mut body = vec![0; count];
        let mut held = 0;
        while held < count {
            match self.wire.read(&mut body[held..]) {
                Ok(more @ 1..) => held += more,
                _ => break,
            }
        }
        body.truncate(held);
        body
    }

    /// A body up to and with this end.
    pub fn body_until(&mut self, end: &str) -> String {
        let mut body = Vec::new();
        let mut byte = [0];
        while !body.ends_with(end.as_bytes()) {
            match self.wire.read(&mut byte) {
                Ok(1) => body.push(byte[0]),
                _ => break,
            }
        }
        String::from_utf8_lossy(&body).into_owned()
    }
}
