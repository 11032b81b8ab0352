//! Every fault a t3 can have, as the probe names it: the step and the reason, by the real program against a real process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::world::{PROGRAM, Probed, World};

const OK: &str = "ok";

/// Fault of the stand-in, what the pulse says, what the handshake says.
const FAULTS: &[(&str, &str, &str)] = &[
    ("hang", "reach: failed(timeout)", "version: failed(timeout)"),
    ("drop", "reach: failed(closed)", "version: failed(closed)"),
    ("not-http", "reach: failed(malformed)", "version: failed(malformed)"),
    ("slow", OK, OK),
    ("status-500", "reach: failed(internal_error)", "version: failed(internal_error)"),
    ("status-503", "reach: failed(status)", "version: failed(status)"),
    ("html-on-api", "reach: failed(html)", "version: failed(html)"),
    ("redirect", "reach: failed(redirected)", "version: failed(redirected)"),
    ("close-mid-body", "reach: failed(closed)", "version: failed(closed)"),
    ("huge-body", "reach: failed(too_large)", "version: failed(too_large)"),
    ("bad-json", "reach: failed(malformed)", "session: failed(malformed)"),
    ("descriptor-html", "version: failed(html)", "version: failed(html)"),
    ("wrong-environment", "version: failed(wrong_instance)", "version: failed(wrong_instance)"),
    ("exchange-404", "contract: failed(not_found)", "exchange: failed(not_found)"),
    ("exchange-500", "contract: failed(auth_store)", "exchange: failed(auth_store)"),
    ("exchange-hang", "contract: failed(timeout)", "exchange: failed(timeout)"),
    ("exchange-refuses", OK, "exchange: failed(unauthorized)"),
    ("exchange-accepts-all", "contract: failed(status)", OK),
    ("no-cookie", OK, "exchange: failed(no_cookie)"),
    ("cookie-renamed", OK, "session: failed(cookie_name)"),
    ("cookie-without-http-only", OK, "session: failed(cookie_attributes)"),
    ("session-false", OK, "session: failed(not_authenticated)"),
    ("ticket-500", OK, "app: failed(internal_error)"),
    ("socket-200", OK, "socket: failed(not_upgraded)"),
    ("socket-403", OK, "socket: failed(not_upgraded)"),
    ("socket-silent", OK, "socket: failed(no_answer)"),
    ("socket-closes", OK, "socket: failed(closed)"),
    ("rpc-error", OK, "socket: failed(rpc_error)"),
    ("rpc-silent", OK, "socket: failed(no_answer)"),
    ("revoke-fails", OK, "revoke: failed(internal_error)"),
    ("keeper-refused", OK, "mint: failed(keeper_lost)"),
    ("mint-500", OK, "mint: failed(auth_store)"),
    ("mint-foreign", OK, "exchange: failed(unauthorized)"),
    ("locked", "contract: failed(auth_store)", "mint: failed(auth_store)"),
    ("auth-tables", "contract: failed(auth_store)", "mint: failed(auth_store)"),
    // Nothing that a login touches is wrong with it; the first one is asked at both places.
    ("exchange-moved", OK, OK),
    ("foreign-migration", OK, OK),
    ("history-unloadable", OK, OK),
];

/// What t3's command does wrong while the keeper is issued, which the handshake then names.
const COMMAND_FAULTS: &[(&str, &str)] = &[
    ("cli-hang", "mint: failed(timeout)"),
    ("cli-slow", OK),
    ("cli-garbage", "mint: failed(cli_garbage)"),
    ("cli-fails", "mint: failed(cli_failed)"),
];

/// What it does wrong where every credential is minted by it.
const MINT_FAULTS: &[(&str, &str)] = &[
    ("cli-mint-foreign", "exchange: failed(unauthorized)"),
    // The keeper's way is not asked for; revoking still goes through it.
    ("mint-500", OK),
    ("locked", "mint: failed(locked)"),
    // Last: the schema stays where the command moved it.
    ("cli-migrates", "mint: failed(migrated_by_us)"),
];

/// An instance that has long been up, and limits that a busy machine keeps and a hung one does not wear out.
const PATIENT: &str = "[probe]\npulse_timeout = \"3s\"\nrequest_timeout = \"2s\"\nstart_grace = \"0s\"\n";

fn expect(world: &World, fault: &str, pulse: &str, handshake: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |when: &str, probed: &Probed, pulse: &str, handshake: &str| {
        let said = (probed.decided("pulse"), probed.decided("handshake"), probed.exit);
        let exit = match (pulse, handshake) {
            (OK, OK) => 0,
            (pulse, handshake) if pulse.contains("failed") || handshake.contains("failed") => 1,
            _ => 4,
        };
        if said != (pulse.to_owned(), handshake.to_owned(), exit) {
            wrong.push(format!(
                "{fault}, {when}: said {said:?}, expected ({pulse:?}, {handshake:?}, {exit})\n{:#}",
                probed.json
            ));
        }
    };
    world.fault("ann", fault);
    check("while it is on", &world.probe("ann"), pulse, handshake);
    world.mend("ann", fault);
    if fault != "cli-migrates" {
        check("after it was mended", &world.probe("ann"), OK, OK);
    }
    wrong
}

/// Tries every fault on an instance of the version, a few at a time.
fn hold_the_table(version: &str) {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let world = World::with(&[("ann", version)]).configured(PATIENT);
                assert_eq!(world.probe("ann").exit, 0, "before any fault");
                while let Some((fault, pulse, handshake)) = FAULTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    wrong.lock().expect("the list").extend(expect(&world, fault, pulse, handshake));
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("the list");
    assert!(wrong.is_empty(), "t3 {version}:\n{}", wrong.join("\n"));
}

