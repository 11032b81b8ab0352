//! What is done for a mapped user, and as whom.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use super::{ALL, World, detail, ended, inspect, labelled, mint, refused, revoke};
use crate::support::host::{Host, http};
use crate::support::tools;

#[test]
fn a_mapped_user_is_minted_for_and_their_session_found_and_ended() {
    let Some(world) = World::new() else { return };
    let name = &world.ann.name;
    let answer = world.ask(&mint(name));
    let credential =
        answer["value"]["credential"].as_str().unwrap_or_else(|| panic!("no credential: {answer}"));
    let offer = json!({ "credential": credential }).to_string();
    let exchanged = http(world.ann.port, "POST /api/auth/bootstrap HTTP/1.1", &offer);
    assert!(exchanged.starts_with("HTTP/1.1 200"), "{exchanged}");
    let found = world.ask(&labelled(name));
    let session = found["value"][0].as_str().unwrap_or_else(|| panic!("no session: {found}"));
    assert_eq!(ended(&world.ask(&revoke(name, session))), "ok");
    assert_eq!(world.ask(&labelled(name))["value"], json!([]));
}

#[test]
fn the_session_is_issued_once_and_then_no_command_of_t3_is_started() {
    let Some(world) = World::new() else { return };
    let answers = world.host.ask(&world.prober, &vec![mint(&world.ann.name); 5]);
    let started: Vec<_> = answers.iter().map(|answer| answer["cpu"].as_array().map_or(0, Vec::len)).collect();
    assert_eq!(started, [1, 0, 0, 0, 0], "{answers:?}");
    assert!(answers.iter().all(|answer| ended(answer) == "ok"), "{answers:?}");
    assert_eq!(world.ask(&mint(&world.ann.name))["cpu"], json!(null), "another connection, the same session");
}

#[test]
fn many_callers_at_once_without_a_kept_session_make_one() {
    let Some(world) = World::new() else { return };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| world.ask(&mint(&world.ann.name)))).collect();
        callers.into_iter().map(|caller| caller.join().expect("an answer")).collect()
    });
    assert!(answers.iter().all(|answer| ended(answer) == "ok"), "{answers:?}");
    let started: usize = answers.iter().filter_map(|answer| answer["cpu"].as_array()).map(Vec::len).sum();
    assert_eq!(started, 1, "{answers:?}");
}

#[test]
fn where_the_command_is_to_mint_it_does_so_as_the_user() {
    let Some(world) = World::new() else { return };
    let config = fs::read_to_string(world.host.path("config.toml")).expect("text");
    world.host.write("config.toml", &config.replace("[t3]", "[t3]\nmint = \"cli\""));
    world.host.wrap(&world.host.path("installs/0.0.24"), "id -u >> $HOME/who; exec $T3 \"$@\"");
    for _ in 0..2 {
        let answer = world.ask(&mint(&world.ann.name));
        assert!(answer["value"]["credential"].is_string(), "{answer}");
    }
    let who = fs::read_to_string(world.ann.home.join("who")).expect("who ran it");
    assert_eq!(who, format!("{uid}\n{uid}\n", uid = world.ann.uid));
    assert!(!world.keepers().join(format!("{}.json", world.ann.name)).exists());
}

#[test]
fn the_kept_session_is_closed_to_the_user_and_to_the_caller() {
    let Some(world) = World::new() else { return };
    assert_eq!(ended(&world.ask(&mint(&world.ann.name))), "ok");
    let file = world.keepers().join(format!("{}.json", world.ann.name));
    let metadata = file.metadata().expect("the file");
    assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (0, 0o600));
    for account in [&world.ann, &world.prober] {
        let read = account.shell(&format!("cat {} || ls {}", file.display(), world.keepers().display()));
        assert!(!read.status.success() && read.stdout.is_empty());
    }
}

