//! What can be said of a query without running it: which metrics it reads, and which labels its answer has.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{BinaryExpr, Call, Expr, LabelModifier, VectorSelector};

/// The label names that the answer of a query is sure to have.
pub type Labels = BTreeSet<String>;

/// What scraping adds to everything.
const OF_TARGET: [&str; 2] = ["job", "instance"];

/// One metric.
#[derive(Clone, Debug, Default)]
pub struct Metric {
    pub kind: String,
    pub labels: Labels,
    /// The values of a label where it has a closed set of them.
    pub words: BTreeMap<String, BTreeSet<String>>,
}

/// Every metric there is, by the name a query uses: the program's, the recordings, and Prometheus's own `up`.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(pub BTreeMap<String, Metric>);

impl Catalogue {
    /// What METRICS.md names; a histogram under its three names.
    pub fn of_metrics_md(text: &str) -> Self {
        let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
        let mut label: Option<String> = None;
        let mut holds_for: Vec<String> = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("### `") {
                label = Some(name.trim_end_matches('`').to_owned());
                holds_for.clear();
            } else if line.starts_with("- `") && label.is_some() {
                holds_for.extend(ticked(line.rsplit_once(": ").map_or(line, |(names, _)| names)));
            } else if line.starts_with("| `") {
                let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
                match &label {
                    None => {
                        let [name, kind, _, labels, ..] = cells[..] else {
                            panic!("a row of METRICS.md: {line}")
                        };
                        let labels = ticked(labels).chain(OF_TARGET.map(ToOwned::to_owned)).collect();
                        let metric = Metric { kind: kind.to_owned(), labels, ..Metric::default() };
                        metrics.insert(ticked(name).next().expect("a name"), metric);
                    }
                    Some(label) => {
                        let word = ticked(cells[0]).next().expect("a word");
                        for (name, metric) in &mut metrics {
                            if metric.labels.contains(label)
                                && (holds_for.is_empty() || holds_for.contains(name))
                            {
                                metric.words.entry(label.clone()).or_default().insert(word.clone());
                            }
                        }
                    }
                }
            }
        }
        assert!(metrics.len() > 20, "METRICS.md could not be read");
        let up = Metric {
            kind: "gauge".to_owned(),
            labels: OF_TARGET.map(ToOwned::to_owned).into(),
            ..Metric::default()
        };
        metrics.insert("up".to_owned(), up);
        let histograms: Vec<_> = metrics.extract_if(.., |_, metric| metric.kind == "histogram").collect();
        for (name, metric) in histograms {
            let counter = Metric { kind: "counter".to_owned(), ..metric };
            let mut bucket = counter.clone();
            bucket.labels.insert("le".to_owned());
            metrics.insert(format!("{name}_bucket"), bucket);
            metrics.insert(format!("{name}_sum"), counter.clone());
            metrics.insert(format!("{name}_count"), counter);
        }
        Self(metrics)
    }

    pub fn add_recording(&mut self, name: &str, expr: &Expr) {
        let metric = Metric { kind: "gauge".to_owned(), labels: self.labels(expr), ..Metric::default() };
        self.0.insert(name.to_owned(), metric);
    }

    pub fn metric(&self, selector: &VectorSelector) -> Option<&Metric> {
        self.0.get(selector.name.as_deref()?)
    }

    /// The labels that every series of the answer is sure to have.
    pub fn labels(&self, expr: &Expr) -> Labels {
        match expr {
            Expr::VectorSelector(selector) => self.labels_of_selector(selector),
            Expr::MatrixSelector(matrix) => self.labels_of_selector(&matrix.vs),
            Expr::Paren(paren) => self.labels(&paren.expr),
            Expr::Unary(unary) => self.labels(&unary.expr),
            Expr::Subquery(subquery) => self.labels(&subquery.expr),
            Expr::Aggregate(aggregate) => {
                let inner = self.labels(&aggregate.expr);
                match &aggregate.modifier {
                    Some(LabelModifier::Include(by)) => by.labels.iter().cloned().collect(),
                    Some(LabelModifier::Exclude(without)) => {
                        inner.into_iter().filter(|label| !without.labels.contains(label)).collect()
                    }
                    None if ["topk", "bottomk"].contains(&aggregate.op.to_string().as_str()) => inner,
                    None => Labels::new(),
                }
            }
            Expr::Binary(binary) => self.labels_of_binary(binary),
            Expr::Call(call) => self.labels_of_call(call),
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => Labels::new(),
        }
    }

    fn labels_of_selector(&self, selector: &VectorSelector) -> Labels {
        self.metric(selector).map(|metric| metric.labels.clone()).unwrap_or_default()
    }

    fn labels_of_binary(&self, binary: &BinaryExpr) -> Labels {
        let (left, right) = (self.labels(&binary.lhs), self.labels(&binary.rhs));
        match binary.op.to_string().as_str() {
            "and" | "unless" => left,
            "or" => left.intersection(&right).cloned().collect(),
            _ if is_scalar(&binary.rhs) => left,
            _ if is_scalar(&binary.lhs) => right,
            _ => match binary.modifier.as_ref() {
                Some(modifier) if modifier.card.labels().is_some() => left,
                Some(modifier) => match &modifier.matching {
                    Some(LabelModifier::Include(on)) => on.labels.iter().cloned().collect(),
                    _ => left,
                },
                None => left,
            },
        }
    }

    fn labels_of_call(&self, call: &Call) -> Labels {
        match call.func.name {
            // The answer has the labels that the question names with one value.
            "absent" | "absent_over_time" => equalities(&call.args.args[0]),
            "histogram_quantile" => {
                self.labels(&call.args.args[1]).into_iter().filter(|label| label != "le").collect()
            }
            "label_replace" => {
                let made = match &*call.args.args[1] {
                    Expr::StringLiteral(name) => Some(name.val.clone()),
                    _ => None,
                };
                self.labels(&call.args.args[0]).into_iter().chain(made).collect()
            }
            _ => call.args.args.first().map(|first| self.labels(first)).unwrap_or_default(),
        }
    }
}

