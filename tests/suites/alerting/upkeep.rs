//! What is no login of t3's own: the door, data, snapshots, credentials, the inventory and the spool, broken for real, and
//! builds that are refused, rolled back and given up on.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio_rusqlite::rusqlite::Connection;

use super::control_room::{ControlRoom, Tools};
use super::{done, keep_state_private};
use crate::support::door::{Wire, section};
use crate::support::fleet::Fleet;
use crate::support::free_port::free_port;
use crate::support::held::Held;
use crate::support::world::{PROGRAM, Serving, World, http, replace, wait_for};

/// A user each, the alert about them, and what the command that its text names has to say.
const BROKEN: &[(&str, &str, &str)] = &[
    ("ann", "T3HistoryShrank", "level 40, 0 events"),
    ("bob", "T3DatabaseAhead", "schema_ahead"),
    ("cid", "T3BackupStale", "wrong_owner"),
    ("dan", "T3RestoreDrillFailed", "crashed"),
    ("eve", "T3FrontFailing", "unknown_identity"),
    ("fay", "T3DatabaseAhead", "schema_foreign"),
    ("gus", "T3CredentialExpired", "claude of gus ended"),
    ("bob", "T3CredentialExpiresIn7Days", "claude of bob ends on"),
    ("cid", "T3CredentialExpiresIn30Days", "claude of cid ends on"),
    ("dan", "T3CredentialNeverSeen", "never-written.json"),
    ("dan", "T3AuthRowsGrowing", "handshake"),
    ("ida", "T3BackupMissing", "wrong_owner"),
    ("lea", "T3DatabaseForeign", "schema_foreign"),
    ("jon", "T3BackupUnverified", "NULL value in odd"),
    ("kim", "T3BackupShrinking", "verified"),
    ("kim", "T3DispatchErrors", "handshake"),
    ("hal", "T3RealLoginFailing", "keeper_lost"),
    ("", "T3DispatchRefusing", "reason=\"no_identity\""),
    ("", "T3InventoryReloadFailed", "dispatch.json"),
    ("", "T3SpoolRejected", "stray.json"),
    ("", "T3WebSocketDrops", "cause=dropped"),
];

const DOOR_GONE: &str = "T3DispatchDown";

/// What waits for an hour is seen after this, and not after two minutes.
const LONGEST: Duration = Duration::from_secs(30);

pub fn live() -> impl Iterator<Item = &'static str> {
    BROKEN.iter().chain(BUILDS).map(|(_, alert, _)| *alert).chain([DOOR_GONE])
}

fn users() -> BTreeSet<&'static str> {
    BROKEN.iter().map(|(user, ..)| *user).filter(|user| !user.is_empty()).collect()
}

/// Whose snapshots an act has failed for is left alone for ten minutes, which are many of the intervals here.
const LEFT_ALONE: &[&str] = &["dan", "fay", "jon", "lea"];

/// What has fired, without what only follows from that.
fn fired(room: &ControlRoom) -> Vec<(String, String)> {
    let follows =
        |(user, alert): &(String, String)| alert == "T3BackupStale" && LEFT_ALONE.contains(&user.as_str());
    room.fired().into_iter().filter(|one| !follows(one)).collect()
}

/// A `t3-prober dispatch` with a configuration of its own.
struct Dispatch {
    _process: Held,
    port: u16,
    operator: u16,
}