#[test]
fn the_commands_environment_identity_and_directory_are_the_users_and_nothing_of_ours() {
    let Some(mut world) = World::new() else { return };
    world.host.wrap(
        &world.host.path("installs/0.0.24"),
        "env > $HOME/seen; id -u >> $HOME/seen; id -G >> $HOME/seen; pwd >> $HOME/seen; umask >> $HOME/seen\n\
         grep -E '^(Cap(Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status >> $HOME/seen; for fd in /proc/$$/fd/*; do readlink $fd >> $HOME/seen; done\n\
         exec $T3 \"$@\"",
    );
    let group = std::process::Command::new("usermod").args(["-aG", "daemon", &world.ann.name]).status();
    assert!(group.expect("usermod runs").success());
    assert_eq!(ended(&world.ask(&mint(&world.ann.name))), "ok");
    let seen = fs::read_to_string(world.ann.home.join("seen")).expect("what the command saw");
    let (environment, rest): (Vec<_>, Vec<_>) = seen.lines().partition(|line| line.contains('='));
    let mut names: Vec<_> = environment.iter().filter_map(|line| line.split('=').next()).collect();
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "PATH", "T3CODE_PORT"], "{seen}");
    assert!(environment.contains(&format!("T3CODE_PORT={}", world.ann.port).as_str()), "{seen}");
    assert!(environment.contains(&format!("HOME={}", world.ann.home.display()).as_str()), "{seen}");
    let daemon = nix::unistd::Group::from_name("daemon").expect("an answer").expect("a group").gid;
    assert_eq!(
        rest[..4],
        [world.ann.uid.to_string(), format!("{} {daemon}", world.ann.gid), "/".to_owned(), "0022".to_owned(),]
    );
    let zero = "0000000000000000";
    assert_eq!(
        rest[4..8].iter().map(|line| line.replace('\t', " ")).collect::<Vec<_>>(),
        [
            format!("CapPrm: {zero}"),
            format!("CapEff: {zero}"),
            format!("CapAmb: {zero}"),
            "NoNewPrivs: 1".to_owned()
        ]
    );
    // stdin, two pipes, the script that the shell reads, and what it writes this into.
    let own = |file: &str| {
        file == "/dev/null"
            || file.starts_with("pipe:")
            || file.ends_with("/bin/t3")
            || file.ends_with("/seen")
    };
    assert!(rest[8..].iter().all(|file| own(file)), "a descriptor of ours reached the command: {rest:?}");
    world.ann.stop();
}

#[test]
fn a_whole_probe_by_an_account_without_privilege_goes_through_the_helper() {
    let Some(world) = World::new() else { return };
    let mut probe = world.prober.command(&world.host.program);
    let probe =
        probe.args(["probe", &world.ann.name, "--json", "--config"]).arg(world.host.path("config.toml"));
    let output = probe.output().expect("setpriv runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    for step in ["mint", "exchange", "session", "socket", "revoke"] {
        assert!(printed.contains(&format!("\"{step}\"")), "no {step} in {printed}");
    }
}

#[test]
fn everybodys_databases_are_read_in_one_call_each_by_its_owner() {
    let Some(mut world) = World::new() else { return };
    let bob = world.host.user();
    world.host.configure();
    let answer = world.ask(&inspect(None));
    let level = |user: &str| &answer["value"][user]["Ok"]["level"];
    assert_eq!(level(&world.ann.name)["Ok"]["level"], json!(30), "{answer}");
    assert_eq!(level(&bob.name)["Err"]["reason"], json!("unreadable"), "{answer}");
    let strangers: Vec<_> = world
        .ann
        .files()
        .into_iter()
        .filter(|(path, _)| path.metadata().expect("there").uid() != world.ann.uid)
        .collect();
    assert_eq!(strangers, [], "a look at the database left files that are not the owner's");
}

#[test]
fn of_an_env_file_only_the_port_comes_out() {
    let Some(world) = World::new() else { return };
    let name = &world.ann.name;
    world.host.write(&format!("env/{name}.env"), "TOKEN=hunter2\nT3_PORT=4711\n");
    fs::set_permissions(world.host.path("env"), fs::Permissions::from_mode(0o700)).expect("mode");
    let answer = world.ask(&json!({ "verb": "port", "user": name }));
    assert_eq!(answer, json!({ "ended": "ok", "value": { "port": 4711 } }));
}

#[test]
fn an_account_that_is_not_root_gets_nothing_from_the_program_itself() {
    if !tools::root() {
        return;
    }
    let mut host = Host::new();
    let caller = host.caller(ALL);
    let output =
        caller.command(&host.program).args(["helper", "mint", "ann"]).output().expect("setpriv runs");
    let answer = serde_json::from_slice(&output.stdout).expect("one JSON document");
    refused(&answer, "the helper needs root");
    assert!(!output.status.success());
    let mut child = caller.command(&host.program);
    let output = child.args(["helper", "as-user"]).output().expect("setpriv runs");
    let answer = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert!(ended(&answer) == "refused" && !detail(&answer).is_empty(), "{answer}");
}
