//! The dispatch beside nginx and haproxy on the same instance, in turn and in several rounds, so that a ratio holds when
//! the machine's speed drifts. Needs nginx, haproxy and wrk. ROUNDS and SECONDS change how long it takes.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::free_port::free_port;

/// What is asked for, and over how many connections.
const CASES: [(&str, u32); 4] = [("small", 64), ("small", 1), ("64k.bin", 32), ("1m.bin", 8)];

/// The limit, the two to be matched, and ours.
const PEERS: [&str; 4] = ["direct", "nginx", "haproxy", "ours"];

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    per_second: f64,
    p99: Duration,
    /// Processor time of the proxy for one request; the limit has no proxy.
    cpu: Duration,
}

pub fn run() {
    let number = |name: &str, default: u32| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (rounds, seconds) = (number("ROUNDS", 5), number("SECONDS", 4));
    let bench = Bench::start();
    println!("{rounds} rounds of {seconds} s; medians; cpu is the proxy's own, per request");
    println!(
        "{:<12} {:>9} {:>12} {:>10} {:>10} {:>9}",
        "case", "peer", "requests/s", "p99", "cpu", "of nginx"
    );
    for (path, connections) in CASES {
        let mut all: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
        for _ in 0..rounds {
            for peer in PEERS {
                all.entry(peer).or_default().push(bench.measure(peer, path, connections, seconds));
            }
        }
        let medians: BTreeMap<&str, Measured> =
            all.into_iter().map(|(peer, measured)| (peer, median(&measured))).collect();
        let nginx = medians["nginx"];
        for peer in PEERS {
            let Measured { per_second, p99, cpu } = medians[peer];
            println!(
                "{:<12} {peer:>9} {per_second:>12.0} {p99:>10.2?} {cpu:>10.1?} {:>9.2}",
                format!("{path} c{connections}"),
                per_second / nginx.per_second
            );
        }
        let (ours, haproxy) = (medians["ours"], medians["haproxy"]);
        let fast = ours.per_second >= nginx.per_second.max(haproxy.per_second);
        let steady = ours.p99 <= nginx.p99.min(haproxy.p99);
        let word = |met: bool| if met { "met" } else { "not met" };
        println!("{:<12} requests/s >= both: {}, p99 <= the better: {}", "", word(fast), word(steady));
    }
}

fn median(all: &[Measured]) -> Measured {
    let middle = all.len() / 2;
    let mut rates: Vec<f64> = all.iter().map(|measured| measured.per_second).collect();
    rates.sort_by(f64::total_cmp);
    let of = |value: fn(&Measured) -> Duration| {
        let mut values: Vec<Duration> = all.iter().map(value).collect();
        values.sort_unstable();
        values[middle]
    };
    Measured { per_second: rates[middle], p99: of(|measured| measured.p99), cpu: of(|measured| measured.cpu) }
}

struct Bench {
    peers: BTreeMap<&'static str, Peer>,
    _upstream: Peer,
    _dir: TempDir,
}

