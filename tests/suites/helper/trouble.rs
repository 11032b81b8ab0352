//! Bad neighbours and bad moments: planted links, squatters, stopped servers, commands that never end.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::snapshots::{snapshot, verify};
use super::{World, detail, ended, failed, inspect, labelled, limits, mint, revoke};
use crate::support::host::until;

#[test]
fn a_link_planted_in_the_users_home_leads_nowhere() {
    let Some(mut world) = World::new() else { return };
    assert_eq!(ended(&world.ask(&mint(&world.ann.name))), "ok");
    world.ann.stop();
    let secret = world.host.path("secret");
    fs::create_dir(&secret).expect("a directory");
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
    fs::copy(world.ann.database(), secret.join("state.sqlite")).expect("a copy");
    fs::write(secret.join("environment-id"), "abcdef").expect("written");
    let before: Vec<_> =
        fs::read_dir(&secret).expect("readable").flatten().map(|entry| entry.file_name()).collect();

    for name in ["state.sqlite", "environment-id"] {
        let place = world.ann.base_dir().join("userdata").join(name);
        let _ = fs::remove_file(&place);
        symlink(secret.join(name), &place).expect("a link");
    }
    let answer = world.ask(&inspect(Some(&world.ann.name)));
    let level = &answer["value"][&world.ann.name]["Ok"]["level"];
    assert_eq!(level["Err"]["reason"], json!("unreadable"), "{answer}");

    fs::remove_dir_all(world.ann.base_dir()).expect("removed");
    symlink(&secret, world.ann.base_dir()).expect("a link");
    for request in [inspect(Some(&world.ann.name)), mint(&world.ann.name)] {
        let answer = world.ask(&request).to_string();
        assert!(!answer.contains("abcdef") && !answer.contains("\"level\":{\"Ok\""), "{answer}");
    }
    let after: Vec<_> =
        fs::read_dir(&secret).expect("readable").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(after, before, "something was written through the link");
}

