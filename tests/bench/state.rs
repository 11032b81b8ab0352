//! The state tier: 25 databases that all change between two rounds. What does a round cost the service as oneself, and
//! what a look at everybody in helpers?

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tokio_rusqlite::rusqlite::Connection;

use crate::report::{Table, number};
use crate::scrape::Scrape;
use crate::support::world::{Serving, World};
use crate::until;
use crate::usage::Meter;

const USERS: usize = 25;
/// Each with a message, and each user with about eight megabytes of them.
const EVENTS: u32 = 5_000;
const SPAN: Duration = Duration::from_secs(30);

pub fn run() {
    let names: Vec<String> = (0..USERS).map(|number| format!("u{number:02}")).collect();
    let users: Vec<_> = names.iter().map(|name| (name.as_str(), "0.0.33")).collect();
    let quiet = "handshake_interval = \"1h\"\n";
    let seldom = World::with(&users).configured(&format!("[probe]\n{quiet}state_interval = \"1h\"\n"));
    names.iter().for_each(|name| fill(&open(&seldom, name)));
    let (idle, _) = span(&seldom, &names);
    let in_helpers = in_helpers(&seldom);
    drop(seldom);
    let often = World::with(&users).configured(&format!("[probe]\n{quiet}state_interval = \"1s\"\n"));
    names.iter().for_each(|name| fill(&open(&often, name)));
    let (busy, looks) = span(&often, &names);

    let of_a_round = (busy - idle) / (looks / USERS as f64) * 1000.0;
    let mut table = Table::of_goals(&format!(
        "state: {USERS} databases with {EVENTS} events each that changed since the last round"
    ));
    table.at_most("CPU in serve, a round", 50.0, of_a_round, "ms");
    match in_helpers {
        Some((users, whole)) => table.at_most(
            &format!("CPU in helpers, a user (one look at {users})"),
            5.0,
            whole / users as f64 * 1000.0,
            "ms",
        ),
        None => table.figure("CPU in helpers, a user", "needs root"),
    }
    table.figure("looks in that time", number(looks));
    table.print();
}

/// How many users the helper looked at in one call, and the CPU seconds that it and all its children took. The users are
/// accounts that every machine has.
fn in_helpers(world: &World) -> Option<(usize, f64)> {
    const CALLS: usize = 8;
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("mode");
    let accounts = std::fs::read_to_string("/etc/passwd").expect("accounts");
    let accounts: Vec<(&str, u32)> = accounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse().ok()?))
        })
        .filter(|(_, uid)| *uid != 0)
        .take(USERS)
        .collect();
    let source = open(world, "u00");
    let (mut table, mut map) = (serde_json::Map::new(), String::new());
    for (port, (name, uid)) in (1..).zip(&accounts) {
        let userdata = dir.path().join(format!("home/{name}/.t3/userdata"));
        std::fs::create_dir_all(&userdata).expect("a directory");
        let database = userdata.join("state.sqlite");
        source.execute("VACUUM INTO ?1", [database.to_string_lossy()]).expect("a copy");
        for path in [&userdata, &database] {
            std::os::unix::fs::chown(path, Some(*uid), None).expect("owner");
        }
        table.insert(format!("{name}@x"), serde_json::json!({ "os_user": name, "port": port }));
        map.push_str(&format!("{name}@x={name}\n"));
    }
    let shown = dir.path().display();
    let config = format!(
        "state_dir = \"{shown}/state\"\n[inventory]\ndispatch_table = \"{shown}/dispatch.json\"\n\
         user_map = \"{shown}/users.map\"\nbase_dir = \"{shown}/home/{{user}}/.t3\"\n"
    );
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("dispatch.json", &serde_json::to_string(&table).expect("json"));
    write("users.map", &map);
    write("config.toml", &config);
    let spent = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    };
    let before = spent();
    let mut users = 0;
    for _ in 0..CALLS {
        let mut helper = Command::new(env!("CARGO_BIN_EXE_t3-prober"));
        helper.arg("--config").arg(dir.path().join("config.toml")).args(["helper", "inspect", "--all"]);
        let output = helper.output().expect("the helper");
        let reply: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a reply");
        let found = reply["value"].as_object().expect("everybody");
        assert!(found.values().all(|found| found["Ok"]["state"]["Ok"].is_object()), "{reply}");
        users = found.len();
    }
    Some((users, (spent() - before) / CALLS as f64))
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

/// A history to be counted at each look.
fn fill(database: &Connection) {
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {EVENTS})
         INSERT INTO orchestration_events (event_id, aggregate_kind, stream_id, stream_version, event_type, occurred_at,
             actor_kind, payload_json, metadata_json)
         SELECT 'filled-' || i, 'thread', 'filled', i, 'thread.message-sent', '2026-11-22T06:00:00.000Z', 'client',
             hex(zeroblob(400)), '{{}}' FROM n;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {EVENTS})
         INSERT INTO projection_thread_messages (message_id, thread_id, role, text, is_streaming, created_at, updated_at)
         SELECT 'filled-' || i, 'filled', 'user', hex(zeroblob(400)), 0, '2026-11-22T06:00:00.000Z',
             '2026-11-22T06:00:00.000Z' FROM n"
    );
    until("the history to be written", Duration::from_secs(60), || database.execute_batch(&sql).ok());
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