fn ticked(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(ToOwned::to_owned)
}

/// Whether an expression is one number rather than series.
pub fn is_scalar(expr: &Expr) -> bool {
    match expr {
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => true,
        Expr::Paren(paren) => is_scalar(&paren.expr),
        Expr::Unary(unary) => is_scalar(&unary.expr),
        Expr::Call(call) => ["time", "scalar"].contains(&call.func.name),
        Expr::Binary(binary) => is_scalar(&binary.lhs) && is_scalar(&binary.rhs),
        _ => false,
    }
}

fn equalities(expr: &Expr) -> Labels {
    let Some(selector) = selectors(expr).first().copied() else { return Labels::new() };
    let matchers = selector.matchers.matchers.iter();
    matchers.filter(|matcher| matcher.op.to_string() == "=").map(|matcher| matcher.name.clone()).collect()
}

/// Every node of the expression, the outermost first.
pub fn nodes(expr: &Expr) -> Vec<&Expr> {
    let children: Vec<&Expr> = match expr {
        Expr::Paren(paren) => vec![&paren.expr],
        Expr::Unary(unary) => vec![&unary.expr],
        Expr::Subquery(subquery) => vec![&subquery.expr],
        Expr::Aggregate(aggregate) => {
            std::iter::once(&*aggregate.expr).chain(aggregate.param.as_deref()).collect()
        }
        Expr::Binary(binary) => vec![&binary.lhs, &binary.rhs],
        Expr::Call(call) => call.args.args.iter().map(|argument| &**argument).collect(),
        Expr::NumberLiteral(_)
        | Expr::StringLiteral(_)
        | Expr::VectorSelector(_)
        | Expr::MatrixSelector(_)
        | Expr::Extension(_) => Vec::new(),
    };
    std::iter::once(expr).chain(children.into_iter().flat_map(nodes)).collect()
}

/// Every selector, of ranges too.
pub fn selectors(expr: &Expr) -> Vec<&VectorSelector> {
    nodes(expr)
        .into_iter()
        .filter_map(|node| match node {
            Expr::VectorSelector(selector) => Some(selector),
            Expr::MatrixSelector(matrix) => Some(&matrix.vs),
            _ => None,
        })
        .collect()
}
