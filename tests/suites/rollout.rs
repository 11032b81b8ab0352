//! A build that users have got, judged by their logins: of this host, and of several by a real Prometheus.

use std::fmt::Write;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::free_port::free_port;
use crate::support::held::Held;
use crate::support::tools;
use crate::support::world::{World, http, wait_for};

const QUICK: &str = "[probe]\npulse_interval = \"1s\"\npulse_timeout = \"800ms\"\nhandshake_interval = \"2s\"\n\
                     [rollout]\nsoak = \"1s\"\nminimum_logins = 2\n";

/// The exit code of `rollout VERSION --json`, and the document.
fn document(world: &World, version: &str) -> (Option<i32>, Value) {
    let output = world.command(&["rollout", version, "--json"]).output().expect("the program");
    let document =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), document)
}

/// The exit code, and `decision basis`.
fn judged(world: &World, version: &str) -> (Option<i32>, String) {
    let (code, document) = document(world, version);
    let word = |key: &str| document[key].as_str().unwrap_or("-").to_owned();
    (code, format!("{} {}", word("decision"), word("basis")))
}

fn until(world: &World, version: &str, code: i32, wanted: &str) {
    wait_for(wanted, || {
        let (exit, said) = judged(world, version);
        (said == wanted && exit == Some(code)).then_some(())
    });
}

#[test]
fn a_build_is_promoted_by_good_logins_and_rolled_back_by_bad_ones() {
    let mut world = World::with(&[("ann", "0.0.26")]).configured(QUICK);
    let serving = world.serve();
    serving.until_runs("ann", "handshake", "ok", 2.0);
    assert_eq!(judged(&world, "0.0.33"), (Some(3), "hold not_in_use".to_owned()));
    world.kill("ann");
    world.start("ann", "0.0.33");
    until(&world, "0.0.33", 0, "promote as_good");
    world.fault("ann", "exchange-500");
    until(&world, "0.0.33", 1, "roll_back consecutive_limit");
    world.mend("ann", "exchange-500");
    let answer = serving.get("/api/v1/rollout/latest");
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(serving.stop(), 0);
    let output = world.command(&["rollout", "0.0.33"]).output().expect("the program");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is `t3-prober serve` running"), "{output:?}");
}

/// A host for each sample of a minute that a handshake may fall before, and each that an upgrade may.
fn hosts() -> impl Iterator<Item = (String, u64, u64)> {
    (0..4)
        .flat_map(|login| (0..4).map(move |upgrade| (format!("host-{login}{upgrade}:9780"), login, upgrade)))
}

