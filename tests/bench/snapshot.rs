//! A snapshot of 200 MB under a steady writer: its time beside the `sqlite3` shell's `VACUUM INTO`, and what the writer
//! feels of it. Goals: at most 1.1 times the shell's time, at most 1.5 times the writer's own p99. And a drill: what it
//! takes beyond t3's own start.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio_rusqlite::rusqlite::Connection;

use crate::report::{Table, number};
use crate::support::world::World;

#[path = "../support/writer.rs"]
#[allow(dead_code)] // The suites use the rest of it.
mod writer;

use writer::Writer;

const MEGABYTES: u32 = 200;
const ROUNDS: usize = 9;
const ALONE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(2);

pub fn run() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = dir.path().join("home/ann/.t3/userdata/state.sqlite");
    std::fs::create_dir_all(database.parent().expect("a parent")).expect("a directory");
    fill(&database);
    configure(dir.path());

    // Whoever else uses the disk meanwhile comes and goes: the three are measured in turns, and compared turn by turn.
    let mut turns = Vec::new();
    for _ in 0..ROUNDS {
        let mut copying = 0.0;
        let (_, alone) = felt(&database, || std::thread::park_timeout(ALONE));
        let (whole, ours) = felt(&database, || {
            take(dir.path());
            copying = copied(dir.path());
        });
        let copy = dir.path().join("vacuum.sqlite");
        let (vacuum, theirs) = felt(&database, || vacuum(&database, &copy));
        std::fs::remove_file(copy).expect("gone");
        turns.push(Turn { alone, copying, whole, ours, vacuum, theirs });
    }

    let of = |value: fn(&Turn) -> f64| median(turns.iter().map(value).collect());
    let title = format!("A snapshot of {MEGABYTES} MB under a steady writer ({ROUNDS} rounds, medians)");
    let mut table = Table::of_goals(&title);
    let times = of(|turn| turn.copying / turn.vacuum);
    table.at_most("copied and on disk, against VACUUM INTO", 1.1, times, "times");
    table.figure("copied and on disk", format!("{:.3} s", of(|turn| turn.copying)));
    table.figure("the whole command, verification and all", format!("{:.3} s", of(|turn| turn.whole)));
    table.figure("sqlite3 VACUUM INTO, on disk", format!("{:.3} s", of(|turn| turn.vacuum)));
    // Of the writes of all turns together: a hundredth of the two hundred of one turn is nothing to compare.
    let all =
        |felt: fn(&Turn) -> &Felt| Felt::of(turns.iter().flat_map(|turn| felt(turn).0.clone()).collect());
    let (alone, ours, theirs) = (all(|turn| &turn.alone), all(|turn| &turn.ours), all(|turn| &turn.theirs));
    table.at_most("the writer's p99, against alone", 1.5, ours.at(99) / alone.at(99), "times");
    table.figure("the same during VACUUM INTO", format!("{} times", number(theirs.at(99) / alone.at(99))));
    for (what, felt) in [("alone", alone), ("during ours", ours), ("during VACUUM INTO", theirs)] {
        let (p90, p99, longest) = (felt.at(90), felt.at(99), felt.at(100));
        table.figure(
            &format!("p90, p99 and longest of {} writes {what}", felt.0.len()),
            format!("{p90:.1}, {p99:.1} and {longest:.0} ms"),
        );
    }
    table.print();
    drill();
}

/// Of a small history, so that what is measured is ours and not the copying.
fn drill() {
    let world = World::with(&[("ann", "0.0.24")]);
    let backups = world.path("backups");
    let world = world.configured(&format!(
        "[backup]\ndir = \"{}\"\n[gate]\nexpose = [\"{}\"]\n",
        backups.display(),
        env!("CARGO_BIN_EXE_t3-prober")
    ));
    let run = |args: &[&str]| {
        let output = world.command(args).output().expect("the program");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        output.stdout
    };
    run(&["backup", "take", "ann"]);
    let (mut overheads, mut whole): (Vec<f64>, Vec<f64>) = Default::default();
    for _ in 0..ROUNDS {
        let clock = Instant::now();
        run(&["backup", "drill", "ann"]);
        let took = clock.elapsed().as_secs_f64();
        let listed: serde_json::Value =
            serde_json::from_slice(&run(&["backup", "list", "--json"])).expect("json");
        let measured = |what: &str| listed["snapshots"][0]["proof"]["drilled"][what].as_f64().expect(what);
        let t3s = measured("restore_seconds") - measured("overhead_seconds");
        overheads.push(took - t3s);
        whole.push(took);
    }
    let mut table = Table::of_goals(&format!("A drill ({ROUNDS} rounds, median)"));
    table.at_most("beyond t3's own start and command", 0.5, median(overheads), "s");
    table.figure("the whole command", format!("{:.3} s", median(whole)));
    table.print();
}

