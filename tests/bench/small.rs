//! The common case: 25 users and all is well. What does it cost to watch them?

use std::time::{Duration, Instant};

use crate::report::{Table, number, percentile};
use crate::scrape::Scrape;
use crate::support::world::{Serving, World, http};
use crate::tap::Tap;
use crate::usage::{Meter, rss_mb, threads};
use crate::{dispatch_table, until};

const USERS: usize = 25;
const SCRAPES: usize = 1000;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(20);
const OPEN_METRICS: &[(&str, &str)] = &[("Accept", "application/openmetrics-text; version=1.0.0")];

pub fn run() {
    let names: Vec<String> = (0..USERS).map(|number| format!("u{number:02}")).collect();
    let users: Vec<_> = names.iter().map(|name| (name.as_str(), "0.0.33")).collect();
    let world = World::with(&users).configured("[probe]\nhandshake_interval = \"1h\"\n");
    // The last user is reached through a tap: what a pulse asks is counted from outside.
    let tap = Tap::before(world.port(&names[USERS - 1]));
    let port = |name: &String| if *name == names[USERS - 1] { tap.port } else { world.port(name) };
    dispatch_table::write(&world, names.iter().map(|name| (name.clone(), port(name))));
    let serving = world.serve();
    until("everybody's first login", Duration::from_secs(120), || {
        (Scrape::of(&serving).sum("t3_probe_ok{", "handshake") as usize == USERS).then_some(())
    });

    let mut table =
        Table::of_goals(&format!("small: {USERS} users, all well, no logins in the time that is measured"));
    let (cpu, requests, commands) = steady(&serving, &tap);
    table.figure("CPU, steady", format!("{} % of a core", number(percentile(&cpu, 50))));
    table.at_most("requests a pulse", 3.0, requests, "");
    table.at_most("CPU time of t3 commands started", 0.0, commands, "s");
    table.at_most("RSS, steady", 25.0, rss_mb(serving.pid()), "MB");
    for (format, headers) in [("classic", &[][..]), ("OpenMetrics", OPEN_METRICS)] {
        let times = scrapes(&serving, headers);
        table.figure(
            &format!("/metrics {format}, p50 of {SCRAPES}"),
            format!("{} ms", number(percentile(&times, 50))),
        );
        table.at_most(&format!("/metrics {format}, p99"), 5.0, percentile(&times, 99), "ms");
    }
    table.at_most("RSS after the scrapes", 25.0, rss_mb(serving.pid()), "MB");
    let scrape = Scrape::of(&serving);
    let of_user = |name: &String| scrape.all("", &format!("user=\"{name}\"")).count();
    table.at_most("series a user", 150.0, names.iter().map(of_user).max().unwrap_or(0) as f64, "");
    table.figure("series in all", scrape.len().to_string());
    table.figure("threads", threads(serving.pid()).to_string());
    table.print();
}

/// CPU in per cent by round; requests a pulse; CPU seconds of t3's commands.
fn steady(serving: &Serving, tap: &Tap) -> (Vec<f64>, f64, f64) {
    let last = "{user=\"u24\",kind=\"pulse\"";
    let pulses = |scrape: &Scrape| scrape.sum(&format!("t3_probe_runs_total{last}"), "");
    let commands = |scrape: &Scrape| scrape.sum("t3_prober_cli_cpu_seconds_total", "");
    let before = (Scrape::of(serving), tap.requests());
    let mut cpu = Vec::new();
    for _ in 0..ROUNDS {
        let meter = Meter::start(serving.pid());
        let end = Instant::now() + ROUND;
        while Instant::now() < end {
            std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
        }
        cpu.push(meter.percent());
    }
    let after = (Scrape::of(serving), tap.requests());
    let requests = (after.1 - before.1) as f64 / (pulses(&after.0) - pulses(&before.0));
    (cpu, requests, commands(&after.0) - commands(&before.0))
}

/// Milliseconds of each of many scrapes, every one on a connection of its own.
fn scrapes(serving: &Serving, headers: &[(&str, &str)]) -> Vec<f64> {
    let scrape = || {
        let begun = Instant::now();
        let answer = http(serving.port, "GET", "/metrics", headers).expect("an answer");
        assert_eq!(answer.status, 200);
        begun.elapsed().as_secs_f64() * 1000.0
    };
    (0..SCRAPES).map(|_| scrape()).collect()
}
