//! The text around a version in a script: `T3_PIN:-{version}`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::t3::version::Version;

const PLACE: &str = "{version}";

/// Text with one place for a version in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    before: String,
    after: String,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' does not say where the version stands; write the text before it, then {PLACE}, as in T3_PIN:-{PLACE}"
)]
pub struct NotAPattern(String);

impl FromStr for Pattern {
    type Err = NotAPattern;

    fn from_str(text: &str) -> Result<Self, NotAPattern> {
        match text.split_once(PLACE) {
            Some((before, after)) if !before.trim().is_empty() && !after.contains(PLACE) => {
                Ok(Self { before: before.to_owned(), after: after.to_owned() })
            }
            _ => Err(NotAPattern(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = NotAPattern;

    fn try_from(text: String) -> Result<Self, NotAPattern> {
        text.parse()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{PLACE}{}", self.before, self.after)
    }
}

impl Pattern {
    /// The one version that the text names in this way; a comment line counts for nothing.
    pub fn version_in(&self, text: &str) -> Result<Version, String> {
        let mut found: Option<Version> = None;
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            for (at, _) in line.match_indices(&self.before) {
                let rest = &line[at + self.before.len()..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !".+-".contains(c));
                let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
                if !after.starts_with(&self.after) {
                    continue;
                }
                let version: Version = word.parse().map_err(|error| format!("'{self}': {error}"))?;
                match &found {
                    Some(other) if *other != version => {
                        return Err(format!("'{self}' is there with {other} and with {version}; keep one"));
                    }
                    _ => found = Some(version),
                }
            }
        }
        found.ok_or_else(|| {
            format!("nothing like '{self}' is in it; put the pin back, or change [pins] files")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(pattern: &str, text: &str) -> Result<String, String> {
        pattern.parse::<Pattern>().expect("a pattern").version_in(text).map(|version| version.to_string())
    }

    #[test]
    fn the_version_ends_where_no_version_can_go_on() {
        for text in
            ["${T3_PIN:-0.0.24}", "x ${T3_PIN:-0.0.24} y", "T3_PIN:-0.0.24", "T3_PIN:-0.0.24\nT3_PIN:-0.0.24"]
        {
            assert_eq!(version("T3_PIN:-{version}", text).as_deref(), Ok("0.0.24"), "{text}");
        }
        let nightly = "t3@0.0.34-nightly.20260401.1'";
        assert_eq!(version("t3@{version}'", nightly).as_deref(), Ok("0.0.34-nightly.20260401.1"));
    }

    #[test]
    fn what_is_not_there_no_version_or_there_twice_is_said() {
        assert!(version("T3_PIN:-{version}", "T3=0.0.24").expect_err("nothing").starts_with("nothing like"));
        assert!(
            version("T3_PIN:-{version}", "# T3_PIN:-0.0.24").expect_err("a comment").starts_with("nothing")
        );
        assert!(version("T3_PIN:-{version}", "${T3_PIN:-latest}").expect_err("a tag").contains("'latest'"));
        let twice = version("T3_PIN:-{version}", "T3_PIN:-0.0.24 T3_PIN:-0.0.26").expect_err("two versions");
        assert!(twice.ends_with("with 0.0.24 and with 0.0.26; keep one"), "{twice}");
    }

    #[test]
    fn a_pattern_says_where_the_version_stands() {
        for bad in ["T3_PIN", "{version}", " {version}", "a{version}b{version}", ""] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
