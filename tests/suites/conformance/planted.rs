//! The comparer is no yes-man: each difference planted in a recorded answer is found, and named where it is.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::bindings::Bindings;
use super::compare::{Comparer, compare};
use super::recording::{Cli, Db, File, Frame, Recording, Response, Serve, Step, Stop, What};

fn differing_fields(step: &Step, got: &What) -> Vec<String> {
    compare(step, got, &mut Bindings::default()).into_iter().map(|difference| difference.field).collect()
}

/// Takes a recorded step, changes the answer, and expects exactly these fields to differ.
#[track_caller]
fn assert_found(recording: &str, step: &str, change: impl FnOnce(&mut What), expected: &[&str]) {
    let recording = Recording::load(recording);
    let step = recording.step(step);
    let mut got = step.what.clone();
    change(&mut got);
    assert_eq!(differing_fields(step, &got), expected);
}

fn response(change: impl FnOnce(&mut Response)) -> impl FnOnce(&mut What) {
    |what| match what {
        What::Http { response, .. } | What::Ws { response, .. } => change(response),
        _ => panic!("no answer to a request"),
    }
}

fn body(change: impl FnOnce(&mut Value)) -> impl FnOnce(&mut What) {
    response(|response| {
        let mut body = serde_json::from_str(response.body.as_deref().expect("a body")).expect("JSON");
        change(&mut body);
        response.body = Some(body.to_string());
    })
}

fn header(name: &'static str, change: impl FnOnce(String) -> Option<String>) -> impl FnOnce(&mut What) {
    response(move |response| {
        let value = response.headers.remove(name).expect("recorded");
        if let Some(value) = change(value) {
            response.headers.insert(name.to_owned(), value);
        }
    })
}

fn cli(change: impl FnOnce(&mut Cli)) -> impl FnOnce(&mut What) {
    |what| match what {
        What::Cli(cli) => change(cli),
        _ => panic!("no command"),
    }
}

#[test]
fn a_status_that_differs_is_found() {
    assert_found("0.0.24-any", "exchange bogus credential", response(|it| it.status = 400), &["status"]);
    assert_found("0.0.33-any", "WS upgrade without cookie", response(|it| it.status = 403), &["status"]);
}

#[test]
fn a_header_that_differs_is_found() {
    let exchange = |change| assert_found("0.0.33-any", "exchange", change, &["header vary"]);
    exchange(header("vary", |_| None));
    assert_found("0.0.33-any", "exchange", header("vary", |_| Some("Origin".to_owned())), &["header vary"]);
    let added = response(|it| {
        it.headers.insert("X-New".to_owned(), "1".to_owned());
    });
    assert_found("0.0.33-any", "exchange", added, &["header x-new"]);
    let framing = response(|it| {
        it.headers.remove("Transfer-Encoding");
        it.headers.insert("content-length".to_owned(), "0".to_owned());
    });
    assert_found(
        "0.0.26-any",
        "exchange missing field",
        framing,
        &["header content-length", "header transfer-encoding"],
    );
}

#[test]
fn a_header_that_may_change_is_not_compared() {
    assert_found(
        "0.0.33-any",
        "exchange",
        header("Date", |_| Some("Mon, 01 Jan 2029 00:00:00 GMT".to_owned())),
        &[],
    );
    assert_found("0.0.33-any", "GET /", header("content-length", |_| Some("12".to_owned())), &[]);
}

#[test]
fn a_cookie_that_differs_is_found() {
    let cookie = |from: &'static str, to: &'static str| {
        header("set-cookie", move |value| Some(value.replacen(from, to, 1)))
    };
    let found = ["header set-cookie"];
    assert_found("0.0.33-loopback", "exchange", cookie("; HttpOnly", ""), &found);
    assert_found("0.0.33-loopback", "exchange", cookie("Lax", "Strict"), &found);
    assert_found(
        "0.0.33-loopback",
        "exchange",
        cookie("t3_session_41773_147ac95aeec0", "t3_session"),
        &found,
    );
    assert_found("0.0.33-loopback", "exchange", cookie("t3_session_41773_1", "t3_session_41773_"), &found);
    assert_found("0.0.24-any", "exchange", cookie("t3_session=", "t3_session_41774_147ac95aeec0="), &found);
}

#[test]
fn a_cookie_named_after_another_port_is_found() {
    let recording = Recording::load("0.0.33-loopback");
    let step = recording.step("exchange");
    let mut got = step.what.clone();
    header("set-cookie", |value| Some(value.replacen("41773", "20002", 1)))(&mut got);
    let mut bindings = Bindings::default();
    bindings.bind("41773", "20001").expect("free");
    let found = compare(step, &got, &mut bindings);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].field.as_str(), found[0].expected.as_str()),
        ("header set-cookie port (Port)", "20001")
    );
}

