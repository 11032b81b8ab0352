//! Data that go missing, and users who are away: every alert is tried on a past in which a series that it reads has ended, or has a hole.

use std::collections::BTreeSet;
use std::fs;

use promql_parser::parser::parse;
use serde_yaml_ng::Value;

use crate::support::promql::selectors;
use crate::support::rules::{self, Rule, listed, milliseconds};

/// The metrics that a rule reads, through recordings too; a recording may read what it said before.
fn read_by(rule: &Rule, all: &[Rule]) -> BTreeSet<String> {
    let (mut metrics, mut seen, mut left) = (BTreeSet::new(), BTreeSet::new(), vec![rule]);
    while let Some(rule) = left.pop() {
        let expr = parse(&rule.expr).expect("a query");
        for name in selectors(&expr).into_iter().filter_map(|selector| selector.name.clone()) {
            match all.iter().find(|other| other.record == name) {
                Some(recording) if seen.insert(name.clone()) => left.push(recording),
                Some(_) => {}
                None => {
                    metrics.insert(name);
                }
            }
        }
    }
    metrics
}

/// When a series of a test has no sample any more, or has not yet: the first moment without one, in milliseconds. In
/// promtool's notation `1x3` are four samples, `_x3` three holes.
fn missing_from(values: &str, interval: u64) -> u64 {
    let mut at = 0;
    for part in values.split_whitespace() {
        if part.starts_with('_') || part.starts_with("stale") {
            return at * interval;
        }
        let more = part.rsplit_once('x').and_then(|(_, count)| count.parse::<u64>().ok());
        at += 1 + more.unwrap_or(0);
    }
    at * interval
}

/// `1h5m` in milliseconds.
fn moment(text: &str) -> u64 {
    let mut rest = text;
    let mut sum = 0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        let unit = rest[digits..].find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len() - digits);
        let (part, after) = rest.split_at(digits + unit);
        sum += milliseconds(part).unwrap_or(0);
        rest = after;
    }
    sum
}

/// The alerts that a test asks about at a moment at which one of the given metrics is missing.
fn asked_without(test: &Value, metrics: &BTreeSet<String>) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let interval = milliseconds(&text(&test["interval"])).expect("an interval");
    let series = test["input_series"].as_sequence().cloned().unwrap_or_default();
    let of_metric =
        |one: &&Value| metrics.contains(text(&one["series"]).split('{').next().unwrap_or_default());
    let gone: Vec<u64> =
        series.iter().filter(of_metric).map(|one| missing_from(&text(&one["values"]), interval)).collect();
    let checks = test["alert_rule_test"].as_sequence().into_iter().flatten();
    checks
        .filter(|check| {
            let asked = moment(&text(&check["eval_time"]));
            gone.iter().any(|from| *from <= asked)
        })
        .map(|check| text(&check["alertname"]))
        .collect()
}

/// Every test of the rules.
fn tests() -> Vec<Value> {
    let of_file = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).expect("readable");
        let file: Value = serde_yaml_ng::from_str(&text).expect("YAML");
        file["tests"].as_sequence().cloned().expect("tests")
    };
    listed("alerts/tests", "yml").iter().flat_map(of_file).collect()
}

#[test]
fn every_alert_is_tried_while_data_are_missing() {
    let (all, tests) = (rules::all(), tests());
    let untried: BTreeSet<&str> = all
        .iter()
        // It asks nothing of any data.
        .filter(|rule| rule.is_alert() && rule.alert != "T3Watchdog")
        .filter(|rule| {
            let metrics = read_by(rule, &all);
            !tests.iter().any(|test| asked_without(test, &metrics).contains(&rule.alert))
        })
        .map(|rule| rule.alert.as_str())
        .collect();
    assert_eq!(untried, BTreeSet::new());
}

/// Pages that do not go on for an hour after the prober has gone, and why.
const NOT_HELD: &[(&str, &str)] = &[
    ("T3ProberDown", "it is the page about the prober that has gone"),
    ("T3ProberAbsent", "it ends when Prometheus knows a target again"),
    ("T3DispatchDown", "Prometheus itself says so, and it goes on for as long as the dispatch is gone"),
    (
        "T3RealLoginFailing",
        "it counts logins that people tried within five minutes; T3DispatchDown follows it",
    ),
    ("T3LoginBudgetBurn", "it goes on for as long as its long window and its guard reach back"),
];

/// Whether a test has an alert fire so long after the last sample of everything that it reads.
fn is_held(test: &Value, rule: &Rule, all: &[Rule], at_least: u64) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (metrics, interval) =
        (read_by(rule, all), milliseconds(&text(&test["interval"])).expect("an interval"));
    let series = test["input_series"].as_sequence().into_iter().flatten();
    let read =
        series.filter(|one| metrics.contains(text(&one["series"]).split('{').next().unwrap_or_default()));
    let gone = read.map(|one| missing_from(&text(&one["values"]).replace("_x", "0x"), interval)).max();
    test["alert_rule_test"].as_sequence().into_iter().flatten().any(|check| {
        let fires = check["exp_alerts"].as_sequence().is_some_and(|alerts| !alerts.is_empty());
        let asked = moment(&text(&check["eval_time"]));
        text(&check["alertname"]) == rule.alert && fires && gone.is_some_and(|gone| gone + at_least <= asked)
    })
}

#[test]
fn every_page_is_tried_for_as_long_as_it_goes_on_after_the_prober_has_gone() {
    let (all, tests) = (rules::all(), tests());
    let pages: Vec<&Rule> =
        all.iter().filter(|rule| rule.labels.get("severity").is_some_and(|is| is == "page")).collect();
    let excused = |rule: &&&Rule| NOT_HELD.iter().any(|(alert, _)| *alert == rule.alert);
    let hour = 3_600_000;
    let too_short: BTreeSet<&str> = pages
        .iter()
        .filter(|rule| !excused(rule) && !tests.iter().any(|test| is_held(test, rule, &all, hour * 9 / 10)))
        .map(|rule| rule.alert.as_str())
        .collect();
    assert_eq!(too_short, BTreeSet::new());
    for (alert, why) in NOT_HELD {
        assert!(why.len() > 20 && pages.iter().any(|rule| rule.alert == *alert), "{alert} is no page");
    }
}

#[test]
fn every_alert_about_a_user_asks_whether_they_are_paused() {
    let all = rules::all();
    let of_users: Vec<_> = all
        .iter()
        .filter(|rule| rule.is_alert() && rule.annotations["description"].contains("abels.user"))
        .collect();
    assert!(of_users.len() > 25, "only {} alerts are about a user", of_users.len());
    let loud: Vec<String> = of_users
        .iter()
        .filter(|rule| !read_by(rule, &all).contains("t3_user_paused"))
        .map(|rule| rule.place())
        .collect();
    assert_eq!(loud, Vec::<String>::new());
}

#[test]
fn a_series_is_missing_from_its_first_hole_or_its_end() {
    for (values, from) in
        [("1x3", 4), ("1 2 _", 2), ("_x2 1x5", 0), ("0x3 1x30 stale", 35), ("1+1x40 41", 42)]
    {
        assert_eq!(missing_from(values, 1000), from * 1000, "{values}");
    }
    assert_eq!((moment("1h5m"), moment("90s"), moment("2d")), (3_900_000, 90_000, 172_800_000));
}