/// The tables that the writer and a snapshot need, at level 30, and as many messages as make up the size.
fn fill(database: &Path) {
    // Each takes one page.
    let rows = MEGABYTES * 250;
    let connection = Connection::open(database).expect("the database");
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).expect("WAL");
    connection
        .execute_batch(&format!(
            "CREATE TABLE effect_sql_migrations (migration_id INTEGER PRIMARY KEY, name TEXT);
             INSERT INTO effect_sql_migrations VALUES (30, 'ProjectionThreadShellArchiveIndexes');
             CREATE TABLE orchestration_events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT UNIQUE,
                 aggregate_kind TEXT, stream_id TEXT, stream_version INTEGER, event_type TEXT, occurred_at TEXT,
                 actor_kind TEXT, payload_json TEXT, metadata_json TEXT);
             CREATE TABLE projection_thread_messages (message_id TEXT PRIMARY KEY, thread_id TEXT, role TEXT, text TEXT,
                 is_streaming INTEGER, created_at TEXT, updated_at TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO projection_thread_messages
             SELECT 'old-' || i, 'old', 'user', hex(randomblob(1900)), 0, '', '' FROM n"
        ))
        .expect("rows");
    connection.close().expect("a clean close");
}

fn configure(dir: &Path) {
    let shown = dir.display();
    let config = format!(
        "state_dir = \"{shown}/state\"\n\
         [inventory]\ndispatch_table = \"{shown}/dispatch.json\"\nbase_dir = \"{shown}/home/{{user}}/.t3\"\naccounts = false\n\
         [backup]\ndir = \"{shown}/backups\"\nkeep = 2\n"
    );
    std::fs::write(dir.join("config.toml"), config).expect("config.toml");
    let table = r#"{"ann@example.com":{"os_user":"ann","port":1}}"#;
    std::fs::write(dir.join("dispatch.json"), table).expect("dispatch.json");
}

/// A command with the priority that the timer's unit gives its own: what takes longer only because others go first is
/// not slower.
fn in_the_background(program: &str) -> Command {
    let mut command = Command::new("ionice");
    command.args(["--class", "idle", "nice", "--adjustment=10", program]);
    command
}

fn take(dir: &Path) {
    let mut command = in_the_background(env!("CARGO_BIN_EXE_t3-prober"));
    command.arg("--config").arg(dir.join("config.toml")).args(["backup", "take", "ann"]);
    assert!(command.stdout(Stdio::null()).status().expect("the program").success());
}

/// How long the newest copy took until it was on disk, by its manifest.
fn copied(dir: &Path) -> f64 {
    let tree =
        std::fs::read_dir(dir.join("backups/ann")).expect("the tree").flatten().map(|entry| entry.path());
    let is_manifest = |path: &std::path::PathBuf| {
        let name = path.to_string_lossy();
        name.ends_with(".json") && !name.ends_with(".proof.json")
    };
    let newest = tree.filter(is_manifest).max().expect("a manifest");
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(newest).expect("a manifest")).expect("json");
    manifest["took_seconds"].as_f64().expect("a duration")
}

fn vacuum(database: &Path, into: &Path) {
    let status = in_the_background("sqlite3")
        .args(["-cmd", ".timeout 10000"])
        .arg(database)
        .arg(format!("VACUUM INTO '{}'", into.display()))
        .status()
        .expect("the sqlite3 shell");
    assert!(status.success());
    // On disk, as ours is.
    std::fs::File::open(into).and_then(|file| file.sync_all()).expect("on disk");
}

/// One round: the writer alone, beside a snapshot of ours, and beside VACUUM INTO.
struct Turn {
    alone: Felt,
    copying: f64,
    whole: f64,
    ours: Felt,
    vacuum: f64,
    theirs: Felt,
}

/// How long it took, and what a writer felt meanwhile.
fn felt(database: &Path, work: impl FnOnce()) -> (f64, Felt) {
    let writer = Writer::start(database, PAUSE);
    let clock = Instant::now();
    work();
    let took = clock.elapsed().as_secs_f64();
    (took, Felt::of(writer.finish().expect("no write is refused")))
}

/// How long each write took, the longest last.
struct Felt(Vec<Duration>);

impl Felt {
    fn of(mut latencies: Vec<Duration>) -> Self {
        latencies.sort();
        Self(latencies)
    }

    /// What so many hundredths of the writes took at most, in milliseconds.
    fn at(&self, hundredths: usize) -> f64 {
        let at = (self.0.len() * hundredths / 100).min(self.0.len() - 1);
        self.0[at].as_secs_f64() * 1000.0
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