impl Dispatch {
    /// The world's configuration with what `differs`, and with its own addresses.
    fn start(world: &World, name: &str, port: u16, differs: &[(&str, &str)]) -> Self {
        let operator = free_port();
        let text = fs::read_to_string(world.path("config.toml")).expect("the configuration");
        let keys = format!("{}probe_key_file", section(port, operator));
        let text = text.replace("[dispatch]\nprobe_key_file", &keys);
        let text = differs.iter().fold(text, |text, (from, to)| text.replace(from, to));
        let config = world.path(&format!("{name}.toml"));
        fs::write(&config, text).expect("a configuration");
        let log = fs::File::create(world.path(&format!("{name}.log"))).expect("a log");
        let child = Command::new(PROGRAM)
            .arg("--config")
            .args([config.as_os_str(), "dispatch".as_ref()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program");
        let dispatch = Self { _process: Held(child), port, operator };
        wait_for("the dispatch to be ready", || {
            http(operator, "GET", "/-/healthy", &[]).is_ok_and(|answer| answer.status == 200).then_some(())
        });
        dispatch
    }

    fn visit(&self, user: &str) -> u16 {
        let identity = format!("{user}@example.com");
        let headers = [("X-authentik-username", identity.as_str()), ("Accept", "text/html")];
        http(self.port, "GET", "/", &headers).map_or(0, |answer| answer.status)
    }

    /// Logs a user in and answers their cookie.
    fn cookie(&self, user: &str) -> String {
        let identity = format!("{user}@example.com");
        let headers = [("X-authentik-username", identity.as_str()), ("Accept", "text/html")];
        let answer = http(self.port, "GET", "/", &headers).expect("an answer");
        let line = answer.head.lines().find_map(|line| line.strip_prefix("Set-Cookie: t3_session"));
        let line = line.map(|rest| format!("t3_session{rest}"));
        let line = line.unwrap_or_else(|| panic!("no cookie in {answer:?}"));
        line.split(';').next().unwrap_or_default().to_owned()
    }

    fn load_history(&self, user: &str, cookie: &str) {
        let identity = format!("{user}@example.com");
        let headers = [("X-authentik-username", identity.as_str()), ("Cookie", cookie)];
        let _ = http(self.port, "GET", "/api/orchestration/snapshot", &headers);
    }

    /// Opens a WebSocket and breaks it off.
    fn drop_a_socket(&self, user: &str) {
        let mut wire = Wire::connect(self.port);
        let head = format!(
            "GET /ws HTTP/1.1\r\nHost: x\r\nX-authentik-username: {user}@example.com\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        wire.send(head.as_bytes());
        assert!(wire.until("\r\n\r\n").starts_with("HTTP/1.1 101 "));
    }
}

/// Everything that there is to break, and all of it well.
fn world(front: u16) -> World {
    let versions = |user: &str| match user {
        "dan" => "0.0.29",
        _ => "0.0.33",
    };
    let users: Vec<_> = users().into_iter().map(|user| (user, versions(user))).collect();
    let world = World::with(&users);
    let (key, backups) = (world.path("probe.key"), world.path("backups"));
    fs::write(&key, "a key of the prober's own\n").expect("a key");
    fs::create_dir(&backups).expect("a directory");
    let credentials: String =
        ["bob", "cid", "gus"].map(|user| credential(&world, user, &format!("claude-{user}.json"))).concat();
    for user in ["bob", "cid", "gus"] {
        ends_on(&world, user, "2099-01-01");
    }
    // Never any snapshot of theirs: it is said later than all else needs to be found well.
    fs::create_dir(backups.join("ida")).expect("a directory");
    fs::set_permissions(backups.join("ida"), fs::Permissions::from_mode(0o777)).expect("a mode");
    // Enough of it, and nobody's history.
    let bulk = "CREATE TABLE bulk (x); INSERT INTO bulk VALUES (randomblob(3000000))";
    database(&world, "kim").execute_batch(bulk).expect("bulk");
    let world = world.configured(&format!(
        "[probe]\npulse_interval = \"2s\"\nhandshake_interval = \"10s\"\nrequest_timeout = \"5s\"\nstart_grace = \"1s\"\n\
         version_interval = \"10s\"\nstate_interval = \"1s\"\nfront = \"127.0.0.1:{front}\"\nfront_interval = \"3s\"\n\
         [dispatch]\nprobe_key_file = {key:?}\n\
         [backup]\ndir = {backups:?}\ninterval = \"40s\"\ndrill_interval = \"50s\"\n\
         {credentials}"
    ));
    for user in ["ann", "cid", "dan"] {
        let folder = world.path(&format!("project-{user}"));
        fs::create_dir(&folder).expect("a folder");
        let mut add = Command::new(world.t3(versions(user)));
        add.args(["project", "add"]).arg(folder).arg("--base-dir").arg(world.base_dir(user));
        done(&add.output().expect("t3"));
    }
    keep_state_private(&world);
    world
}

fn credential(world: &World, user: &str, sidecar: &str) -> String {
    let sidecar = world.path(sidecar);
    format!("[[credential]]\nname = \"claude\"\nuser = \"{user}\"\nsidecar = {sidecar:?}\n")
}

fn ends_on(world: &World, user: &str, day: &str) {
    let note = json!({ "expires": day });
    replace(&world.path(&format!("claude-{user}.json")), &note.to_string());
}

/// So many days from now.
fn day(days: u64) -> String {
    let then = SystemTime::now() + Duration::from_secs(days * 86_400);
    humantime::format_rfc3339_seconds(then).to_string()[..10].to_owned()
}

fn database(world: &World, user: &str) -> Connection {
    let database = Connection::open(world.database(user)).expect("the database");
    database.busy_timeout(Duration::from_secs(10)).expect("patience");
    database
}

/// The dispatch's own table: what it reads otherwise than the prober.
fn door_table(world: &World, without: &str) {
    let mut table: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&fs::read(world.path("dispatch.json")).expect("the table")).expect("JSON");
    table.remove(&format!("{without}@example.com"));
    replace(&world.path("door.json"), &serde_json::Value::Object(table).to_string());
}

fn break_everything(world: &World, serving: &Serving, door: &Dispatch) {
    assert!(database(world, "ann").execute("DELETE FROM orchestration_events", []).expect("deleted") > 0);
    world.foreign_mint("bob", "0.0.34");
    fs::set_permissions(world.path("backups/cid"), fs::Permissions::from_mode(0o777)).expect("a mode");
    let build = world.path("installs/0.0.29/bin/t3");
    fs::remove_file(&build).expect("a build");
    fs::write(&build, "#!/bin/sh\nexit 1\n").expect("a build that does not start");
    fs::set_permissions(&build, fs::Permissions::from_mode(0o755)).expect("a mode");
    door_table(world, "eve");
    world.fault("fay", "foreign-migration");
    // A fork's migration, in the place of the newest one.
    let renamed = "UPDATE effect_sql_migrations SET name = 'OfAFork'
                   WHERE migration_id = (SELECT max(migration_id) FROM effect_sql_migrations)";
    assert_eq!(database(world, "lea").execute(renamed, []).expect("renamed"), 1);
    ends_on(world, "gus", "2020-01-01");
    ends_on(world, "bob", &day(3));
    ends_on(world, "cid", &day(20));
    let config = fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(&world.path("config.toml"), &(config + &credential(world, "dan", "never-written.json")));
    serving.signal(Signal::SIGHUP);
    // More than a day of handshakes leaves, and none of them of use.
    database(world, "dan")
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             INSERT INTO auth_sessions (session_id, subject, scopes, method, issued_at, expires_at)
             SELECT 'stray-' || i, 'ann', '[]', 'browser', '2020-01-01T00:00:00.000Z', '2020-01-02T00:00:00.000Z' FROM n",
        )
        .expect("rows");
    // A row that its own table does not allow: the copy is as good as the database is.
    database(world, "jon")
        .execute_batch(
            "CREATE TABLE odd (x); INSERT INTO odd VALUES (NULL); PRAGMA writable_schema = ON;
             UPDATE sqlite_master SET sql = 'CREATE TABLE odd (x NOT NULL)' WHERE name = 'odd'",
        )
        .expect("a table");
    database(world, "kim").execute_batch("DROP TABLE bulk; VACUUM").expect("smaller");
    world.fault("kim", "history-unloadable");
    fs::copy(world.path("dispatch.json"), world.path("whole.json")).expect("a copy");
    replace(&world.path("dispatch.json"), "{");
    fs::write(world.path("state/spool/stray.json"), "no event").expect("a stray file");
    for _ in 0..12 {
        door.drop_a_socket("gus");
    }
}

#[test]
fn what_breaks_beside_the_login_ends_in_its_alert_and_in_no_other() {
    let Some(tools) = Tools::find() else { return };
    let front = free_port();
    let world = world(front);
    door_table(&world, "");
    let table = ("dispatch.json", "door.json");
    let door = Dispatch::start(&world, "door", front, &[table]);
    // Another way in, which may not mint.
    let installs = world.path("installs").display().to_string();
    let elsewhere = (installs.as_str(), "/nonexistent");
    let state = (world.path("state").display().to_string(), world.path("other-state").display().to_string());
    let other = Dispatch::start(&world, "other", free_port(), &[elsewhere, (&state.0, &state.1)]);
    let serving = world.serve();
    for user in users() {
        for kind in ["handshake", "front", "state"] {
            serving.until_ok(user, kind, true);
        }
        if user != "ida" {
            let restored = format!("t3_restore_verified_timestamp_seconds{{user=\"{user}\"}}");
            serving.until_metric(&restored, |at| at > 1e9);
        }
    }
    let doors = [door.operator, other.operator];
    let room = ControlRoom::with(&world, &serving, &doors, &tools, Some(LONGEST));
    room.stays_silent(20);

    let began = Instant::now();
    break_everything(&world, &serving, &door);
    // These last only as long as somebody does it.
    let cookie = door.cookie("kim");
    for alert in ["T3WebSocketDrops", "T3RealLoginFailing", "T3DispatchErrors", "T3DispatchRefusing"] {
        wait_for(alert, || {
            for _ in 0..5 {
                let _ = http(door.port, "GET", "/", &[("Accept", "text/html")]);
            }
            other.visit("hal");
            for _ in 0..3 {
                door.load_history("kim", &cookie);
            }
            room.evaluations(1);
            room.fired().iter().any(|(_, fired)| fired == alert).then_some(())
        });
    }
    let mut expected: Vec<_> =
        BROKEN.iter().map(|(user, alert, _)| ((*user).to_owned(), (*alert).to_owned())).collect();
    expected.sort();
    // Two intervals without a snapshot and the rule's `for` are longer than anything else here takes.
    while !room.fired().contains(&("cid".to_owned(), "T3BackupStale".to_owned())) {
        room.evaluations(10);
        assert!(began.elapsed() < Duration::from_secs(240), "no snapshot was found late: {:?}", room.fired());
    }
    for (user, alert) in &expected {
        room.until(user, alert);
    }
    room.evaluations(10);
    assert_eq!(fired(&room), expected, "{}", world.log());
    let (about_inventory, rest): (Vec<_>, Vec<_>) =
        BROKEN.iter().copied().partition(|(_, alert, _)| *alert == "T3InventoryReloadFailed");
    each_text_leads_to_its_cause(&world, &room, &about_inventory);
    // Commands read the inventory too, and have no good one to keep.
    fs::copy(world.path("whole.json"), world.path("dispatch.json")).expect("a whole table");
    each_text_leads_to_its_cause(&world, &room, &rest);

    // Nobody gets in any more, and that is one page.
    drop(door);
    room.until("", DOOR_GONE);
    room.evaluations(30);
    expected.push((String::new(), DOOR_GONE.to_owned()));
    expected.sort();
    assert_eq!(fired(&room), expected, "{}", world.log());
}

pub fn each_text_leads_to_its_cause(world: &World, room: &ControlRoom, broken: &[(&str, &str, &str)]) {
    for (user, alert, cause) in broken {
        let notice = room.until(user, alert);
        let text = notice.annotations["description"].as_str().unwrap_or_default();
        for label in ["user", "step", "reason"] {
            let word = notice.labels[label].as_str().unwrap_or_default();
            assert!(text.contains(word), "{alert}: no {label} {word} in {text}");
        }
        let printed = next_prints(world, notice.next());
        assert!(printed.contains(cause), "{alert}: `{}` does not say {cause}: {printed}", notice.next());
    }
}

/// What the command that an alert's text names shows. A unit's journal is the program's own log here.
fn next_prints(world: &World, command: &str) -> String {
    let output = if let Some(arguments) = command.strip_prefix("t3-prober ") {
        world.command(&arguments.split(' ').collect::<Vec<_>>()).output()
    } else if let Some(journal) = command.strip_prefix("journalctl -u ") {
        let wanted = journal.split_once("--grep ").map_or("", |(_, wanted)| wanted.trim_matches('\''));
        let logs: &[&str] = match journal.split(' ').next() {
            Some("t3-prober") => &["serve.log"],
            Some("t3-dispatch") => &["door.log", "other.log"],
            Some("t3-prober-enforce") => &["enforce.log"],
            unit => panic!("no unit is called {unit:?}"),
        };
        let logs = logs.iter().map(|log| world.path(log));
        Command::new("grep").args(["-sh", wanted]).args(logs).output()
    } else {
        Command::new("sh").args(["-c", command]).output()
    };
    let output = output.expect("a program");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// What can be wrong with builds; all of it is everybody's.
const BUILDS: &[(&str, &str, &str)] = &[
    ("", "T3CandidateRefused", "no_cookie"),
    ("", "T3EnforcerAborting", "nothing is wanted"),
    ("", "T3EnforcerFrozen", "0.0.33 was rolled back"),
    ("", "T3GateStuck", "no_cookie"),
    ("", "T3RolledBack", "0.0.33 was rolled back"),
];

#[test]
fn builds_that_are_refused_rolled_back_and_given_up_on_end_in_their_alerts() {
    let Some(tools) = Tools::find() else { return };
    let fleet = Fleet::on("0.0.29", &["ann", "bob"], "gate_command = [\"true\"]\nsoak = \"2s\"\n");
    let program = std::path::Path::new(PROGRAM).parent().expect("a directory").display();
    let config = fs::read_to_string(fleet.path("config.toml")).expect("the configuration");
    let quick = format!(
        "[gate]\nexpose = [\"{program}\"]\nhold = \"100ms\"\nkeep_free_mib = 1\ncontrol = \"0.0.29\"\n"
    );
    let track = format!(
        "[gate.track]\ntag = \"nightly\"\ncommand = [\"cat\", \"{}-{{tag}}\"]\nevery = \"1s\"\n",
        fleet.path("tag").display()
    );
    // What is published is broken. Snapshots are the enforcer's alone.
    let config = config
        .replace("[backup]\n", "[backup]\ninterval = \"0s\"\n")
        .replace("[gate]\n", &quick)
        .replace("\"install\", \"{prefix}\"", "\"install\", \"--mutation\", \"no-cookie\", \"{prefix}\"");
    replace(&fleet.path("config.toml"), &(config + &track));
    let world = &fleet.world;
    keep_state_private(world);
    let serving = world.serve();
    for user in ["ann", "bob"] {
        serving.until_ok(user, "handshake", true);
    }
    let room = ControlRoom::with(world, &serving, &[], &tools, Some(LONGEST));
    room.stays_silent(20);

    fs::write(fleet.path("tag-nightly"), "0.0.30\n").expect("a build is published");
    serving.until_metric("t3_verdict_consecutive_nonpass", |streak| streak == 1.0);
    room.until("", "T3CandidateRefused");
    let mut journal = String::new();
    for _ in 0..2 {
        let held = fleet.enforce(&[]).exits(3);
        assert!(held.contains("nothing is wanted"), "{held}");
        journal += &held;
    }
    // While it is frozen that alone is told.
    room.until("", "T3EnforcerAborting");
    fleet.install_broken("0.0.33", "fails-on-third-login");
    journal += &fleet.enforce(&["--to", "0.0.33"]).exits(1);
    for _ in 0..2 {
        let frozen = fleet.enforce(&["--to", "0.0.33"]).exits(3);
        assert!(frozen.contains("frozen"), "{frozen}");
        journal += &frozen;
        fs::write(fleet.path("enforce.log"), &journal).expect("its unit's journal");
        let again = world.command(&["gate", "0.0.30"]).output().expect("the program");
        assert_eq!(again.status.code(), Some(1), "{}", String::from_utf8_lossy(&again.stdout));
    }
    let expected: Vec<_> =
        BUILDS.iter().map(|(user, alert, _)| ((*user).to_owned(), (*alert).to_owned())).collect();
    for (user, alert) in &expected {
        room.until(user, alert);
    }
    room.evaluations(10);
    assert_eq!(room.fired(), expected, "{}", world.log());
    each_text_leads_to_its_cause(world, &room, BUILDS);
}
