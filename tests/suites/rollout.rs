//! A build that users have got, judged by their logins: of this host, and of several by a real Prometheus.

use std::fmt::Write;
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

/// One for each sample of a minute that a handshake may fall before.
const HOSTS: [&str; 4] = ["one:9780", "two:9780", "three:9780", "four:9780"];

/// An hour of these hosts, a sample every 15 s and a handshake every minute: upgraded half an hour ago. From then on the
/// handshakes of the second host go as `is_ok` says.
fn an_hour(is_ok: bool) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let ticks: Vec<u64> = (0..=240).map(|tick| now - 3600 + tick * 15).collect();
    let upgrade = now - 1800;
    let mut text = "# TYPE t3_instance_info gauge\n".to_owned();
    for (host, version) in HOSTS.iter().flat_map(|host| [(host, "0.0.26"), (host, "0.0.33")]) {
        for at in ticks.iter().filter(|at| (**at >= upgrade) == (version == "0.0.33")) {
            let _ = writeln!(
                text,
                "t3_instance_info{{instance=\"{host}\",user=\"ann\",version=\"{version}\"}} 1 {at}"
            );
        }
    }
    text.push_str("# TYPE t3_probe_ok gauge\n");
    let went_well = |host: &str, at: u64| is_ok || host != HOSTS[1] || at < upgrade;
    for host in HOSTS {
        for at in &ticks {
            let ok = u8::from(went_well(host, *at));
            let _ = writeln!(
                text,
                "t3_probe_ok{{instance=\"{host}\",user=\"ann\",kind=\"handshake\"}} {ok} {at}"
            );
        }
    }
    text.push_str("# TYPE t3_probe_runs counter\n");
    for (phase, host) in HOSTS.iter().enumerate() {
        for outcome in ["ok", "failed"] {
            let mut count = 0;
            for (index, at) in ticks.iter().enumerate() {
                count += u64::from(index % 4 == phase && went_well(host, *at) == (outcome == "ok"));
                let _ = writeln!(
                    text,
                    "t3_probe_runs_total{{instance=\"{host}\",user=\"ann\",kind=\"handshake\",outcome=\"{outcome}\"}} {count} {at}"
                );
            }
        }
    }
    text + "# EOF\n"
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
        std::fs::write(world.path("hour.txt"), an_hour(is_ok)).expect("the samples");
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
        let (_, document) = document(&world, "0.0.33");
        for host in HOSTS {
            // Half an hour of a handshake a minute on each build, wherever in the minute it falls; the sample of an
            // upgrade, and the minute that is not over, may count on either side.
            let of_user = &document["users"][format!("{host}/ann")];
            let after = of_user["after"]["ok"].as_u64().zip(of_user["after"]["failed"].as_u64());
            let (ok, failed) = after.unwrap_or_else(|| panic!("{document}"));
            assert!((28..=32).contains(&(ok + failed)), "{host}: {document}");
            assert!((27..=31).contains(&of_user["before"]["ok"].as_u64().unwrap_or(0)), "{host}: {document}");
        }
        assert_eq!(judged(&world, "0.0.24"), (Some(3), "hold not_in_use".to_owned()));
    }
    let world =
        World::empty().configured(&format!("[rollout]\nprometheus = \"http://127.0.0.1:{}\"\n", free_port()));
    assert_eq!(judged(&world, "0.0.33"), (Some(3), "hold unreadable".to_owned()));
}
