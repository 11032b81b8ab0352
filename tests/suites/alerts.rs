//! The alert rules, their tests and their runbooks, held to the real tools and to the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::promql::{Catalogue, nodes};
use crate::support::rules::{self, Rule, listed, root};
use crate::support::tools;

mod lint;
mod missing;
mod routes;
mod runbooks;

/// Runs a tool and answers what it said; a failure is one of the test.
fn said(program: &Path, arguments: &[&str], files: &[std::path::PathBuf]) -> String {
    let output =
        Command::new(program).args(arguments).args(files).current_dir(root()).output().expect("the tool");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

fn catalogue() -> Catalogue {
    Catalogue::of_metrics_md(include_str!("../../METRICS.md"))
}

#[test]
fn promtool_has_nothing_to_say_about_the_rules() {
    let Some(promtool) = tools::find("promtool") else { return };
    let text = said(&promtool, &["check", "rules", "--lint=all", "--lint-fatal"], &rules::files());
    assert_eq!(text.matches("SUCCESS").count(), rules::files().len(), "{text}");
}

#[test]
fn every_alert_fires_is_silent_and_bears_missing_data_as_its_tests_say() {
    let Some(promtool) = tools::find("promtool") else { return };
    let files = listed("alerts/tests", "yml");
    let text = said(&promtool, &["test", "rules"], &files);
    assert_eq!(text.matches("SUCCESS").count(), files.len(), "{text}");
}

/// One expectation of an alert's test.
struct Expected {
    alert: String,
    /// Each alert that should fire; none where it should be silent.
    firing: Vec<Firing>,
}

#[derive(Default)]
struct Firing {
    labels: BTreeMap<String, String>,
    texts: BTreeSet<String>,
}

impl Expected {
    /// Those that come from this rule: several may have one name, and differ in the labels that they add.
    fn of_rule<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = &'a Firing> {
        let is_of = |firing: &&Firing| {
            rule.labels.iter().all(|(label, value)| firing.labels.get(label) == Some(value))
        };
        self.firing.iter().filter(move |firing| self.alert == rule.alert && is_of(firing))
    }
}

fn expectations() -> Vec<Expected> {
    let mut found = Vec::new();
    for path in listed("alerts/tests", "yml") {
        let text = fs::read_to_string(&path).expect("readable");
        let file: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect("YAML");
        for test in file["tests"].as_sequence().expect("tests") {
            for check in test["alert_rule_test"].as_sequence().into_iter().flatten() {
                let words = |value: &serde_yaml_ng::Value| -> BTreeMap<String, String> {
                    let pairs = value.as_mapping().cloned().unwrap_or_default().into_iter();
                    pairs
                        .filter_map(|(key, value)| Some((key.as_str()?.into(), value.as_str()?.into())))
                        .collect()
                };
                let firing = |alert: &serde_yaml_ng::Value| Firing {
                    labels: words(&alert["exp_labels"]),
                    texts: words(&alert["exp_annotations"]).into_keys().collect(),
                };
                let alerts = check["exp_alerts"].as_sequence().expect("a list");
                let alert = check["alertname"].as_str().expect("a name").to_owned();
                found.push(Expected { alert, firing: alerts.iter().map(firing).collect() });
            }
        }
    }
    found
}

/// What no test tries about a rule.
fn untried(rule: &Rule, expectations: &[Expected]) -> Option<&'static str> {
    let texts: BTreeSet<String> = rule.annotations.keys().cloned().collect();
    let of_alert = || expectations.iter().filter(|expected| expected.alert == rule.alert);
    let mut firing = of_alert().flat_map(|expected| expected.of_rule(rule)).peekable();
    let is_alone = !rules::all().iter().any(|other| other.alert == rule.alert && other.labels != rule.labels);
    // Of several with one name, each is silent while another one speaks: otherwise they could be the same.
    let is_silent = |expected: &Expected| {
        expected.of_rule(rule).next().is_none() && (is_alone || !expected.firing.is_empty())
    };
    if firing.peek().is_none() {
        Some("it is never tried firing")
    } else if !firing.all(|firing| firing.texts == texts) {
        Some("its whole text is not compared")
    // The watchdog is never silent; that is its work.
    } else if !of_alert().any(is_silent) && rule.alert != "T3Watchdog" {
        Some("it is never tried silent")
    } else {
        None
    }
}

#[test]
fn of_several_rules_with_one_name_each_is_tried() {
    let of_burn = |rule: &Rule| rule.alert == "T3LoginBudgetBurn";
    let windows: Vec<Rule> = rules::all().into_iter().filter(of_burn).collect();
    assert_eq!(windows.len(), 4);
    for rule in &windows {
        let mut without = expectations();
        for expected in &mut without {
            let labels = rule.labels.clone();
            expected.firing.retain(|firing| firing.labels.get("window") != labels.get("window"));
        }
        assert_eq!(untried(rule, &without), Some("it is never tried firing"), "{}", rule.place());
        let alone = expectations().into_iter().map(|mut expected| {
            expected.firing.retain(|firing| firing.labels.get("window") == rule.labels.get("window"));
            expected
        });
        assert_eq!(untried(rule, &alone.collect::<Vec<_>>()), Some("it is never tried silent"));
    }
}

