//! Many instances in one process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::free_port::free_port;
use crate::support::sim::{PROGRAM, body, open, sim};

const COUNT: u16 = 5;

struct Fleet {
    process: Child,
    folder: tempfile::TempDir,
    base_port: u16,
}

impl Fleet {
    /// Starts at a port whose neighbours are free as well.
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        for _ in 0..50 {
            let base_port = free_port();
            let mut command = Command::new(PROGRAM);
            command.args(["sim", "fleet", "--as", "0.0.26", "--count", &COUNT.to_string()]);
            command.args(["--base-port", &base_port.to_string(), "--root"]).arg(folder.path());
            let mut process =
                command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
            let mut line = String::new();
            let stdout = process.stdout.take().expect("a pipe");
            BufReader::new(stdout).read_line(&mut line).expect("text");
            if line.contains("ready") {
                return Self { process, folder, base_port };
            }
            process.wait().expect("a child");
        }
        panic!("no {COUNT} free ports in a row");
    }

    async fn get(&self, number: u16, path: &str) -> reqwest::Response {
        let url = format!("http://127.0.0.1:{}{path}", self.base_port + number);
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        client.get(url).send().await.expect("an answer")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn each_instance_of_a_fleet_is_its_own_server() {
    let fleet = Fleet::start();
    let mut ids = Vec::new();
    for number in 0..COUNT {
        let descriptor = body(fleet.get(number, "/.well-known/t3/environment").await).await;
        ids.push(descriptor["environmentId"].to_string());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), usize::from(COUNT));

    let broken = fleet.folder.path().join("0001");
    assert_eq!(sim(&["fault", broken.to_str().expect("text"), "status-500", "on"]).code, Some(0));
    assert_eq!(fleet.get(1, "/").await.status(), 500);
    assert_eq!(fleet.get(2, "/").await.status(), 200);
}

#[tokio::test]
async fn a_fleet_opens_a_database_at_its_first_use() {
    let fleet = Fleet::start();
    let database = fleet.folder.path().join("0000/userdata/state.sqlite");
    fleet.get(0, "/api/auth/session").await;
    assert!(!database.exists());
    let url = format!("http://127.0.0.1:{}/api/auth/browser-session", fleet.base_port);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.post(url).body(r#"{"credential":"PROBE0000000"}"#).send().await.expect("an answer");
    assert_eq!(answer.status(), 401);
    let level = "SELECT max(migration_id) FROM effect_sql_migrations";
    assert_eq!(open(&database).query_row(level, [], |row| row.get::<_, u32>(0)).expect("a level"), 32);
}
