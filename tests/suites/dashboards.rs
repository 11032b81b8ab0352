//! The dashboards, held to Grafana's own model and linter, to METRICS.md, and to a real Prometheus in which every panel
//! and every rule has an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use promql_parser::parser::parse;
use serde_json::{Value, json};

use crate::support::dashboards::{self, Dashboard, list, text};
use crate::support::promql::{Catalogue, selectors};
use crate::support::rules::{self, root};
use crate::support::tools;

mod answers;
mod backfill;
mod lint;

/// The version of the model that the dashboards are held to.
const SDK: &str = "grafana-foundation-sdk==0.0.21";

/// Metrics that stand on no dashboard and in no rule, and why.
const UNUSED: &[(&str, &str)] = &[];

/// Everything a query may name: the program's metrics and the recordings.
fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::of_metrics_md(include_str!("../../METRICS.md"));
    let rules = rules::all();
    for _ in 0..2 {
        for rule in rules.iter().filter(|rule| !rule.record.is_empty()) {
            catalogue.add_recording(&rule.record, &parse(&rule.expr).expect("a query"));
        }
    }
    catalogue
}

#[test]
fn the_linter_has_nothing_to_say() {
    let catalogue = catalogue();
    for board in dashboards::all() {
        assert_eq!(lint::findings(&board, &catalogue), []);
    }
}

/// What each rule of the linter must catch: where in the dashboard, and what is written there.
fn planted() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("template-datasource-rule", "/templating/list/0/name", json!("source")),
        ("template-job-rule", "/templating/list/1/multi", json!(false)),
        ("template-instance-rule", "/templating/list/2/allValue", json!(".*")),
        (
            "template-label-promql-rule",
            "/templating/list/1/query",
            json!("label_values(t3_prober_build_info, color)"),
        ),
        ("template-on-time-change-reload-rule", "/templating/list/1/refresh", json!(1)),
        ("panel-datasource-rule", "/panels/0/datasource/uid", json!("prometheus")),
        ("panel-title-description-rule", "/panels/0/description", json!("")),
        ("panel-units-rule", "/panels/0/fieldConfig/defaults/unit", json!("")),
        ("panel-units-rule", "/panels/0/fieldConfig/defaults/unit", json!("secnds")),
        (
            "panel-units-rule",
            "/panels/0/fieldConfig/overrides",
            json!([{ "properties": [{ "id": "unit", "value": "secnds" }] }]),
        ),
        ("panel-no-targets-rule", "/panels/0/targets", json!([])),
        ("target-logql-rule", "/panels/0/datasource/type", json!("loki")),
        ("target-logql-auto-rule", "/panels/0/targets/0/expr", json!("count_over_time(x[$__auto])")),
        ("target-promql-rule", "/panels/0/targets/0/expr", json!("sum(")),
        (
            "target-rate-interval-rule",
            "/panels/0/targets/0/expr",
            json!("sum(rate(t3_probe_runs_total{job=~\"$job\", instance=~\"$instance\"}[5m]))"),
        ),
        ("target-job-rule", "/panels/0/targets/0/expr", json!("t3_user_paused{instance=~\"$instance\"}")),
        ("target-instance-rule", "/panels/0/targets/0/expr", json!("t3_user_paused{job=~\"$job\"}")),
        (
            "target-counter-agg-rule",
            "/panels/0/targets/0/expr",
            json!("rate(t3_probe_runs_total{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval])"),
        ),
        ("uneditable-dashboard-rule", "/editable", json!(true)),
    ]
}

#[test]
fn each_rule_of_the_linter_catches_what_is_planted_for_it() {
    let catalogue = catalogue();
    let planted = planted();
    for (rule, place, value) in &planted {
        let mut board =
            dashboards::all().into_iter().find(|board| board.file == "overview.json").expect("a board");
        *board.json.pointer_mut(place).unwrap_or_else(|| panic!("nothing at {place}")) = value.clone();
        let found: BTreeSet<_> =
            lint::findings(&board, &catalogue).into_iter().map(|(rule, _)| rule).collect();
        assert!(found.contains(rule), "{rule} does not see {value} at {place}; found {found:?}");
    }
    let tried: BTreeSet<_> = planted.iter().map(|(rule, ..)| *rule).collect();
    assert_eq!(tried, lint::CHECKS.iter().map(|(rule, _)| *rule).collect());
    assert_eq!(tried.len(), 17);
}