#[test]
fn every_alert_is_tried_firing_with_its_whole_text_and_silent() {
    let expectations = expectations();
    for rule in rules::all().iter().filter(|rule| rule.is_alert()) {
        assert_eq!(untried(rule, &expectations), None, "{}", rule.place());
    }
    let known = |expected: &&Expected| !rules::all().iter().any(|rule| rule.alert == expected.alert);
    assert!(expectations.iter().find(known).is_none(), "a test names an alert that there is not");
}

#[test]
fn the_rules_about_rules_find_nothing() {
    assert_eq!(lint::findings(&rules::all(), &catalogue()), []);
}

/// Makes something wrong with a rule.
type Plant = fn(&mut Rule);

/// The check, and what it must catch.
const PLANTED: &[(&str, Plant)] = &[
    ("alerts/absent", |rule| {
        rule.expr = "absent(t3_user_info{user=\"ann\"})".to_owned();
        rule.hold = "10s".to_owned();
        rule.annotations
            .insert("description".to_owned(), "{{ $labels.user }} is gone. Next: look".to_owned());
    }),
    ("alerts/annotation", |rule| {
        rule.annotations.remove("summary");
    }),
    ("alerts/annotation", |rule| {
        rule.annotations.insert("description".to_owned(), "It fails. Next: look".to_owned());
    }),
    ("alerts/annotation", |rule| {
        rule.labels.insert("severity".to_owned(), "critical".to_owned());
    }),
    ("alerts/comparison", |rule| rule.expr = "t3_user_paused".to_owned()),
    ("alerts/comparison", |rule| rule.expr = "t3_user_paused > bool 0".to_owned()),
    ("alerts/for", |rule| rule.hold = "0s".to_owned()),
    ("alerts/template", |rule| {
        rule.annotations.insert("summary".to_owned(), "{{ $labels.step }}".to_owned());
    }),
    ("promql/aggregate", |rule| rule.expr = "sum by (user, job) (t3_user_paused) > 0".to_owned()),
    ("promql/counter", |rule| rule.expr = "t3_probe_runs_total > 0".to_owned()),
    ("promql/impossible", |rule| rule.expr = "t3_probe_ok{kind=\"pulsee\"} > 0".to_owned()),
    ("promql/impossible", |rule| rule.expr = "t3_probe_ok{color=\"red\"} > 0".to_owned()),
    ("promql/impossible", |rule| {
        rule.expr = "t3_user_paused > 0 and on () vector(1) == 2".to_owned();
    }),
    ("promql/rate", |rule| rule.expr = "rate(t3_user_paused[5m]) > 0".to_owned()),
    ("promql/regexp", |rule| rule.expr = "t3_probe_ok{kind=~\"pulse\"} > 0".to_owned()),
    ("promql/regexp", |rule| rule.expr = "t3_probe_ok{user=~\"^a.*\"} > 0".to_owned()),
    ("promql/series", |rule| rule.expr = "(t3_user_paused or t3_users_paused) > 0".to_owned()),
    ("promql/vector_matching", |rule| {
        rule.expr = "t3_user_paused > on (job, instance, user) t3_prober_probe_sessions_left and on (step) t3_probe_ok".to_owned();
    }),
    ("promql/vector_matching", |rule| rule.expr = "t3_user_paused > t3_probe_ok".to_owned()),
    ("promql/window", |rule| rule.expr = "increase(t3_dispatch_refused_total[50s]) > 0".to_owned()),
    ("promql/window", |rule| rule.expr = "last_over_time(t3_user_paused[30s]) > 0".to_owned()),
    // A handshake every ten minutes: five of them see nothing of most.
    ("promql/window", |rule| {
        rule.expr = "increase(t3_probe_runs_total{kind=\"handshake\"}[5m]) == 0".to_owned();
    }),
    ("promql/window", |rule| rule.expr = "changes(t3_history_events[1m]) > 0".to_owned()),
    ("promql/window", |rule| {
        rule.annotations.insert(
            "description".to_owned(),
            "{{ $labels.user }} {{ query \"up[30s]\" }}. Next: look".to_owned(),
        );
    }),
    ("rule/link", |rule| {
        rule.annotations.insert("runbook_url".to_owned(), "{{ $externalLabels.runbooks }}/T3.md".to_owned());
    }),
    ("rule/link", |rule| {
        rule.annotations.insert("dashboard".to_owned(), "{{ $externalLabels.grafana }}/d/none".to_owned());
    }),
];

