//! The seventeen rules of Grafana's own dashboard linter, each a small function that says what is wrong. None has an
//! exception.

use promql_parser::parser::{Expr, parse};
use serde_json::Value;

use crate::support::dashboards::{Dashboard, list, text};
use crate::support::promql::{Catalogue, nodes, selectors};

type Check = fn(&Dashboard, &Catalogue) -> Vec<String>;

pub const CHECKS: &[(&str, Check)] = &[
    ("template-datasource-rule", template_datasource),
    ("template-job-rule", |board, _| template_variable(board, "job", "Job")),
    ("template-instance-rule", |board, _| template_variable(board, "instance", "Instance")),
    ("template-label-promql-rule", template_label_promql),
    ("template-on-time-change-reload-rule", template_on_time_change_reload),
    ("panel-datasource-rule", panel_datasource),
    ("panel-title-description-rule", panel_title_description),
    ("panel-units-rule", panel_units),
    ("panel-no-targets-rule", panel_no_targets),
    ("target-logql-rule", target_logql),
    ("target-logql-auto-rule", target_logql_auto),
    ("target-promql-rule", target_promql),
    ("target-rate-interval-rule", target_rate_interval),
    ("target-job-rule", |board, _| target_matcher(board, "job")),
    ("target-instance-rule", |board, _| target_matcher(board, "instance")),
    ("target-counter-agg-rule", target_counter_agg),
    ("uneditable-dashboard-rule", uneditable),
];

/// Everything that is wrong with a dashboard: the rule's name and a sentence.
pub fn findings(board: &Dashboard, catalogue: &Catalogue) -> Vec<(&'static str, String)> {
    let run = |(name, check): &(&'static str, Check)| -> Vec<(&'static str, String)> {
        check(board, catalogue).into_iter().map(|what| (*name, format!("{}: {what}", board.file))).collect()
    };
    CHECKS.iter().flat_map(run).collect()
}

fn variable<'a>(board: &'a Dashboard, name: &str) -> Option<&'a Value> {
    board.variables().iter().find(|variable| variable["name"] == name)
}

/// A query with what Grafana puts into it.
fn query(expr: &str) -> Result<Expr, String> {
    let variables = ["$job", "$instance", "$user"];
    let filled = variables.iter().fold(expr.to_owned(), |expr, variable| expr.replace(variable, "x.+"));
    parse(&filled.replace("$__rate_interval", "1m"))
}

/// Every query of every panel that parses.
fn parsed(board: &Dashboard) -> Vec<(String, Expr)> {
    let queries = board.queries();
    queries.into_iter().filter_map(|asked| Some((asked.place, query(&asked.expr).ok()?))).collect()
}

fn template_datasource(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    let sources: Vec<_> =
        board.variables().iter().filter(|variable| variable["type"] == "datasource").collect();
    match sources[..] {
        [source] if source["name"] != "datasource" => {
            vec!["the data source is not called datasource".to_owned()]
        }
        [source] if source["label"] != "Data source" => {
            vec!["the data source is not labelled Data source".to_owned()]
        }
        [source] if source["query"] != "prometheus" => vec!["the data source is no prometheus".to_owned()],
        [_] => Vec::new(),
        _ => vec!["there is not exactly one data source to choose".to_owned()],
    }
}

fn template_variable(board: &Dashboard, name: &str, label: &str) -> Vec<String> {
    let Some(variable) = variable(board, name) else { return vec![format!("there is no variable {name}")] };
    let source = text(&variable["datasource"]["uid"]);
    [
        (variable["type"] == "query", "is no query"),
        (["$datasource", "${datasource}"].contains(&source), "does not ask the chosen data source"),
        (variable["label"] == label, "is labelled otherwise than its name"),
        (variable["multi"] == true, "is not multi-value"),
        (variable["allValue"] == ".+", "takes something else than .+ for all"),
    ]
    .into_iter()
    .filter(|(holds, _)| !holds)
    .map(|(_, what)| format!("the variable {name} {what}"))
    .collect()
}

/// `label_values(series, label)`: the series must be a query, and the label one of its own.
fn template_label_promql(board: &Dashboard, catalogue: &Catalogue) -> Vec<String> {
    let mut wrong = Vec::new();
    for variable in board.variables().iter().filter(|variable| variable["type"] == "query") {
        let (name, asked) = (text(&variable["name"]), text(&variable["query"]));
        let inner = asked.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let Some((series, label)) = inner.and_then(|inner| inner.rsplit_once(", ")) else {
            wrong
                .push(format!("the variable {name} asks '{asked}', which is no label_values(series, label)"));
            continue;
        };
        match query(series) {
            Err(error) => wrong.push(format!("the variable {name}: {error}")),
            Ok(expr) if !catalogue.labels(&expr).contains(label) => {
                wrong.push(format!("the variable {name}: {series} has no label {label}"));
            }
            Ok(_) => {}
        }
    }
    wrong
}

