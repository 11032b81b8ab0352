//! Builds rehearsed as the owners of the data: no process of one is root's or another user's, the copies are nobody
//! else's to read, only evidence comes back, and whatever is killed takes everything with it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{ALL, ended, refused};
use crate::support::host::{Account, Host, text, until};
use crate::support::tools;

/// Two users at 0.0.26, whose gate compares with that.
struct World {
    ann: Account,
    bob: Account,
    prober: Account,
    host: Host,
}

impl World {
    fn new(hold: &str) -> Option<Self> {
        if !tools::root() || tools::find("bwrap").is_none() {
            return None;
        }
        let mut host = Host::new();
        let control = host.install("0.0.26", &[]);
        host.install("0.0.33", &[]);
        let (mut ann, mut bob, prober) = (host.user(), host.user(), host.caller(ALL));
        ann.serve(&control);
        bob.serve(&control);
        let (place, program) = (host.path("place"), host.program.parent().expect("a directory").display());
        fs::create_dir(&place).expect("a directory");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o1777)).expect("a mode");
        host.extra = format!(
            "[backup]\ndir = \"{dir}/backups\"\n[gate]\ndir = {place:?}\nexpose = [\"{program}\"]\ncontrol = \"0.0.26\"\n\
             hold = \"{hold}\"\nready_timeout = \"10s\"\nkeep_free_mib = 1\nparallelism = 4\n",
            dir = text(host.dir.path()),
        );
        host.start_helper();
        host.start_boxes();
        let state = host.path("state");
        fs::create_dir(&state).expect("a directory");
        std::os::unix::fs::chown(&state, Some(prober.uid), Some(prober.gid)).expect("an owner");
        Some(Self { ann, bob, prober, host })
    }

    /// A gate as whoever `command` is run by.
    fn gate(&self, mut command: Command, arguments: &[&str]) -> Child {
        command.arg("--config").arg(self.host.path("config.toml")).args(["gate", "--json"]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    }

    fn as_root(&self) -> Command {
        Command::new(&self.host.program)
    }

    fn as_prober(&self) -> Command {
        self.prober.command(&self.host.program)
    }

    fn place(&self) -> PathBuf {
        self.host.path("place")
    }

    /// The rooms of rehearsals that are under way.
    fn rooms(&self) -> Vec<PathBuf> {
        let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let runs: Vec<_> = below(&self.place()).collect();
        runs.iter().flat_map(|run| below(run)).filter(|path| path.is_dir()).collect()
    }

    fn rehearse(&self, user: &str, candidate: &Path, limit: u64) -> Value {
        json!({
            "verb": "rehearse",
            "user": user,
            "builds": { "candidate": candidate, "control": self.host.path("installs/0.0.26/bin/t3") },
            "limit": { "secs": limit, "nanos": 0 },
        })
    }
}

fn judged(gate: Child) -> (Option<i32>, Value) {
    let output = gate.wait_with_output().expect("an end");
    let document =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), document)
}

/// Uids and command lines of the servers and commands of t3 that run in a room.
fn builds_in(place: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let line = |entry: fs::DirEntry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?.replace('\0', " ");
        Some((entry.metadata().ok()?.uid(), line))
    };
    let names_it = |(_, line): &(u32, String)| line.contains(text(place));
    entries.filter_map(line).filter(names_it).collect()
}

/// What is to be seen of a gate while it runs.
#[derive(Default)]
struct Seen {
    /// Whoever runs a box.
    uids: BTreeSet<u32>,
    /// Owner and mode of each room and of each copy.
    rooms: BTreeSet<(u32, u32)>,
    copies: BTreeSet<(u32, u32)>,
    /// What another user got to read of them.
    leaked: Vec<String>,
}

