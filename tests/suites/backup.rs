//! Snapshots, drills and restores, with the real program against the stand-in t3 and databases of real servers.

mod by_hand;
mod cut_off;
mod service;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_rusqlite::rusqlite::{Connection, OpenFlags};

use super::support::world::{World, replace, wait_for};
use super::support::{fixtures, tools};

/// How the program ended and what it said.
struct Said {
    exit: i32,
    text: String,
}

fn run(world: &World, args: &[&str]) -> Said {
    let output = world.command(args).output().expect("the program");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Said { exit: output.status.code().unwrap_or(-1), text }
}

fn ok(world: &World, args: &[&str]) -> String {
    let said = run(world, args);
    assert_eq!(said.exit, 0, "{args:?}: {}", said.text);
    said.text
}

/// The stand-in is our own program. At the end, so that more of this section can follow.
const EXPOSED: &str = concat!("[gate]\nexpose = [\"", env!("CARGO_BIN_EXE_t3-prober"), "\"]\n");

/// Users whose instances run 0.0.24 on the history of a real server; `None` where fixtures are left out by name.
fn world(users: &[&str]) -> Option<World> {
    let versions: Vec<_> = users.iter().map(|user| (*user, "0.0.24")).collect();
    let mut world = World::with(&versions);
    let (backups, supervised) = (world.path("backups"), world.path("supervisor"));
    let (backups, supervised) = (backups.display(), supervised.display());
    world = world.configured(&format!(
        "[backup]\ndir = \"{backups}\"\nstop_command = [\"{supervised}\", \"stop\", \"{{user}}\"]\n\
         start_command = [\"{supervised}\", \"start\", \"{{user}}\"]\n{EXPOSED}"
    ));
    supervisor(&world);
    for user in users {
        world.kill(user);
        let base_dir = world.base_dir(user);
        for leftover in ["userdata/state.sqlite-wal", "userdata/state.sqlite-shm"] {
            let _ = std::fs::remove_file(base_dir.join(leftover));
        }
        fixtures::copy("0.0.24", &base_dir)?;
        world.start(user, "0.0.24");
    }
    Some(world)
}

/// Stops and starts instances as a service manager would: what it starts is nobody's child.
fn supervisor(world: &World) {
    let script = format!(
        r#"#!/bin/sh
base={home}/$2/.t3
case $1 in
stop) kill "$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$base/userdata/server-runtime.json")" ;;
start)
    port=$(sed 's/.*"'"$2"'","port":\([0-9]*\).*/\1/' {table})
    setsid {t3} serve --host 127.0.0.1 --port "$port" --base-dir "$base" >/dev/null 2>&1 & ;;
esac
"#,
        home = world.path("home").display(),
        table = world.path("dispatch.json").display(),
        t3 = world.t3("0.0.24").display(),
    );
    let path = world.path("supervisor");
    std::fs::write(&path, script).expect("the supervisor");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
}

/// Ends what the supervisor started, when the test ends.
struct Supervised<'a>(&'a World, &'a str);

impl Drop for Supervised<'_> {
    fn drop(&mut self) {
        let _ = Command::new(self.0.path("supervisor")).args(["stop", self.1]).stderr(Stdio::null()).status();
    }
}

fn number(database: &Path, sql: &str) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(database, flags).expect("the database");
    connection.query_row(sql, [], |row| row.get(0)).expect(sql)
}

fn database(world: &World, user: &str) -> PathBuf {
    world.base_dir(user).join("userdata/state.sqlite")
}

fn messages(world: &World, user: &str) -> i64 {
    number(&database(world, user), "SELECT count(*) FROM projection_thread_messages")
}

fn events(world: &World, user: &str) -> i64 {
    number(&database(world, user), "SELECT count(*) FROM orchestration_events")
}

