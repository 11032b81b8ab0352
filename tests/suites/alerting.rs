//! Faults, switched on for real, and the alert that each becomes at the webhook: that one, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::json;

use self::control_room::{ControlRoom, Tools};
use self::timing::Seen;
use crate::support::rules;
use crate::support::world::{Serving, World, replace, wait_for};

mod control_room;
mod own;
mod receiver;
mod stuck;
mod timing;
mod upkeep;

/// What runs every 5 s or 10 min is faster too, as far as a busy machine bears it.
const FAST: &str = "[probe]\npulse_interval = \"2s\"\nhandshake_interval = \"10s\"\nrequest_timeout = \"2s\"\n\
                    start_grace = \"1s\"\nversion_interval = \"10s\"\n";

/// A user, what they run, the switch that breaks it, and what that has to become.
const SWITCHES: &[(&str, &str, &str, &str)] = &[
    ("ann", "0.0.33", "hang", "T3InstanceWedged"),
    ("dan", "0.0.33", "exchange-500", "T3PulseFailing"),
    ("eve", "0.0.26", "html-on-api", "T3PulseFailing"),
    ("fay", "0.0.24", "status-503", "T3PulseFailing"),
    ("gus", "0.0.33", "session-false", "T3LoginFailing"),
    ("hal", "0.0.33", "socket-silent", "T3LoginFailing"),
    ("ida", "0.0.24", "ticket-500", "T3LoginFailing"),
    ("jon", "0.0.26", "cookie-renamed", "T3LoginFailing"),
    ("kim", "0.0.33", "keeper-refused", "T3KeeperLost"),
    ("leo", "0.0.33", "revoke-fails", "T3ProbeSessionsLeft"),
];

/// Those whose trouble is no switch.
const OTHERS: &[(&str, &str, &str)] = &[
    ("bob", "0.0.33", "T3InstanceDown"),
    ("cid", "0.0.24", "T3SchemaAhead"),
    ("may", "0.0.29", "T3VersionSkew"),
    ("ned", "0.0.24", "T3MigratedByUs"),
    ("oda", "0.0.33", "T3LoginWithheld"),
    ("pia", "0.0.33", "T3LoginWithheld"),
    ("qin", "0.0.26", "T3CookieNameMoved"),
];

/// What is everybody's, in the first run and in the second.
const FLEET_WIDE: &[&str] = &["T3ConfigReloadFailed", "T3InventoryFindings"];
const ALL_OUT: &str = "T3AllLoginsFailing";
const PROBER_GONE: &str = "T3ProberDown";
const WATCHDOG: &str = "T3Watchdog";

/// What a pulse can see: on time, because it is the pulse's.
const PULSED: &[&str] = &["T3InstanceWedged", "T3PulseFailing", "T3InstanceDown", "T3SchemaAhead"];
/// As `FAST` has it: the interval, and how long one may take.
const PULSE: Duration = Duration::from_millis(2000 + 1500);

/// What nobody can make happen here, and why; alerts/tests shows that each of them fires.
const NOT_LIVE: &[(&str, &str)] = &[
    ("T3ProbeDefect", "a probe that panics is a defect of this program, and none is known"),
    (
        "T3HandshakesStale",
        "a user whose handshakes are forgotten is a defect of this program, and none is known",
    ),
    ("T3LoginUnproven", "it takes a t3 that tells its version to one question and not to the next"),
];

/// Who is well, and who is in trouble and paused.
const SILENT: &[(&str, &str)] = &[("rex", "0.0.33"), ("sam", "0.0.26")];

fn done(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat())
    );
}

fn tell(world: &World, arguments: &[&str]) {
    done(&world.command(arguments).output().expect("the program"));
}

/// The next handshake has to issue another one, with t3's command.
fn forget_keeper(world: &World, user: &str) {
    fs::remove_file(world.path(&format!("state/keepers/{user}.json"))).expect("a keeper");
}

/// What a careful administrator has done; otherwise it is a finding.
fn keep_state_private(world: &World) {
    done(&Command::new("chmod").args(["-R", "o-rwx"]).arg(world.path("home")).output().expect("chmod"));
}

