//! METRICS.md: what is exported, from the same declarations that export it.

use std::collections::BTreeMap;
use std::fmt::Write;

use prometheus_client::metrics::MetricType;

use super::book::Entry;

/// The groups in the order of the page, each by its prefix. A metric belongs to the longest prefix that fits.
const GROUPS: &[(&str, &str)] = &[
    ("t3_", "Each user's t3: who is served, what the probes found, where the sources disagree."),
    ("t3_enforcer_", "The enforcer: how its runs ended, and who was left behind."),
    ("t3_prober_", "This program about itself: what it read, wrote, started and left behind."),
    ("process_", "The process, as every Prometheus client exports it; read at the scrape."),
];

const HEAD: &str = "\
# Metrics

Written by `t3-prober metrics-reference` from the declarations in `src/metrics/`; a test holds it to them.

`/metrics` answers in the classic text format, and in OpenMetrics 1.0.0 with exemplars when asked. Times are Unix times
in seconds, never ages: `time() - …` is the age. Counters begin at zero with the program or with the user, unless their
help says otherwise. A gauge that is not known is absent: a zero would be a claim. When a user leaves the inventory,
every series with their name vanishes.
";

pub(super) fn markdown(entries: &[Entry]) -> String {
    let mut page = HEAD.to_owned();
    let write = |page: &mut String, text: std::fmt::Arguments<'_>| {
        page.write_fmt(text).expect("writing to a string does not fail");
    };
    for (prefix, introduction) in GROUPS {
        let mut of_group: Vec<_> = entries.iter().filter(|entry| group(entry.name) == *prefix).collect();
        of_group.sort_by_key(|entry| entry.name);
        write(&mut page, format_args!("\n## `{prefix}…`\n\n{introduction}\n\n"));
        page.push_str("| metric | type | unit | labels | help |\n|---|---|---|---|---|\n");
        for entry in of_group {
            let labels: Vec<_> = entry.labels.iter().map(|label| format!("`{}`", label.name)).collect();
            let (name, kind, labels) = (entry.name, classic_type(entry.kind), labels.join(", "));
            let (unit, help) = (entry.unit.unwrap_or_default(), entry.help);
            write(&mut page, format_args!("| `{name}` | {kind} | {unit} | {labels} | {help} |\n"));
        }
    }
    page.push_str("\n## Labels\n");
    let labels = labels(entries);
    for ((name, set), meanings) in &labels {
        write(&mut page, format_args!("\n### `{name}`\n\n"));
        // Where a name means one thing only, the tables above say where it is used.
        let one_meaning =
            meanings.len() == 1 && labels.keys().filter(|(other, _)| other == name).count() == 1;
        for (meaning, metrics) in meanings {
            if one_meaning {
                write(&mut page, format_args!("{meaning}\n"));
            } else {
                write(&mut page, format_args!("- `{}`: {meaning}\n", metrics.join("`, `")));
            }
        }
        if !set.is_empty() {
            page.push_str("\n| value | meaning |\n|---|---|\n");
        }
        for (word, meaning) in set {
            write(&mut page, format_args!("| `{word}` | {meaning} |\n"));
        }
    }
    page
}

/// A label's name, and its words with their meaning: two metrics may use one name with different sets.
type LabelOfSet = (&'static str, Vec<(&'static str, &'static str)>);

/// What a label means, and the metrics where it means that.
type Meanings = BTreeMap<&'static str, Vec<&'static str>>;

fn labels(entries: &[Entry]) -> BTreeMap<LabelOfSet, Meanings> {
    let mut labels = BTreeMap::<LabelOfSet, Meanings>::new();
    for entry in entries {
        for label in &entry.labels {
            let meanings = labels.entry((label.name, label.words.clone())).or_default();
            meanings.entry(label.meaning).or_default().push(entry.name);
        }
    }
    labels
}

/// As the classic format says it, which is what Prometheus shows.
fn classic_type(kind: MetricType) -> &'static str {
    match kind {
        MetricType::Counter => "counter",
        MetricType::Gauge | MetricType::Info => "gauge",
        MetricType::Histogram => "histogram",
        MetricType::Unknown => "untyped",
    }
}

/// The prefix of the group that a metric belongs to.
pub(super) fn group(name: &str) -> &'static str {
    let fitting = GROUPS.iter().map(|(prefix, _)| *prefix).filter(|prefix| name.starts_with(prefix));
    fitting.max_by_key(|prefix| prefix.len()).unwrap_or_default()
}