/// One more event: a project, added as the user would.
fn add_project(world: &World, user: &str) {
    let folder = world.path("project");
    std::fs::create_dir_all(&folder).expect("a folder");
    let base_dir = world.base_dir(user);
    let mut command = Command::new(world.t3("0.0.24"));
    command.args(["project", "add"]).arg(folder).arg("--base-dir").arg(base_dir);
    assert!(command.stdout(Stdio::null()).status().expect("t3").success());
}

#[test]
fn a_snapshot_is_taken_verified_and_drilled() {
    let Some(world) = world(&["ann"]) else { return };
    assert_eq!(run(&world, &["backup", "list"]).exit, 4, "there is nothing yet");
    let said = ok(&world, &["backup", "take"]);
    assert!(
        said.contains("level30-0.0.24")
            && said.contains("193 events, 54 messages")
            && said.contains("verified"),
        "{said}"
    );
    ok(&world, &["backup", "verify", "ann", "--all"]);
    let said = ok(&world, &["backup", "drill", "ann"]);
    let is_boxed = tools::find("bwrap").is_some();
    let how = if is_boxed { "(boxed)" } else { "(not boxed)" };
    assert!(said.contains(&format!("with t3 0.0.24 {how}")), "{said}");
    let listed: serde_json::Value =
        serde_json::from_str(&ok(&world, &["backup", "list", "--json"])).expect("json");
    let drilled = &listed["snapshots"][0]["proof"]["drilled"];
    assert_eq!(
        (&drilled["boxed"], &drilled["failure"]),
        (&is_boxed.into(), &serde_json::Value::Null),
        "{drilled}"
    );
    assert!(drilled["restore_seconds"].as_f64() > drilled["overhead_seconds"].as_f64(), "{drilled}");
    assert!(drilled["overhead_seconds"].as_f64() < Some(5.0), "{drilled}");
    let left: Vec<_> = std::fs::read_dir(world.path("backups/ann")).expect("the tree").flatten().collect();
    assert_eq!(left.len(), 4, "the lock, the snapshot, its manifest and its proof: {left:?}");
    assert_eq!(world.probe("ann").exit, 0, "the live instance goes on");
}

#[test]
fn what_is_due_is_done_once_and_a_drill_says_where_there_is_no_box() {
    let Some(world) = world(&["ann"]) else { return };
    let world = world.configured("bwrap = \"no-such-bwrap\"\n");
    let said = ok(&world, &["backup", "due"]);
    assert!(said.contains("verified") && said.contains("with t3 0.0.24 (not boxed)"), "{said}");
    assert_eq!(ok(&world, &["backup", "due"]), "", "nothing is due a moment later");
}