/// A rule in which nothing is wrong.
fn sound() -> Rule {
    let mut rule = rules::all().into_iter().find(|rule| rule.alert == "T3ProberDown").expect("a rule");
    rule.expr = "t3_user_paused == 1".to_owned();
    rule.annotations.insert("description".to_owned(), "{{ $labels.user }} is paused. Next: look".to_owned());
    rule
}

#[test]
fn each_rule_about_rules_catches_what_is_planted_for_it() {
    let catalogue = catalogue();
    assert_eq!(lint::findings(&[sound()], &catalogue), []);
    let mut tried = BTreeSet::new();
    for (check, plant) in PLANTED {
        let mut rule = sound();
        plant(&mut rule);
        let found: BTreeSet<_> =
            lint::findings(&[rule.clone()], &catalogue).into_iter().map(|(check, _)| check).collect();
        assert!(
            found.contains(check),
            "{check} does not see what is wrong with {}; found {found:?}",
            rule.expr
        );
        tried.insert(*check);
    }
    let twice = lint::findings(&[sound(), sound()], &catalogue);
    assert!(twice.iter().any(|(check, _)| *check == "rule/duplicate"), "{twice:?}");
    let misnamed =
        Rule { record: "user:paused".to_owned(), expr: "t3_user_paused".to_owned(), ..Rule::default() };
    let misnamed = lint::findings(&[misnamed], &catalogue);
    assert_eq!(misnamed.iter().map(|(check, _)| *check).collect::<Vec<_>>(), ["rule/name"]);
    tried.extend(["rule/duplicate", "rule/name"]);
    let all: BTreeSet<_> = lint::CHECKS.iter().map(|(check, _)| *check).collect();
    assert_eq!(tried, all, "every check has something planted");
}

#[test]
fn divided_rules_differ_in_nothing_but_their_times() {
    use promql_parser::parser::{Expr, Offset, parse};
    let back = |offset: &Option<Offset>| match offset {
        Some(Offset::Pos(back)) => back.as_millis(),
        Some(Offset::Neg(_)) => panic!("no rule looks ahead"),
        None => 0,
    };
    let ranges = |expr: &Expr| -> Vec<u128> {
        let of = |node: &&Expr| match node {
            Expr::VectorSelector(selector) => vec![back(&selector.offset)],
            Expr::MatrixSelector(matrix) => vec![matrix.range.as_millis(), back(&matrix.vs.offset)],
            _ => Vec::new(),
        };
        nodes(expr).iter().flat_map(of).collect()
    };
    let mut ranges_seen = 0;
    for path in rules::files() {
        let text = fs::read_to_string(&path).expect("readable");
        let (original, divided) = (rules::read("", &text), rules::read("", &rules::divided(&text, 30)));
        assert_eq!(original.len(), divided.len());
        for (original, divided) in original.iter().zip(&divided) {
            let name = original.name();
            assert_eq!((name, &original.labels), (divided.name(), &divided.labels));
            let hold = |rule: &Rule| rules::milliseconds(&rule.hold);
            assert_eq!(hold(original), hold(divided).map(|short| short * 30), "{name}");
            let (long, short) =
                (parse(&original.expr).expect("a query"), parse(&divided.expr).expect("a query"));
            let lengthened: Vec<_> = ranges(&short).iter().map(|range| range * 30).collect();
            assert_eq!(ranges(&long), lengthened, "{name}");
            ranges_seen += lengthened.len();
            let without_times = |expr: &str| -> (Vec<String>, String) {
                let words = expr.split(|letter: char| !letter.is_alphanumeric());
                let words = words.filter(|word| rules::milliseconds(word).is_none());
                let signs = expr.chars().filter(|letter| !letter.is_alphanumeric());
                (words.map(ToOwned::to_owned).collect(), signs.collect())
            };
            assert_eq!(without_times(&original.expr), without_times(&divided.expr), "{name}");
        }
    }
    assert!(ranges_seen > 20, "only {ranges_seen} times were seen");
}

#[test]
fn rules_that_are_held_shorter_differ_in_nothing_but_the_long_waits() {
    let longest = Duration::from_secs(20);
    let mut shortened = 0;
    for path in rules::files() {
        let divided = rules::divided(&fs::read_to_string(&path).expect("readable"), 30);
        let held = rules::held_at_most(&divided, longest);
        for (before, after) in rules::read("", &divided).iter().zip(&rules::read("", &held)) {
            let hold = |rule: &Rule| rules::milliseconds(&rule.hold).map(Duration::from_millis);
            assert_eq!(hold(after), hold(before).map(|hold| hold.min(longest)), "{}", before.name());
            shortened += usize::from(hold(before) != hold(after));
            assert_eq!(
                (&before.expr, &before.labels, &before.annotations),
                (&after.expr, &after.labels, &after.annotations)
            );
        }
    }
    assert!(shortened > 5, "only {shortened} wait for long");
}
