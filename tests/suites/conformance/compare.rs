//! What was answered then against what was answered now. A pure function of the two answers and the bindings.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::bindings::Bindings;
use super::difference::Difference;
use super::json;
use super::recording::{Cli, Db, File, Frame, Response, Serve, Sqlite, Step, Stop, What};
use super::startup::Startup;
use super::text::{Kind, Piece, pieces};

/// Headers whose value is compared by nobody: when it was sent and how long the (own) HTML is.
const CHANGING_HEADERS: [&str; 2] = ["date", "content-length"];

/// The recorder's own shell complained when the server asked it for the user's environment.
const LINE_OF_THE_SHELL: &str = "/bin/sh: 0: can't access tty";

/// Compares the answer of a step with that of this run.
pub fn compare(step: &Step, got: &What, bindings: &mut Bindings) -> Vec<Difference> {
    let mut comparer = Comparer::new(&step.title(), bindings);
    match (&step.what, got) {
        (What::Http { response: expected, .. }, What::Http { response, .. })
        | (What::Ws { response: expected, .. }, What::Ws { response, .. }) => {
            comparer.response(expected, response);
        }
        (What::WsFrames { frames: expected }, What::WsFrames { frames }) => comparer.frames(expected, frames),
        (What::Cli(expected), What::Cli(cli)) => comparer.cli(expected, cli),
        (What::Serve(expected), What::Serve(serve)) => comparer.serve(expected, serve),
        (What::Stop(expected), What::Stop(stop)) => comparer.stop(expected, stop),
        (What::Db(expected), What::Db(db)) => comparer.db(expected, db),
        (What::Files { files: expected }, What::Files { files }) => comparer.files("file", expected, files),
        (What::Log { text: expected }, What::Log { text }) => comparer.log(expected, text),
        _ => comparer.differ("kind", "the kind of step that was recorded", "another"),
    }
    comparer.found()
}

pub struct Comparer<'a> {
    step: String,
    bindings: &'a mut Bindings,
    found: Vec<Difference>,
}

impl<'a> Comparer<'a> {
    pub fn new(step: &str, bindings: &'a mut Bindings) -> Self {
        Self { step: step.to_owned(), bindings, found: Vec::new() }
    }

    pub fn found(self) -> Vec<Difference> {
        self.found
    }

