//! What a first visit costs: the time until the redirect with the session, beside the time of the instance's own answers
//! in it, which a probe measures with the same functions.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::report::Table;
use crate::support::free_port::free_port;
use crate::support::world::{World, http};

/// One first visit each: within a minute a second one is handed the same session.
const USERS: usize = 12;

struct Dispatch(Child);

impl Drop for Dispatch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run() {
    let names: Vec<String> = (0..USERS).map(|nth| format!("user{nth:02}")).collect();
    let users: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "0.0.33")).collect();
    let (port, own) = (free_port(), nix::unistd::geteuid());
    let world = World::with(&users).configured(&format!(
        "[dispatch]\nlisten = [\"127.0.0.1:{port}\"]\noperator_listen = \"127.0.0.1:{}\"\ntrusted_uids = [{own}]\n",
        free_port()
    ));
    // The first round issues the administrative sessions, which a host has had for weeks.
    for name in &names {
        world.probe(name);
    }
    let answers = median(names.iter().map(|name| own_answers(&world.probe(name).json)).collect());
    let mut command = world.command(&["dispatch"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
    let _dispatch = Dispatch(child);
    crate::until("the dispatch", Duration::from_secs(20), || http(port, "GET", "/healthz", &[]).ok());
    let visits = median(names.iter().map(|name| first_visit(port, name)).collect());
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mut table =
        Table::of_goals("A first visit, from the request to the redirect with the session (medians)");
    table.figure("the instance's own answers", format!("{:.2} ms", milliseconds(answers)));
    table.figure("the whole visit", format!("{:.2} ms", milliseconds(visits)));
    table.at_most("added by the dispatch", 10.0, milliseconds(visits.saturating_sub(answers)), "ms");
    table.print();
}

fn first_visit(port: u16, name: &str) -> Duration {
    let identity = format!("{name}@example.com");
    let start = Instant::now();
    let headers = [("X-authentik-username", identity.as_str()), ("Accept", "text/html")];
    let answer = http(port, "GET", "/", &headers).expect("an answer");
    assert_eq!(answer.status, 302, "{answer:?}");
    start.elapsed()
}

/// The four requests of a login: which version, would it exchange, mint, exchange.
fn own_answers(probed: &Value) -> Duration {
    let steps = probed["runs"].as_array().expect("runs").iter().flat_map(|run| {
        let kind = run["kind"].as_str().unwrap_or_default().to_owned();
        run["steps"].as_array().expect("steps").iter().map(move |step| (kind.clone(), step.clone()))
    });
    let seconds: f64 = steps
        .filter(|(kind, step)| {
            let wanted = [
                ("pulse", "contract"),
                ("handshake", "version"),
                ("handshake", "mint"),
                ("handshake", "exchange"),
            ];
            wanted.contains(&(kind.as_str(), step["step"].as_str().unwrap_or_default()))
        })
        .map(|(_, step)| step["duration_seconds"].as_f64().expect("a duration"))
        .sum();
    Duration::from_secs_f64(seconds)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
