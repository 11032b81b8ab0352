//! What the gate costs beyond the builds themselves. Goals: at most 0.5 s a rehearsal beside what the build takes, a verdict
//! for three users within 1.3 times the slowest chain of rehearsals, and no more at once than was allowed, however many
//! users there are.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use procfs::process::Process;
use serde_json::Value;

use super::report::Table;
use super::support::world::{PROGRAM, World};

const USERS: [&str; 6] = ["ann", "bob", "cid", "dan", "eve", "fay"];
const HOLD: Duration = Duration::from_secs(2);
/// Steps in which the build is started, or ends, or is held: what they take is not the gate's.
const OF_THE_BUILD: &[&str] =
    &["start", "version", "mint", "command", "write", "hold", "stop", "restart", "intrude"];
/// As configured below.
const MEMORY_OF_ONE: u64 = 1536 << 20;

/// One run of the gate.
struct Run {
    took: f64,
    rehearsals: Vec<Value>,
    /// The slowest chain: control and candidate at once, then the way back and the skew at once.
    slowest: f64,
    peak: Peak,
}

/// The most that was seen of a gate and everything below it.
#[derive(Clone, Copy, Default)]
struct Peak {
    drivers: usize,
    own: u64,
    whole: u64,
}

pub fn run() {
    let three = judge(3, 8);
    let mut table = Table::of_goals("the gate: a verdict for three users and a fresh database");
    table.at_most("the whole verdict, beside the slowest chain", 1.3, three.took / three.slowest, "times");
    table.figure(
        "the whole verdict",
        format!("{:.2} s for {} rehearsals", three.took, three.rehearsals.len()),
    );
    table.print();

    // One after the other, so that what is not the build's is the gate's: boxes, copies, evidence, and its own start.
    let alone = judge(3, 1);
    let of_builds: f64 = alone.rehearsals.iter().map(of_the_build).sum();
    let each = (alone.took - of_builds) / alone.rehearsals.len() as f64;
    let within = alone.rehearsals.iter().map(|rehearsal| duration(rehearsal) - of_the_build(rehearsal));
    let mut table = Table::of_goals("the same, one rehearsal at a time");
    table.at_most("own overhead of a rehearsal, boxes and copies and all", 0.5, each, "s");
    table.at_most("of it within the box, worst", 0.5, within.fold(0.0, f64::max), "s");
    table.figure("the whole verdict", format!("{:.2} s, of it {of_builds:.2} s the builds'", alone.took));
    table.print();

    let six = judge(6, 2);
    let mut table = Table::of_goals("six users, two rehearsals at a time");
    table.at_most("rehearsals at once", 2.0, six.peak.drivers as f64, "");
    table.at_most(
        "memory of all that runs",
        2.0 * MEMORY_OF_ONE as f64 / 1e6,
        six.peak.whole as f64 / 1e6,
        "MB",
    );
    let own = |run: &Run| format!("{:.1} MB", run.peak.own as f64 / 1e6);
    table.figure("the gate's own memory, three users and six", format!("{} and {}", own(&three), own(&six)));
    table.print();
}

fn judge(users: usize, parallelism: usize) -> Run {
    let served: Vec<_> = USERS[..users].iter().map(|user| (*user, "0.0.26")).collect();
    let program = Path::new(PROGRAM).parent().expect("a directory").display();
    let world = World::with(&served).configured(&format!(
        "[gate]\nexpose = [\"{program}\"]\nhold = \"{}s\"\nkeep_free_mib = 1\ncontrol = \"0.0.26\"\nparallelism = {parallelism}\n",
        HOLD.as_secs()
    ));
    world.install("0.0.33");
    let clock = Instant::now();
    let mut command = world.command(&["gate", "0.0.33", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program");
    let peak = watch(child.id());
    let output = child.wait_with_output().expect("the gate");
    let took = clock.elapsed().as_secs_f64();
    let peak = peak.join().expect("the watcher");
    let document: Value = serde_json::from_slice(&output.stdout).expect("a verdict");
    assert_eq!(document["verdict"], "pass", "{document}");
    let chains: Vec<&Vec<Value>> = document["seeds"]
        .as_array()
        .expect("seeds")
        .iter()
        .filter_map(|seed| seed["rehearsals"].as_array())
        .collect();
    let slowest = chains.iter().map(|chain| chain_of(chain)).fold(0.0, f64::max);
    let rehearsals = chains.into_iter().flatten().cloned().collect();
    Run { took, rehearsals, slowest, peak }
}

fn chain_of(rehearsals: &[Value]) -> f64 {
    let of = |name: &str| {
        let one = rehearsals.iter().find(|one| one["rehearsal"] == name);
        one.map_or(0.0, duration)
    };
    of("control").max(of("candidate")) + of("way_back").max(of("skew"))
}

fn duration(of: &Value) -> f64 {
    of["duration_seconds"].as_f64().unwrap_or_default()
}

fn of_the_build(rehearsal: &Value) -> f64 {
    let steps = rehearsal["steps"].as_array().into_iter().flatten();
    steps.filter(|step| OF_THE_BUILD.iter().any(|name| step["step"] == *name)).map(duration).sum()
}

/// Looks at a process and everything below it until it ends.
fn watch(pid: u32) -> std::thread::JoinHandle<Peak> {
    std::thread::spawn(move || {
        let mut peak = Peak::default();
        let resident =
            |process: &Process| process.statm().map_or(0, |memory| memory.resident * procfs::page_size());
        let root = i32::try_from(pid).expect("a pid");
        while let Some(own) = Process::new(root).ok().map(|gate| resident(&gate)).filter(|own| *own > 0) {
            let all = below(root);
            let is_driver = |process: &&Process| {
                let command = process.cmdline().unwrap_or_default();
                command.last().is_some_and(|word| word == "gate-driver") && command.len() == 2
            };
            peak.drivers = peak.drivers.max(all.iter().filter(is_driver).count());
            peak.own = peak.own.max(own);
            peak.whole = peak.whole.max(all.iter().map(resident).sum());
            std::thread::park_timeout(Duration::from_millis(50));
        }
        peak
    })
}

fn below(root: i32) -> Vec<Process> {
    let (mut seen, mut waiting, mut found) = (BTreeSet::from([root]), vec![root], Vec::new());
    while let Some(process) = waiting.pop().and_then(|pid| Process::new(pid).ok()) {
        let tasks = process.tasks().into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| task.children().ok()).flatten();
        waiting.extend(children.filter_map(|pid| i32::try_from(pid).ok()).filter(|pid| seen.insert(*pid)));
        found.push(process);
    }
    found
}