#[test]
fn every_fault_of_an_older_server_is_named_and_its_end_is_seen() {
    hold_the_table("0.0.24");
}

#[test]
fn every_fault_of_a_newer_server_is_named_and_its_end_is_seen() {
    hold_the_table("0.0.33");
}

#[test]
fn what_goes_wrong_with_t3s_command_is_named() {
    let keeper =
        World::with(&[("ann", "0.0.26")]).configured(&format!("{PATIENT}command_timeout = \"6s\"\n"));
    for (fault, handshake) in COMMAND_FAULTS {
        // Without a keeper one has to be issued, and that takes the command.
        let _ = std::fs::remove_file(keeper.path("state/keepers/ann.json"));
        assert_eq!(expect(&keeper, fault, OK, handshake), Vec::<String>::new());
    }
    let mint = World::with(&[("ann", "0.0.26")]).configured(&format!("mint = \"cli\"\n{PATIENT}"));
    for (fault, handshake) in MINT_FAULTS {
        let pulse = if *fault == "locked" { "contract: failed(auth_store)" } else { OK };
        assert_eq!(expect(&mint, fault, pulse, handshake), Vec::<String>::new());
    }
}

#[test]
fn every_fault_of_the_stand_in_is_in_a_table_or_known_to_be_no_matter_of_logging_in() {
    let help =
        std::process::Command::new(PROGRAM).args(["sim", "fault", "--help"]).output().expect("the program");
    let help = String::from_utf8(help.stdout).expect("text");
    let elsewhere = [
        // No login revokes by command, adds a project, or trusts a version that it does not need.
        "cli-revoke-fails",
        "cli-project-fails",
        "wrong-version",
        "on",
        "off",
    ];
    let tables: Vec<&str> = (FAULTS.iter().map(|(fault, ..)| *fault))
        .chain(COMMAND_FAULTS.iter().map(|(fault, _)| *fault))
        .chain(MINT_FAULTS.iter().map(|(fault, _)| *fault))
        .chain(elsewhere)
        .collect();
    let listed: Vec<&str> =
        help.lines().filter_map(|line| line.trim().strip_prefix("- ")?.split(':').next()).collect();
    assert!(listed.len() > 40, "{help}");
    let missing: Vec<_> = listed.iter().filter(|fault| !tables.contains(fault)).collect();
    assert!(missing.is_empty(), "in no table: {missing:?}");
}

#[test]
fn a_healthy_instance_of_every_generation_is_well() {
    let world = World::with(&[("ann", "0.0.24"), ("bob", "0.0.26"), ("cid", "0.0.33")]);
    for user in ["ann", "bob", "cid"] {
        let probed = world.probe(user);
        assert_eq!(
            (probed.decided("pulse"), probed.decided("handshake"), probed.exit),
            (OK.to_owned(), OK.to_owned(), 0),
            "{}",
            probed.json
        );
    }
}

#[test]
fn a_process_that_holds_the_write_lock_is_named_by_its_id() {
    let world = World::with(&[("ann", "0.0.26")]).configured(PATIENT);
    assert_eq!(world.probe("ann").exit, 0);
    let lock = world.lock_database("ann");
    let probed = world.probe("ann");
    assert_eq!(
        (probed.decided("pulse"), probed.decided("handshake")),
        ("contract: failed(locked)".to_owned(), "mint: failed(locked)".to_owned()),
    );
    let pid = format!("process {} holds the write lock", std::process::id());
    assert!(probed.json.to_string().contains(&pid), "{:#}", probed.json);
    drop(lock);
    assert_eq!(world.probe("ann").exit, 0);
}

#[test]
fn a_mint_that_finds_the_database_locked_once_succeeds_on_the_next_try() {
    let world = World::with(&[("ann", "0.0.26")]).configured(&format!("mint = \"cli\"\n{PATIENT}"));
    // The command's first write finds it locked; the pulse before it writes nothing that counts as a login.
    assert_eq!(world.probe("ann").exit, 0);
    world.fault_for("ann", "locked", 2);
    let probed = world.probe("ann");
    assert_eq!(probed.decided("handshake"), "ok", "{:#}", probed.json);
    assert!(world.faults_on("ann").is_empty(), "the lock was never met");
}

#[test]
fn an_instance_that_is_only_starting_is_no_failure_and_one_that_is_gone_is() {
    let mut world = World::with(&[("ann", "0.0.33")]).configured("[probe]\nstart_grace = \"5m\"\n");
    world.fault("ann", "hang");
    let probed = world.probe("ann");
    assert_eq!(
        (probed.decided("pulse"), probed.decided("handshake"), probed.exit),
        ("reach: skipped(starting)".to_owned(), "version: skipped(starting)".to_owned(), 4),
    );
    world.kill("ann");
    let probed = world.probe("ann");
    assert_eq!((probed.decided("pulse"), probed.exit), ("reach: failed(refused)".to_owned(), 1));
}

#[test]
fn an_instance_that_the_supervisor_calls_inactive_is_not_a_failure() {
    let mut world = World::with(&[("ann", "0.0.33")])
        .configured("status_command = [\"sh\", \"-c\", \"test {user} = ann && echo inactive\"]\n");
    world.kill("ann");
    let probed = world.probe("ann");
    assert_eq!(
        (probed.decided("pulse"), probed.decided("handshake"), probed.exit),
        ("reach: skipped(not_running)".to_owned(), "version: skipped(not_running)".to_owned(), 4),
    );
}
