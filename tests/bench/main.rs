//! What the whole program costs and how soon it sees, measured on simulated fleets: `cargo bench --bench bench -- NAME`.
//! Every table shows the goal beside the figure; nothing here passes or fails a test run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

mod dispatch;
mod dispatch_table;
mod faults;
mod fleet;
mod gate;
mod outage;
mod report;
mod scrape;
mod small;
mod snapshot;
mod sockets;
mod state;
mod tap;
mod usage;
mod visits;

#[path = "../support"]
#[allow(dead_code)] // The suites use the rest of it.
mod support {
    pub mod free_port;
    pub mod world;
}

/// Name, what it measures and how long that takes, and what does it.
const BENCHES: &[(&str, &str, fn())] = &[
    ("faults", "from a fault to the metric that names it, for every kind of fault (3 minutes)", faults::run),
    ("fleet", "1,000 instances pulsed every 5 s: CPU, memory, spread, the start (4 minutes)", fleet::run),
    ("small", "25 users: memory, CPU, scrapes, series (2 minutes)", small::run),
    ("dispatch", "the front door beside nginx and haproxy on the same instance (6 minutes)", dispatch::run),
    (
        "sockets",
        "WebSockets through the front door and haproxy: an echo, a thousand idle, ten thousand refused (1 minute)",
        sockets::run,
    ),
    (
        "visits",
        "a first visit through the front door, beside the instance's own answers (1 minute)",
        visits::run,
    ),
    (
        "snapshot",
        "a snapshot of 200 MB under a writer beside VACUUM INTO, and a drill (1 minute)",
        snapshot::run,
    ),
    ("state", "25 databases that change between two rounds: CPU of a look (2 minutes)", state::run),
    (
        "gate",
        "a verdict beside its slowest chain, the overhead of a rehearsal, and what runs at once (2 minutes)",
        gate::run,
    ),
    ("outage", "the outage replayed: who names it, and when (1 minute)", outage::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Only `cargo bench` says --bench: a test run that happens to start this must not measure for minutes.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let names: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    if names.is_empty() {
        for (name, what, _) in BENCHES {
            println!("{name:10} {what}");
        }
    }
    for wanted in names {
        match BENCHES.iter().find(|(name, ..)| name == wanted) {
            Some((.., bench)) => bench(),
            None => {
                eprintln!("there is no benchmark called {wanted}; without a name they are listed");
                return ExitCode::from(64);
            }
        }
    }
    ExitCode::SUCCESS
}

/// Waits for a condition, as long as a benchmark may; panics with what was waited for.
fn until<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
