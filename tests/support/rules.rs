//! The rule files as they are given to an operator, read whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_yaml_ng::Value;

/// One rule of one file: an alert, or a recording.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    pub alert: String,
    pub record: String,
    pub expr: String,
    #[serde(rename = "for")]
    pub hold: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    #[serde(skip)]
    pub file: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "name")]
    _name: String,
    rules: Vec<Rule>,
}

impl Rule {
    pub fn name(&self) -> &str {
        if self.record.is_empty() { &self.alert } else { &self.record }
    }

    pub fn is_alert(&self) -> bool {
        !self.alert.is_empty()
    }

    /// How the rule is spoken of where something is wrong with it.
    pub fn place(&self) -> String {
        format!("{} in {}", self.name(), self.file)
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every rule file, in the order of their names.
pub fn files() -> Vec<PathBuf> {
    listed("alerts", "yml")
}

/// The files of a directory of this repository that end in `.extension`, sorted.
pub fn listed(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).expect("a directory");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {directory}");
    files
}

/// All rules of all files.
pub fn all() -> Vec<Rule> {
    files()
        .iter()
        .flat_map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy();
            read(&name, &fs::read_to_string(path).expect("readable"))
        })
        .collect()
}

/// The rules of one file.
pub fn read(file: &str, text: &str) -> Vec<Rule> {
    let parsed: File = serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let rules = parsed.groups.into_iter().flat_map(|group| group.rules);
    rules.map(|rule| Rule { file: file.to_owned(), ..rule }).collect()
}

/// A rule file in which every `for` and every range is shorter by that factor: what takes hours takes minutes.
pub fn divided(text: &str, by: u64) -> String {
    let mut file: Value = serde_yaml_ng::from_str(text).expect("YAML");
    for group in file["groups"].as_sequence_mut().expect("groups") {
        for rule in group["rules"].as_sequence_mut().expect("rules") {
            let rule = rule.as_mapping_mut().expect("a rule");
            if let Some(Value::String(hold)) = rule.get_mut("for") {
                *hold = shorter(hold, by);
            }
            if let Some(Value::String(expr)) = rule.get_mut("expr") {
                *expr = ranges_divided(expr, by);
            }
            // The templates ask questions of their own.
            for (_, annotation) in
                rule.get_mut("annotations").and_then(Value::as_mapping_mut).into_iter().flatten()
            {
                if let Value::String(text) = annotation {
                    *text = ranges_divided(text, by);
                }
            }
        }
    }
    serde_yaml_ng::to_string(&file).expect("YAML")
}

/// The same rules, and none waits for longer than that.
pub fn held_at_most(text: &str, longest: Duration) -> String {
    let mut file: Value = serde_yaml_ng::from_str(text).expect("YAML");
    for group in file["groups"].as_sequence_mut().expect("groups") {
        for rule in group["rules"].as_sequence_mut().expect("rules") {
            if let Some(Value::String(hold)) = rule.get_mut("for") {
                let held = Duration::from_millis(milliseconds(hold).expect("a duration"));
                *hold = format!("{}ms", held.min(longest).as_millis());
            }
        }
    }
    serde_yaml_ng::to_string(&file).expect("YAML")
}

/// Divides what stands in `[…]` where that is a duration (`[.]` in a pattern is none), and what stands behind `offset`.
fn ranges_divided(text: &str, by: u64) -> String {
    let mut offsets = text.split("offset ");
    let first = offsets.next().unwrap_or_default().to_owned();
    let text = offsets.fold(first, |divided, part| {
        let end = part.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(part.len());
        format!("{divided}offset {}{}", shorter(&part[..end], by), &part[end..])
    });
    let mut parts = text.split('[');
    let mut divided = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        divided.push('[');
        match part.split_once(']') {
            Some((range, rest)) if milliseconds(range).is_some() => {
                divided.push_str(&shorter(range, by));
                divided.push(']');
                divided.push_str(rest);
            }
            _ => divided.push_str(part),
        }
    }
    divided
}

/// The duration divided, in milliseconds.
pub fn shorter(duration: &str, by: u64) -> String {
    let all = milliseconds(duration).unwrap_or_else(|| panic!("'{duration}' is no duration"));
    format!("{}ms", all / by)
}

/// A duration of one unit, as the rules write them.
pub fn milliseconds(duration: &str) -> Option<u64> {
    let unit = duration.find(|letter: char| !letter.is_ascii_digit())?;
    let number: u64 = duration[..unit].parse().ok()?;
    let factor = match &duration[unit..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(number * factor)
}
