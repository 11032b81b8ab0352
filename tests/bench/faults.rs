//! How long after a fault begins the metrics name it: every fault on an instance of its own, all of them at once, so
//! that each is also seen among many.

use std::time::{Duration, Instant};

use crate::report::{Table, median, percentile, seconds, verdict};
use crate::scrape::{Scrape, label};
use crate::support::world::{Serving, World};
use crate::until;

const ROUNDS: usize = 3;
const POLL: Duration = Duration::from_millis(50);
const HANDSHAKES: Duration = Duration::from_secs(5);
/// What a pulse sees, and what only a handshake sees.
const PULSE_GOAL: Duration = Duration::from_secs(7);
const HANDSHAKE_GOAL: Duration = HANDSHAKES.saturating_add(Duration::from_secs(20));

/// The fault, and the step and reason it must be shown with.
type Expected = (&'static str, &'static str, &'static str);

const SEEN_BY_PULSE: &[Expected] = &[
    ("hang", "reach", "timeout"),
    ("drop", "reach", "closed"),
    ("not-http", "reach", "malformed"),
    ("status-500", "reach", "internal_error"),
    ("status-503", "reach", "status"),
    ("html-on-api", "reach", "html"),
    ("redirect", "reach", "redirected"),
    ("close-mid-body", "reach", "closed"),
    ("huge-body", "reach", "too_large"),
    ("bad-json", "reach", "malformed"),
    ("exchange-404", "contract", "not_found"),
    ("exchange-500", "contract", "auth_store"),
    ("exchange-hang", "contract", "timeout"),
    ("exchange-accepts-all", "contract", "status"),
    ("auth-tables", "contract", "auth_store"),
    ("locked", "contract", "auth_store"),
];

const SEEN_BY_HANDSHAKE: &[Expected] = &[
    ("wrong-environment", "version", "wrong_instance"),
    ("descriptor-html", "version", "html"),
    ("keeper-refused", "mint", "keeper_lost"),
    ("mint-500", "mint", "auth_store"),
    ("mint-foreign", "exchange", "unauthorized"),
    ("exchange-refuses", "exchange", "unauthorized"),
    ("no-cookie", "exchange", "no_cookie"),
    ("cookie-renamed", "session", "cookie_name"),
    ("cookie-without-http-only", "session", "cookie_attributes"),
    ("session-false", "session", "not_authenticated"),
    ("ticket-500", "app", "internal_error"),
    ("socket-200", "socket", "not_upgraded"),
    ("socket-403", "socket", "not_upgraded"),
    ("socket-silent", "socket", "no_answer"),
    ("socket-closes", "socket", "closed"),
    ("rpc-error", "socket", "rpc_error"),
    ("rpc-silent", "socket", "no_answer"),
    ("revoke-fails", "revoke", "internal_error"),
];

/// One fault and what was seen of it, round by round.
struct Watched {
    user: String,
    expected: Expected,
    goal: Duration,
    /// When it was named as expected.
    named: Vec<Duration>,
    /// What it was called before or instead.
    otherwise: Vec<String>,
}

pub fn run() {
    let expected = |list: &'static [Expected], goal| list.iter().map(move |expected| (*expected, goal));
    let all = expected(SEEN_BY_PULSE, PULSE_GOAL).chain(expected(SEEN_BY_HANDSHAKE, HANDSHAKE_GOAL));
    let mut watched: Vec<Watched> = all
        .enumerate()
        .map(|(number, (expected, goal))| Watched {
            user: format!("u{number:02}"),
            expected,
            goal,
            named: Vec::new(),
            otherwise: Vec::new(),
        })
        .collect();
    let users: Vec<_> = watched.iter().map(|watched| (watched.user.as_str(), "0.0.33")).collect();
    let world = World::with(&users)
        .configured(&format!("[probe]\nhandshake_interval = \"{}s\"\n", HANDSHAKES.as_secs()));
    let serving = world.serve();
    for _ in 0..ROUNDS {
        round(&world, &serving, &mut watched);
    }
    print(&watched);
}

fn round(world: &World, serving: &Serving, watched: &mut [Watched]) {
    let all_well = || {
        let well = Scrape::of(serving).sum("t3_probe_ok{", "");
        (well as usize == watched.len() * 2).then_some(())
    };
    until("everybody to be well", Duration::from_secs(180), all_well);
    let before = Scrape::of(serving);
    let mut begun = Vec::new();
    for watched in watched.iter() {
        begun.push(Instant::now());
        world.fault(&watched.user, watched.expected.0);
    }
    let end = Instant::now() + HANDSHAKE_GOAL + Duration::from_secs(15);
    let mut missing: Vec<usize> = (0..watched.len()).collect();
    while !missing.is_empty() && Instant::now() < end {
        std::thread::park_timeout(POLL);
        let now = Scrape::of(serving);
        missing.retain(|&index| {
            let Watched { user, expected: (_, step, reason), named, otherwise, .. } = &mut watched[index];
            let took = begun[index].elapsed();
            for (sample, count) in now.all("t3_probe_failures_total{", &format!("user=\"{user}\"")) {
                if count <= before.value(sample).unwrap_or(0.0) {
                    continue;
                }
                let found = (label(sample, "step"), label(sample, "reason"));
                if found == (*step, *reason) {
                    named.push(took);
                    return false;
                }
                let found = format!("{}: {}", found.0, found.1);
                if !otherwise.contains(&found) {
                    otherwise.push(found);
                }
            }
            true
        });
    }
    for watched in watched.iter() {
        world.mend(&watched.user, watched.expected.0);
    }
}

fn print(watched: &[Watched]) {
    let title = format!(
        "faults: {} at once, {ROUNDS} rounds, pulses every 5 s, handshakes every {HANDSHAKES:?}",
        watched.len()
    );
    let mut table =
        Table::new(&title, &["fault", "named", "goal", "median", "worst", "verdict", "called otherwise"]);
    for Watched { expected: (fault, step, reason), goal, named, otherwise, .. } in watched {
        let met = named.len() == ROUNDS && named.iter().all(|took| took <= goal);
        let time = |hundredths| {
            if named.is_empty() { "never".to_owned() } else { seconds(percentile(named, hundredths)) }
        };
        table.row([
            (*fault).to_owned(),
            format!("{step}: {reason}"),
            format!("≤ {} s", goal.as_secs()),
            time(50),
            time(100),
            verdict(met).to_owned(),
            otherwise.join(", "),
        ]);
    }
    table.print();
    let of = |list: &[Expected]| -> Vec<Duration> {
        let known = |watched: &&Watched| list.contains(&watched.expected);
        watched.iter().filter(known).flat_map(|watched| watched.named.clone()).collect()
    };
    for (who, list) in [("pulses", SEEN_BY_PULSE), ("handshakes", SEEN_BY_HANDSHAKE)] {
        let times = of(list);
        if !times.is_empty() {
            println!(
                "\n  what {who} see: {} faults, median {}, worst {}",
                list.len(),
                seconds(median(&times)),
                seconds(percentile(&times, 100))
            );
        }
    }
}