/// Answers when whose trouble began.
fn break_everything(world: &mut World, serving: &Serving) -> BTreeMap<&'static str, SystemTime> {
    let mut broken = BTreeMap::new();
    tell(world, &["pause", "sam", "--for", "1h", "--reason", "a test"]);
    tell(world, &["pause", "qin", "--for", "1h", "--reason", "an upgrade"]);
    for user in ["sam", "qin"] {
        serving.until_metric(&format!("t3_user_paused{{user=\"{user}\"}}"), |paused| paused == 1.0);
    }
    world.fault("sam", "hang");
    for (user, _, fault, _) in SWITCHES {
        broken.insert(*user, SystemTime::now());
        world.fault(user, fault);
    }
    broken.insert("bob", SystemTime::now());
    world.kill("bob");
    broken.insert("cid", SystemTime::now());
    world.foreign_mint("cid", "0.0.33");
    fs::remove_dir_all(world.path("installs/0.0.29")).expect("an install");
    forget_keeper(world, "may");
    world.fault("ned", "cli-migrates");
    forget_keeper(world, "ned");
    // Two on one port, and one under two names.
    let mut table: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&fs::read(world.path("dispatch.json")).expect("the table")).expect("JSON");
    table["oda@example.com"]["port"] = json!(world.port("pia"));
    table.insert("rex@example.org".to_owned(), json!({ "os_user": "rex", "port": world.port("rex") }));
    replace(&world.path("dispatch.json"), &serde_json::Value::Object(table).to_string());
    // An upgrade as it should be: announced, short, and over.
    world.kill("qin");
    world.start("qin", "0.0.33");
    let upgraded = || {
        serving
            .get("/metrics")
            .body
            .contains("t3_instance_info{user=\"qin\",version=\"0.0.33\"")
            .then_some(())
    };
    wait_for("qin's new version to be seen", upgraded);
    // A change of the configuration that is refused, and not looked at again.
    let good = fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(&world.path("config.toml"), &format!("{good}\nno_such_key = 1\n"));
    serving.signal(Signal::SIGHUP);
    serving.until_metric("t3_prober_config_last_reload_successful", |read| read == 0.0);
    replace(&world.path("config.toml"), &good);
    broken
}

#[test]
fn each_fault_ends_in_its_alert_at_the_webhook_and_in_no_other() {
    let Some(tools) = Tools::find() else { return };
    let users = SWITCHES.iter().map(|(user, version, ..)| (*user, *version));
    let users =
        users.chain(OTHERS.iter().map(|(user, version, _)| (*user, *version))).chain(SILENT.iter().copied());
    let users: Vec<_> = users.collect();
    let mut world = World::with(&users).configured(FAST);
    keep_state_private(&world);
    let serving = world.serve();
    for (user, _) in &users {
        serving.until_ok(user, "handshake", true);
    }
    let room = ControlRoom::open(&world, &serving, &tools);

    // Silence, for as long as most alerts would need.
    room.stays_silent(20);

    let broken = break_everything(&mut world, &serving);
    tell(&world, &["resume", "qin"]);

    let mut expected: Vec<(String, String)> = SWITCHES
        .iter()
        .map(|(user, _, _, alert)| (*user, *alert))
        .chain(OTHERS.iter().map(|(user, _, alert)| (*user, *alert)))
        .chain(FLEET_WIDE.iter().map(|alert| ("", *alert)))
        .map(|(user, alert)| (user.to_owned(), alert.to_owned()))
        .collect();
    expected.sort();
    // The slowest first: when they have come, all others had their time.
    for (user, alert) in
        expected.iter().filter(|(_, alert)| alert == "T3VersionSkew" || alert == "T3InventoryFindings")
    {
        room.until(user, alert);
    }
    wait_for("the last alert", || {
        room.fired().contains(&("leo".to_owned(), "T3ProbeSessionsLeft".to_owned())).then_some(())
    });
    for (user, alert) in &expected {
        room.until(user, alert);
    }
    room.evaluations(10);
    assert_eq!(room.fired(), expected, "{}", world.log());
    let seen = expected.iter().filter(|(_, alert)| PULSED.contains(&alert.as_str()));
    let seen: Vec<_> =
        seen.map(|(user, alert)| Seen { user, alert, broken: broken[user.as_str()] }).collect();
    assert!(seen.len() >= 6, "only {} faults are the pulse's", seen.len());
    timing::hold(&room, PULSE, &seen);
    each_command_shows_step_and_reason(&world, &room, &expected);
}

