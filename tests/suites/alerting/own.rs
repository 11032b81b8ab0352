//! What comes and goes, what no login shows, and the program's own troubles, one after the other on one small world: each
//! ends in its alert.

use std::cell::RefCell;
use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::json;
use tokio_rusqlite::rusqlite::Connection;

use super::control_room::{ControlRoom, Tools};
use super::upkeep::each_text_leads_to_its_cause;
use super::{WATCHDOG, keep_state_private};
use crate::support::fleet::script_at;
use crate::support::held::Held;
use crate::support::tools;
use crate::support::world::{PROGRAM, Serving, World, replace, wait_for};

/// What waits for half an hour or longer is seen after this.
const LONGEST: Duration = Duration::from_secs(8);

/// As the world begins: t3's command mints, slowly, so that handshakes do not fit their interval.
const EAGER: &str = "mint = \"cli\"\n\
                     [probe]\npulse_interval = \"250ms\"\npulse_timeout = \"1s\"\nhandshake_interval = \"2s\"\n\
                     concurrent_handshakes = 1\nrequest_timeout = \"1s\"\nstart_grace = \"5s\"\nstate_interval = \"1s\"\n";

const FROM_THE_BEGINNING: &[(&str, &str, &str)] =
    &[("", "T3CommandsInSteadyState", "mint"), ("", "T3HandshakesStretched", "mint")];

/// Failures that are each too short for an alert of their own; what is asked about the first one shows those who fail now.
const COME_AND_GO: &[(&str, &str, &str)] =
    &[("", "T3LoginBudgetBurn", ""), ("ann", "T3InstanceFlapping", "pulse")];

const BROKEN: &[(&str, &str, &str)] = &[
    ("cid", "T3InstanceRestarting", "starting"),
    ("ann", "T3WrongOwner", "wrong_owner"),
    ("bob", "T3StateUnreadable", "unreadable"),
    ("dan", "T3FallbackEndpoint", "bootstrap"),
];

const UNWRITTEN: (&str, &str, &str) = ("", "T3HistoryNotRecorded", "not recorded for");

const AT_ITS_LIMIT: (&str, &str, &str) = ("", "T3ProberDescriptorsLow", "");

const STARTED_AGAIN: &[(&str, &str, &str)] = &[
    ("", "T3ProberRestarting", "t3-prober serves"),
    ("", "T3CredentialWatchStale", "registry"),
    ("eve", "T3PulsesStale", "pulse"),
];

const NOBODY_LEFT: (&str, &str, &str) = ("", "T3NobodyServed", "nobody");
const UNKNOWN: &str = "T3ProberAbsent";

pub fn live() -> impl Iterator<Item = &'static str> {
    let lists = [FROM_THE_BEGINNING, COME_AND_GO, BROKEN, STARTED_AGAIN];
    let alone = [UNWRITTEN.1, AT_ITS_LIMIT.1, NOBODY_LEFT.1, UNKNOWN];
    lists.into_iter().flatten().map(|(_, alert, _)| *alert).chain(alone)
}

/// The real command takes more than a second of CPU; this one takes some of it.
fn make_commands_dear(world: &World, version: &str) {
    let program = world.t3(version);
    let script = fs::read_to_string(&program).expect("a script");
    let busy = "#!/bin/sh\n[ \"$1\" = serve ] || { i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done; }\n";
    script_at(&program, &script.replacen("#!/bin/sh\n", busy, 1));
}

fn until_all(world: &World, room: &ControlRoom, expected: &[(&str, &str, &str)]) {
    for (user, alert, _) in expected {
        room.until(user, alert);
    }
    each_text_leads_to_its_cause(world, room, expected);
}

/// Breaks one after the other until it has been scraped, which is shorter than an alert about one user waits.
fn come_and_go(world: &World, serving: &Serving, room: &ControlRoom) {
    let has_fired = |(user, alert, _): &(&str, &str, &str)| {
        room.fired().contains(&((*user).to_owned(), (*alert).to_owned()))
    };
    wait_for("the alerts about what comes and goes", || {
        // The pulse's own: a handshake would remember it for longer.
        for user in ["ann", "bob", "cid", "dan"] {
            world.fault(user, "exchange-accepts-all");
            serving.until_ok(user, "pulse", false);
            let failing = format!("t3_probe_ok{{user=\"{user}\",kind=\"pulse\"}} == 0");
            let scraped = || room.prometheus.query(&failing, None).filter(|found| !found.is_empty());
            wait_for("the failure to be scraped", scraped);
            world.mend(user, "exchange-accepts-all");
            serving.until_ok(user, "pulse", true);
        }
        COME_AND_GO.iter().all(has_fired).then_some(())
    });
}

/// An instance that is young for ever: it is started again and again, and never answers.
struct Restless(RefCell<Option<Held>>);

impl Restless {
    fn start_again(&self, world: &World, user: &str) {
        // The port has to be free again first.
        drop(self.0.take());
        let mut server = Command::new(world.t3("0.0.33"));
        server.args(["serve", "--host", "127.0.0.1", "--port", &world.port(user).to_string(), "--base-dir"]);
        let server = server.arg(world.base_dir(user)).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.replace(Some(Held(server.spawn().expect("the stand-in t3"))));
        wait_for("it to listen", || TcpStream::connect(("127.0.0.1", world.port(user))).ok());
    }
}

