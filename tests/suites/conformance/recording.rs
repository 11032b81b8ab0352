//! A recording as it lies on disk, and the answers of a run in the same shape, so that either can stand for the other.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Deserialize)]
pub struct Recording {
    pub port: u16,
    pub base_dir: String,
    pub steps: Vec<Step>,
    /// What follows is in the six full recordings only.
    pub files_running: Option<Vec<File>>,
    pub server_runtime_json: Option<String>,
    pub environment_id: Option<String>,
    pub files_stopped: Option<Vec<File>>,
    pub sqlite: Option<Sqlite>,
}

impl Recording {
    pub fn load(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/testdata/recorded/{name}.json"));
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn step(&self, name: &str) -> &Step {
        self.steps.iter().find(|step| step.name == name).unwrap_or_else(|| panic!("no step {name:?}"))
    }
}

#[derive(Clone, Deserialize)]
pub struct Step {
    pub name: String,
    pub phase: Option<String>,
    #[serde(flatten)]
    pub what: What,
}

impl Step {
    /// `phase / name`: names repeat in the outage, phases do not.
    pub fn title(&self) -> String {
        self.phase.as_ref().map_or_else(|| self.name.clone(), |phase| format!("{phase} / {}", self.name))
    }
}

/// What was done, and what was answered.
#[derive(Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    Http { request: Request, response: Response },
    Ws { request: Request, response: Response },
    WsFrames { frames: Vec<Frame> },
    Cli(Cli),
    Serve(Serve),
    Stop(Stop),
    Db(Db),
    Files { files: Vec<File> },
    Log { text: String },
}

#[derive(Clone, Deserialize)]
pub struct Request {
    /// Absent for an upgrade, which is a GET.
    pub method: Option<String>,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Option<String>,
}

#[derive(Clone, Deserialize)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Option<String>,
}

#[derive(Clone, Deserialize)]
pub struct Frame {
    pub send: String,
    pub recv: String,
    pub opcode: Option<u8>,
    /// Length of the whole answer, where `recv` may be cut.
    pub recv_chars: Option<usize>,
}

impl Frame {
    pub fn is_cut(&self) -> bool {
        self.recv_chars.is_some_and(|whole| whole > self.recv.chars().count())
    }
}

#[derive(Clone, Deserialize)]
pub struct Cli {
    pub cli_version: String,
    pub args: Vec<String>,
    /// Absent when a signal ended it.
    pub exit: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Clone, Deserialize)]
pub struct Serve {
    pub cli_version: String,
    pub args: Vec<String>,
    pub alive: bool,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Clone, Deserialize)]
pub struct Stop {
    pub exit: Option<i32>,
    #[serde(rename = "stdout_since_start")]
    pub log: String,
}

#[derive(Clone, Deserialize)]
pub struct Db {
    pub max_migration: u32,
    pub columns: BTreeMap<String, Vec<String>>,
    pub rows: BTreeMap<String, u32>,
}

#[derive(Clone, Deserialize)]
pub struct File {
    pub path: String,
    pub mode: String,
}

#[derive(Clone, Deserialize)]
pub struct Sqlite {
    pub migrations: Vec<Migration>,
    pub tables: Vec<String>,
    pub columns: BTreeMap<String, Vec<String>>,
    pub pragmas: BTreeMap<String, Value>,
    pub rows: BTreeMap<String, u32>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Migration {
    pub id: u32,
    pub name: String,
}