#[test]
fn claims_that_differ_are_found() {
    let forged = header("set-cookie", |value| {
        let (name, rest) = value.split_once('=').expect("a cookie");
        let (payload, rest) = rest.split_once('.').expect("a token");
        let mut claims: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("JSON");
        claims["method"] = json!("other");
        claims["sid"] = json!(7);
        Some(format!("{name}={}.{rest}", URL_SAFE_NO_PAD.encode(claims.to_string())))
    });
    assert_found(
        "0.0.26-any",
        "exchange",
        forged,
        &["header set-cookie claims.method", "header set-cookie claims.sid"],
    );
}

#[test]
fn json_that_differs_is_found() {
    let session = |change: fn(&mut Value), found: &[&str]| {
        assert_found("0.0.33-any", "session valid cookie", body(change), found);
    };
    session(|it| it["authenticated"] = json!(false), &["body.authenticated"]);
    session(|it| it["expiresAt"] = json!(1), &["body.expiresAt"]);
    session(|it| it["auth"]["policy"] = json!("other"), &["body.auth.policy"]);
    session(|it| it["more"] = json!(1), &["body.more"]);
    session(|it| it["scopes"] = json!(["orchestration:read"]), &["body.scopes.length"]);
    session(
        |it| {
            it["auth"].as_object_mut().expect("an object").remove("sessionCookieName");
        },
        &["body.auth.sessionCookieName"],
    );
    let error = |it: &mut Value| it["traceId"] = json!("none");
    assert_found("0.0.33-any", "exchange bogus credential", body(error), &["body.traceId"]);
}

#[test]
fn an_answer_of_another_kind_is_found() {
    let set = |text: &'static str| response(move |it| it.body = Some(text.to_owned()));
    assert_found("0.0.33-any", "exchange", set("<!doctype html>"), &["body"]);
    assert_found("0.0.33-any", "GET /", set("{}"), &["body"]);
    assert_found("0.0.33-any", "HEAD /", set("<!doctype html>"), &["body"]);
    assert_found("0.0.33-any", "unknown POST", set("not found"), &["body"]);
    assert_found("0.0.33-any", "GET /", set("<!DOCTYPE html><title>ours</title>"), &[]);
}

#[test]
fn another_session_than_the_one_that_was_bound_is_found() {
    let recording = Recording::load("0.0.24-any");
    let mut bindings = Bindings::default();
    let exchange = recording.step("exchange");
    assert_eq!(compare(exchange, &exchange.what, &mut bindings), []);
    let list = recording.step("auth session list while a WebSocket is open");
    let mut got = list.what.clone();
    cli(|it| it.stdout = it.stdout.replace("cbad7222-", "cbad7223-"))(&mut got);
    let found = compare(list, &got, &mut bindings);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].field, "stdout[1].sessionId (Uuid)");
}

#[test]
fn a_command_that_differs_is_found() {
    let mint = |change: fn(&mut Cli), found: &[&str]| assert_found("0.0.33-any", "mint", cli(change), found);
    mint(|it| it.exit = Some(1), &["exit"]);
    mint(|it| it.exit = None, &["exit"]);
    mint(|it| it.stderr = "warning\n".to_owned(), &["stderr"]);
    mint(|it| it.stderr = std::mem::take(&mut it.stdout), &["stderr", "stdout", "stdout line ends"]);
    mint(
        |it| it.stdout = it.stdout.replace("\"credential\"", "\"secret\""),
        &["stdout.credential", "stdout.secret"],
    );
    mint(|it| it.stdout = it.stdout.trim_end().to_owned(), &["stdout line ends"]);
    let plain = |it: &mut Cli| it.stdout = it.stdout.replace("Token: ", "Secret: ");
    assert_found("0.0.33-any", "mint without --json", cli(plain), &["stdout"]);
}

#[test]
fn a_failure_that_differs_is_found() {
    let locked = |change: fn(&mut Cli), found: &[&str]| {
        assert_found("0.0.26-any", "mint under lock", cli(change), found);
    };
    locked(|it| it.stdout = it.stdout.replace("database is locked", "disk is full"), &["cause"]);
    locked(|it| it.stdout = it.stdout.replace("ERROR", "WARN"), &["stdout level"]);
    locked(
        |it| {
            it.stdout = it
                .stdout
                .lines()
                .filter(|line| !line.contains("    at "))
                .map(|line| format!("{line}\n"))
                .collect();
        },
        &[],
    );
    let usage = |change: fn(&mut Cli), found: &[&str]| {
        assert_found("0.0.26-any", "mint with unknown flag", cli(change), found);
    };
    usage(|it| it.stderr = it.stderr.replace("--nope", "--other"), &["stderr"]);
    usage(|it| it.stdout.clear(), &["stdout is help"]);
    usage(|it| it.stdout = "\nUSAGE\n  our own words".to_owned(), &[]);
}