/// Somebody else's process takes the port that became free.
fn squat(world: &mut World, user: &str) {
    world.kill(user);
    let dir = world.path("squat");
    fs::create_dir(&dir).expect("a directory");
    for path in [world.path(""), dir.clone()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(path, open).expect("a mode");
    }
    let program = dir.join("t3");
    fs::copy(PROGRAM, &program).expect("a copy that they may run");
    let mut command = Command::new(&program);
    command.args(["sim", "t3", "--as", "0.0.33", "--", "serve"]).uid(65534).gid(65534).env("HOME", &dir);
    command.stdout(Stdio::null());
    world.start_with(user, &mut command, &dir.join("base"));
}

/// Connections that say nothing, so many that what else comes and goes makes no difference, and little room above them.
fn at_its_limit(serving: &Serving) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(("127.0.0.1", serving.port)).expect("a connection");
    let idle: Vec<_> = (0..300).map(connect).collect();
    let open = wait_for("all to be accepted", || {
        serving.metric("process_open_fds").filter(|open| *open > idle.len() as f64)
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
    limit_descriptors(serving, open as u64 + 40);
    idle
}

fn limit_descriptors(serving: &Serving, limit: u64) {
    let set = Command::new("prlimit")
        .args(["--pid", &serving.pid().to_string(), &format!("--nofile={limit}:")])
        .status();
    assert!(set.expect("prlimit").success());
}

#[test]
fn what_comes_and_goes_and_the_programs_own_troubles_end_in_their_alerts() {
    let Some(tools) = Tools::find() else { return };
    // To take somebody's port as somebody else.
    if !tools::root() {
        return;
    }
    let users =
        [("ann", "0.0.33"), ("bob", "0.0.33"), ("cid", "0.0.33"), ("dan", "0.0.33"), ("eve", "0.0.33")];
    let mut world = World::with(&users).configured(EAGER);
    keep_state_private(&world);
    for (user, _) in users {
        world.fault_with(user, "cli-slow", "600");
    }
    make_commands_dear(&world, "0.0.33");
    let serving = world.serve();
    for (user, _) in users {
        serving.until_ok(user, "handshake", true);
    }
    let room = ControlRoom::with(&world, &serving, &[], &tools, Some(LONGEST));
    room.until("", WATCHDOG);

    come_and_go(&world, &serving, &room);
    until_all(&world, &room, FROM_THE_BEGINNING);
    // Over by now; the history still says it.
    until_all(&world, &room, &COME_AND_GO[1..]);

    let idle = at_its_limit(&serving);
    until_all(&world, &room, &[AT_ITS_LIMIT]);
    drop(idle);
    limit_descriptors(&serving, 1024);

    // A credential was last seen two hours ago, and its source is gone; nobody pulses any more.
    let never = EAGER.replace("pulse_interval = \"250ms\"", "pulse_interval = \"1h\"");
    let mut serving = serving;
    for round in 0..4 {
        drop(serving);
        if round == 3 {
            let config = fs::read_to_string(world.path("config.toml")).expect("the configuration");
            let gone = "[[credential]]\nname = \"registry\"\nsidecar = \"/nonexistent/registry.json\"\n";
            replace(&world.path("config.toml"), &(config.replace(EAGER, &never) + gone));
            let seen = humantime::format_rfc3339_seconds(SystemTime::now() - Duration::from_secs(7200));
            let known = json!([{ "name": "registry", "ends": "2099-01-01T00:00:00Z",
                "evidence": "expiry", "seen": seen.to_string() }]);
            fs::write(world.path("state/credentials.json"), known.to_string()).expect("written");
        }
        serving = world.serve();
        room.evaluations(3);
    }
    until_all(&world, &room, STARTED_AGAIN);

    // As before, and again with somebody who looks.
    drop(serving);
    let config = fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(&world.path("config.toml"), &config.replace(&never, EAGER));
    let serving = world.serve();
    for (user, _) in users {
        serving.until_ok(user, "handshake", true);
    }

    let history = Connection::open(world.path("state/history.sqlite")).expect("the history");
    history.execute_batch("BEGIN IMMEDIATE").expect("its lock");
    squat(&mut world, "ann");
    let database = Connection::open(world.database("bob")).expect("the database");
    database.busy_timeout(Duration::from_secs(10)).expect("patience");
    let nonsense = "INSERT INTO projection_state (projector, last_applied_sequence, updated_at) VALUES ('odd', 'far', '')";
    database.execute_batch(nonsense).expect("a row");
    world.fault("dan", "exchange-moved");
    world.kill("cid");
    world.fault("cid", "hang");
    let restless = Restless(RefCell::new(None));
    wait_for("the t3 that is always young", || {
        restless.start_again(&world, "cid");
        // Less than the time that t3 is given to start.
        room.evaluations(4);
        room.fired().contains(&("cid".to_owned(), "T3InstanceRestarting".to_owned())).then_some(())
    });
    for (user, alert, _) in BROKEN {
        room.until(user, alert);
    }
    until_all(&world, &room, &[UNWRITTEN]);
    // What was kept in memory meanwhile is there to be asked for.
    history.execute_batch("ROLLBACK").expect("unlocked");
    wait_for("the history to be written", || {
        let rows = serving.history("/history?user=bob&kind=state&outcome=failed");
        (!rows.is_empty()).then_some(())
    });
    restless.start_again(&world, "cid");
    until_all(&world, &room, BROKEN);
    drop(restless);

    replace(&world.path("dispatch.json"), "{}");
    serving.signal(Signal::SIGHUP);
    until_all(&world, &room, &[NOBODY_LEFT]);
    room.lose_the_prober();
    room.until("", UNKNOWN);
}