/// Runs the command that each alert's text names, and looks for the cause in what it prints.
fn each_command_shows_step_and_reason(world: &World, room: &ControlRoom, expected: &[(String, String)]) {
    for (user, alert) in expected {
        let notice = room.until(user, alert);
        let command = notice.next();
        let output = match command.strip_prefix("t3-prober ") {
            Some(arguments) => world.command(&arguments.split(' ').collect::<Vec<_>>()).output(),
            None => Command::new("sh").args(["-c", command]).output(),
        };
        let output = output.expect("a program");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = |word: &str| printed.contains(word);
        let label = |name: &str| notice.labels[name].as_str().unwrap_or_default().to_owned();
        // A text about the inventory leads to the check, which speaks of places and not of probes.
        let words = if command == "t3-prober check" {
            let contradiction = if alert == "T3LoginWithheld" { "[shared_port]" } else { "" };
            vec![user.clone(), label("finding"), contradiction.to_owned()]
        } else {
            vec![user.clone(), label("step"), label("reason")]
        };
        for word in words {
            assert!(said(&word), "{alert} about '{user}': `{command}` does not say {word}: {printed}");
        }
        assert!(!printed.is_empty(), "{alert}: `{command}` prints nothing");
        for name in ["step", "reason"] {
            let text = notice.annotations["description"].as_str().unwrap_or_default();
            assert!(text.contains(&label(name)) && text.contains(user.as_str()), "{alert}: {text}");
        }
    }
}

#[test]
fn when_everybody_is_out_there_is_one_page_and_it_stays_when_the_prober_dies_too() {
    let Some(tools) = Tools::find() else { return };
    let users = [("ann", "0.0.33"), ("bob", "0.0.26"), ("cid", "0.0.24")];
    // All of them are seen to fail within half a second, as in production within a fraction of every `for`.
    let world = World::with(&users).configured(&FAST.replace("\"2s\"\nhandshake", "\"500ms\"\nhandshake"));
    keep_state_private(&world);
    let serving = world.serve();
    for (user, _) in users {
        serving.until_ok(user, "handshake", true);
    }
    let room = ControlRoom::open(&world, &serving, &tools);
    room.stays_silent(10);

    for (user, _) in users {
        world.fault(user, "exchange-500");
    }
    // It is everybody from the last one on.
    let broken = SystemTime::now();
    let page = room.until("", ALL_OUT);
    timing::hold(&room, Duration::from_millis(500 + 400), &[Seen { user: "", alert: ALL_OUT, broken }]);
    let text = page.annotations["description"].as_str().unwrap_or_default();
    assert!(text.contains("All 3 users") && text.contains("3 at step contract (auth_store)"), "{text}");
    // Longer than the alerts of single users and of the budget would need.
    room.evaluations(20);
    assert_eq!(room.fired(), [(String::new(), ALL_OUT.to_owned())]);

    drop(serving);
    room.until("", PROBER_GONE);
    room.evaluations(10);
    let resolved: Vec<_> =
        room.receiver.notices().iter().filter(|notice| !notice.is_firing).cloned().collect();
    assert!(resolved.is_empty(), "data that went missing were taken for good news: {resolved:?}");
    let both = [ALL_OUT, PROBER_GONE].map(|alert| (String::new(), alert.to_owned()));
    assert_eq!(room.fired(), both);
}

#[test]
fn every_alert_is_fired_for_real_or_it_is_said_why_not() {
    let live = SWITCHES.iter().map(|(.., alert)| *alert);
    let live = live.chain(OTHERS.iter().map(|(.., alert)| *alert)).chain(FLEET_WIDE.iter().copied());
    let live = live.chain([ALL_OUT, PROBER_GONE, WATCHDOG]).chain(upkeep::live()).chain(stuck::live());
    let live: BTreeSet<&str> = live.chain(own::live()).collect();
    let not_live: BTreeSet<&str> = NOT_LIVE.iter().map(|(alert, _)| *alert).collect();
    let both: Vec<_> = live.intersection(&not_live).collect();
    assert!(both.is_empty(), "fired for real after all: {both:?}");
    let all = rules::all();
    let all: BTreeSet<&str> =
        all.iter().filter(|rule| rule.is_alert()).map(|rule| rule.alert.as_str()).collect();
    assert_eq!(live.union(&not_live).copied().collect::<BTreeSet<_>>(), all);
    assert!(NOT_LIVE.iter().all(|(_, why)| why.len() > 20), "a reason each");
}
