//! Users whose instances run through their links under a supervisor, as t3-serve@ units do, and the enforcer over them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio_rusqlite::rusqlite::types::Value;
use tokio_rusqlite::rusqlite::{Connection, OpenFlags, Row};

use super::world::{PROGRAM, World, http_within, wait_for};

pub struct Fleet {
    pub world: World,
    users: Vec<String>,
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub exit: i32,
    pub text: String,
}

/// A run of the enforcer, each line with the time at which it was said.
#[derive(Debug)]
pub struct Told {
    pub exit: i32,
    pub lines: Vec<(Instant, String)>,
    pub ended: Instant,
}

impl Fleet {
    /// These users, all on that version, linked and running; with more lines of configuration.
    pub fn on(version: &str, users: &[&str], extra: &str) -> Self {
        let mut world = World::empty();
        for user in users {
            world.add(user);
        }
        let (supervisor, backups) = (world.path("supervisor"), world.path("backups"));
        let (supervisor, backups) = (supervisor.display(), backups.display());
        let world = world.configured(&format!(
            "[probe]\npulse_interval = \"1s\"\n\
             [backup]\ndir = \"{backups}\"\nstop_timeout = \"20s\"\nstart_timeout = \"20s\"\n\
             [gate]\ninstall_command = [\"{PROGRAM}\", \"sim\", \"install\", \"{{prefix}}\", \"{{version}}\"]\nrequire_box = false\n\
             [enforce]\nstop_command = [\"{supervisor}\", \"stop\", \"{{user}}\"]\n\
             start_command = [\"{supervisor}\", \"start\", \"{{user}}\"]\n\
             login_interval = \"500ms\"\n{extra}"
        ));
        let fleet = Self { world, users: users.iter().map(|user| (*user).to_owned()).collect() };
        fleet.write_supervisor();
        fleet.world.install(version);
        std::fs::create_dir_all(fleet.path("installs/users")).expect("a directory");
        std::fs::write(fleet.path("installs/last-good"), version).expect("written");
        symlink(version, fleet.path("installs/default")).expect("a link");
        for user in users {
            symlink(format!("../{version}"), fleet.path("installs/users").join(user)).expect("a link");
            std::fs::create_dir_all(fleet.world.base_dir(user)).expect("a base directory");
            fleet.start(user);
        }
        fleet
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    /// Adds to the end of the configuration.
    pub fn configured(self, more: &str) -> Self {
        let path = self.path("config.toml");
        let text = std::fs::read_to_string(&path).expect("the configuration");
        std::fs::write(path, format!("{text}{more}")).expect("written");
        self
    }

    /// Another value of what the configuration says.
    pub fn changed(self, from: &str, to: &str) -> Self {
        let path = self.path("config.toml");
        let text = std::fs::read_to_string(&path).expect("the configuration");
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(path, text.replace(from, to)).expect("written");
        self
    }

    /// Stops and starts as a service manager does: both may be asked twice, what is started is nobody's child.
    fn write_supervisor(&self) {
        let script = format!(
            r#"#!/bin/sh
base={dir}/home/$2/.t3
runtime=$base/userdata/server-runtime.json
running() {{ pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$runtime" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }}
case $1 in
stop)
    running || exit 0
    [ ! -f {dir}/stop-takes ] || {{ touch {dir}/stopping; sleep "$(cat {dir}/stop-takes)"; }}
    kill "$pid"
    for i in $(seq 400); do kill -0 "$pid" 2>/dev/null || exit 0; sleep 0.05; done
    kill -9 "$pid" ;;
start)
    [ ! -f {dir}/goes-down ] || exit 1
    running && exit 0
    port=$(sed 's/.*"'"$2"'","port":\([0-9]*\).*/\1/' {dir}/dispatch.json)
    setsid {dir}/installs/users/$2/bin/t3 serve --host 127.0.0.1 --port "$port" --base-dir "$base" >/dev/null 2>&1 & ;;
esac
"#,
            dir = self.path("").display().to_string().trim_end_matches('/'),
        );
        script_at(&self.path("supervisor"), &script);
    }

    fn supervise(&self, verb: &str, user: &str) {
        let status =
            Command::new(self.path("supervisor")).args([verb, user]).status().expect("the supervisor");
        assert!(status.success(), "{verb} {user}");
    }

    /// Starts a user's instance as the service manager would, and waits for it.
    pub fn start(&self, user: &str) {
        self.supervise("start", user);
        wait_for(&format!("t3 of {user} to answer"), || self.running(user).map(|_| ()));
    }

    pub fn stop(&self, user: &str) {
        self.supervise("stop", user);
    }

    /// Ends a user's instance as the kernel would.
    pub fn kill(&self, user: &str) {
        let pid = self.pid(user).expect("a running instance");
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill");
        assert!(killed.success());
        wait_for("the instance to be gone", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    }

    fn pid(&self, user: &str) -> Option<i64> {
        let runtime = self.world.base_dir(user).join("userdata/server-runtime.json");
        let runtime: serde_json::Value = serde_json::from_slice(&std::fs::read(runtime).ok()?).ok()?;
        runtime["pid"].as_i64()
    }

    /// When a user's instance was started, as it says itself.
    pub fn started(&self, user: &str) -> String {
        let runtime = self.world.base_dir(user).join("userdata/server-runtime.json");
        std::fs::read_to_string(runtime).expect("a running instance")
    }

    /// Gives a user a project, which is what a build may break on for them alone.
    pub fn add_project(&self, user: &str, version: &str, folder: &str) {
        let folder = self.path(folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut add = Command::new(self.world.t3(version));
        add.args(["project", "add"]).arg(&folder).arg("--base-dir").arg(self.world.base_dir(user));
        assert!(add.stdout(Stdio::null()).status().expect("t3").success());
    }

    /// A build with a mutation, installed side by side.
    pub fn install_broken(&self, version: &str, mutation: &str) {
        self.install_with(version, &["--mutation", mutation]);
    }

    pub fn install_with(&self, version: &str, options: &[&str]) {
        let into = self.path("installs").join(version);
        let mut install = Command::new(PROGRAM);
        install.args(["sim", "install"]).args(options).arg(into).arg(version);
        assert!(install.status().expect("the program").success());
    }

    /// The version that answers on a user's port.
    pub fn running(&self, user: &str) -> Option<String> {
        let soon = Duration::from_millis(500);
        let answer =
            http_within(soon, self.world.port(user), "GET", "/.well-known/t3/environment", &[], "").ok()?;
        let descriptor: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        descriptor["serverVersion"].as_str().map(str::to_owned)
    }

    pub fn linked(&self, user: &str) -> String {
        let link = std::fs::read_link(self.path("installs/users").join(user)).expect("a link");
        link.file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// What every user runs and is linked to, and the default for new ones: `0.0.24`, or what differs.
    pub fn everybody_is_on(&self, version: &str) {
        for user in &self.users {
            assert_eq!(self.running(user).as_deref(), Some(version), "{user} runs");
            assert_eq!(self.linked(user), version, "{user} is linked to");
            // The way through the dispatch, where there is one, is the tests' own matter.
            let probed = self.world.probe(user).json;
            let direct = probed["runs"].as_array().expect("runs").iter().filter(|run| run["kind"] != "front");
            assert!(
                direct.clone().count() == 2 && direct.clone().all(|run| run["outcome"] == "ok"),
                "{user} cannot log in: {probed}"
            );
        }
    }

    /// A message written by a user, as their own server would write it.
    pub fn write_message(&self, user: &str, id: &str) {
        let database = Connection::open(self.world.database(user)).expect("the database");
        database.busy_timeout(Duration::from_secs(10)).expect("patience");
        database
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 INSERT INTO orchestration_events (event_id, aggregate_kind, stream_id, stream_version, event_type,
                     occurred_at, actor_kind, payload_json, metadata_json)
                 SELECT 'event-{id}', 'thread', 'written', n + 1, 'thread.message-sent',
                     strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'client', '{{}}', '{{}}'
                 FROM (SELECT coalesce(max(sequence), 0) AS n FROM orchestration_events);
                 INSERT INTO projection_thread_messages (message_id, thread_id, role, text, is_streaming, created_at, updated_at)
                 VALUES ('{id}', 'written', 'user', 'hello', 0, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
                 INSERT INTO projection_state (projector, last_applied_sequence, updated_at)
                 SELECT 'threads', max(sequence), max(occurred_at) FROM orchestration_events WHERE true
                 ON CONFLICT (projector) DO UPDATE SET last_applied_sequence = excluded.last_applied_sequence;
                 UPDATE projection_state SET last_applied_sequence = (SELECT max(sequence) FROM orchestration_events);
                 COMMIT"
            ))
            .expect("written");
    }

    pub fn has_message(&self, user: &str, id: &str) -> bool {
        has_message(&self.world.database(user), id)
    }

    /// Every row of a user's history, as text. What a login leaves and which migrations there were is not part of it.
    pub fn rows(&self, user: &str) -> BTreeMap<String, Vec<String>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let database = Connection::open_with_flags(self.world.database(user), flags).expect("the database");
        let texts = |sql: &str| {
            let mut statement = database.prepare(sql).expect("a statement");
            let columns = statement.column_count();
            let text = |row: &Row<'_>| {
                (0..columns).map(|n| Ok(format!("{:?}", row.get::<_, Value>(n)?))).collect::<Result<_, _>>()
            };
            let rows = statement.query_map([], text).expect("rows");
            let mut rows: Vec<String> =
                rows.map(|row: Result<Vec<_>, _>| row.expect("a row").join(" ")).collect();
            rows.sort();
            rows
        };
        let mut tables =
            database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").expect("tables");
        let tables: Vec<String> = tables
            .query_map([], |row| row.get(0))
            .expect("names")
            .map(|name| name.expect("a name"))
            .collect();
        let is_history = |name: &str| {
            !["auth_", "sqlite_", "effect_sql_"].iter().any(|beginning| name.starts_with(beginning))
        };
        let tables = tables.into_iter().filter(|name| is_history(name));
        tables.map(|name| (name.clone(), texts(&format!("SELECT * FROM {name}")))).collect()
    }

    /// Where newer databases of a user were put aside.
    pub fn aside(&self, user: &str) -> Vec<PathBuf> {
        let entries =
            std::fs::read_dir(self.world.base_dir(user).join("userdata")).expect("userdata").flatten();
        let paths = entries.map(|entry| entry.path());
        paths
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("aside-")))
            .collect()
    }

    /// Puts a user to work, or sends them home.
    pub fn busy(&self, user: &str, busy: bool) {
        let database = Connection::open(self.world.database(user)).expect("the database");
        database.busy_timeout(Duration::from_secs(10)).expect("patience");
        let sql = if busy {
            "INSERT INTO projection_thread_sessions (thread_id, status, runtime_mode, active_turn_id, updated_at)
             VALUES ('at-work', 'running', 'full-access', 'turn-1', strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 day'))"
        } else {
            "DELETE FROM projection_thread_sessions WHERE thread_id = 'at-work'"
        };
        database.execute_batch(sql).expect("written");
    }

    pub fn enforce(&self, args: &[&str]) -> Said {
        Said::of(&self.command(args).output().expect("the program"))
    }

    /// Starts the enforcer and, once it has come so far, does something to it.
    pub fn disturbed<T>(
        &self,
        args: &[&str],
        moment: impl FnMut() -> Option<T>,
        disturb: impl FnOnce(&std::process::Child),
    ) -> Said {
        // What it has started may outlive it, and holds its standard error as long.
        let enforcer = self.command(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let enforcer = enforcer.expect("the program");
        wait_for("the enforcer to come so far", moment);
        disturb(&enforcer);
        Said::of(&enforcer.wait_with_output().expect("an end"))
    }

    /// What the journal says of a user.
    pub fn step(&self, user: &str) -> Option<String> {
        let journal = self.journal()?;
        let entry = journal["moves"].as_array()?.iter().find(|entry| entry["user"] == user)?.clone();
        entry["step"].as_str().map(str::to_owned)
    }

    /// Runs the enforcer and notes when it says what.
    pub fn tell(&self, args: &[&str]) -> Told {
        let mut enforcer = self.command(args).stdout(Stdio::piped()).spawn().expect("the program");
        let lines = BufReader::new(enforcer.stdout.take().expect("a pipe")).lines();
        let lines = lines.map(|line| (Instant::now(), line.expect("text"))).collect();
        let exit = enforcer.wait().expect("an end").code().unwrap_or(-1);
        Told { exit, lines, ended: Instant::now() }
    }

    /// The enforcer, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.command(&["enforce"]);
        command.args(args).stdin(Stdio::null());
        command
    }

    pub fn journal(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&std::fs::read(self.path("state/enforce/journal.json")).ok()?).ok()
    }

    /// What the enforcer says of itself.
    pub fn standing(&self) -> serde_json::Value {
        let text = std::fs::read(self.path("state/enforce/standing.json"));
        text.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub fn freeze_file(&self) -> PathBuf {
        self.path("state/enforce/freeze")
    }
}

impl Said {
    fn of(output: &std::process::Output) -> Self {
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Self { exit: output.status.code().unwrap_or(-1), text }
    }

    /// Expects an exit code; answers what was said.
    pub fn exits(self, code: i32) -> String {
        assert_eq!(self.exit, code, "{}", self.text);
        self.text
    }
}

impl Told {
    pub fn text(&self) -> String {
        self.lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// Where the first line with these words is.
    pub fn position(&self, words: &str) -> usize {
        let found = self.lines.iter().position(|(_, line)| line.contains(words));
        found.unwrap_or_else(|| panic!("'{words}' in {}", self.text()))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for user in &self.users {
            if let Some(pid) = self.pid(user) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
            }
        }
    }
}

pub fn has_message(database: &Path, id: &str) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = Connection::open_with_flags(database, flags).expect("the database");
    let found = "SELECT count(*) FROM projection_thread_messages WHERE message_id = ?1";
    database.query_row(found, [id], |row| row.get::<_, i64>(0)).expect("a number") == 1
}

/// Writes a script that can be executed.
pub fn script_at(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a script");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("mode");
}