#[test]
fn a_pipe_in_the_databases_place_costs_its_own_limit_and_nothing_else() {
    let Some(mut world) = World::new() else { return };
    let mut bob = world.host.user();
    bob.serve(&world.host.path("installs/0.0.24"));
    world.host.configure();
    world.ann.stop();
    let place = world.ann.database();
    fs::remove_file(&place).expect("removed");
    nix::unistd::mkfifo(&place, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("a pipe");
    let answer = world.ask(&inspect(None));
    assert_eq!(answer["value"][&bob.name]["Ok"]["level"]["Ok"]["level"], json!(30), "{answer}");
    assert!(answer["value"][&world.ann.name]["Ok"]["level"]["Ok"].is_null(), "{answer}");
}

#[test]
fn a_command_that_never_ends_is_killed_with_everything_it_started() {
    let Some(mut world) = World::new() else { return };
    // One child stays in the group, one leaves group and session and is orphaned.
    world.host.wrap(
        &world.host.path("installs/0.0.24"),
        "sleep 1000 & echo $! > $HOME/pids; (setsid sh -c 'echo $$ >> $HOME/pids; exec sleep 1000' &)\n\
         while :; do sleep 1000; done",
    );
    let mut request = mint(&world.ann.name);
    request["limits"] = limits(Duration::from_secs(1));
    let started = Instant::now();
    let answer = world.ask(&request);
    failed(&answer, "timeout");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let pids = fs::read_to_string(world.ann.home.join("pids")).expect("pids");
    let pids: Vec<i32> = pids.lines().map(|pid| pid.parse().expect("a pid")).collect();
    assert_eq!(pids.len(), 2);
    until("both are gone", || {
        let runs = |pid: i32| {
            let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
            stat.is_ok_and(|stat| stat.state != 'Z')
        };
        !pids.iter().any(|pid| runs(*pid))
    });
    world.ann.stop();
}

#[test]
fn with_the_server_stopped_no_verb_changes_a_byte() {
    let Some(mut world) = World::new() else { return };
    world.host.install("0.0.26", &[]);
    let name = world.ann.name.clone();
    let verbs = [mint(&name), labelled(&name), revoke(&name, "x")];
    world.ann.stop();
    let before = world.ann.files();
    for request in &verbs {
        let answer = world.ask(request);
        assert_eq!((ended(&answer), &answer["skip"]), ("skipped", &json!("version_unknown")), "{answer}");
    }
    let answer = world.ask(&inspect(None));
    assert_eq!(answer["value"][&name]["Ok"]["level"]["Ok"]["level"], json!(30), "{answer}");
    for request in [snapshot(&name), verify(&name)] {
        let answer = world.ask(&request);
        assert_eq!(ended(&answer), "ok", "{answer}");
    }
    assert!(world.ann.files() == before, "a file changed");

    // And once an administrative session is kept, which then finds nobody to be shown to.
    world.ann.serve(&world.host.path("installs/0.0.24"));
    assert_eq!(ended(&world.ask(&mint(&name))), "ok");
    world.ann.stop();
    let before = world.ann.files();
    for request in &verbs {
        failed(&world.ask(request), "refused");
    }
    assert!(world.ann.files() == before, "a file changed");
}

#[test]
fn under_a_command_of_another_version_nothing_is_started_and_nothing_migrated() {
    let Some(world) = World::new() else { return };
    fs::rename(world.host.path("installs/0.0.24"), world.host.path("gone")).expect("renamed");
    let newer = world.host.install("0.0.26", &[]);
    world.host.wrap(&newer, "touch $HOME/started; exec $T3 \"$@\"");
    let mut config = fs::read_to_string(world.host.path("config.toml")).expect("text");
    config = config.replace("installs/none", "installs/0.0.26/bin/t3");
    world.host.write("config.toml", &config);
    let answer = world.ask(&mint(&world.ann.name));
    assert_eq!((ended(&answer), &answer["skip"]), ("skipped", &json!("version_skew")), "{answer}");
    assert!(detail(&answer).contains("0.0.26"), "{answer}");
    assert!(!world.ann.home.join("started").exists(), "the newer command was started");
    assert_eq!(world.ann.level(), 30);
}

#[test]
fn whoever_else_has_the_port_gets_no_token_and_decides_no_version() {
    let Some(mut world) = World::new() else { return };
    assert_eq!(ended(&world.ask(&mint(&world.ann.name))), "ok");
    world.ann.stop();
    let before = world.ann.files();
    // The test is root, so this listener is not ann's.
    let squatter = TcpListener::bind(("127.0.0.1", world.ann.port)).expect("the port is free");
    squatter.set_nonblocking(true).expect("nonblocking");
    let verbs: [Value; 3] = [mint(&world.ann.name), labelled(&world.ann.name), revoke(&world.ann.name, "x")];
    for request in &verbs {
        failed(&world.ask(request), "wrong_owner");
    }
    fs::remove_dir_all(world.keepers()).expect("removed");
    failed(&world.ask(&mint(&world.ann.name)), "wrong_owner");
    let mut received = Vec::new();
    while let Ok((mut connection, _)) = squatter.accept() {
        let _ = connection.read_to_end(&mut received);
    }
    assert_eq!(String::from_utf8_lossy(&received), "", "something was sent to a stranger");
    assert!(world.ann.files() == before, "a file changed");
}

#[test]
fn a_session_that_died_with_its_tables_is_issued_again() {
    let Some(mut world) = World::new() else { return };
    let name = world.ann.name.clone();
    assert_eq!(ended(&world.ask(&mint(&name))), "ok");
    world.ann.stop();
    let newer = world.host.install("0.0.26", &[]);
    world.ann.serve(&newer);
    let answer = world.ask(&mint(&name));
    assert_eq!((ended(&answer), answer["cpu"].as_array().map(Vec::len)), ("ok", Some(1)), "{answer}");
}
