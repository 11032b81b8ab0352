//! What the gate costs beyond the builds themselves: a verdict for three users beside the slowest chain of rehearsals, the
//! overhead of one rehearsal, and memory. Goals: at most 0.5 s a rehearsal, at most 1.3 times the slowest chain.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::report::Table;
use super::support::world::{PROGRAM, World};

const USERS: [&str; 3] = ["ann", "bob", "cid"];
const HOLD: Duration = Duration::from_secs(2);
/// Own work of the program: not the build's start, its commands, its stop and the hold.
const OWN: &[&str] =
    &["version", "history", "contract", "mint", "exchange", "session", "app", "socket", "load", "integrity"];

pub fn run() {
    let users: Vec<_> = USERS.iter().map(|user| (*user, "0.0.26")).collect();
    let program = Path::new(PROGRAM).parent().expect("a directory").display();
    let world = World::with(&users).configured(&format!(
        "[gate]\nexpose = [\"{program}\"]\nhold = \"{}s\"\nkeep_free_mib = 1\ncontrol = \"0.0.26\"\nparallelism = 8\n",
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

    let (mut slowest, mut overhead, mut rehearsals) = (0.0_f64, 0.0_f64, 0);
    for seed in document["seeds"].as_array().expect("seeds") {
        let duration = |name: &str| {
            let all = seed["rehearsals"].as_array().into_iter().flatten();
            all.filter(|one| one["rehearsal"] == name)
                .filter_map(|one| one["duration_seconds"].as_f64())
                .fold(0.0, f64::max)
        };
        let chain =
            duration("control").max(duration("candidate")) + duration("way_back").max(duration("skew"));
        slowest = slowest.max(chain);
        for rehearsal in seed["rehearsals"].as_array().expect("rehearsals") {
            rehearsals += 1;
            overhead = overhead.max(own(rehearsal));
        }
    }
    let mut table = Table::of_goals("the gate: a verdict for three users and a fresh database");
    table.at_most("the whole verdict, beside the slowest chain", 1.3, took / slowest, "times");
    table.at_most("own overhead, worst rehearsal", 0.5, overhead, "s");
    table.figure("the whole verdict", format!("{took:.2} s for {rehearsals} rehearsals"));
    table.figure("the gate's own memory at most", format!("{:.1} MB", peak as f64 / 1e6));
    table.print();
}

/// What a rehearsal took beside what the build took: all of it, without the steps that wait for the build.
fn own(rehearsal: &Value) -> f64 {
    let whole = rehearsal["duration_seconds"].as_f64().unwrap_or_default();
    let steps = rehearsal["steps"].as_array().into_iter().flatten();
    let builds = steps.filter(|step| !OWN.iter().any(|own| step["step"] == *own));
    whole - builds.filter_map(|step| step["duration_seconds"].as_f64()).sum::<f64>()
}

/// The highest resident memory of a process, looked at until it ends.
fn watch(pid: u32) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut highest = 0;
        let resident = || {
            let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
            Some(process.statm().ok()?.resident * procfs::page_size())
        };
        while let Some(now) = resident().filter(|now| *now > 0) {
            highest = highest.max(now);
            std::thread::park_timeout(Duration::from_millis(50));
        }
        highest
    })
}
