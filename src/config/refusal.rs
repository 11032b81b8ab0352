//! Why a configuration is not taken: every problem with its place, what is wrong there and what to write instead.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeArray, DeTable, DeValue};

use super::EXAMPLE;

/// The file was not taken; every line of the message is one problem.
#[derive(Debug, thiserror::Error)]
pub struct Refused {
    file: PathBuf,
    problems: Vec<Problem>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    /// Line and column, counted from 1; absent where it is about no place in the file.
    place: Option<(usize, usize)>,
    message: String,
}

impl Refused {
    pub(super) fn new(file: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { file: file.to_owned(), problems }
    }

    /// `content` is valid UTF-8 up to `offset`.
    pub(super) fn not_utf8(file: &Path, content: &[u8], offset: usize) -> Self {
        let valid = String::from_utf8_lossy(&content[..offset]);
        let message = "this is not UTF-8; save the file as UTF-8, or remove the character".to_owned();
        Self::new(file, vec![Problem { place: Some(place(&valid, offset)), message }])
    }

    pub(super) fn unreadable(file: &Path, error: &io::Error) -> Self {
        let message = format!(
            "the configuration cannot be read: {error}; name a file that exists and is readable with --config FILE"
        );
        Self::new(file, vec![Problem { place: None, message }])
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}:", self.file.display())?;
            if let Some((line, column)) = problem.place {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, " {}", problem.message)?;
        }
        Ok(())
    }
}

impl Problem {
    pub(super) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        let message = match error.message() {
            "duplicate key" => "the key is here for the second time; remove one of the two".to_owned(),
            message => format!("this is not TOML: {message}; write it as in the example configuration"),
        };
        Self { place: error.span().map(|span| place(text, span.start)), message }
    }

    /// What serde refused at `span`; `key` is the dotted path of the key it is about.
    pub(super) fn refused(text: &str, span: &Range<usize>, key: Option<&str>, message: &str) -> Self {
        let key = key.unwrap_or_default();
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let message = match listed(message, "unknown field `") {
            Some((_, known)) => unknown_key(section, name, &known),
            None => match listed(message, "unknown variant `") {
                Some((word, known)) => match nearest(word, &known) {
                    Some(near) => format!("{key}: '{word}' is no word known here; did you mean '{near}'?"),
                    None => {
                        format!("{key}: '{word}' is no word known here; write one of {}", known.join(", "))
                    }
                },
                None => format!("{key}: {}", with_remedy(message, section, name)),
            },
        };
        Self { place: Some(place(text, span.start)), message }
    }

    pub(super) fn complaint(
        text: &str,
        document: &DeTable<'_>,
        section: &str,
        key: &str,
        sentence: &str,
    ) -> Self {
        let table = match section {
            "" => Some(document),
            _ => document.get(section).and_then(|table| table.get_ref().as_table()),
        };
        let entry = table.and_then(|table| table.get_key_value(key));
        let name = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        Self {
            place: entry.map(|(key, _)| place(text, key.span().start)),
            message: format!("{name}: {sentence}"),
        }
    }

    /// The same about a key of one of several `[[section]]`, or about the whole of it where the key is not there.
    pub(super) fn complaint_of_block(
        text: &str,
        document: &DeTable<'_>,
        (section, index): (&str, usize),
        key: &str,
        sentence: &str,
    ) -> Self {
        let blocks = document.get(section).and_then(|blocks| blocks.get_ref().as_array());
        let block = blocks.and_then(|blocks| blocks.get(index));
        let entry = block.and_then(|block| block.get_ref().as_table()?.get_key_value(key));
        let span = entry.map(|(key, _)| key.span()).or_else(|| block.map(toml::Spanned::span));
        Self {
            place: span.map(|span| place(text, span.start)),
            message: format!("{section}.{key}: {sentence}"),
        }
    }
}

