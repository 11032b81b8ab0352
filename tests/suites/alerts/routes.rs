//! What Prometheus and Alertmanager are configured to do: read by their own tools, and every alert tried on the routes.

use std::process::Command;

use super::said;
use crate::support::rules::{self, root};
use crate::support::tools;

const ALERTMANAGER: &str = "deploy/alertmanager/alertmanager.yml";

#[test]
fn the_tools_accept_both_configurations() {
    if let Some(amtool) = tools::find("amtool") {
        said(&amtool, &["check-config", ALERTMANAGER], &[]);
    }
    if let Some(promtool) = tools::find("promtool") {
        said(&promtool, &["check", "config", "deploy/prometheus/prometheus.yml"], &[]);
    }
}

#[test]
fn every_alert_goes_to_the_receiver_of_its_severity_and_the_watchdog_to_its_own() {
    let Some(amtool) = tools::find("amtool") else { return };
    let mut tried: Vec<(String, String)> = rules::all()
        .into_iter()
        .filter(rules::Rule::is_alert)
        .map(|rule| (rule.alert.clone(), rule.labels["severity"].clone()))
        .collect();
    tried.sort();
    tried.dedup();
    // An alert of a severity that nobody routed must not be lost.
    tried.push(("Unheard".to_owned(), "critical".to_owned()));
    for (alert, severity) in tried {
        let receiver = match (alert.as_str(), severity.as_str()) {
            ("T3Watchdog", _) => "watchdog",
            (_, "critical") => "ticket",
            (_, severity) => severity,
        };
        let output = Command::new(&amtool)
            .args(["config", "routes", "test", "--config.file", ALERTMANAGER])
            .arg(format!("--verify.receivers={receiver}"))
            .args([format!("alertname={alert}"), format!("severity={severity}")])
            .current_dir(root())
            .output()
            .expect("amtool");
        assert!(output.status.success(), "{alert}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn every_alert_that_the_inhibitions_name_exists() {
    let text = std::fs::read_to_string(root().join(ALERTMANAGER)).expect("readable");
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
    let rules = rules::all();
    for word in words.filter(|word| word.starts_with("T3")) {
        assert!(rules.iter().any(|rule| rule.alert == word), "there is no alert {word}");
    }
}

/// A fault is seen by the next pulse; from there to the webhook it takes a scrape, an evaluation, the rule's `for`, and
/// what Alertmanager waits for others of the group. That is no more than the `for` and two evaluations.
#[test]
fn a_scrape_and_the_wait_for_the_group_fit_into_one_evaluation() {
    let read = |path: &str| -> serde_yaml_ng::Value {
        let text = std::fs::read_to_string(root().join(path)).expect("readable");
        serde_yaml_ng::from_str(&text).expect("YAML")
    };
    let time = |value: &serde_yaml_ng::Value| {
        value.as_str().and_then(rules::milliseconds).expect("a duration of one unit")
    };
    let (prometheus, alertmanager) = (read("deploy/prometheus/prometheus.yml"), read(ALERTMANAGER));
    let scrape = time(&prometheus["global"]["scrape_interval"]);
    let evaluation = time(&prometheus["global"]["evaluation_interval"]);
    assert!(scrape + time(&alertmanager["route"]["group_wait"]) <= evaluation);
    for rule in rules::all().iter().filter(|rule| rule.labels.get("severity").is_some_and(|is| is == "page"))
    {
        // Otherwise it would be rounded up by an evaluation more.
        let hold = rules::milliseconds(&rule.hold).unwrap_or(0);
        assert_eq!(hold % evaluation, 0, "{}", rule.place());
    }
}
