//! What Prometheus and Alertmanager are configured to do: read by their own tools, and every alert tried on the routes.

use std::collections::BTreeMap;
use std::process::Command;

use promql_parser::parser::{Expr, parse};
use serde_yaml_ng::Value;

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

/// Whoever copies only these lines gets the rules as they are meant.
#[test]
fn the_guides_give_prometheus_the_intervals_that_the_rules_are_written_for() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("readable");
    let yaml = |text: &str| -> Value { serde_yaml_ng::from_str(text).expect("YAML") };
    let ours = yaml(&read("deploy/prometheus/prometheus.yml"));
    let guide = read("deploy/README.md");
    let snippet = guide.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let readme = read("README.md");
    let lines = readme
        .lines()
        .skip_while(|line| !line.starts_with("    global: "))
        .take_while(|line| !line.is_empty());
    let shown: Vec<&str> = lines.filter_map(|line| line.strip_prefix("    ")).collect();
    for (place, config) in [("deploy/README.md", yaml(snippet)), ("README.md", yaml(&shown.join("\n")))] {
        for interval in ["scrape_interval", "evaluation_interval"] {
            assert_eq!(config["global"][interval], ours["global"][interval], "{interval} in {place}");
        }
        assert_eq!(config["scrape_configs"][0], ours["scrape_configs"][0], "{place}");
    }
}

#[test]
fn the_switch_that_keeps_exemplars_is_named_and_is_one_that_prometheus_has() {
    for place in ["README.md", "deploy/README.md", "deploy/prometheus/prometheus.yml"] {
        let text = std::fs::read_to_string(root().join(place)).expect("readable");
        assert!(text.contains("--enable-feature=exemplar-storage"), "{place}");
    }
    let Some(prometheus) = tools::find("prometheus") else { return };
    let help = said(&prometheus, &["--help"], &[]);
    assert!(help.contains("exemplar-storage"), "{help}");
}

type Labels = BTreeMap<String, String>;

/// An alert as it comes to Alertmanager, about ann where it is about a user.
fn alert(name: &str) -> Labels {
    let rule = rules::all().into_iter().find(|rule| rule.alert == name);
    let rule = rule.unwrap_or_else(|| panic!("there is no alert {name}"));
    let pairs = [("alertname", name), ("job", "t3-prober"), ("instance", "host:9780")];
    let mut labels: Labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    labels.extend(rule.labels);
    if rule.annotations["description"].contains("$labels.user") {
        labels.insert("user".to_owned(), "ann".to_owned());
    }
    labels
}

/// Whether the alert is one that all of these mean; Alertmanager's notation is PromQL's.
fn is_meant(matchers: &Value, labels: &Labels) -> bool {
    let list: Vec<&str> = matchers.as_sequence().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(!list.is_empty(), "no matchers");
    let selector = parse(&format!("x{{{}}}", list.join(","))).expect("matchers");
    let Expr::VectorSelector(selector) = selector else { panic!("{list:?} are no matchers") };
    let value = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    selector.matchers.matchers.iter().all(|matcher| matcher.is_match(value(&matcher.name)))
}

/// Whether nothing is told of one while the other fires.
fn is_muted(target: &Labels, source: &Labels) -> bool {
    let text = std::fs::read_to_string(root().join(ALERTMANAGER)).expect("readable");
    let config: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    config["inhibit_rules"].as_sequence().expect("rules").iter().any(|rule| {
        let equal = rule["equal"].as_sequence().into_iter().flatten().filter_map(Value::as_str);
        let mut equal = equal.map(|label| source.get(label) == target.get(label));
        is_meant(&rule["source_matchers"], source)
            && is_meant(&rule["target_matchers"], target)
            && equal.all(|is_same| is_same)
    })
}

#[test]
fn only_what_keeps_a_user_out_mutes_what_is_odd_about_them_and_the_budget() {
    // Not about t3's own login, and out all the same.
    let others = ["T3InstanceRestarting", "T3RealLoginFailing"];
    let pages =
        rules::all().into_iter().filter(|rule| rule.labels.get("severity").is_some_and(|is| is == "page"));
    let mut out = 0;
    for rule in pages.filter(|rule| rule.annotations["description"].contains("$labels.user")) {
        let names = ["user:t3_login_failing:held", "user:t3_front_failing:held"];
        let is_out =
            names.iter().any(|name| rule.expr.starts_with(name)) || others.contains(&rule.alert.as_str());
        let source = alert(&rule.alert);
        for target in ["T3BackupStale", "T3UserLeftBehind", "T3CookieNameMoved", "T3LoginBudgetBurn"] {
            assert_eq!(is_muted(&alert(target), &source), is_out, "{target} while {}", rule.alert);
        }
        out += usize::from(is_out);
    }
    assert!(out > 8, "only {out} pages say that a user is out");
    let of_another = |mut labels: Labels| {
        labels.insert("user".to_owned(), "bob".to_owned());
        labels
    };
    assert!(!is_muted(&of_another(alert("T3BackupStale")), &alert("T3InstanceDown")));
}

#[test]
fn what_follows_is_muted_and_other_news_is_told() {
    for (target, source, muted) in [
        ("T3InstanceDown", "T3AllLoginsFailing", true),
        ("T3LoginBudgetBurn", "T3AllLoginsFailing", true),
        ("T3BackupStale", "T3AllLoginsFailing", true),
        ("T3MigratedByUs", "T3AllLoginsFailing", false),
        ("T3HistoryShrank", "T3AllLoginsFailing", false),
        ("T3CredentialExpired", "T3AllLoginsFailing", false),
        ("T3RollbackFailed", "T3AllLoginsFailing", false),
        ("T3ProberDown", "T3AllLoginsFailing", false),
        ("T3SchemaAhead", "T3MigratedByUs", true),
        ("T3DatabaseAhead", "T3MigratedByUs", true),
        ("T3BackupStale", "T3MigratedByUs", false),
        ("T3InstanceDown", "T3MigratedByUs", false),
        ("T3HandshakesStale", "T3PulsesStale", true),
        ("T3EnforcerFrozen", "T3RollbackFailed", true),
        ("T3BackupUnverified", "T3DatabaseAhead", true),
        ("T3BackupUnverified", "T3DatabaseForeign", true),
        ("T3InventoryReloadFailed", "T3NobodyServed", true),
    ] {
        assert_eq!(is_muted(&alert(target), &alert(source)), muted, "{target} while {source}");
    }
}

/// A fault is seen by the next pulse; from there to the webhook it takes a scrape, an evaluation, the rule's `for`, and
/// what Alertmanager waits for others of the group. That is no more than the `for` and two evaluations.
#[test]
fn a_scrape_and_the_wait_for_the_group_fit_into_one_evaluation() {
    let read = |path: &str| -> Value {
        let text = std::fs::read_to_string(root().join(path)).expect("readable");
        serde_yaml_ng::from_str(&text).expect("YAML")
    };
    let time = |value: &Value| value.as_str().and_then(rules::milliseconds).expect("a duration of one unit");
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
