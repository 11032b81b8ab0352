//! A thousand instances pulsed every 5 s: what that costs, whether the load is even, and whether a start, when every
//! user's first login is due at once, holds up the pulses.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::report::{Table, number, percentile, seconds};
use crate::scrape::Scrape;
use crate::support::free_port::free_port;
use crate::support::world::{PROGRAM, Serving, World};
use crate::usage::{Meter, rss_mb, threads};
use crate::{dispatch_table, until};

const COUNT: u16 = 1000;
const INTERVAL: f64 = 5.0;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(20);

/// The simulated servers, all in one process.
struct Fleet {
    process: Child,
    base_port: u16,
}

pub fn run() {
    let world = World::empty();
    world.install("0.0.33");
    let fleet = Fleet::start(&world);
    let user = |number: u16| format!("u{number:04}");
    for number in 0..COUNT {
        // Where the configuration expects a user's base directory.
        let home = world.path("home").join(user(number));
        std::fs::create_dir_all(&home).expect("a home");
        let base_dir = world.path("fleet").join(format!("{number:04}"));
        std::os::unix::fs::symlink(base_dir, home.join(".t3")).expect("a link");
    }
    dispatch_table::write(&world, (0..COUNT).map(|number| (user(number), fleet.base_port + number)));
    println!("the fleet runs; its start and the first login of everybody take a few minutes");

    let begun = Instant::now();
    let serving = world.serve();
    let mut table = Table::of_goals(&format!("fleet, cold start: {COUNT} instances, no keeper issued yet"));
    start(&serving, begun, &mut table);
    table.print();
    assert_eq!(serving.stop(), 0);

    let begun = Instant::now();
    let serving = world.serve();
    let mut table = Table::of_goals(&format!("fleet, restart: {COUNT} instances, keepers kept"));
    start(&serving, begun, &mut table);
    table.print();

    let mut table = Table::of_goals(&format!("fleet, steady: {ROUNDS} rounds of {ROUND:?}"));
    steady(&world, &serving, &mut table);
    table.print();
}

/// From the start until everybody has logged in once.
fn start(serving: &Serving, begun: Instant, table: &mut Table) {
    let meter = Meter::start(serving.pid());
    let mut first_pulses = None;
    let mut oldest: f64 = 0.0;
    let mut peak: f64 = 0.0;
    // Whatever it found: the fleet itself is slow while it makes its databases.
    let pulsed = |scrape: &Scrape| scrape.all("t3_probe_last_run_timestamp_seconds{", "pulse").count();
    let logged_in = |scrape: &Scrape| scrape.sum("t3_probe_ok{", "handshake");
    until("everybody's first login", Duration::from_secs(1800), || {
        let scrape = Scrape::of(serving);
        peak = peak.max(rss_mb(serving.pid()));
        if pulsed(&scrape) == usize::from(COUNT) {
            first_pulses.get_or_insert_with(|| begun.elapsed());
            oldest = oldest.max(oldest_pulse(&scrape));
        }
        std::thread::park_timeout(Duration::from_millis(500));
        (logged_in(&scrape) == f64::from(COUNT)).then_some(())
    });
    let first_pulses = first_pulses.unwrap_or_default();
    table.at_most("everybody pulsed once after", INTERVAL + 2.0, first_pulses.as_secs_f64(), "s");
    table.at_most("oldest pulse until all had logged in", INTERVAL + 2.0, oldest, "s");
    table.figure("everybody logged in once after", seconds(begun.elapsed()));
    table.figure(
        "CPU until then",
        format!("{} s, {} % of a core", number(meter.seconds()), number(meter.percent())),
    );
    table.figure("RSS, highest", format!("{} MB", number(peak)));
}

fn steady(world: &World, serving: &Serving, table: &mut Table) {
    let pulses = |scrape: &Scrape| scrape.sum("t3_probe_runs_total{", "kind=\"pulse\"");
    let (mut cpu, mut a_pulse, mut logins) = (Vec::new(), Vec::new(), 0.0);
    let traced = trace_bytes(world);
    for _ in 0..ROUNDS {
        let before = Scrape::of(serving);
        let meter = Meter::start(serving.pid());
        let end = Instant::now() + ROUND;
        while Instant::now() < end {
            std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
        }
        let (percent, spent) = (meter.percent(), meter.seconds());
        let after = Scrape::of(serving);
        cpu.push(percent);
        a_pulse.push(spent * 1000.0 / (pulses(&after) - pulses(&before)));
        logins +=
            after.sum("t3_probe_runs_total{", "handshake") - before.sum("t3_probe_runs_total{", "handshake");
    }
    let scrape = Scrape::of(serving);
    table.at_most("CPU, % of a core", 25.0, percentile(&cpu, 50), "%");
    table.figure("CPU by round", cpu.iter().map(|cpu| number(*cpu)).collect::<Vec<_>>().join(", "));
    table.at_most("CPU a pulse, everything included", 1.0, percentile(&a_pulse, 50), "ms");
    table.figure("logins in that time", number(logins));
    table.at_most("RSS", 60.0, rss_mb(serving.pid()), "MB");
    table.figure("threads", threads(serving.pid()).to_string());
    table.at_most("oldest pulse", INTERVAL + 2.0, oldest_pulse(&scrape), "s");
    let tenths = spread(&scrape);
    let least = tenths.iter().min().copied().unwrap_or(0);
    table.figure(
        "pulses in each tenth of the interval",
        format!("{least} to {} (even: {})", tenths.iter().max().copied().unwrap_or(0), COUNT / 10),
    );
    table.at_most("bytes written to t3's trace rings", 0.0, (trace_bytes(world) - traced) as f64, "");
    let failed = scrape.sum("t3_probe_runs_total{", "outcome=\"failed\"");
    table.at_most("probes that failed since the start", 0.0, failed, "");
    table.figure("series in all", scrape.len().to_string());
}

/// How long ago the pulse was of the user who has waited longest.
fn oldest_pulse(scrape: &Scrape) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64();
    let ended = scrape.all("t3_probe_last_run_timestamp_seconds{", "pulse").map(|(_, at)| at);
    now - ended.fold(now, f64::min)
}

/// How many pulses end in each tenth of the interval.
fn spread(scrape: &Scrape) -> [u16; 10] {
    let mut tenths = [0; 10];
    for (_, at) in scrape.all("t3_probe_last_run_timestamp_seconds{", "pulse") {
        tenths[((at % INTERVAL) / INTERVAL * 10.0) as usize % 10] += 1;
    }
    tenths
}

/// What all instances have written into their trace files.
fn trace_bytes(world: &World) -> u64 {
    let size = |number| {
        let file = format!("fleet/{number:04}/userdata/logs/server.trace.ndjson");
        std::fs::metadata(world.path(&file)).map_or(0, |file| file.len())
    };
    (0..COUNT).map(size).sum()
}

impl Fleet {
    fn start(world: &World) -> Self {
        let base_port = free_ports();
        let mut process = Command::new(PROGRAM)
            .args(["sim", "fleet", "--as", "0.0.33", "--count", &COUNT.to_string()])
            .args(["--base-port", &base_port.to_string(), "--root"])
            .arg(world.path("fleet"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the stand-in t3");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("text");
        assert!(line.contains("ready"), "the fleet does not start: {line}");
        Self { process, base_port }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The first of as many free ports in a row.
fn free_ports() -> u16 {
    let free = |base: u16| (base..base + COUNT).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    let mut bases = std::iter::repeat_with(free_port).take(100);
    bases.find(|base| free(*base)).expect("free ports in a row")
}
