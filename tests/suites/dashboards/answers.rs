//! What panels say at moments at which they could mislead, asked of the real engine with their own queries.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::dashboards::{self, Dashboard, list, text};
use crate::support::tools;

const TARGET: &str = "job=\"t3-prober\", instance=\"host:9780\"";

fn board(file: &str) -> Dashboard {
    dashboards::all().into_iter().find(|board| board.file == file).expect("a board")
}

/// The query of a panel, or of an annotation, as Grafana would send it.
fn query(file: &str, title: &str) -> String {
    let board = board(file);
    let place = format!("{file}: {title}");
    let noted = board.annotations();
    let mut all = board.queries().into_iter().chain(noted).filter(|query| query.place == place);
    all.next().unwrap_or_else(|| panic!("there is no {place}")).filled_in()
}

fn series(name: &str, labels: &str, values: &str) -> Value {
    json!({ "series": format!("{name}{{{TARGET}{labels}}}"), "values": values })
}

/// Asks at a moment, and demands these samples: labels behind job and instance, and the value.
fn says(expr: &str, at: &str, past: &[Value], samples: &[(&str, f64)]) {
    let Some(promtool) = tools::find("promtool") else { return };
    let samples: Vec<Value> = samples
        .iter()
        .map(|(labels, value)| match labels.strip_prefix('!') {
            Some(labels) => json!({ "labels": labels, "value": value }),
            None => json!({ "labels": format!("{{{TARGET}{labels}}}"), "value": value }),
        })
        .collect();
    let file = json!({
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": past,
            "promql_expr_test": [{ "expr": expr, "eval_time": at, "exp_samples": samples }],
        }],
    });
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("asked.yml");
    fs::write(&path, file.to_string()).expect("written");
    let output = Command::new(promtool).args(["test", "rules"]).arg(&path).output().expect("promtool");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{expr} at {at}: {said}");
}

#[test]
fn a_verdict_that_has_ended_is_no_worry_for_good() {
    let expr = query("overview.json", "What is next to worry about");
    let past = [
        series("t3_verdict_expires_timestamp_seconds", ", version=\"0.0.30\"", "60x200"),
        series("t3_verdict_expires_timestamp_seconds", ", version=\"0.0.33\"", "7200x200"),
        series("t3_backup_last_success_timestamp_seconds", ", user=\"ann\"", "0x200"),
        series("t3_backup_interval_configured_seconds", "", "600x200"),
    ];
    let ann = ", user=\"ann\", what=\"a snapshot is late\"";
    says(&expr, "1h", &past, &[(ann, -2400.0), (", version=\"0.0.33\", what=\"a verdict ends\"", 3600.0)]);
}

#[test]
fn the_longest_without_a_login_counts_who_never_had_one_and_nobody_who_is_away() {
    let expr = query("overview.json", "Longest without a login");
    let user = |name: &str| format!(", user=\"{name}\"");
    let success = |name: &str, at: &str| {
        let labels = format!(", user=\"{name}\", kind=\"handshake\"");
        series("t3_probe_last_success_timestamp_seconds", &labels, at)
    };
    let served = |name: &str| series("t3_user_info", &user(name), "1x200");
    let mut past = vec![
        series("process_start_time_seconds", "", "1800x200"),
        served("ann"),
        served("bob"),
        success("ann", "3000x200"),
        success("bob", "60x200"),
        series("t3_probe_skipped", ", user=\"bob\", kind=\"pulse\"", "1x200"),
        served("cid"),
        success("cid", "60x200"),
        series("user:t3_user_silent:held", &user("cid"), "1x200"),
    ];
    says(&expr, "1h", &past, &[("!{}", 600.0)]);
    past.push(served("dan"));
    says(&expr, "1h", &past, &[("!{}", 1800.0)]);
}

#[test]
fn who_fails_now_does_so_since_their_last_success_or_the_start() {
    let expr = query("overview.json", "Failing now");
    let failing = |name: &str| {
        let labels = format!(", user=\"{name}\", kind=\"pulse\", step=\"reach\", reason=\"refused\"");
        (series("user:t3_login_failing:held", &labels, "1x200"), labels)
    };
    let ((ann, of_ann), (bob, of_bob)) = (failing("ann"), failing("bob"));
    let of_cid = ", user=\"cid\", step=\"front\", reason=\"refused\"";
    let success = |name: &str, kind: &str, at: &str| {
        let labels = format!(", user=\"{name}\", kind=\"{kind}\"");
        series("t3_probe_last_success_timestamp_seconds", &labels, at)
    };
    let past = [
        ann,
        bob,
        series("user:t3_front_failing:held", of_cid, "1x200"),
        series("process_start_time_seconds", "", "100x200"),
        success("ann", "pulse", "2000x200"),
        success("ann", "handshake", "2500x200"),
        success("cid", "front", "1500x200"),
        success("cid", "handshake", "2600x200"),
    ];
    let samples = [(&*of_ann, 2_000_000.0), (&*of_bob, 100_000.0), (of_cid, 1_500_000.0)];
    says(&expr, "1h", &past, &samples);
}

#[test]
fn a_build_is_marked_as_installed_when_it_is_and_not_when_the_scrapes_come_back() {
    let expr = query("upgrades.json", "annotation Upgrades");
    let installed = |version: &str, values: &str| {
        series("t3_version_info", &format!(", place=\"installed\", version=\"{version}\""), values)
    };
    let past = [installed("0.0.30", "1x20 stale _x9 1x9 stale"), installed("0.0.33", "_x40 1x100")];
    says(&expr, "31m", &past, &[]);
    let marked = "!t3_version_info{job=\"t3-prober\", instance=\"host:9780\", place=\"installed\", version=\"0.0.33\"}";
    says(&expr, "41m", &past, &[(marked, 1.0)]);
    says(&expr, "50m", &past, &[]);
}

#[test]
fn an_age_is_coloured_by_its_interval_and_never_by_a_fixed_time() {
    let ages = ["Oldest snapshot", "Oldest proof", "Newest snapshot", "Newest verified", "Last drill"];
    let boards = dashboards::all();
    let panels = boards.iter().flat_map(Dashboard::panels);
    let panels: Vec<&Value> = panels.filter(|panel| ages.contains(&text(&panel["title"]))).collect();
    assert_eq!(panels.len(), ages.len());
    for panel in panels {
        let title = text(&panel["title"]);
        let steps = list(&panel["fieldConfig"]["defaults"]["thresholds"]["steps"]);
        assert!(steps.iter().all(|step| step["color"] == "text"), "{title}");
        let asked = list(&panel["targets"]).iter().find(|target| target["legendFormat"] == "intervals");
        let expr = text(&asked.unwrap_or_else(|| panic!("{title} asks for no intervals"))["expr"]);
        assert!(expr.contains("_interval_configured_seconds"), "{title}: {expr}");
    }
}
