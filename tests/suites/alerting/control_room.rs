//! The whole chain for one test: the program with its simulated fleet, a real Prometheus with the divided rules, a real
//! Alertmanager with the given routes, and the receiver at their end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_yaml_ng::Value;

use super::WATCHDOG;
use super::receiver::{Notice, Receiver};
use crate::support::free_port::free_port;
use crate::support::held::Held;
use crate::support::prometheus::Prometheus;
use crate::support::rules::{self, root};
use crate::support::tools;
use crate::support::world::{Serving, World, http, wait_for};

/// By how much everything is faster than in production.
pub const FASTER: u64 = 30;
/// A thirtieth of ten seconds is less than a busy machine needs for a scrape.
pub const SCRAPE: Duration = Duration::from_secs(1);
/// A thirtieth of production's.
pub const EVALUATION: Duration = Duration::from_millis(500);

pub struct ControlRoom {
    pub prometheus: Prometheus,
    pub receiver: Receiver,
    dir: PathBuf,
    _alertmanager: Held,
}

/// What a chain is made of.
pub struct Tools {
    prometheus: PathBuf,
    alertmanager: PathBuf,
}

impl Tools {
    /// `None` where one of them is left out by name.
    pub fn find() -> Option<Self> {
        let (prometheus, alertmanager) = (tools::find("prometheus"), tools::find("prometheus-alertmanager"));
        Some(Self { prometheus: prometheus?, alertmanager: alertmanager? })
    }
}

impl ControlRoom {
    pub fn open(world: &World, serving: &Serving, tools: &Tools) -> Self {
        Self::with(world, serving, &[], tools, None)
    }

    /// `dispatches`: the operator listeners of those that run beside the service. `longest`: no `for` is longer than
    /// that; what waits for hours or days is seen in its turn.
    pub fn with(
        world: &World,
        serving: &Serving,
        dispatches: &[u16],
        tools: &Tools,
        longest: Option<Duration>,
    ) -> Self {
        let receiver = Receiver::start();
        let dir = world.path("control-room");
        fs::create_dir_all(&dir).expect("a directory");
        let port = free_port();
        let alertmanager = start_alertmanager(&tools.alertmanager, &dir, port, receiver.port);
        let config = prometheus_config(&dir, port, serving.port, dispatches);
        let prometheus = Prometheus::start(&tools.prometheus, &dir, &config, free_port());
        // A fresh Prometheus takes five seconds to find its targets, and that is not thirty times faster here: with the
        // rules it would say that the prober is absent.
        let all = dispatches.len() + 1;
        let scraped = || prometheus.query("up == 1", None).filter(|up| up.len() == all).map(|_| ());
        wait_for("prometheus to scrape", scraped);
        hand_out_rules(&dir, longest);
        prometheus.reload();
        Self { prometheus, receiver, dir, _alertmanager: alertmanager }
    }

    /// The scrape job of the prober loses its targets.
    pub fn lose_the_prober(&self) {
        let file = self.dir.join("prometheus.yml");
        let text = fs::read_to_string(&file).expect("readable");
        let mut config: Value = serde_yaml_ng::from_str(&text).expect("YAML");
        let jobs = config["scrape_configs"].as_sequence_mut().expect("jobs");
        let job = jobs.iter_mut().find(|job| job["job_name"] == "t3-prober").expect("the prober's job");
        job["static_configs"][0]["targets"] = Value::Sequence(Vec::new());
        fs::write(&file, serde_yaml_ng::to_string(&config).expect("YAML")).expect("written");
        self.prometheus.reload();
    }

    /// The alerts that have come as firing, by user and name, without the watchdog's.
    pub fn fired(&self) -> Vec<(String, String)> {
        let of = |notice: &Notice| (notice.user().to_owned(), notice.alert().to_owned());
        let notices = self.receiver.notices();
        let mut fired: Vec<_> = notices
            .iter()
            .filter(|notice| notice.is_firing && notice.receiver != "watchdog")
            .map(of)
            .collect();
        fired.sort();
        fired.dedup();
        fired
    }

    /// Waits until an alert about a user has come.
    pub fn until(&self, user: &str, alert: &str) -> Notice {
        let what = format!("{alert} about '{user}' at the webhook");
        let is = |notice: &&Notice| notice.is_firing && notice.user() == user && notice.alert() == alert;
        wait_for(&what, || self.receiver.notices().iter().find(is).cloned())
    }

    /// A healthy stretch: the whole chain works, and has nothing to say.
    pub fn stays_silent(&self, evaluations: u32) {
        self.until("", WATCHDOG);
        self.evaluations(evaluations);
        assert_eq!(self.fired(), []);
    }