    pub fn differ(&mut self, field: &str, expected: &str, got: &str) {
        self.found.push(Difference {
            step: self.step.clone(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        });
    }

    pub fn equal<T: Debug + PartialEq>(&mut self, field: &str, expected: &T, got: &T) {
        if expected != got {
            self.differ(field, &format!("{expected:?}"), &format!("{got:?}"));
        }
    }

    /// Words equal, values of the same kind in the same places, and each the one that stands for the recorded one.
    pub fn text(&mut self, field: &str, expected: &str, got: &str) {
        let live = self.bindings.recorded_paths(got);
        let (expected_pieces, live_pieces) = (pieces(expected), pieces(&live));
        let same_form = expected_pieces.len() == live_pieces.len()
            && expected_pieces.iter().zip(&live_pieces).all(|pair| match pair {
                (Piece::Words(words), Piece::Words(other)) => words == other,
                (Piece::Value(kind, _), Piece::Value(other, _)) => kind == other,
                _ => false,
            });
        if !same_form {
            self.differ(field, expected, got);
            return;
        }
        for pair in expected_pieces.iter().zip(&live_pieces) {
            if let (Piece::Value(kind, value), Piece::Value(_, other)) = pair
                && kind.has_identity()
            {
                self.identity(field, *kind, value, other);
            }
        }
    }

    fn identity(&mut self, field: &str, kind: Kind, value: &str, other: &str) {
        let is_new = !self.bindings.knows(value);
        if let Err(conflict) = self.bindings.bind(value, other) {
            self.differ(&format!("{field} ({kind:?})"), &conflict.expected, other);
        } else if is_new && kind == Kind::Token {
            let (claims, others) = (claims(value), claims(other));
            json::compare(self, &format!("{field} claims"), &claims, &others);
        } else if is_new && kind == Kind::CookieName {
            let port = |name: &str| name.split('_').nth(2).map(|port| format!(":{port}")).unwrap_or_default();
            self.text(&format!("{field} port"), &port(value), &port(other));
        }
    }

    fn response(&mut self, expected: &Response, got: &Response) {
        self.equal("status", &expected.status, &got.status);
        let lower = |headers: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
        };
        let (expected_headers, headers) = (lower(&expected.headers), lower(&got.headers));
        for name in expected_headers.keys().chain(headers.keys()).collect::<BTreeSet<_>>() {
            let field = format!("header {name}");
            match (expected_headers.get(name), headers.get(name)) {
                (Some(_), Some(_)) if CHANGING_HEADERS.contains(&name.as_str()) => {}
                (Some(value), Some(other)) => self.text(&field, value, other),
                (Some(value), None) => self.differ(&field, value, "absent"),
                (None, other) => self.differ(&field, "absent", other.map_or("", String::as_str)),
            }
        }
        let (expected_body, body) =
            (expected.body.as_deref().unwrap_or_default(), got.body.as_deref().unwrap_or_default());
        let is_html = expected_headers.get("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        if is_html {
            let form = |body: &str| {
                if body.is_empty() {
                    "empty"
                } else if is_document(body) {
                    "HTML"
                } else {
                    "not HTML"
                }
            };
            self.equal("body", &form(expected_body), &form(body));
        } else {
            self.json_or_text("body", expected_body, body);
        }
    }

    fn json_or_text(&mut self, field: &str, expected: &str, got: &str) {
        match (serde_json::from_str::<Value>(expected), serde_json::from_str::<Value>(got)) {
            (Ok(expected), Ok(got)) => json::compare(self, field, &expected, &got),
            _ => self.text(field, expected, got),
        }
    }

    fn frames(&mut self, expected: &[Frame], got: &[Frame]) {
        self.equal("frames", &expected.len(), &got.len());
        for (index, (frame, other)) in expected.iter().zip(got).enumerate() {
            let field = format!("frame {index}");
            if frame.opcode.is_some() {
                self.equal(&format!("{field} opcode"), &frame.opcode, &other.opcode);
            }
            match serde_json::from_str::<Value>(&other.recv) {
                Ok(value) if frame.is_cut() => json::compare_cut(self, &field, &frame.recv, &value),
                _ => self.json_or_text(&field, &frame.recv, &other.recv),
            }
        }
    }

    fn cli(&mut self, expected: &Cli, got: &Cli) {
        self.equal("exit", &expected.exit, &got.exit);
        self.stderr(&expected.stderr, &got.stderr);
        if expected.stdout.contains("\nUSAGE\n") {
            self.equal("stdout is help", &true, &got.stdout.contains("\nUSAGE\n"));
        } else if let Some(cause) = last_cause(&expected.stdout) {
            self.text("cause", cause, last_cause(&got.stdout).unwrap_or(&got.stdout));
            self.equal("stdout level", &level(&expected.stdout), &level(&got.stdout));
        } else {
            self.json_or_text("stdout", &expected.stdout, &got.stdout);
            self.equal("stdout line ends", &line_ends(&expected.stdout), &line_ends(&got.stdout));
        }
    }

    fn stderr(&mut self, expected: &str, got: &str) {
        let of_t3 = |stderr: &str| -> String {
            stderr
                .lines()
                .filter(|line| !line.starts_with(LINE_OF_THE_SHELL))
                .map(|line| format!("{line}\n"))
                .collect()
        };
        self.text("stderr", &of_t3(expected), &of_t3(got));
    }

    fn serve(&mut self, expected: &Serve, got: &Serve) {
        self.equal("alive", &expected.alive, &got.alive);
        self.stderr(&expected.stderr, &got.stderr);
        self.startup(&Startup::read(&expected.stdout), &Startup::read(&got.stdout));
    }

