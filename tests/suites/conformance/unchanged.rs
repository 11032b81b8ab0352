//! The comparer is no nit-picker: a recording is the same as itself, and as another run of the same server.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::RECORDINGS;
use super::bindings::Bindings;
use super::compare::compare;
use super::recording::Recording;
use super::text::{Kind, Piece, pieces};

#[test]
fn a_recording_is_the_same_as_itself() {
    for name in RECORDINGS {
        let mut bindings = Bindings::default();
        for step in &Recording::load(name).steps {
            assert_eq!(compare(step, &step.what, &mut bindings), [], "{name}: {}", step.title());
        }
    }
}

/// Another run of the same server: other ids, credentials, tokens, ports, dates and paths, all of the same form.
#[test]
fn a_recording_is_the_same_as_another_run_of_it() {
    for name in RECORDINGS {
        let recording = Recording::load(name);
        let other = another_run(name, recording.port);
        let mut bindings = Bindings::new("/tmp/run/home");
        for (step, got) in recording.steps.iter().zip(&other.steps) {
            assert_eq!(compare(step, &got.what, &mut bindings), [], "{name}: {}", step.title());
        }
    }
}

/// Rewrites the answers of a recording: the dates, the port and the home move, and within ids, credentials and
/// signatures every character is exchanged for another that may stand there.
fn another_run(name: &str, port: u16) -> Recording {
    let path = format!("{}/tests/testdata/recorded/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let mut json: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("read before")).expect("JSON");
    rewrite_answers(&mut json["steps"], &|text| rewritten(text, &port.to_string()));
    serde_json::from_value(json).expect("a recording still")
}

fn rewritten(text: &str, port: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let value = |kind, value: &str| match kind {
        Kind::Credential => turned(value, b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ"),
        Kind::Uuid | Kind::TraceId => turned(value, b"0123456789abcdef"),
        Kind::Token => {
            let (payload, signature) = value.rsplit_once('.').expect("a token");
            let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("JSON");
            format!("{}.{}", URL_SAFE_NO_PAD.encode(rewritten(&claims, port)), turned(signature, LETTERS))
        }
        Kind::CookieName | Kind::Port => value.replace(port, "20001"),
        Kind::Instant | Kind::HttpDate => value.replace("2026", "2031"),
        Kind::LogTime | Kind::Fiber | Kind::Address => value.to_owned(),
    };
    pieces(text)
        .into_iter()
        .map(|piece| match piece {
            Piece::Words(words) => words.replace("/home/ann", "/tmp/run/home"),
            Piece::Value(kind, text) => value(kind, text),
        })
        .collect()
}

fn rewrite_answers(value: &mut Value, rewrite: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = rewrite(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite_answers(item, rewrite)),
        Value::Object(members) => {
            for (_, member) in members
                .iter_mut()
                .filter(|(key, _)| !["kind", "cli_version", "name", "phase"].contains(&key.as_str()))
            {
                rewrite_answers(member, rewrite);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Every character of the alphabet exchanged for the next.
fn turned(text: &str, alphabet: &[u8]) -> String {
    text.bytes()
        .map(|byte| match alphabet.iter().position(|letter| *letter == byte) {
            Some(at) => char::from(alphabet[(at + 1) % alphabet.len()]),
            None => char::from(byte),
        })
        .collect()
}