/// Takes the innermost key or value around `span` out of the table and says which it was, as a dotted path.
pub(super) fn take_out(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let around = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let mut found = None;
    // A table's span is that of its header alone, so what lies below it is looked at whatever its span is.
    for (key, value) in table.iter_mut() {
        let below = match value.get_mut() {
            DeValue::Table(inner) => take_out(inner, span),
            DeValue::Array(elements) => take_element_out(elements, span),
            _ => None,
        };
        if let Some(below) = below {
            return Some(format!("{}.{below}", key.get_ref()));
        }
        if found.is_none() && (around(key.span()) || around(value.span())) {
            found = Some(key.get_ref().to_string());
        }
    }
    let found = found?;
    table.remove(found.as_str());
    Some(found)
}

/// An element of an array of tables goes as a whole: without the bad key it might lack a required one.
fn take_element_out(elements: &mut DeArray<'_>, span: &Range<usize>) -> Option<String> {
    let (index, below) = elements.iter_mut().enumerate().find_map(|(index, element)| {
        let DeValue::Table(inner) = element.get_mut() else { return None };
        take_out(inner, span).map(|below| (index, below))
    })?;
    let whole = std::mem::replace(elements, DeArray::new());
    *elements = whole.into_iter().enumerate().filter(|(at, _)| *at != index).map(|(_, kept)| kept).collect();
    Some(below)
}

/// The words that serde puts between backticks: what was found, and what is known.
fn listed<'a>(message: &'a str, beginning: &str) -> Option<(&'a str, Vec<&'a str>)> {
    message.strip_prefix(beginning)?;
    let mut words = message.split('`').skip(1).step_by(2);
    Some((words.next()?, words.collect()))
}

fn unknown_key(section: &str, name: &str, known: &[&str]) -> String {
    let place = if section.is_empty() { "at the top level".to_owned() } else { format!("in [{section}]") };
    let remedy = if let Some(near) = nearest(name, known) {
        format!("did you mean '{near}'?")
    } else if let Some(home) = home_of(name) {
        format!("it belongs {home}")
    } else {
        format!("known here: {}", known.join(", "))
    };
    format!("unknown key '{name}' {place}; {remedy}")
}

fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |other: &str| strsim::damerau_levenshtein(&word.to_lowercase().replace('-', "_"), other);
    let near = known.iter().map(|other| (distance(other), *other)).min()?;
    (near.0 <= 1 + word.chars().count() / 5).then_some(near.1)
}

/// Where the example shows a key of that name: in TOML a top-level key written below a header falls into its section.
fn home_of(name: &str) -> Option<String> {
    let (section, _) = shown().find(|(_, assignment)| key_of(assignment) == name)?;
    Some(if section.is_empty() { "above the first [section]".to_owned() } else { format!("in [{section}]") })
}

/// Messages of our own types carry their remedy; serde's are given the example's line.
fn with_remedy(message: &str, section: &str, name: &str) -> String {
    let message = message.replace('`', "'");
    if message.contains("; ") {
        return message;
    }
    if let Some((what, _)) = message.split_once(", expected struct ") {
        return format!("{what}, expected a section; write [{name}] and its keys on the lines below");
    }
    let as_in = shown()
        .find(|(shown_in, assignment)| *shown_in == section && key_of(assignment) == name)
        .map(|(_, assignment)| format!("; write it as in: {assignment}"))
        .unwrap_or_default();
    message + &as_in
}

fn key_of(assignment: &str) -> &str {
    assignment.split(' ').next().unwrap_or(assignment)
}

/// The example's `#key = value` lines, each with its section.
fn shown() -> impl Iterator<Item = (&'static str, &'static str)> {
    EXAMPLE
        .lines()
        .scan("", |section, line| {
            if let Some(name) = line.strip_prefix('[').or_else(|| line.strip_prefix("#[[")) {
                *section = name.trim_matches(['[', ']']);
            }
            let assignment = line.strip_prefix('#').filter(|line| line.starts_with(char::is_alphabetic));
            Some(assignment.map(|line| (*section, line.split(" # ").next().unwrap_or(line))))
        })
        .flatten()
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