/// 2: who was there at the time that is shown, not when the page was opened.
fn template_on_time_change_reload(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    let queries = board.variables().iter().filter(|variable| variable["type"] == "query");
    let stale = queries.filter(|variable| variable["refresh"] != 2);
    stale
        .map(|variable| format!("the variable {} is not renewed with the time", text(&variable["name"])))
        .collect()
}

fn of_panels(board: &Dashboard, what: &str, holds: impl Fn(&Value) -> bool) -> Vec<String> {
    let wrong = board.panels().filter(|panel| !holds(panel));
    wrong.map(|panel| format!("the panel '{}' {what}", text(&panel["title"]))).collect()
}

fn panel_datasource(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    of_panels(board, "does not ask the chosen data source", |panel| {
        let uses = |part: &Value| part["datasource"]["uid"] == "${datasource}";
        uses(panel) && list(&panel["targets"]).iter().all(uses)
    })
}

fn panel_title_description(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    of_panels(board, "lacks a title or a description", |panel| {
        !text(&panel["title"]).is_empty() && !text(&panel["description"]).is_empty()
    })
}

/// The units that our panels may use, as Grafana calls them; one that it does not know is shown behind the number as it is
/// written.
const UNITS: &[&str] = &[
    "bool_yes_no",
    "bytes",
    "dateTimeAsIso",
    "dateTimeFromNow",
    "ops",
    "percentunit",
    "reqps",
    "s",
    "short",
];

fn panel_units(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    of_panels(board, "has no unit, or one that Grafana does not know", |panel| {
        let fields = list(&panel["fieldConfig"]["overrides"]).iter();
        let mut of_fields = fields
            .flat_map(|field| list(&field["properties"]))
            .filter(|property| property["id"] == "unit")
            .map(|property| text(&property["value"]));
        let is_known = |unit: &str| UNITS.contains(&unit);
        is_known(text(&panel["fieldConfig"]["defaults"]["unit"])) && of_fields.all(is_known)
    })
}

fn panel_no_targets(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    of_panels(board, "asks nothing", |panel| !list(&panel["targets"]).is_empty())
}

/// We have no logs in Grafana: a query to Loki is a slip.
fn target_logql(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    of_panels(board, "asks Loki", |panel| {
        let asks_loki = |part: &Value| part["datasource"]["type"] == "loki";
        !asks_loki(panel) && !list(&panel["targets"]).iter().any(asks_loki)
    })
}

fn target_logql_auto(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    let of_logs = board.queries().into_iter().filter(|asked| asked.expr.contains("[$__auto]"));
    of_logs.map(|asked| format!("{}: $__auto is for LogQL", asked.place)).collect()
}

fn target_promql(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    let errors = |asked: crate::support::dashboards::Query| {
        query(&asked.expr).err().map(|error| format!("{}: {error}", asked.place))
    };
    board.queries().into_iter().filter_map(errors).collect()
}

/// A fixed range is too short for a week and too long for an hour.
fn target_rate_interval(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    let mut wrong = Vec::new();
    for asked in board.queries() {
        for rate in ["rate(", "increase("] {
            let calls = asked.expr.split(rate).skip(1);
            let ranges = calls.filter_map(|call| Some(call.split_once('[')?.1.split_once(']')?.0));
            for range in ranges.filter(|range| *range != "$__rate_interval") {
                wrong.push(format!("{}: a rate over {range}", asked.place));
            }
        }
    }
    wrong
}

fn target_matcher(board: &Dashboard, label: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (place, expr) in parsed(board) {
        for selector in selectors(&expr) {
            let matches = selector.matchers.matchers.iter().any(|matcher| {
                // What `query` put in the place of the variable.
                matcher.name == label && matcher.op.to_string() == "=~" && matcher.value == "x.+"
            });
            if !matches {
                wrong.push(format!("{place}: {selector} does not match {label}=~\"${label}\""));
            }
        }
    }
    wrong
}

/// A counter is only of use as a rate, and a rate only summed up: instances come and go.
fn target_counter_agg(board: &Dashboard, catalogue: &Catalogue) -> Vec<String> {
    let mut wrong = Vec::new();
    for (place, expr) in parsed(board) {
        let aggregated: Vec<&Expr> = nodes(&expr)
            .into_iter()
            .filter_map(|node| match node {
                Expr::Aggregate(aggregate) => Some(nodes(&aggregate.expr)),
                _ => None,
            })
            .flatten()
            .collect();
        for selector in selectors(&expr) {
            let is_counter = catalogue.metric(selector).is_some_and(|metric| metric.kind == "counter");
            let is_summed = aggregated.iter().any(|node| match node {
                Expr::MatrixSelector(matrix) => matrix.vs == *selector,
                _ => false,
            });
            if is_counter && !is_summed {
                wrong.push(format!("{place}: {selector} is a counter and no summed rate"));
            }
        }
    }
    wrong
}

fn uneditable(board: &Dashboard, _: &Catalogue) -> Vec<String> {
    (board.json["editable"] != false)
        .then(|| "is editable: changes would be lost".to_owned())
        .into_iter()
        .collect()
}