#[test]
fn a_frame_that_differs_is_found() {
    let frames = |change: fn(&mut Vec<Frame>), found: &[&str]| {
        let change = |what: &mut What| match what {
            What::WsFrames { frames } => {
                // As a run has it: whole.
                frames[1].recv =
                    r#"{"_tag":"Exit","requestId":"1","exit":{"_tag":"Success","value":null}}"#.to_owned();
                change(frames);
            }
            _ => panic!("no frames"),
        };
        assert_found("0.0.33-any", "WS frames on the open socket", change, found);
    };
    let value = "frame 1.exit.value";
    frames(|_| {}, &[value]);
    frames(|it| it[0].recv = r#"{"_tag":"Ping"}"#.to_owned(), &["frame 0._tag", value]);
    frames(|it| it[2].opcode = Some(2), &[value, "frame 2 opcode"]);
    frames(|it| it.truncate(3), &["frames", value]);
}

#[test]
fn a_server_that_starts_or_stops_otherwise_is_found() {
    let serve = |change: fn(&mut Serve), found: &[&str]| {
        let change = |what: &mut What| match what {
            What::Serve(serve) => change(serve),
            _ => panic!("no server"),
        };
        assert_found("0.0.24-loopback", "serve start", change, found);
    };
    serve(|it| it.alive = false, &["alive"]);
    serve(
        |it| it.stdout = it.stdout.replace("'30_ProjectionThreadShellArchiveIndexes'", ""),
        &["migrations run"],
    );
    serve(
        |it| it.stdout = it.stdout.replace("Listening on http://127.0.0.1", "Listening on https://127.0.0.1"),
        &["listening"],
    );
    serve(|it| it.stdout = it.stdout.replace("T3 Code server is ready.", ""), &["ready block"]);
    serve(|it| it.stderr.push_str("panic\n"), &["stderr"]);
    let stop = |change: fn(&mut Stop), found: &[&str]| {
        let change = |what: &mut What| match what {
            What::Stop(stop) => change(stop),
            _ => panic!("no stop"),
        };
        assert_found("0.0.24-loopback", "serve stop (SIGTERM)", change, found);
    };
    stop(|it| it.exit = Some(0), &["exit"]);
    stop(|it| it.log.clear(), &["log levels"]);
    stop(|it| it.log.push_str("T3 Code server is ready.\n"), &["ready block"]);
}

#[test]
fn a_database_that_differs_is_found() {
    let db = |change: fn(&mut Db), found: &[&str]| {
        let change = |what: &mut What| match what {
            What::Db(db) => change(db),
            _ => panic!("no database"),
        };
        assert_found("outage-0.0.24-0.0.26", "database after", change, found);
    };
    db(|it| it.max_migration = 31, &["max migration"]);
    db(
        |it| {
            it.rows.insert("auth_sessions".to_owned(), 1);
        },
        &["rows of auth_sessions"],
    );
    db(
        |it| {
            it.columns.get_mut("auth_pairing_links").expect("recorded").pop();
        },
        &["columns of auth_pairing_links"],
    );
    let expected = Recording::load("0.0.26-any").sqlite.expect("recorded");
    let mut got = expected.clone();
    got.migrations[4].name = "Other".to_owned();
    got.migrations.pop();
    got.tables.pop();
    got.pragmas.insert("user_version".to_owned(), json!(1));
    let mut bindings = Bindings::default();
    let mut comparer = Comparer::new("a step", &mut bindings);
    comparer.sqlite(&expected, &got);
    let fields: Vec<String> = comparer.found().into_iter().map(|difference| difference.field).collect();
    assert_eq!(fields, ["migration rows", "migration 32", "migration 5", "tables", "pragma user_version"]);
}

#[test]
fn a_file_that_differs_is_found() {
    let files = |change: fn(&mut Vec<File>), found: &[&str]| {
        let change = |what: &mut What| match what {
            What::Files { files } => change(files),
            _ => panic!("no files"),
        };
        assert_found("0.0.33-any", "files created by that mint", change, found);
    };
    let key = "file userdata/secrets/server-signing-key.bin";
    let is_key = |file: &File| file.path.ends_with("key.bin");
    files(
        |it| {
            it.iter_mut()
                .filter(|file| file.path.ends_with("key.bin"))
                .for_each(|file| file.mode = "-rw-r--r--".to_owned());
        },
        &[key],
    );
    files(|it| it.retain(|file| !file.path.ends_with("key.bin")), &[key]);
    files(|it| it.push(File { path: "more".to_owned(), mode: "-rw-r--r--".to_owned() }), &["file more"]);
    assert!(Recording::load("0.0.33-any").files_running.expect("recorded").iter().any(is_key));
}
