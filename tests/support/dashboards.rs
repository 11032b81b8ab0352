//! The dashboards as they are given to an operator, and the queries in them.

use std::fs;

use serde_json::Value;

use super::rules::listed;

/// A dashboard and the name of its file.
pub struct Dashboard {
    pub file: String,
    pub json: Value,
}

/// One query of one panel.
pub struct Query {
    /// Dashboard and panel, for people.
    pub place: String,
    pub expr: String,
}

pub fn all() -> Vec<Dashboard> {
    listed("dashboards", "json")
        .iter()
        .map(|path| {
            let file = path.file_name().expect("a name").to_string_lossy().into_owned();
            let json = serde_json::from_str(&fs::read_to_string(path).expect("readable"));
            Dashboard { json: json.unwrap_or_else(|error| panic!("{file}: {error}")), file }
        })
        .collect()
}

impl Dashboard {
    pub fn panels(&self) -> impl Iterator<Item = &Value> {
        list(&self.json["panels"]).iter().filter(|panel| panel["type"] != "row")
    }

    pub fn variables(&self) -> &[Value] {
        list(&self.json["templating"]["list"])
    }

    pub fn queries(&self) -> Vec<Query> {
        let of_panel = |panel: &Value| -> Vec<Query> {
            let place =
                format!("{}: {}", self.file, panel["title"].as_str().unwrap_or("a panel without a title"));
            let targets = list(&panel["targets"]).iter();
            targets
                .map(|target| Query { place: place.clone(), expr: text(&target["expr"]).to_owned() })
                .collect()
        };
        self.panels().flat_map(of_panel).collect()
    }
}

impl Dashboard {
    /// What marks moments across all panels.
    pub fn annotations(&self) -> Vec<Query> {
        let marks = list(&self.json["annotations"]["list"]).iter();
        let place = |mark: &Value| format!("{}: annotation {}", self.file, text(&mark["name"]));
        marks.map(|mark| Query { place: place(mark), expr: text(&mark["expr"]).to_owned() }).collect()
    }
}

impl Query {
    /// The query as Grafana would send it where everything is chosen.
    pub fn filled_in(&self) -> String {
        ["$job", "$instance", "$user"]
            .iter()
            .fold(self.expr.replace("$__rate_interval", "1m"), |expr, variable| expr.replace(variable, ".+"))
    }
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