/// Looks until the gate has ended.
fn watch(world: &World, gate: &mut Child) -> Seen {
    let mut seen = Seen::default();
    let stat = |path: &Path| path.symlink_metadata().ok().map(|found| (found.uid(), found.mode() & 0o777));
    let mut tried = BTreeSet::new();
    while gate.try_wait().expect("a child").is_none() {
        // Whoever runs bubblewrap runs what is in it; the gate itself names no room.
        seen.uids.extend(
            builds_in(&world.place())
                .into_iter()
                .filter(|(_, line)| line.contains("bwrap"))
                .map(|(uid, _)| uid),
        );
        for room in world.rooms() {
            let copy = room.join("base/userdata/state.sqlite");
            // Until it is handed over it is root's, and shut.
            seen.rooms.extend(stat(&room));
            if let Some(found) = stat(&copy) {
                seen.copies.insert(found);
                if found.0 == world.ann.uid && tried.insert(room.clone()) {
                    let read = world.bob.shell(&format!("cat {} || ls {}", copy.display(), room.display()));
                    let listed = world.bob.shell(&format!("ls {}", room.parent().expect("a run").display()));
                    seen.leaked.extend(
                        [read, listed]
                            .iter()
                            .filter(|output| output.status.success() || !output.stdout.is_empty())
                            .map(|output| format!("{output:?}")),
                    );
                }
            }
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    assert!(!tried.is_empty(), "no copy of ann's was ever seen");
    seen
}

fn nobody() -> u32 {
    nix::unistd::User::from_name("nobody").expect("an answer").expect("an account").uid.as_raw()
}

#[test]
fn a_gate_run_by_root_runs_each_build_as_the_owner_of_the_data_and_never_as_root() {
    let Some(world) = World::new("1s") else { return };
    let mut gate = world.gate(world.as_root(), &["0.0.33"]);
    let seen = watch(&world, &mut gate);
    let (code, document) = judged(gate);
    assert_eq!((code, &document["verdict"]), (Some(0), &json!("pass")), "{document}");
    let owners = BTreeSet::from([world.ann.uid, world.bob.uid, nobody()]);
    assert_eq!(seen.uids, owners);
    let mut rooms: BTreeSet<_> = owners.iter().map(|uid| (*uid, 0o700)).collect();
    // A moment of root's own, while the room is made.
    assert!(seen.rooms.is_superset(&rooms), "{:?}", seen.rooms);
    rooms.insert((0, 0o700));
    assert!(seen.rooms.is_subset(&rooms), "{:?}", seen.rooms);
    let copies = seen.copies.iter().filter(|(uid, _)| *uid != 0).copied().collect::<BTreeSet<_>>();
    // t3 itself makes a database on the fresh seed, with the modes it always uses.
    let expected = BTreeSet::from([(world.ann.uid, 0o600), (world.bob.uid, 0o600), (nobody(), 0o644)]);
    assert_eq!(copies, expected);
    assert_eq!(seen.leaked, [""; 0]);
    assert_eq!(fs::read_dir(world.place()).expect("the place").count(), 0, "nothing is left");
    let strangers = |account: &Account| {
        account
            .files()
            .into_iter()
            .filter(|(path, _)| path.metadata().is_ok_and(|found| found.uid() != account.uid))
            .count()
    };
    assert_eq!((strangers(&world.ann), strangers(&world.bob)), (0, 0), "files that are not the owner's");
}

#[test]
fn a_gate_without_privilege_has_the_helper_rehearse_and_sees_nobodys_data() {
    let Some(world) = World::new("1s") else { return };
    let mut gate = world.gate(world.as_prober(), &["0.0.33"]);
    let seen = watch(&world, &mut gate);
    let (code, document) = judged(gate);
    assert_eq!((code, &document["verdict"]), (Some(0), &json!("pass")), "{document}");
    let seeds: Vec<_> =
        document["seeds"].as_array().expect("seeds").iter().map(|seed| &seed["seed"]["name"]).collect();
    assert_eq!(seeds, ["<fresh>", &world.ann.name, &world.bob.name]);
    assert_eq!(seen.uids, BTreeSet::from([world.ann.uid, world.bob.uid, world.prober.uid]));
    let of_prober: Vec<_> = seen.copies.iter().filter(|(uid, _)| *uid == world.prober.uid).collect();
    assert!(of_prober.iter().all(|(_, mode)| *mode == 0o644), "a copy of a user's: {:?}", seen.copies);
    assert_eq!(seen.leaked, [""; 0]);
    assert_eq!(fs::read_dir(world.place()).expect("the place").count(), 0, "nothing is left");
}

#[test]
fn a_build_that_is_installed_for_the_run_is_the_same_for_every_owner() {
    let Some(mut world) = World::new("100ms") else { return };
    let program = text(&world.host.program).to_owned();
    // An installer with a umask that would shut everybody else out.
    let install = format!(
        "install_command = [\"/bin/sh\", \"-c\", \"umask 077; id -u > $2.who; exec {program} sim install $2 $1\", \"sh\", \"{{version}}\", \"{{prefix}}\"]\n"
    );
    world.host.extra.push_str(&install);
    world.host.configure();
    for command in [world.as_root(), world.as_prober()] {
        let (code, document) = judged(world.gate(command, &["0.0.32"]));
        assert_eq!((code, &document["verdict"]), (Some(0), &json!("pass")), "{document}");
    }
    assert_eq!(fs::read_dir(world.place()).expect("the place").count(), 0, "nothing is left");
}

#[test]
fn a_user_whose_own_data_breaks_the_build_fails_it_through_the_helper_too() {
    let Some(world) = World::new("100ms") else { return };
    let bad = world.host.path("bad");
    let mut install = Command::new(&world.host.program);
    install.args(["sim", "install"]).arg(&bad).args(["0.0.33", "--mutation", "history-does-not-load"]);
    assert!(install.status().expect("the program").success());
    let answer =
        world.host.ask_boxes(&world.prober, &world.rehearse(&world.ann.name, &bad.join("bin/t3"), 120));
    assert_eq!(ended(&answer), "ok", "{answer}");
    let found = &answer["value"]["Ok"];
    assert_eq!(found["seed"]["seed"]["user"], json!(world.ann.name), "{answer}");
    let candidate = &found["seed"]["rehearsals"][1];
    let failed =
        candidate["steps"].as_array().expect("steps").iter().find(|step| step["outcome"] == "failed");
    assert_eq!(failed.map(|step| &step["step"]), Some(&json!("load")), "{candidate}");
}

#[test]
fn whoever_may_not_rehearse_is_refused_and_nothing_is_copied() {
    let Some(mut world) = World::new("100ms") else { return };
    let dispatch = world.host.caller("mint");
    world.host.configure();
    let request = world.rehearse(&world.ann.name, &world.host.path("installs/0.0.33/bin/t3"), 60);
    refused(&world.host.ask_boxes(&dispatch, &request), "may ask for mint, not for rehearse");
    refused(&world.host.ask_boxes(&world.ann, &request), "may ask for nothing, not for rehearse");
    let mut wider = request.clone();
    wider["builds"]["expose"] = json!(["/"]);
    refused(&world.host.ask_boxes(&world.prober, &wider), "that is no request");
    assert_eq!(fs::read_dir(world.place()).expect("the place").count(), 0);
    // A program that only another user may read is not read for anybody.
    let secret = world.bob.home.join("t3");
    fs::write(&secret, "#!/bin/sh\necho hunter2\n").expect("written");
    let answer = world.host.ask_boxes(&world.prober, &world.rehearse(&world.ann.name, &secret, 60));
    assert_eq!(answer["value"]["Err"]["grounds"], json!("no_candidate"), "{answer}");
    // Root may read it, and still has nobody run it.
    let (code, document) = judged(world.gate(world.as_root(), &["--bin", text(&secret)]));
    assert_eq!((code, &document["grounds"]), (Some(4), &json!("no_candidate")), "{document}");
}

#[test]
fn killing_the_gate_ends_every_box_that_it_asked_for_through_sudo() {
    let Some(sudo) = tools::find("sudo") else { return };
    let Some(world) = World::new("60s") else { return };
    let program = text(&world.host.program);
    let lines = format!("{} ALL=(root) NOPASSWD: {program} helper rehearse\n", world.prober.name);
    let config = fs::read_to_string(world.host.path("config.toml")).expect("text");
    let by_socket = format!("socket = \"{}\"\n", text(&world.host.path("helper.sock")));
    assert!(config.contains(&by_socket), "{config}");
    let by_sudo = format!("command = [{sudo:?}, \"-n\", {program:?}, \"helper\"]\n");
    // The helper reads its own configuration, in /etc.
    world
        .host
        .write("sudo.toml", &config.replace(&by_socket, &by_sudo).replace("box_socket", "# box_socket"));
    let own = world.host.path("sudo.toml");
    let command = [program, "--config", text(&own), "gate", "--json", "0.0.33"];
    let mut gate = world
        .host
        .with_sudoers(&world.prober, &lines, &command)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let of_a_user = |(uid, line): &(u32, String)| *uid == world.ann.uid && line.contains("serve");
    until("a build of ann's runs", || builds_in(&world.place()).iter().any(of_a_user));
    gate.kill().expect("killed");
    gate.wait().expect("an end");
    until("every box has ended", || builds_in(&world.place()).is_empty());
}

#[test]
fn killing_a_gate_that_installs_ends_the_installer() {
    let Some(mut world) = World::new("100ms") else { return };
    // The shell that waits for it names the room.
    let install =
        "install_command = [\"/bin/sh\", \"-c\", \"sleep 600; :\", \"sh\", \"{version}\", \"{prefix}\"]\n";
    world.host.extra.push_str(install);
    world.host.configure();
    let is_there = || builds_in(&world.place()).iter().any(|(_, line)| line.contains("sleep 600"));
    let mut gate = world.gate(world.as_root(), &["0.0.35"]);
    until("the installer runs", is_there);
    gate.kill().expect("killed");
    gate.wait().expect("an end");
    until("the installer has ended", || !is_there());
}

#[test]
fn killing_the_gate_or_the_helper_ends_every_box_and_the_next_run_removes_the_copies() {
    let Some(world) = World::new("60s") else { return };
    for (command, is_root) in [(world.as_root(), true), (world.as_prober(), false)] {
        let mut gate = world.gate(command, &["0.0.33"]);
        until("a build of ann's runs", || {
            builds_in(&world.place())
                .iter()
                .any(|(uid, line)| *uid == world.ann.uid && line.contains("serve"))
        });
        gate.kill().expect("killed");
        gate.wait().expect("an end");
        until("every box has ended", || builds_in(&world.place()).is_empty());
        if is_root {
            assert!(!world.rooms().is_empty(), "what was killed cannot remove anything");
        }
    }
    let config = fs::read_to_string(world.host.path("config.toml")).expect("text");
    world.host.write("config.toml", &config.replace("hold = \"60s\"", "hold = \"100ms\""));
    // Each removes what is its own: root's the first, what the prober's gate has left the second.
    for command in [world.as_root(), world.as_prober()] {
        let (code, document) = judged(world.gate(command, &["0.0.33", "--user", &world.ann.name]));
        assert_eq!(code, Some(0), "{document}");
    }
    assert_eq!(fs::read_dir(world.place()).expect("the place").count(), 0, "nothing is left");
}
