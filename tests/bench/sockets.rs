//! WebSockets through the dispatch and through haproxy: the time of one echo, and what an idle one costs in memory.
//! The instance is a plain echo: a stand-in would be measured instead of the proxies.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use procfs::WithCurrentSystemInfo;

use crate::dispatch::ours;
use crate::support::free_port::free_port;

const ECHOES: usize = 20_000;
const IDLE: usize = 1_000;
/// Against an instance that is not there, so many at once.
const DEAD: usize = 10_000;
const AT_ONCE: usize = 500;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A whole masked text frame of a client's, with an empty mask.
const FRAME: &[u8] = b"\x81\x85\0\0\0\0hello";

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run() {
    let dir = tempfile::tempdir().expect("a directory");
    let upstream = echo();
    let (port, beside) = (free_port(), free_port());
    let config = include_str!("dispatch/haproxy.cfg")
        .replace("{port}", &beside.to_string())
        .replace("{upstream}", &upstream.to_string());
    std::fs::write(dir.path().join("haproxy.cfg"), config).expect("a configuration");
    let mut haproxy = Command::new("haproxy");
    haproxy.args(["-db", "-f"]).arg(dir.path().join("haproxy.cfg"));
    let (proxy, _haproxy) = (start(ours(dir.path(), port, upstream), port), start(haproxy, beside));
    let mut medians = Vec::new();
    for (name, port) in
        [("direct", upstream), ("haproxy", beside), ("ours", port), ("haproxy", beside), ("ours", port)]
    {
        let mut socket = open(port);
        let mut times: Vec<Duration> = (0..ECHOES).map(|_| round_trip(&mut socket)).collect();
        times.sort_unstable();
        println!("{name:>9}: echo p50 {:.1?}, p99 {:.1?}", times[ECHOES / 2], times[ECHOES * 99 / 100]);
        medians.push((name, times[ECHOES / 2]));
    }
    let best = |name: &str| {
        medians.iter().filter(|(of, _)| *of == name).map(|(_, time)| *time).min().unwrap_or_default()
    };
    println!(
        "     echo: {:.2} x haproxy (goal 1.2)",
        best("ours").as_secs_f64() / best("haproxy").as_secs_f64()
    );
    let sockets: Vec<TcpStream> = (0..IDLE).map(|_| open(port)).collect();
    let process =
        procfs::process::Process::new(i32::try_from(proxy.0.id()).expect("a pid")).expect("the program");
    let resident = process.stat().expect("its figures").rss_bytes().get();
    println!("     idle: {IDLE} WebSockets, {:.1} MB resident (goal 30)", resident as f64 / 1e6);
    drop(sockets);
    drop(proxy);
    dead(dir.path());
}

/// Opens ten thousand against an instance that is not there, and looks at what is left of them.
fn dead(dir: &Path) {
    let port = free_port();
    let proxy = start(ours(dir, port, free_port()), port);
    let process =
        procfs::process::Process::new(i32::try_from(proxy.0.id()).expect("a pid")).expect("the program");
    let memory = || process.stat().expect("its figures").rss_bytes().get() as f64 / 1e6;
    let descriptors = || process.fd_count().expect("its descriptors");
    refused(port);
    let before = (memory(), descriptors());
    for _ in 0..DEAD / AT_ONCE {
        refused(port);
    }
    crate::until("the descriptors to come back", Duration::from_secs(20), || {
        (descriptors() <= before.1).then_some(())
    });
    println!(
        "     dead: {DEAD} WebSockets, {:.1} MB before and {:.1} after, {} descriptors before and {} after",
        before.0,
        memory(),
        before.1,
        descriptors()
    );
}

fn refused(port: u16) {
    let mut sockets: Vec<TcpStream> =
        (0..AT_ONCE).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connected")).collect();
    for socket in &mut sockets {
        socket.write_all(UPGRADE.as_bytes()).expect("sent");
    }
    for socket in &mut sockets {
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 503");
    }
}

fn start(mut command: Command, port: u16) -> Proxy {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("installed");
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{command:?} does not listen");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Proxy(child)
}

fn open(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.set_nodelay(true).expect("no delay");
    stream.write_all(UPGRADE.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream
}

fn round_trip(socket: &mut TcpStream) -> Duration {
    let mut back = [0; FRAME.len()];
    let start = Instant::now();
    socket.write_all(FRAME).expect("sent");
    socket.read_exact(&mut back).expect("echoed");
    start.elapsed()
}

/// Upgrades whatever comes and sends back what follows.
fn echo() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || talk(stream));
        }
    });
    port
}

fn talk(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut bytes = [0; 4096];
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => head.extend_from_slice(&bytes[..count]),
            _ => return,
        }
    }
    // The answer to the key that `open` sends: haproxy looks at it.
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let _ = stream.write_all(accepted.as_bytes());
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}
