//! The gate for one test: builds of the stand-in in a directory, a configuration with short times, and the verdict as
//! the program prints it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::sim::PROGRAM;

pub struct Gate {
    folder: TempDir,
    /// Users and their ports, as in the dispatch table.
    users: BTreeMap<String, u16>,
    settings: BTreeMap<&'static str, String>,
}

/// A judged build.
#[derive(Debug)]
pub struct Judged {
    pub code: Option<i32>,
    pub document: Value,
    pub output: String,
}

impl Judged {
    /// `fail candidate_failed`.
    pub fn verdict(&self) -> String {
        format!("{} {}", self.text("verdict"), self.text("grounds"))
    }

    pub fn text(&self, key: &str) -> String {
        self.document[key].as_str().unwrap_or_default().to_owned()
    }

    /// Where the candidate's rehearsals stopped: `<fresh>: contract not_found`.
    pub fn findings(&self) -> Vec<String> {
        let findings = self.document["findings"].as_array().into_iter().flatten();
        let of_candidate = findings.filter(|finding| finding["rehearsal"] == "candidate");
        let told = |finding: &Value| {
            let word = |key: &str| finding[key].as_str().unwrap_or("-").to_owned();
            format!("{}: {} {}", word("seed"), word("step"), word("reason"))
        };
        of_candidate.map(told).collect()
    }

    pub fn differences(&self) -> Vec<String> {
        let list = self.document["differences"].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

impl Gate {
    /// With the three recorded releases installed, and 0.0.26 as the known-good one.
    pub fn new() -> Self {
        // The stand-in's builds are this program under another name.
        let program = Path::new(PROGRAM).parent().expect("a directory").display();
        let expose = format!("[\"{program}\"]");
        let settings = [
            ("expose", expose.as_str()),
            ("hold", "\"100ms\""),
            ("ready_timeout", "\"10s\""),
            ("stop_timeout", "\"5s\""),
            ("request_timeout", "\"5s\""),
            ("keep_free_mib", "1"),
            ("control", "\"0.0.26\""),
        ];
        let gate = Self {
            folder: tempfile::tempdir().expect("a temporary directory"),
            users: BTreeMap::new(),
            settings: settings.map(|(key, value)| (key, value.to_owned())).into(),
        };
        for version in ["0.0.24", "0.0.26", "0.0.33"] {
            gate.install(&gate.path(&format!("installs/{version}")), version, &[]);
        }
        gate
    }

    /// Another value of a key of `[gate]`, written as TOML.
    pub fn set(mut self, key: &'static str, value: &str) -> Self {
        self.settings.insert(key, value.to_owned());
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A build of the stand-in, broken as `mutations` say; answers its program.
    pub fn build(&self, name: &str, version: &str, mutations: &[&str]) -> String {
        let dir = self.path(&format!("builds/{name}"));
        self.install(&dir, version, mutations);
        dir.join("bin/t3").display().to_string()
    }

    /// From now on the build does this first.
    pub fn wrap(&self, program: &str, script: &str) {
        let real = format!("{program}-real");
        std::fs::rename(program, &real).expect("renamed");
        std::fs::write(program, format!("#!/bin/sh\n{script}\nexec {real} \"$@\"\n")).expect("written");
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    fn install(&self, dir: &Path, version: &str, mutations: &[&str]) {
        let mut command = Command::new(PROGRAM);
        command.args(["sim", "install"]).arg(dir).arg(version);
        for mutation in mutations {
            command.args(["--mutation", mutation]);
        }
        let output = command.output().expect("the program runs");
        assert!(output.status.success(), "{output:?}");
    }

    /// A served user whose database is yet to be put at the path that this answers.
    pub fn user(&mut self, name: &str) -> PathBuf {
        let port = 40_000 + u16::try_from(self.users.len()).expect("few users");
        self.users.insert(name.to_owned(), port);
        let base = self.path(&format!("users/{name}"));
        std::fs::create_dir_all(base.join("userdata")).expect("a base directory");
        base
    }

    /// Runs a command of the build `version` on a user's base directory.
    pub fn t3(&self, version: &str, base: &Path, arguments: &[&str]) {
        let program = self.path(&format!("installs/{version}/bin/t3"));
        let output = Command::new(program).args(arguments).arg("--base-dir").arg(base).output();
        let output = output.expect("the build runs");
        assert!(output.status.success(), "{output:?}");
    }

    pub fn judge(&self, arguments: &[&str]) -> Judged {
        let mut all = vec!["gate", "--json"];
        all.extend(arguments);
        let output = self.run(&all);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let document = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let said = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        Judged { code: output.status.code(), document, output: said }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let config = self.path("config.toml");
        std::fs::write(&config, self.config()).expect("the configuration");
        let table = self.users.iter().map(|(user, port)| {
            format!("\"{user}@example.org\": {{\"os_user\": \"{user}\", \"port\": {port}}}")
        });
        let table = table.collect::<Vec<_>>().join(", ");
        std::fs::write(self.path("dispatch.json"), format!("{{{table}}}")).expect("the table");
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(config).args(arguments);
        command
    }

    fn config(&self) -> String {
        let dir = self.folder.path().display();
        let gate: String = self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        format!(
            "state_dir = \"{dir}/state\"\n[inventory]\ndispatch_table = \"{dir}/dispatch.json\"\n\
             base_dir = \"{dir}/users/{{user}}\"\naccounts = false\n[t3]\ninstalls = \"{dir}/installs\"\n\
             [backup]\ndir = \"{dir}/backups\"\n[gate]\n{gate}"
        )
    }

    /// What the gate has left behind where it works.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("state/gate")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }
}