#[test]
fn nothing_refers_to_a_metric_that_does_not_exist_and_every_metric_is_of_use() {
    let catalogue = catalogue();
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    let asked = dashboards::all()
        .into_iter()
        .flat_map(|board| board.queries())
        .map(|query| (query.place.clone(), query.filled_in()));
    let ruled = rules::all().into_iter().map(|rule| (rule.place(), rule.expr));
    let noted = dashboards::all().into_iter().flat_map(|board| board.annotations());
    let noted = noted.map(|query| (query.place.clone(), query.filled_in()));
    for (place, expr) in asked.chain(ruled).chain(noted) {
        for selector in selectors(&parse(&expr).unwrap_or_else(|error| panic!("{place}: {error}"))) {
            used.insert(selector.name.clone().unwrap_or_default(), place.clone());
        }
    }
    let unknown: Vec<_> = used.iter().filter(|(name, _)| !catalogue.0.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "no such metric: {unknown:?}");
    let unused: Vec<_> = catalogue
        .0
        .keys()
        .filter(|name| !used.contains_key(*name) && !UNUSED.iter().any(|(listed, _)| listed == name))
        .collect();
    assert!(unused.is_empty(), "on no dashboard, in no rule, and no reason given: {unused:?}");
    for (listed, reason) in UNUSED {
        assert!(
            catalogue.0.contains_key(*listed) && !used.contains_key(*listed),
            "{listed} ({reason}) is out of date"
        );
    }
}

/// What is marked from one step to the next must be seen by one of them, also where a scrape was missed.
fn looks_back_too_little(mark: &Value) -> Option<String> {
    let step = rules::milliseconds(text(&mark["step"]))?;
    let expr = text(&mark["expr"]);
    let words = expr.split(|letter: char| !letter.is_ascii_alphanumeric());
    let back: Vec<u64> = words.filter_map(rules::milliseconds).collect();
    let seconds = expr.rsplit_once("< ").and_then(|(_, seconds)| seconds.parse::<u64>().ok());
    let shortest = back.into_iter().chain(seconds.map(|seconds| seconds * 1000)).min().unwrap_or(0);
    (shortest < 2 * step).then(|| format!("{expr} looks back {shortest} ms and is asked every {step} ms"))
}

#[test]
fn annotations_look_back_over_two_of_their_steps() {
    let boards = dashboards::all();
    let marks: Vec<&Value> =
        boards.iter().flat_map(|board| list(&board.json["annotations"]["list"])).collect();
    let asked: Vec<_> = marks.iter().filter(|mark| !text(&mark["expr"]).is_empty()).collect();
    assert!(asked.len() >= 2, "verdicts and upgrades are marked");
    for mark in asked {
        assert!(rules::milliseconds(text(&mark["step"])).is_some(), "{mark}");
        assert_eq!(looks_back_too_little(mark), None);
    }
    for expr in ["changes(up[1m]) > 0", "time() - up < 60", "up unless up offset 1m"] {
        assert!(looks_back_too_little(&json!({ "step": "60s", "expr": expr })).is_some(), "{expr}");
    }
}

/// The page of the program that a link leads to as the dashboard opens, where nobody has chosen anything yet; what is
/// wrong where it leads nowhere.
fn program_page(board: &Dashboard, panel: Option<&Value>, url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} leads nowhere"))?;
    let (host, page) = rest.split_once('/').ok_or_else(|| format!("{url} names no page"))?;
    let variable = |name: &str| board.variables().iter().find(|variable| variable["name"] == name);
    match (host.strip_prefix("${").and_then(|host| host.strip_suffix(":raw}")), panel) {
        // All of them, or two, are no host.
        (Some(name), _) => match variable(name) {
            Some(one) if one["multi"] == false && one["includeAll"] == false => {}
            _ => return Err(format!("{url}: {name} need not be one host")),
        },
        (None, Some(panel)) if host == "${__data.fields.instance}" => {
            let changes = list(&panel["transformations"]).iter();
            let hidden = changes.clone().any(|change| change["options"]["excludeByName"]["instance"] == true);
            let renamed =
                changes.clone().any(|change| !change["options"]["renameByName"]["instance"].is_null());
            if panel["type"] != "table" || hidden || renamed {
                return Err(format!("{url}: there is no field instance"));
            }
        }
        _ => return Err(format!("{url}: {host} is no host")),
    }
    let page = page.replace("${__value.raw}", "ann");
    if page.contains("${") {
        return Err(format!("{url} asks for what may be everybody"));
    }
    Ok(format!("/{page}"))
}

/// Every link of a dashboard, and the panel it stands in.
fn links(board: &Dashboard) -> Vec<(Option<&Value>, &str)> {
    let own = list(&board.json["links"]).iter().map(|link| (None, text(&link["url"])));
    let mut all: Vec<_> = own.collect();
    for panel in board.panels() {
        let fields = list(&panel["fieldConfig"]["overrides"]).iter();
        let properties = fields.flat_map(|field| list(&field["properties"]));
        let links = properties.flat_map(|property| list(&property["value"]));
        all.extend(links.map(|link| (Some(panel), text(&link["url"]))));
    }
    all
}

