//! The state tier: 25 databases that all change between two rounds, as oneself. What does a round cost?

use std::time::{Duration, Instant};

use tokio_rusqlite::rusqlite::Connection;

use crate::report::{Table, number};
use crate::scrape::Scrape;
use crate::support::world::{Serving, World};
use crate::until;
use crate::usage::Meter;

const USERS: usize = 25;
const SPAN: Duration = Duration::from_secs(30);

pub fn run() {
    let names: Vec<String> = (0..USERS).map(|number| format!("u{number:02}")).collect();
    let users: Vec<_> = names.iter().map(|name| (name.as_str(), "0.0.33")).collect();
    let quiet = "handshake_interval = \"1h\"\n";
    let seldom = World::with(&users).configured(&format!("[probe]\n{quiet}state_interval = \"1h\"\n"));
    let (idle, _) = span(&seldom, &names);
    drop(seldom);
    let often = World::with(&users).configured(&format!("[probe]\n{quiet}state_interval = \"1s\"\n"));
    let (busy, looks) = span(&often, &names);

    let of_a_round = (busy - idle) / (looks / USERS as f64) * 1000.0;
    let mut table = Table::of_goals(&format!("state: {USERS} databases that changed since the last round"));
    table.at_most("CPU in serve, a round", 50.0, of_a_round, "ms");
    table.at_most("CPU, a user", 5.0, of_a_round / USERS as f64, "ms");
    table.figure("looks in that time", number(looks));
    table.print();
}

/// CPU seconds of `serve` in a span in which every database is written several times a second, and the looks at them.
fn span(world: &World, names: &[String]) -> (f64, f64) {
    let serving = world.serve();
    until("everybody's first login", Duration::from_secs(120), || {
        let well = Scrape::of(&serving).sum("t3_probe_ok{", "kind=\"handshake\"");
        (well as usize == USERS).then_some(())
    });
    let databases: Vec<_> = names.iter().map(|name| open(world, name)).collect();
    let (meter, before) = (Meter::start(serving.pid()), looks(&serving));
    let end = Instant::now() + SPAN;
    while Instant::now() < end {
        for database in &databases {
            let touch = "UPDATE auth_sessions SET last_connected_at = last_connected_at";
            // The server may hold the lock for a moment; the next round writes again.
            let _ = database.execute_batch(touch);
        }
        std::thread::park_timeout(Duration::from_millis(200));
    }
    (meter.seconds(), looks(&serving) - before)
}

fn open(world: &World, name: &str) -> Connection {
    let database = Connection::open(world.database(name)).expect("a database");
    database.busy_timeout(Duration::from_millis(100)).expect("patience");
    database.pragma_update(None, "synchronous", "off").expect("no disk");
    database
}

fn looks(serving: &Serving) -> f64 {
    Scrape::of(serving).sum("t3_probe_runs_total{", "kind=\"state\"")
}