/// A server under load, ended with the bench.
struct Peer {
    port: u16,
    child: Option<Child>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // nginx's workers end with their master only if it is asked politely.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, size) in [("64k.bin", 64 * 1024), ("1m.bin", 1024 * 1024)] {
            let bytes: Vec<u8> = (0..size).map(|_| rand::random()).collect();
            std::fs::write(dir.path().join(name), bytes).expect("a file");
        }
        let upstream = free_port();
        let write = |name: &str, template: &str, port: u16| {
            // Started by root, nginx would let another account accept what root listens on.
            let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
            let text = template
                .replace("{dir}", &dir.path().display().to_string())
                .replace("{upstream}", &upstream.to_string())
                .replace("{port}", &port.to_string())
                .replace("{user}", user);
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("a configuration");
            path
        };
        let nginx = |config: &Path| {
            let mut command = Command::new("nginx");
            command.arg("-e").arg(dir.path().join("nginx.err")).arg("-c").arg(config);
            command
        };
        let config = write("upstream.conf", include_str!("dispatch/upstream.nginx.conf"), upstream);
        let instance = Peer::start(nginx(&config), upstream);
        let mut peers = BTreeMap::from([("direct", Peer { port: upstream, child: None })]);
        let port = free_port();
        let config = write("proxy.conf", include_str!("dispatch/proxy.nginx.conf"), port);
        peers.insert("nginx", Peer::start(nginx(&config), port));
        let port = free_port();
        let config = write("haproxy.cfg", include_str!("dispatch/haproxy.cfg"), port);
        let mut haproxy = Command::new("haproxy");
        haproxy.args(["-db", "-f"]).arg(config);
        peers.insert("haproxy", Peer::start(haproxy, port));
        let port = free_port();
        peers.insert("ours", Peer::start(ours(dir.path(), port, upstream), port));
        Self { peers, _upstream: instance, _dir: dir }
    }

    fn measure(&self, peer: &str, path: &str, connections: u32, seconds: u32) -> Measured {
        let peer = &self.peers[peer];
        let before = peer.cpu();
        let output = Command::new("wrk")
            .args(["-t1", "--latency", "-H", "X-authentik-username: ann", "-H", "Cookie: t3_session=abc"])
            .arg(format!("-c{connections}"))
            .arg(format!("-d{seconds}s"))
            .arg(format!("http://127.0.0.1:{}/{path}", peer.port))
            .output()
            .expect("wrk");
        let cpu = peer.cpu().saturating_sub(before);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
        let word = |line: &str, place: usize| {
            let line = text
                .lines()
                .find(|text| text.contains(line))
                .unwrap_or_else(|| panic!("no '{line}' in {text}"));
            line.split_whitespace().nth(place).expect("a value").to_owned()
        };
        let requests: u32 = word("requests in", 0).parse().expect("a number");
        Measured {
            per_second: word("Requests/sec", 1).parse().expect("a number"),
            p99: humantime::parse_duration(&whole(&word("99%", 1))).expect("a duration"),
            cpu: cpu / requests.max(1),
        }
    }
}

/// wrk writes 1.25ms; humantime wants whole units.
fn whole(text: &str) -> String {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let value: f64 = text.trim_end_matches(unit).parse().expect("a number");
    let nanos = match unit {
        "us" => value * 1e3,
        "ms" => value * 1e6,
        _ => value * 1e9,
    };
    format!("{nanos:.0}ns")
}

/// The program as its own users would run it, with one identity.
pub fn ours(dir: &Path, port: u16, upstream: u16) -> Command {
    let table = dir.join("dispatch.json");
    std::fs::write(&table, format!("{{\"ann\":{{\"os_user\":\"ann\",\"port\":{upstream}}}}}"))
        .expect("a table");
    let config = dir.join("config.toml");
    let text = format!(
        "state_dir = \"{dir}/state\"\n[inventory]\ndispatch_table = \"{dir}/dispatch.json\"\naccounts = false\n\
         [dispatch]\nlisten = [\"127.0.0.1:{port}\"]\ntrusted_uids = [{uid}]\noperator_listen = \"127.0.0.1:{operator}\"\n\
         [t3]\ninstalls = \"{dir}/installs\"\n",
        dir = dir.display(),
        uid = nix::unistd::geteuid(),
        operator = free_port(),
    );
    std::fs::write(&config, text).expect("a configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_t3-prober"));
    command.arg("--config").arg(config).arg("dispatch");
    command
}

impl Peer {
    fn start(mut command: Command, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}; is it installed?"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Self { port, child: Some(child) }
    }

    /// Processor time of the process and its children (nginx's workers).
    fn cpu(&self) -> Duration {
        let Some(child) = &self.child else { return Duration::ZERO };
        let of = |id: i32| {
            let stat = procfs::process::Process::new(id).and_then(|process| process.stat());
            stat.map_or(0, |stat| {
                if i32::try_from(child.id()) == Ok(id) || i32::try_from(child.id()) == Ok(stat.ppid) {
                    stat.utime + stat.stime
                } else {
                    0
                }
            })
        };
        let ticks: u64 =
            procfs::process::all_processes().expect("/proc").flatten().map(|process| of(process.pid)).sum();
        Duration::from_millis(ticks * 1000 / procfs::ticks_per_second())
    }
}