    /// Since when Prometheus has found an alert's condition to hold, in the time of its evaluations.
    pub fn active_since(&self, user: &str, alert: &str) -> SystemTime {
        wait_for("the alert in prometheus", || {
            let all = self.prometheus.get("/api/v1/alerts")?;
            let is = |one: &&serde_json::Value| {
                one["labels"]["alertname"] == alert
                    && one["labels"]["user"].as_str().unwrap_or_default() == user
            };
            let found = all["data"]["alerts"].as_array()?.iter().find(is)?;
            humantime::parse_rfc3339(found["activeAt"].as_str()?).ok()
        })
    }

    /// Waits until the rules have been evaluated that many times from now on.
    pub fn evaluations(&self, count: u32) {
        let total = || {
            let answer = self.prometheus.query("max(t3_test_evaluations)", None).unwrap_or_default();
            answer.first().and_then(|one| one["value"][1].as_str()?.parse::<f64>().ok())
        };
        let start = wait_for("the rules to be evaluated", total);
        wait_for("more evaluations", || total().filter(|now| *now >= start + f64::from(count)));
    }
}

fn start_alertmanager(program: &Path, dir: &Path, port: u16, receiver: u16) -> Held {
    let text = fs::read_to_string(root().join("deploy/alertmanager/alertmanager.yml")).expect("readable");
    let text = text.replace("http://127.0.0.1:9095/", &format!("http://127.0.0.1:{receiver}/"));
    let mut config: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    hurry(&mut config["route"]);
    let file = dir.join("alertmanager.yml");
    fs::write(&file, serde_yaml_ng::to_string(&config).expect("YAML")).expect("written");
    let log = File::create(dir.join("alertmanager.log")).expect("a log");
    let child = Command::new(program)
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.path={}", dir.join("alerts").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("alertmanager");
    let alertmanager = Held(child);
    wait_for("alertmanager to be ready", || {
        http(port, "GET", "/-/ready", &[]).is_ok_and(|answer| answer.status == 200).then_some(())
    });
    alertmanager
}

/// Divides the times of a route and of those below it.
fn hurry(route: &mut Value) {
    for key in ["group_wait", "group_interval", "repeat_interval"] {
        if let Some(Value::String(time)) = route.get_mut(key) {
            // An interval of nothing is refused.
            *time = rules::shorter(time, FASTER);
        }
    }
    for below in route.get_mut("routes").and_then(Value::as_sequence_mut).into_iter().flatten() {
        hurry(below);
    }
}

/// The rules, faster, where Prometheus looks for them.
fn hand_out_rules(dir: &Path, longest: Option<Duration>) {
    let fast = dir.join("rules");
    fs::create_dir_all(&fast).expect("a directory");
    for path in rules::files() {
        let text = fs::read_to_string(&path).expect("readable");
        let name = path.file_name().expect("a name");
        let divided = rules::divided(&text, FASTER);
        let handed = longest.map_or(divided.clone(), |longest| rules::held_at_most(&divided, longest));
        fs::write(fast.join(name), handed).expect("written");
    }
    // Counts evaluations, so that a test can wait for some instead of for time.
    let counting = "groups: [{name: test, rules: [{record: t3_test_evaluations, expr: 't3_test_evaluations + 1 or vector(1)'}]}]";
    fs::write(fast.join("test.yml"), counting).expect("written");
}

/// The given configuration, faster, for these addresses.
fn prometheus_config(dir: &Path, alertmanager: u16, prober: u16, dispatches: &[u16]) -> String {
    let text = fs::read_to_string(root().join("deploy/prometheus/prometheus.yml")).expect("readable");
    let text = text
        .replace("/etc/prometheus/t3-prober", &dir.join("rules").display().to_string())
        .replace("127.0.0.1:9093", &format!("127.0.0.1:{alertmanager}"))
        .replace("127.0.0.1:9780", &format!("127.0.0.1:{prober}"));
    let mut config: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let global = config["global"].as_mapping_mut().expect("a mapping");
    let times =
        [("scrape_interval", SCRAPE), ("scrape_timeout", SCRAPE), ("evaluation_interval", EVALUATION)];
    for (key, time) in times {
        global.insert(key.into(), format!("{}ms", time.as_millis()).into());
    }
    let jobs = config["scrape_configs"].as_sequence_mut().expect("jobs");
    jobs.retain(|job| job["job_name"] == "t3-prober" || job["job_name"] == "t3-dispatch");
    let of_dispatch =
        jobs.iter_mut().find(|job| job["job_name"] == "t3-dispatch").expect("the dispatch's job");
    let targets = dispatches.iter().map(|port| Value::from(format!("127.0.0.1:{port}")));
    of_dispatch["static_configs"][0]["targets"] = targets.collect::<Vec<_>>().into();
    serde_yaml_ng::to_string(&config).expect("YAML")
}
