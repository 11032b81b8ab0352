//! Every way in which the stand-in can be broken, and where the gate finds it.

use crate::support::gate::Gate;
use crate::support::{fixtures, sim};

/// Broken builds, and the one place where each fails.
const BROKEN: &[(&str, &str)] = &[
    ("exchange-renamed", "contract not_found"),
    ("cookie-renamed", "session cookie_name"),
    ("cookie-without-http-only", "session cookie_attributes"),
    ("no-cookie", "exchange no_cookie"),
    ("session-stays-false", "session not_authenticated"),
    ("mint-prints-another-key", "command unauthorized"),
    ("exchange-accepts-all", "contract status"),
    ("migration-fails", "start crashed"),
    ("second-start-migrates", "mint migrated_again"),
    ("history-does-not-load", "load auth_store"),
    ("writes-refused", "write cli_failed"),
    ("socket-200", "socket not_upgraded"),
    ("rpc-silent", "socket no_answer"),
    ("slow-start", "start timeout"),
    ("crashes-soon=4", "hold crashed"),
    ("ignores-sigterm", "stop timeout"),
    ("fails-on-third-login", "hold auth_store"),
    ("fails-later=4", "hold auth_store"),
    ("fails-behind-proxy", "command internal_error"),
];

/// Those that need data to be seen, or that pass.
const ELSEWHERE: &[&str] = &["migration-drops-messages", "fails-for-one-user", "way-back-breaks"];

/// A limit that broken builds run into, and good ones stay far below.
const IMPATIENT: &str = "\"3s\"";

#[test]
fn each_broken_build_fails_where_it_is_broken_and_nowhere_else() {
    let queue = std::sync::Mutex::new(BROKEN.iter());
    let wrong = std::sync::Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = queue.lock().expect("the queue").next();
            let Some((mutation, expected)) = next else { return };
            // What breaks after seconds is well on the way to the hold, however busy this machine is.
            let hold = if mutation.contains('=') { "\"8s\"" } else { "\"100ms\"" };
            let gate = Gate::new()
                .set("hold", hold)
                .set("ready_timeout", IMPATIENT)
                .set("stop_timeout", IMPATIENT)
                .set("request_timeout", IMPATIENT);
            let bad = gate.build("bad", "0.0.26", &[mutation]);
            let judged = gate.judge(&["--bin", &bad]);
            let found = (judged.code, judged.verdict(), judged.findings());
            let wanted = (Some(1), "fail candidate_failed".to_owned(), vec![format!("<fresh>: {expected}")]);
            if found != wanted {
                wrong
                    .lock()
                    .expect("the list")
                    .push(format!("{mutation}: {found:?}, {}", judged.text("summary")));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(work);
        }
    });
    let wrong = wrong.into_inner().expect("the list");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_migration_that_drops_messages_is_found_on_data_that_has_some() {
    let gate = Gate::new();
    let Some(seed) = fixtures::copy("0.0.26", &gate.path("seed")) else { return };
    let bad = gate.build("bad", "0.0.26", &["migration-drops-messages"]);
    let judged = gate.judge(&["--bin", &bad, "--seed", seed.to_str().expect("text")]);
    assert_eq!(judged.verdict(), "fail candidate_failed", "{}", judged.output);
    assert_eq!(judged.findings(), ["state.sqlite: history history_shrank"]);
    assert!(judged.text("summary").contains("projection_thread_messages has 0 rows, it had 54"));
}

#[test]
fn a_build_that_breaks_the_way_back_passes_and_says_so() {
    let gate = Gate::new();
    let bad = gate.build("bad", "0.0.26", &["way-back-breaks"]);
    let judged = gate.judge(&["--bin", &bad]);
    assert_eq!((judged.code, judged.verdict()), (Some(0), "pass all_passed".to_owned()), "{}", judged.output);
    assert_eq!(judged.text("rollback"), "needs_restore");
    let back = &judged.document["findings"][0];
    assert_eq!(
        (&back["rehearsal"], &back["step"]),
        (&"way_back".into(), &"write".into()),
        "{}",
        judged.output
    );
}

#[test]
fn no_mutation_is_left_untried() {
    let help = sim::sim(&["install", "--help"]).stdout;
    let listed =
        help.lines().skip_while(|line| *line != "Mutations:").filter_map(|line| line.strip_prefix("  "));
    let listed: Vec<_> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    let tried = BROKEN.iter().map(|(name, _)| name.split('=').next().unwrap_or(name));
    let tried: Vec<_> = tried.chain(ELSEWHERE.iter().copied()).collect();
    for name in &listed {
        assert!(tried.contains(name), "{name} is in no test");
    }
    assert_eq!(listed.len(), tried.len(), "{help}");
}
