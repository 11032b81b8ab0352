//! For whom, and for what, nothing is done.

use serde_json::json;

use super::{World, detail, ended, inspect, labelled, mint, refused, revoke};
use crate::support::host::{Account, Host};
use crate::support::tools;

#[test]
fn names_that_are_not_mapped_users_are_refused_by_every_verb() {
    let Some(mut world) = World::new() else { return };
    let unmapped = world.host.unmapped_user();
    world.host.map("nobody-by-that-name", 4001);
    world.host.configure();
    let long = "a".repeat(300);
    let names = [
        ("root", "not the name of an OS user"),
        ("../etc", "not the name of an OS user"),
        ("--all", "not the name of an OS user"),
        ("-u", "not the name of an OS user"),
        ("", "not the name of an OS user"),
        ("ann\n", "not the name of an OS user"),
        (long.as_str(), "not the name of an OS user"),
        ("stranger", "is not in the user map"),
        (unmapped.name.as_str(), "is not in the user map"),
        ("daemon", "is not in the user map"),
    ];
    for (name, why) in names {
        let port = json!({ "verb": "port", "user": name });
        let limit = json!({ "secs": 5, "nanos": 0 });
        let snapshot = json!({ "verb": "snapshot", "user": name, "limit": limit });
        let verify = json!({ "verb": "verify", "user": name, "limit": limit });
        let builds = json!({ "candidate": "/bin/true", "control": "/bin/true" });
        let rehearse = json!({ "verb": "rehearse", "user": name, "builds": builds, "limit": limit });
        let requests = [
            mint(name),
            labelled(name),
            revoke(name, "x"),
            inspect(Some(name)),
            port,
            snapshot,
            verify,
            rehearse,
        ];
        for request in requests {
            refused(&world.ask(&request), why);
        }
    }
    refused(&world.ask(&mint("nobody-by-that-name")), "is no account of this machine");
}

#[test]
fn an_account_that_is_root_under_another_name_is_refused() {
    if !tools::root() {
        return;
    }
    let mut host = Host::new();
    let prober = host.caller("mint");
    let toor = Account::with(host.dir.path(), &["--non-unique", "--uid", "0"]);
    host.map(&toor.name, 4001);
    host.start_helper();
    refused(&host.ask_one(&prober, &mint(&toor.name)), "is root under another name");
}

#[test]
fn a_caller_gets_its_own_verbs_and_whoever_is_not_listed_nothing() {
    let Some(mut world) = World::new() else { return };
    let dispatch = world.host.caller("mint");
    world.host.configure();
    let name = world.ann.name.clone();
    assert_eq!(ended(&world.host.ask_one(&dispatch, &mint(&name))), "ok");
    for request in
        [revoke(&name, "x"), labelled(&name), inspect(None), json!({ "verb": "port", "user": name })]
    {
        refused(&world.host.ask_one(&dispatch, &request), "may ask for mint, not for");
    }
    // The user themselves is a stranger to the helper.
    refused(&world.host.ask_one(&world.ann, &mint(&name)), "may ask for nothing, not for mint");
}

#[test]
fn what_is_no_request_is_refused_without_being_repeated_and_the_connection_lives_on() {
    let Some(world) = World::new() else { return };
    let lines = [
        "hunter2".to_owned(),
        json!({ "verb": "shell", "user": world.ann.name }).to_string(),
        json!({ "verb": "port", "user": world.ann.name, "uid": 0 }).to_string(),
        mint(&world.ann.name).to_string(),
        "x".repeat(5000),
        mint(&world.ann.name).to_string(),
    ];
    let answers = world.host.ask_lines(&world.prober, &lines);
    for answer in &answers[..3] {
        refused(answer, "that is no request");
    }
    assert_eq!(ended(&answers[3]), "ok", "{}", answers[3]);
    refused(&answers[4], "too long");
    assert_eq!(answers.len(), 5, "nothing is read behind a request without an end");
    assert!(!format!("{answers:?}").contains("hunter2"));
}

#[test]
fn a_label_or_session_that_could_be_a_flag_is_refused() {
    let Some(world) = World::new() else { return };
    for label in ["--role", "-x", "a\nb", ""] {
        let mut request = mint(&world.ann.name);
        request["label"] = json!(label);
        refused(&world.ask(&request), "that is no label");
    }
    refused(&world.ask(&revoke(&world.ann.name, "../x")), "that is no session");
}

#[test]
fn a_map_or_configuration_that_others_can_write_is_not_believed() {
    let Some(world) = World::new() else { return };
    for file in ["users.map", "dispatch.json"] {
        let path = world.host.path(file);
        std::os::unix::fs::chown(&path, Some(world.prober.uid), None).expect("owner");
        refused(&world.ask(&mint(&world.ann.name)), "can be changed by other accounts");
        std::os::unix::fs::chown(&path, Some(0), None).expect("owner");
    }
    assert_eq!(ended(&world.ask(&mint(&world.ann.name))), "ok");
    std::os::unix::fs::chown(world.host.path("config.toml"), Some(world.prober.uid), None).expect("owner");
    let answers = world.host.ask(&world.prober, &[mint(&world.ann.name)]);
    assert!(answers.is_empty() || detail(&answers[0]).contains("can be changed"), "{answers:?}");
}
