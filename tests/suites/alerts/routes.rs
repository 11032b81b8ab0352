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

/// The receiver that the configuration shows as an example, in the place of all others.
fn with_mail() -> String {
    let text = std::fs::read_to_string(root().join(ALERTMANAGER)).expect("readable");
    let (before, rest) = text.split_once("receivers:\n").expect("receivers");
    let (_, example) = rest.split_once("\n#  - name: page\n").expect("an example");
    let page = format!("  - name: page\n{}", example.replace('#', ""));
    let others = ["ticket", "info", "watchdog"].map(|name| format!("  - name: {name}\n"));
    let template = root().join("deploy/alertmanager/t3-prober.tmpl");
    let before = before.replace("/etc/prometheus/t3-prober.tmpl", &template.display().to_string());
    format!(
        "global: {{smtp_smarthost: 'localhost:25', smtp_from: t3@example.org}}\n{before}receivers:\n{page}{}",
        others.concat()
    )
}

#[test]
fn mail_as_the_configuration_shows_it_is_accepted_and_says_all_that_is_needed_at_night() {
    let Some(amtool) = tools::find("amtool") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("alertmanager.yml");
    std::fs::write(&config, with_mail()).expect("written");
    let text = said(&amtool, &["check-config"], &[config]);
    assert!(text.contains("1 templates"), "{text}");

    let alert = |status: &str, user: &str| {
        serde_json::json!({
            "status": status, "labels": { "user": user }, "startsAt": "2026-11-23T03:58:12Z",
            "endsAt": "2026-11-23T04:01:00Z",
            "annotations": {
                "summary": format!("The t3 of {user} is down"), "dashboard": "http://g/d/t3-prober-user",
                "description": format!("{user} on host:9780: nothing listens. Next: t3-prober probe {user}"),
                "runbook_url": "file:///runbooks/T3InstanceDown.md",
            },
        })
    };
    let render = |name: &str, alerts: &[serde_json::Value]| {
        let notice = serde_json::json!({
            "status": "firing", "commonLabels": { "severity": "page" }, "alerts": alerts,
        });
        let data = dir.path().join("data.json");
        std::fs::write(&data, notice.to_string()).expect("written");
        let asked = format!("--template.text={{{{ template \"{name}\" . }}}}");
        let data = format!("--template.data={}", data.display());
        let glob = "--template.glob=deploy/alertmanager/*.tmpl";
        said(&amtool, &["template", "render", glob, &asked, &data], &[])
    };
    let (ann, bob, cid) = (alert("firing", "ann"), alert("firing", "bob"), alert("resolved", "cid"));
    let subject = |alerts: &[serde_json::Value]| render("t3.subject", alerts).trim_end().to_owned();
    assert_eq!(subject(std::slice::from_ref(&ann)), "PAGE: The t3 of ann is down");
    assert_eq!(subject(&[ann.clone(), bob, cid.clone()]), "PAGE: The t3 of ann is down (2 of this kind)");
    assert_eq!(subject(std::slice::from_ref(&cid)), "over: The t3 of cid is down");
    assert_eq!(
        render("t3.text", &[ann, cid]).trim_end(),
        "The t3 of ann is down\nsince 03:58:12 on 23 Nov UTC\n\
         ann on host:9780: nothing listens. Next: t3-prober probe ann\n\
         runbook: file:///runbooks/T3InstanceDown.md\ndashboard: http://g/d/t3-prober-user\n\n\
         over: The t3 of cid is down\nfrom 03:58:12 on 23 Nov to 04:01:00 on 23 Nov UTC"
    );
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