#[test]
fn a_drill_of_a_history_that_does_not_load_fails_and_says_where() {
    let Some(world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    let t3 = world.path("installs/0.0.24");
    let broken = ["sim", "install", &t3.to_string_lossy(), "0.0.24", "--mutation", "history-does-not-load"]
        .map(str::to_owned);
    let broken: Vec<&str> = broken.iter().map(String::as_str).collect();
    ok(&world, &broken);
    let said = run(&world, &["backup", "drill", "ann"]);
    assert_eq!(said.exit, 1, "{}", said.text);
    assert!(said.text.contains(": prove: "), "{}", said.text);
    std::fs::remove_dir_all(t3).expect("uninstalled");
    let said = run(&world, &["backup", "drill", "ann"]);
    assert!(said.exit == 1 && said.text.contains("no t3 for level 30 is installed"), "{}", said.text);
}

#[test]
fn after_the_outage_everybody_is_brought_back_with_every_message() {
    const USERS: [&str; 3] = ["ann", "bob", "cid"];
    let Some(world) = world(&USERS) else { return };
    for user in USERS {
        world.foreign_mint(user, "0.0.26");
        assert_eq!(world.probe(user).exit, 1, "nobody can log in");
    }
    let said = run(&world, &["backup", "restore", "ann"]);
    let offered = said.text.contains("t3-prober backup restore ann --auth-only --yes repairs the login");
    assert!(said.exit == 1 && offered, "without any snapshot: {}", said.text);
    for user in USERS {
        let said = ok(&world, &["backup", "restore", user, "--auth-only"]);
        assert!(said.contains("dry run: nothing was done"), "{said}");
        assert_eq!(
            number(&database(&world, user), "SELECT max(migration_id) FROM effect_sql_migrations"),
            32
        );
        let said = ok(&world, &["backup", "restore", user, "--auth-only", "--yes"]);
        assert!(said.contains("repaired; somebody logged in"), "{said}");
        assert_eq!(world.probe(user).exit, 0, "the running server recovers without a restart");
        assert_eq!((messages(&world, user), events(&world, user)), (54, 193));
        assert!(ok(&world, &["backup", "list", user]).contains("level32-0.0.24"), "the state before is kept");
        let said = run(&world, &["backup", "restore", user, "--auth-only", "--yes"]);
        assert!(said.exit == 1 && said.text.contains("there is nothing to repair"), "{}", said.text);
    }
    let said = ok(&world, &["backup", "drill", "ann"]);
    assert!(
        said.contains("level32-0.0.24") && said.contains("with t3 0.0.26"),
        "the state before restores too, with a t3 that can use it: {said}"
    );
}

#[test]
fn a_history_that_a_newer_t3_changed_is_refused_by_the_repair_and_brought_back_by_the_restore() {
    let Some(world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    world.foreign_mint("ann", "0.0.33");
    let said = run(&world, &["backup", "restore", "ann", "--auth-only", "--yes"]);
    assert!(said.exit == 1 && said.text.contains("migration 33 touches more"), "{}", said.text);
    let said = ok(&world, &["backup", "restore", "ann"]);
    assert!(!said.contains("--auth-only") && said.contains("lost     nothing"), "{said}");
    let _supervised = Supervised(&world, "ann");
    ok(&world, &["backup", "restore", "ann", "--yes"]);
    assert_eq!(world.probe("ann").exit, 0);
    assert_eq!((messages(&world, "ann"), events(&world, "ann")), (54, 193));
}

#[test]
fn of_an_instance_that_is_down_the_copy_from_before_the_outage_is_restored() {
    let Some(mut world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    world.foreign_mint("ann", "0.0.26");
    assert!(ok(&world, &["backup", "take", "ann"]).contains("level32-0.0.24"), "the newest is of the outage");
    world.kill("ann");
    let said = ok(&world, &["backup", "restore", "ann"]);
    assert!(said.lines().any(|line| line.contains("Restore ann from") && line.contains("level30")), "{said}");
}

#[test]
fn whatever_is_wrong_with_one_user_the_others_have_their_turn() {
    let Some(world) = world(&["ann", "bob", "cid"]) else { return };
    // What should be ann's directory is a file, and bob shares his port with somebody.
    std::fs::create_dir_all(world.path("backups")).expect("the tree");
    std::fs::write(world.path("backups/ann"), "").expect("a file");
    let table = std::fs::read_to_string(world.path("dispatch.json")).expect("the table");
    let mut table: serde_json::Value = serde_json::from_str(&table).expect("json");
    let users = table.as_object().expect("users");
    let bobs = users.values().find(|user| user["os_user"] == "bob").cloned();
    table["dan@example.com"] = bobs.expect("bob");
    table["dan@example.com"]["os_user"] = "dan".into();
    replace(&world.path("dispatch.json"), &table.to_string());
    for act in ["take", "due", "verify", "drill"] {
        let said = run(&world, &["backup", act]);
        let told =
            |user: &str| said.text.lines().filter(|line| line.starts_with(&format!("{user}: "))).count();
        assert_eq!(said.exit, 1, "{act}: {}", said.text);
        assert!(told("ann") > 0 && told("bob") > 0 && said.text.contains("(shared_port)"), "{}", said.text);
        // Taken once, nothing is due any more but a drill, and nothing after that.
        assert!(told("cid") > 0, "{act}: {}", said.text);
    }
    let said = run(&world, &["backup", "list"]);
    assert!(said.exit == 1 && said.text.contains("ann: cannot list") && said.text.contains("cid: "));
}

#[test]
fn a_restore_says_what_it_costs_and_keeps_the_former_state() {
    let Some(world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    add_project(&world, "ann");
    let now = events(&world, "ann");
    assert!(now > 193);
    let said = ok(&world, &["backup", "restore", "ann"]);
    assert!(
        said.contains(&format!("0 messages, {} events", now - 193)) && said.contains("dry run"),
        "{said}"
    );
    assert_eq!(events(&world, "ann"), now, "a dry run does nothing");
    let _supervised = Supervised(&world, "ann");
    let said = ok(&world, &["backup", "restore", "ann", "--yes"]);
    assert!(said.contains("restored; somebody logged in"), "{said}");
    assert_eq!(events(&world, "ann"), 193);
    let aside = said.lines().find_map(|line| line.split_once("the former state lies in ")).expect("aside").1;
    let former = Path::new(aside).join("state.sqlite");
    assert_eq!(number(&former, "SELECT count(*) FROM orchestration_events"), now);
}

#[test]
fn a_restore_after_which_nobody_can_log_in_is_undone() {
    let Some(world) = world(&["ann"]) else { return };
    ok(&world, &["backup", "take", "ann"]);
    add_project(&world, "ann");
    let now = events(&world, "ann");
    world.fault("ann", "session-false");
    let _supervised = Supervised(&world, "ann");
    let said = run(&world, &["backup", "restore", "ann", "--yes"]);
    assert_eq!(said.exit, 1, "{}", said.text);
    assert!(
        said.text.contains("prove: ") && said.text.contains("the former state is back in its place"),
        "{}",
        said.text
    );
    assert_eq!(events(&world, "ann"), now);
    world.mend("ann", "session-false");
    assert_eq!(world.probe("ann").exit, 0, "and its instance runs");
}

#[test]
fn a_take_that_is_killed_leaves_nothing_that_counts() {
    let Some(world) = world(&["ann"]) else { return };
    let connection = Connection::open(database(&world, "ann")).expect("the database");
    connection.busy_timeout(Duration::from_secs(10)).expect("patience");
    connection
        .execute_batch("CREATE TABLE large AS SELECT zeroblob(120000000) AS content")
        .expect("a large row");
    drop(connection);
    let tree = world.path("backups/ann");
    let files = |ending: &str| {
        let entries = std::fs::read_dir(&tree).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(ending)).count()
    };
    let mut take =
        world.command(&["backup", "take", "ann"]).stdout(Stdio::null()).spawn().expect("the program");
    wait_for("the copy to begin", || (files(".tmp") > 0).then_some(()));
    take.kill().expect("killed");
    take.wait().expect("reaped");
    assert_eq!(files(".sqlite"), 0, "nothing counts");
    let said = run(&world, &["backup", "list", "ann"]);
    assert!(said.exit == 4 && said.text.contains("[half_written]"), "{}", said.text);
    assert_eq!(run(&world, &["backup", "verify", "ann"]).exit, 1);
    ok(&world, &["backup", "take", "ann"]);
    assert_eq!((files(".sqlite"), files(".tmp")), (1, 0));
}

#[test]
fn a_database_that_was_migrated_under_its_server_is_named_within_one_round() {
    let Some(world) = world(&["ann"]) else { return };
    let world = world.configured("[probe]\nstate_interval = \"1s\"\n");
    let serving = world.serve();
    serving.until_metric("t3_probe_ok{user=\"ann\",kind=\"state\"}", |value| value == 1.0);
    let well = || {
        serving.metric("t3_probe_runs_total{user=\"ann\",kind=\"state\",outcome=\"ok\"}").unwrap_or_default()
    };
    world.foreign_mint("ann", "0.0.26");
    let before = well();
    let failure = "t3_probe_failures_total{user=\"ann\",step=\"database\",reason=\"schema_ahead\"}";
    serving.until_metric(failure, |value| value >= 1.0);
    // The one that was under way.
    assert!(well() - before <= 1.0, "{} rounds found nothing", well() - before);
}