    fn startup(&mut self, expected: &Startup, got: &Startup) {
        self.equal("migrations run", &expected.migrations, &got.migrations);
        self.text("listening", &expected.listening, &got.listening);
        self.text("ready block", &expected.ready, &got.ready);
    }

    fn stop(&mut self, expected: &Stop, got: &Stop) {
        self.equal("exit", &expected.exit, &got.exit);
        self.log(&expected.log, &got.log);
    }

    /// Prose is not compared; that nothing was said where nothing is said, and a ready block that comes late, are.
    fn log(&mut self, expected: &str, got: &str) {
        self.equal("log levels", &levels(expected), &levels(got));
        self.startup(&Startup::read(expected), &Startup::read(got));
    }

    fn db(&mut self, expected: &Db, got: &Db) {
        self.equal("max migration", &expected.max_migration, &got.max_migration);
        self.each("columns of", &expected.columns, &got.columns);
        self.each("rows of", &expected.rows, &got.rows);
    }

    pub fn sqlite(&mut self, expected: &Sqlite, got: &Sqlite) {
        let by_id = |sqlite: &Sqlite| -> BTreeMap<String, String> {
            sqlite.migrations.iter().map(|row| (row.id.to_string(), row.name.clone())).collect()
        };
        self.equal("migration rows", &expected.migrations.len(), &got.migrations.len());
        self.each("migration", &by_id(expected), &by_id(got));
        self.equal("tables", &expected.tables, &got.tables);
        self.each("columns of", &expected.columns, &got.columns);
        self.each("pragma", &expected.pragmas, &got.pragmas);
        self.each("rows of", &expected.rows, &got.rows);
    }

    pub fn files(&mut self, field: &str, expected: &[File], got: &[File]) {
        let by_path = |files: &[File]| -> BTreeMap<String, String> {
            files.iter().map(|file| (file.path.clone(), file.mode.clone())).collect()
        };
        self.each(field, &by_path(expected), &by_path(got));
    }

    pub fn json(&mut self, field: &str, expected: &str, got: &str) {
        self.json_or_text(field, expected, got);
    }

    /// Each entry of a map on a line of its own.
    fn each<T: Debug + PartialEq>(
        &mut self,
        field: &str,
        expected: &BTreeMap<String, T>,
        got: &BTreeMap<String, T>,
    ) {
        let show =
            |value: Option<&T>| value.map_or_else(|| "absent".to_owned(), |value| format!("{value:?}"));
        for name in expected.keys().chain(got.keys()).collect::<BTreeSet<_>>() {
            let (value, other) = (expected.get(name), got.get(name));
            if value != other {
                self.differ(&format!("{field} {name}"), &show(value), &show(other));
            }
        }
    }
}

fn is_document(body: &str) -> bool {
    body.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("<!doctype"))
}

/// The JSON in the first part of a token; null where it is none.
fn claims(token: &str) -> Value {
    let payload = token.split('.').next().unwrap_or_default();
    URL_SAFE_NO_PAD
        .decode(payload)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}

/// The text of the innermost `[cause]:` line.
fn last_cause(stdout: &str) -> Option<&str> {
    let (_, cause) = stdout.lines().rev().find_map(|line| line.split_once("[cause]: "))?;
    Some(cause.trim_end_matches(" {").trim_end())
}

/// `ERROR`, `WARN`… of the first line.
fn level(log: &str) -> Option<&str> {
    log.split_once("] ")?.1.split_once(" (#").map(|(level, _)| level)
}

/// Which levels the entries of a log have.
fn levels(log: &str) -> BTreeSet<&str> {
    log.lines().filter(|line| line.starts_with('[')).filter_map(level).collect()
}

fn line_ends(text: &str) -> usize {
    text.len() - text.trim_end_matches('\n').len()
}
