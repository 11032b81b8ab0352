//! The rules about rules: fourteen of pint's, each a small function that says what is wrong, and two of our own (every
//! metric exists, every range is long enough for what it looks at). None has an exception.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use promql_parser::parser::{BinaryExpr, Expr, LabelModifier, VectorSelector, parse};

use crate::support::promql::{Catalogue, Labels, is_scalar, nodes, selectors};
use crate::support::rules::{Rule, milliseconds, root};

/// What Prometheus does where nobody says otherwise; ours (deploy/prometheus/prometheus.yml) is asked more often.
pub const SCRAPE_INTERVAL: u64 = 15_000;
/// Less than four samples, and one missed scrape leaves a hole.
pub const SHORTEST_RANGE: u64 = 4 * SCRAPE_INTERVAL;
/// What asks how something has moved.
const MOVEMENTS: [&str; 7] = ["rate", "increase", "irate", "changes", "delta", "idelta", "deriv"];
/// What moves regularly, by the beginning of its name, and how often in seconds, as configured by default; the first
/// that fits. What else there is are events, which come when they come.
const MOVED: &[(&str, Option<&str>, u64)] = &[
    ("t3_probe_", Some("pulse"), 5),
    ("t3_probe_", Some("state"), 60),
    ("t3_probe_", Some("front"), 60),
    // The handshake's, and what does not say whose it is.
    ("t3_probe_", None, 600),
    ("t3_auth_", None, 60),
    ("t3_history_", None, 60),
    ("t3_state_", None, 60),
    ("t3_schema_", None, 60),
    ("t3_instance_", None, 300),
    ("t3_prober_cli_", None, 600),
];
const RATES: [&str; 3] = ["rate", "increase", "irate"];
const SEVERITIES: [&str; 3] = ["page", "ticket", "info"];
/// What an aggregation must keep, or hosts run together.
const KEPT: [&str; 2] = ["job", "instance"];

/// What a check looks at: one rule, parsed, and everything there is to know beside it.
pub struct Look<'a> {
    rule: &'a Rule,
    expr: &'a Expr,
    catalogue: &'a Catalogue,
    all: &'a [Rule],
}