#[test]
fn a_link_to_the_program_is_one_host_from_the_start() {
    let board = dashboards::all().into_iter().find(|board| board.file == "user.json").expect("a board");
    let mut table = board.panels().find(|panel| panel["type"] == "table").expect("a table").clone();
    let row = "http://${__data.fields.instance}/history?user=${__value.raw}";
    assert_eq!(program_page(&board, Some(&table), row).as_deref(), Ok("/history?user=ann"));
    assert_eq!(program_page(&board, None, "http://${prober:raw}/").as_deref(), Ok("/"));
    for url in [
        "http://${instance:raw}/",
        "http://${prober}/",
        "http://${none:raw}/",
        "http://${prober:raw}/history?user=${user:raw}",
        row,
        "/history",
    ] {
        assert!(program_page(&board, None, url).is_err(), "{url}");
    }
    table["transformations"][0]["options"]["excludeByName"]["instance"] = json!(true);
    assert!(program_page(&board, Some(&table), row).is_err());
}

#[test]
fn dashboards_link_to_each_other_and_to_pages_that_the_program_has() {
    let boards = dashboards::all();
    let world = crate::support::world::World::empty();
    let serving = world.serve();
    let mut pages = 0;
    for board in &boards {
        for (panel, url) in links(board) {
            if let Some(uid) = url.strip_prefix("/d/") {
                let uid = uid.split('?').next().unwrap_or_default();
                assert!(
                    boards.iter().any(|other| other.json["uid"] == uid),
                    "{}: no dashboard {uid}",
                    board.file
                );
            } else if !url.is_empty() {
                let page = program_page(board, panel, url);
                let page = page.unwrap_or_else(|wrong| panic!("{}: {wrong}", board.file));
                assert_eq!(serving.page(&page).status, 200, "{}: {url}", board.file);
                pages += 1;
            }
        }
    }
    assert!(pages > 3, "only {pages} links to the program's pages were found");
    let linked = |board: &Dashboard| !list(&board.json["links"]).is_empty();
    assert!(boards.iter().all(linked), "a dashboard is a dead end");
}

#[test]
fn every_picture_is_shown_and_every_one_that_is_shown_is_there() {
    let folder = fs::read_dir(root().join("dashboards/pictures")).expect("a folder");
    let there: BTreeSet<String> =
        folder.filter_map(Result::ok).map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    let readme = fs::read_to_string(root().join("README.md")).expect("readable");
    // In Markdown, or as an image with a width.
    let shown = |before: &str, end: char| -> Vec<String> {
        let before = format!("{before}dashboards/pictures/");
        let found = readme.split(&before).skip(1);
        found.filter_map(|rest| Some(rest.split_once(end)?.0.to_owned())).collect()
    };
    let shown: BTreeSet<String> = shown("](", ')').into_iter().chain(shown("<img src=\"", '"')).collect();
    assert_eq!(shown, there);
    assert!(there.len() >= 4, "status page and candidate, phone, light and dark");
}

#[test]
fn grafana_knows_every_key() {
    if tools::find("python3").is_none() {
        return;
    }
    let venv = root().join("target/dashboards-venv");
    let python = venv.join("bin/python");
    let run = |command: &mut Command| {
        let output = command.current_dir(root()).output().expect("a program");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), said)
    };
    if !python.exists() || !run(Command::new(&python).args(["-c", "import grafana_foundation_sdk"])).0 {
        // A half-made one would fail for ever.
        let _ = fs::remove_dir_all(&venv);
        let (made, said) = run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        assert!(made, "{said}");
        let (made, said) = run(Command::new(&python).args(["-m", "pip", "install", "--quiet", SDK]));
        assert!(made, "{said}");
    }
    let files = rules::listed("dashboards", "json");
    let (whole, lost) = run(Command::new(&python).arg("tests/dashboard_keys.py").args(&files));
    assert!(whole, "Grafana has no such keys: {lost}");

    // The proof sees what it must: a key that Grafana does not have.
    let mut board = dashboards::all().remove(0).json;
    board["panels"][0]["tittle"] = json!("a slip");
    let planted = tempfile::NamedTempFile::new().expect("a file");
    fs::write(planted.path(), board.to_string()).expect("written");
    let (whole, lost) = run(Command::new(&python).arg("tests/dashboard_keys.py").arg(planted.path()));
    assert!(!whole && lost.contains(".panels[0].tittle"), "{lost}");
}