/// What a host's instance ran, from which sample on, and at which samples logins failed.
struct Ran {
    host: String,
    login: u64,
    builds: Vec<(u64, &'static str)>,
    failed: Range<u64>,
}

impl Ran {
    fn is_on(&self, version: &str, tick: u64) -> bool {
        self.builds.iter().rfind(|(from, _)| *from <= tick).is_some_and(|(_, runs)| *runs == version)
    }
}

/// All hosts were upgraded half an hour ago; from then on the handshakes go as `is_ok` says. One more tried another build
/// before, which failed, and tries it again; and one tried a third, and was brought back a minute ago.
fn all(is_ok: bool) -> Vec<Ran> {
    let upgraded = hosts().map(|(host, login, upgrade)| Ran {
        host,
        login,
        builds: vec![(0, "0.0.26"), (120 + upgrade, "0.0.33")],
        failed: if is_ok { 0..0 } else { 120 + upgrade..241 },
    });
    let again = Ran {
        host: "again:9780".to_owned(),
        login: 1,
        builds: vec![(0, "0.0.26"), (40, "0.0.34"), (80, "0.0.26"), (180, "0.0.34")],
        failed: 40..80,
    };
    let back = Ran {
        host: "back:9780".to_owned(),
        login: 1,
        builds: vec![(0, "0.0.26"), (180, "0.0.35"), (236, "0.0.26")],
        failed: 180..236,
    };
    upgraded.chain([again, back]).collect()
}

/// An hour of these hosts, a sample every 15 s and a handshake every minute.
fn an_hour(hosts: &[Ran]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let at = |tick: u64| now - 3600 + tick * 15;
    let mut info = "# TYPE t3_instance_info gauge\n".to_owned();
    let mut runs = "# TYPE t3_probe_runs counter\n".to_owned();
    for ran in hosts {
        let (host, went_well) = (&ran.host, |tick: u64| !ran.failed.contains(&tick));
        for version in ["0.0.26", "0.0.33", "0.0.34", "0.0.35"] {
            for tick in (0..=240).filter(|tick| ran.is_on(version, *tick)) {
                let labels = format!("{{instance=\"{host}\",user=\"ann\",version=\"{version}\"}}");
                let _ = writeln!(info, "t3_instance_info{labels} 1 {}", at(tick));
            }
        }
        for outcome in ["ok", "failed"] {
            let labels =
                format!("{{instance=\"{host}\",user=\"ann\",kind=\"handshake\",outcome=\"{outcome}\"}}");
            let mut count = 0;
            for tick in 0..=240 {
                count += u64::from(tick % 4 == ran.login && went_well(tick) == (outcome == "ok"));
                let _ = writeln!(runs, "t3_probe_runs_total{labels} {count} {}", at(tick));
            }
        }
    }
    info + &runs + "# EOF\n"
}

#[test]
fn a_real_prometheus_tells_the_same_of_several_hosts() {
    let (Some(prometheus), Some(promtool)) = (tools::find("prometheus"), tools::find("promtool")) else {
        return;
    };
    for (is_ok, code, wanted) in [(true, 0, "promote as_good"), (false, 1, "roll_back consecutive_limit")] {
        let port = free_port();
        let world =
            World::empty().configured(&format!("[rollout]\nprometheus = \"http://127.0.0.1:{port}\"\n"));
        std::fs::write(world.path("hour.txt"), an_hour(&all(is_ok))).expect("the samples");
        let output = Command::new(&promtool)
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([world.path("hour.txt"), world.path("tsdb")])
            .output()
            .expect("promtool");
        assert!(output.status.success(), "{output:?}");
        std::fs::write(world.path("prometheus.yml"), "{}\n").expect("the configuration");
        let child = Command::new(&prometheus)
            .arg(format!("--config.file={}", world.path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", world.path("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus");
        let _prometheus = Held(child);
        let ready = || http(port, "GET", "/-/ready", &[]).is_ok_and(|answer| answer.status == 200);
        wait_for("prometheus", || ready().then_some(()));
        until(&world, "0.0.33", code, wanted);
        let (_, found) = document(&world, "0.0.33");
        for (host, ..) in hosts() {
            // Half an hour of a handshake a minute on each build, wherever in the minute it falls; the minute of the
            // upgrade counts for neither, and the one that is not over may.
            let of_user = &found["users"][format!("{host}/ann")];
            let count = |build: &str, outcome: &str| of_user[build][outcome].as_u64().unwrap_or(0);
            let (well, not) = if is_ok { ("ok", "failed") } else { ("failed", "ok") };
            assert!((28..=31).contains(&count("after", well)), "{host}: {of_user}");
            assert_eq!(count("after", not), 0, "{host}: {of_user}");
            assert!((27..=31).contains(&count("before", "ok")), "{host}: {of_user}");
            assert_eq!(count("before", "failed"), 0, "{host}: {of_user}");
        }
        assert_eq!(
            judged(&world, "0.0.34"),
            (Some(0), "promote as_good".to_owned()),
            "the first try is over"
        );
        let (_, again) = document(&world, "0.0.34");
        assert_eq!(again["users"]["again:9780/ann"]["after"]["failed"], 0, "{again}");
        assert!((800.0..=960.0).contains(&again["in_use_seconds"].as_f64().unwrap_or(0.0)), "{again}");
        assert_eq!(judged(&world, "0.0.35"), (Some(3), "hold not_in_use".to_owned()));
        assert_eq!(judged(&world, "0.0.24"), (Some(3), "hold not_in_use".to_owned()));
    }
    let world =
        World::empty().configured(&format!("[rollout]\nprometheus = \"http://127.0.0.1:{}\"\n", free_port()));
    assert_eq!(judged(&world, "0.0.33"), (Some(3), "hold unreadable".to_owned()));
}