type Check = fn(&Look<'_>) -> Vec<String>;

pub const CHECKS: &[(&str, Check)] = &[
    ("alerts/absent", absent),
    ("alerts/annotation", annotation),
    ("alerts/comparison", comparison),
    ("alerts/for", hold),
    ("alerts/template", template),
    ("promql/aggregate", aggregate),
    ("promql/counter", counter),
    ("promql/impossible", impossible),
    ("promql/rate", rate),
    ("promql/regexp", regexp),
    ("promql/series", series),
    ("promql/vector_matching", vector_matching),
    ("promql/window", window),
    ("rule/duplicate", duplicate),
    ("rule/link", link),
    ("rule/name", name),
];

/// Everything that is wrong with these rules: the check's name and a sentence.
pub fn findings(rules: &[Rule], catalogue: &Catalogue) -> Vec<(&'static str, String)> {
    let parsed: Vec<Expr> = rules
        .iter()
        .map(|rule| parse(&rule.expr).unwrap_or_else(|error| panic!("{}: {error}", rule.place())))
        .collect();
    let mut catalogue = catalogue.clone();
    // Twice: a recording may stand before or behind the one it reads.
    for _ in 0..2 {
        for (rule, expr) in rules.iter().zip(&parsed).filter(|(rule, _)| !rule.record.is_empty()) {
            catalogue.add_recording(&rule.record, expr);
        }
    }
    let mut found = Vec::new();
    for (rule, expr) in rules.iter().zip(&parsed) {
        let look = Look { rule, expr, catalogue: &catalogue, all: rules };
        for (check, run) in CHECKS {
            found.extend(run(&look).into_iter().map(|what| (*check, format!("{}: {what}", rule.place()))));
        }
    }
    found
}

/// `absent()` is true while Prometheus starts and after every missed scrape.
fn absent(look: &Look<'_>) -> Vec<String> {
    let asks =
        nodes(look.expr).iter().any(|node| matches!(node, Expr::Call(call) if call.func.name == "absent"));
    let held = milliseconds(&look.rule.hold).unwrap_or(0);
    let too_short = look.rule.is_alert() && asks && held < 2 * SCRAPE_INTERVAL;
    too_short.then(|| "absent() needs a `for` of two scrapes or more".to_owned()).into_iter().collect()
}

fn annotation(look: &Look<'_>) -> Vec<String> {
    if !look.rule.is_alert() {
        return Vec::new();
    }
    let text = |key: &str| look.rule.annotations.get(key).map(String::as_str).unwrap_or_default();
    let mut wrong = Vec::new();
    for key in ["summary", "description", "runbook_url", "dashboard"] {
        if text(key).is_empty() {
            wrong.push(format!("no {key}"));
        }
    }
    if !text("description").contains(". Next: ")
        && !text("description").contains("; Next: ")
        && !text("description").contains("}}Next: ")
    {
        wrong.push("the description does not end with the next command".to_owned());
    }
    let labels = look.catalogue.labels(look.expr);
    for label in ["user", "step", "reason", "finding"] {
        if labels.contains(label) && !text("description").contains(&format!("$labels.{label} }}}}")) {
            wrong.push(format!("the description does not name the {label}"));
        }
    }
    let severity = look.rule.labels.get("severity").map(String::as_str).unwrap_or_default();
    if !SEVERITIES.contains(&severity) {
        wrong.push(format!("severity '{severity}' is none of {SEVERITIES:?}"));
    }
    wrong
}

/// Without a comparison an alert fires as long as there is data.
fn comparison(look: &Look<'_>) -> Vec<String> {
    fn decides(expr: &Expr) -> bool {
        match expr {
            Expr::Paren(paren) => decides(&paren.expr),
            Expr::Call(call) => {
                call.func.name == "absent" || call.args.args.iter().any(|argument| decides(argument))
            }
            Expr::Aggregate(aggregate) => decides(&aggregate.expr),
            Expr::Binary(binary) if binary.op.is_comparison_operator() => !binary.return_bool(),
            Expr::Binary(binary) if binary.op.to_string() == "or" => {
                decides(&binary.lhs) && decides(&binary.rhs)
            }
            Expr::Binary(binary) if binary.op.to_string() == "unless" => decides(&binary.lhs),
            Expr::Binary(binary) => decides(&binary.lhs) || decides(&binary.rhs),
            _ => false,
        }
    }
    let fires_always = look.rule.is_alert() && !decides(look.expr);
    fires_always.then(|| "nothing is compared, so it always fires".to_owned()).into_iter().collect()
}

fn hold(look: &Look<'_>) -> Vec<String> {
    let hold = &look.rule.hold;
    match milliseconds(hold) {
        _ if hold.is_empty() => Vec::new(),
        None => vec![format!("'{hold}' is no duration")],
        Some(0) => vec!["a `for` of nothing is better left out".to_owned()],
        Some(_) => Vec::new(),
    }
}

/// A label that the query drops is empty in the text.
fn template(look: &Look<'_>) -> Vec<String> {
    let mut known: Labels = look.catalogue.labels(look.expr);
    known.extend(look.rule.labels.keys().cloned());
    let texts = look.rule.annotations.values().chain(look.rule.labels.values());
    let used: BTreeSet<String> = texts.flat_map(|text| labels_used(text)).collect();
    used.difference(&known)
        .map(|label| format!("its text uses the label {label}, which the query does not have"))
        .collect()
}

fn labels_used(text: &str) -> Vec<String> {
    let after = text.split("$labels.").skip(1);
    after
        .map(|rest| rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect())
        .collect()
}

fn aggregate(look: &Look<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for node in nodes(look.expr) {
        let Expr::Aggregate(aggregate) = node else { continue };
        let (inner, outer) = (look.catalogue.labels(&aggregate.expr), look.catalogue.labels(node));
        for label in KEPT {
            if inner.contains(label) && !outer.contains(label) {
                wrong.push(format!("{} drops {label}", aggregate.op));
            }
        }
    }
    wrong
}

/// A counter's value says when the program started; what it means is how it grows.
fn counter(look: &Look<'_>) -> Vec<String> {
    let all = nodes(look.expr);
    let bare = all.iter().filter_map(|node| match node {
        Expr::VectorSelector(selector) => look
            .catalogue
            .metric(selector)
            .filter(|metric| metric.kind == "counter")
            .and(selector.name.clone()),
        _ => None,
    });
    bare.map(|name| format!("{name} is a counter and is used without rate() or increase()")).collect()
}

/// What can never have an answer.
fn impossible(look: &Look<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for selector in selectors(look.expr) {
        let (Some(name), Some(metric)) = (&selector.name, look.catalogue.metric(selector)) else { continue };
        for matcher in &selector.matchers.matchers {
            let Some(words) = metric.words.get(&matcher.name) else {
                if !metric.labels.contains(&matcher.name) {
                    wrong.push(format!("{name} has no label {}", matcher.name));
                }
                continue;
            };
            if !words.iter().any(|word| matcher.is_match(word)) {
                wrong.push(format!("no {name} has {matcher}"));
            }
            // One that excludes nothing, or names a word that there is not, is a slip of the pen.
            let named = matcher
                .value
                .split('|')
                .filter(|value| value.chars().all(|letter| letter.is_alphanumeric() || letter == '_'));
            for value in named.filter(|value| !value.is_empty() && !words.contains(*value)) {
                wrong.push(format!("{name} never has {} {value}", matcher.name));
            }
        }
    }
    let constant = |expr: &Expr| match expr {
        Expr::NumberLiteral(number) => Some(number.val),
        Expr::Call(call) if call.func.name == "vector" => match &*call.args.args[0] {
            Expr::NumberLiteral(number) => Some(number.val),
            _ => None,
        },
        _ => None,
    };
    for node in nodes(look.expr) {
        let Expr::Binary(binary) = node else { continue };
        let (Some(left), Some(right)) = (constant(&binary.lhs), constant(&binary.rhs)) else { continue };
        let holds = match binary.op.to_string().as_str() {
            "==" => left == right,
            "!=" => left != right,
            ">" => left > right,
            ">=" => left >= right,
            "<" => left < right,
            "<=" => left <= right,
            _ => true,
        };
        if !holds {
            wrong.push(format!("{node} is never true"));
        }
    }
    wrong
}

fn rate(look: &Look<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for node in nodes(look.expr) {
        let Expr::Call(call) = node else { continue };
        if !RATES.contains(&call.func.name) {
            continue;
        }
        let Expr::MatrixSelector(matrix) = &*call.args.args[0] else { continue };
        if look.catalogue.metric(&matrix.vs).is_some_and(|metric| metric.kind != "counter") {
            wrong.push(format!("{} of {}, which is no counter", call.func.name, matrix.vs));
        }
    }
    wrong
}

/// A range that holds less than four scrapes, or not two of what moves the series, sees nothing between two samples.
fn window(look: &Look<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for node in nodes(look.expr) {
        let Expr::Call(call) = node else { continue };
        let ranges = call.args.args.iter().filter_map(|argument| match &**argument {
            Expr::MatrixSelector(matrix) => Some(matrix),
            _ => None,
        });
        for matrix in ranges {
            let (asks, range) = (call.func.name, matrix.range);
            if range.as_millis() < u128::from(SHORTEST_RANGE) {
                wrong.push(format!("{asks} over {range:?} is shorter than four scrapes"));
            }
            let every = moved_every(&matrix.vs);
            if MOVEMENTS.contains(&asks) && range < 2 * every {
                wrong.push(format!("{asks} over {range:?}, but {} moves every {every:?}", matrix.vs));
            }
        }
    }
    // The texts ask questions of their own.
    for text in look.rule.annotations.values() {
        let ranges = text.split('[').skip(1).filter_map(|rest| Some(rest.split_once(']')?.0));
        let short = ranges.filter(|range| milliseconds(range).is_some_and(|range| range < SHORTEST_RANGE));
        wrong.extend(short.map(|range| format!("its text asks over {range}, shorter than four scrapes")));
    }
    wrong
}

fn moved_every(selector: &VectorSelector) -> Duration {
    let name = selector.name.as_deref().unwrap_or_default();
    let kind = selector.matchers.matchers.iter().find(|matcher| matcher.name == "kind");
    let is_of = |of: Option<&str>| {
        of.is_none_or(|of| kind.is_some_and(|kind| kind.op.to_string() == "=" && kind.value == of))
    };
    let known = MOVED.iter().find(|(begins, of, _)| name.starts_with(begins) && is_of(*of));
    Duration::from_secs(known.map_or(0, |(_, _, seconds)| *seconds))
}

fn regexp(look: &Look<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for selector in selectors(look.expr) {
        for matcher in &selector.matchers.matchers {
            let is_pattern = matcher.op.to_string().ends_with('~');
            if is_pattern && !matcher.value.contains(|letter| ".+*?()[]{}|\\".contains(letter)) {
                wrong.push(format!("{matcher} is no pattern; use = or !="));
            }
            if is_pattern && (matcher.value.starts_with('^') || matcher.value.ends_with('$')) {
                wrong.push(format!("{matcher} is anchored anyway"));
            }
        }
    }
    wrong
}

/// Nothing refers to a metric that does not exist.
fn series(look: &Look<'_>) -> Vec<String> {
    let unknown =
        selectors(look.expr).into_iter().filter(|selector| look.catalogue.metric(selector).is_none());
    unknown
        .map(|selector| {
            format!("there is no metric {}", selector.name.as_deref().unwrap_or("without a name"))
        })
        .collect()
}

/// Sides whose labels differ never meet.
fn vector_matching(look: &Look<'_>) -> Vec<String> {
    let binaries = nodes(look.expr).into_iter().filter_map(|node| match node {
        Expr::Binary(binary) if !is_scalar(&binary.lhs) && !is_scalar(&binary.rhs) => Some(binary),
        _ => None,
    });
    binaries.flat_map(|binary| mismatch(binary, look.catalogue)).collect()
}

fn mismatch(binary: &BinaryExpr, catalogue: &Catalogue) -> Vec<String> {
    let (left, right) = (catalogue.labels(&binary.lhs), catalogue.labels(&binary.rhs));
    let matching = binary.modifier.as_ref().and_then(|modifier| modifier.matching.as_ref());
    match matching {
        Some(LabelModifier::Include(on)) => {
            let missing = |side: &Labels, name: &str| -> Vec<String> {
                let absent = on.labels.iter().filter(|label| !side.contains(*label));
                absent
                    .map(|label| format!("{} matches on {label}, which its {name} side lacks", binary.op))
                    .collect()
            };
            let mut wrong = missing(&left, "left");
            wrong.extend(missing(&right, "right"));
            wrong
        }
        Some(LabelModifier::Exclude(ignored)) => {
            let of = |side: &Labels| -> Labels {
                side.iter().filter(|label| !ignored.labels.contains(label)).cloned().collect()
            };
            (of(&left) != of(&right))
                .then(|| format!("the sides of {} differ in their labels", binary.op))
                .into_iter()
                .collect()
        }
        // Two sides of `or` may differ: both are wanted.
        None if left != right && binary.op.to_string() != "or" => {
            vec![format!("the sides of {} differ in their labels: {left:?} and {right:?}", binary.op)]
        }
        None => Vec::new(),
    }
}

fn duplicate(look: &Look<'_>) -> Vec<String> {
    let same = |other: &&Rule| {
        other.name() == look.rule.name() && other.labels == look.rule.labels
            || !other.record.is_empty() && !look.rule.record.is_empty() && other.expr == look.rule.expr
    };
    let count = look.all.iter().filter(same).count();
    (count > 1).then(|| "is there twice".to_owned()).into_iter().collect()
}

/// What the texts link to is there.
fn link(look: &Look<'_>) -> Vec<String> {
    if !look.rule.is_alert() {
        return Vec::new();
    }
    let text = |key: &str| look.rule.annotations.get(key).map(String::as_str).unwrap_or_default();
    let mut wrong = Vec::new();
    let runbook = text("runbook_url").strip_prefix("{{ $externalLabels.runbooks }}/").unwrap_or_default();
    if runbook != format!("{}.md", look.rule.alert) || !root().join("alerts/runbooks").join(runbook).is_file()
    {
        wrong.push(format!("runbook_url leads to '{runbook}', not to a runbook of this alert"));
    }
    let board = text("dashboard").strip_prefix("{{ $externalLabels.grafana }}/d/").unwrap_or_default();
    let uid = board.split('?').next().unwrap_or_default();
    if !has_dashboard(&root().join("dashboards"), uid) {
        wrong.push(format!("there is no dashboard '{uid}'"));
    }
    wrong
}

fn has_dashboard(directory: &Path, uid: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|board| board["uid"] == uid)
    })
}

fn name(look: &Look<'_>) -> Vec<String> {
    let rule = look.rule;
    let is_word = |part: &str, extra: fn(char) -> bool| !part.is_empty() && part.chars().all(extra);
    let good = if rule.is_alert() {
        rule.alert.starts_with("T3") && is_word(&rule.alert, |letter| letter.is_ascii_alphanumeric())
    } else {
        let parts: Vec<_> = rule.record.split(':').collect();
        let lower = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        parts.len() == 3 && parts.iter().all(|part| is_word(part, lower))
    };
    (!good)
        .then(|| "is no name: T3CamelCase for alerts, level:metric:operation for recordings".to_owned())
        .into_iter()
        .collect()
}
