//! A real Prometheus for one test: its own directory and port, gone when it is dropped.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::held::Held;
use super::world::{http, wait_for};

pub struct Prometheus {
    process: Held,
    pub port: u16,
}

impl Prometheus {
    /// Starts with this configuration on what lies in `dir`/data, and waits until it is ready.
    pub fn start(program: &Path, dir: &Path, config: &str, port: u16) -> Self {
        fs::write(dir.join("prometheus.yml"), config).expect("the configuration");
        let log = File::create(dir.join("prometheus.log")).expect("a log");
        let child = Command::new(program)
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--rules.alert.resend-delay=1s")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus");
        let prometheus = Self { process: Held(child), port };
        wait_for("prometheus to be ready", || {
            http(port, "GET", "/-/ready", &[]).is_ok_and(|answer| answer.status == 200).then_some(())
        });
        prometheus
    }

    /// Reads the configuration and the rules again.
    pub fn reload(&self) {
        let id = i32::try_from(self.process.0.id()).expect("a pid");
        kill(Pid::from_raw(id), Signal::SIGHUP).expect("a running process");
    }

    /// The result of an instant query, now or at a Unix time; `None` where it was refused.
    pub fn query(&self, expr: &str, at: Option<f64>) -> Option<Vec<Value>> {
        let encoded: String = expr.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let at = at.map(|at| format!("&time={at}")).unwrap_or_default();
        let answer = self.get(&format!("/api/v1/query?query={encoded}{at}"))?;
        answer["data"]["result"].as_array().cloned()
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.text(path)?).ok()
    }

    pub fn text(&self, path: &str) -> Option<String> {
        let answer = http(self.port, "GET", path, &[]).ok()?;
        Some(unchunked(&answer.head, &answer.body))
    }
}

fn unchunked(head: &str, body: &str) -> String {
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        let Some(part) = after.get(..length).filter(|_| length > 0) else { break };
        whole.push_str(part);
        rest = after[length..].trim_start_matches("\r\n");
    }
    whole
}
