//! `dispatch.json`: which identity goes to which user's port. An entry that makes no sense is a finding; only a file
//! that is no JSON object is refused as a whole.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Discrepancy, Place, Port, UserName};
use crate::outcome::Finding;

/// The entries that make sense, in the order of the file, and what is wrong with the others.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    pub entries: Vec<Entry>,
    pub findings: Vec<Discrepancy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub line: usize,
    pub identity: String,
    pub user: UserName,
    pub port: Port,
}

/// The file as a whole says nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "{file}:{line}:{column}: the dispatch table cannot be read: {what}; write it as \
     {{\"<identity>\": {{\"os_user\": \"…\", \"port\": …}}}}, and replace it by a rename"
)]
pub struct Broken {
    file: String,
    line: usize,
    column: usize,
    what: String,
}

/// Every member of the top-level object, duplicates included: `serde_json` itself would silently keep the last.
struct Members<'a>(Vec<(String, &'a RawValue)>);

/// What an entry says, before it is known to make sense. Derived `Deserialize` refuses a key that comes twice;
/// keys of the provisioner's own are passed over.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Fields {
    os_user: Value,
    port: Value,
}

/// Reads the table; `file` is only for the places in what it reports.
pub fn parse(content: &[u8], file: &Path) -> Result<Table, Broken> {
    let broken = |line, column, what: String| Broken { file: file.display().to_string(), line, column, what };
    let text = std::str::from_utf8(content).map_err(|error| {
        let line = line_of(&content[..error.valid_up_to()]);
        broken(line, 1, "it is not UTF-8".to_owned())
    })?;
    if text.trim().is_empty() {
        return Err(broken(1, 1, "it is empty".to_owned()));
    }
    let members: Members = serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message).to_owned();
        broken(error.line(), error.column().max(1), what)
    })?;

    let mut table = Table { entries: Vec::new(), findings: Vec::new() };
    for (identity, raw) in members.0 {
        // A borrowed raw value lies within the text: its address is its place.
        let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let line = line_of(&content[..offset.min(content.len())]);
        match entry(line, &identity, raw) {
            Ok(entry) => table.entries.push(entry),
            Err((finding, detail)) => table.findings.push(Discrepancy {
                finding,
                user: None,
                identity: Some(identity),
                place: Place::line(file, line),
                detail,
            }),
        }
    }
    Ok(table)
}

fn entry(line: usize, identity: &str, raw: &RawValue) -> Result<Entry, (Finding, String)> {
    if identity.is_empty() || identity.trim() != identity || identity.chars().any(char::is_control) {
        let detail = format!(
            "{identity:?} cannot be the value of an identity header, so the entry is not served; remove the space \
             around it or the control characters in it"
        );
        return Err((Finding::InvalidIdentity, detail));
    }
    let fields: Fields = serde_json::from_str(raw.get()).map_err(|error| {
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message);
        let detail = format!(
            "the entry of '{identity}' is not served: {what}; write it as {{\"os_user\": \"…\", \"port\": …}}, \
             each key once"
        );
        (Finding::InvalidEntry, detail)
    })?;
    let user = fields
        .os_user
        .as_str()
        .ok_or_else(|| format!("os_user is {}, not a string", fields.os_user))
        .and_then(|name| name.parse::<UserName>().map_err(|error| error.to_string()))
        .map_err(|what| {
            (
                Finding::InvalidUser,
                format!("the entry of '{identity}' is not served: {what}; correct its os_user"),
            )
        })?;
    let port =
        fields.port.as_u64().and_then(|port| u16::try_from(port).ok()).and_then(Port::new).ok_or_else(|| {
            let detail = format!(
                "the entry of '{identity}' is not served: port {} is not a number from 1 to 65535; write the port \
                 its instance listens on, without quotes",
                fields.port
            );
            (Finding::InvalidPort, detail)
        })?;
    Ok(Entry { line, identity: identity.to_owned(), user, port })
}

fn line_of(before: &[u8]) -> usize {
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one member per identity")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Table, String> {
        super::parse(text.as_bytes(), Path::new("dispatch.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn entries_come_in_the_order_of_the_file_with_the_line_they_stand_on() {
        let table = parse(
            "{\n \"bob@example.org\": {\"port\": 4002, \"os_user\": \"bob\"},\n\n \"ann\":\n {\"os_user\": \"ann\", \"port\": 4001, \"note\": 1}}",
        )
        .expect("a table");
        let found: Vec<_> = table.entries.iter().map(|entry| (entry.line, entry.identity.as_str())).collect();
        assert_eq!(found, [(2, "bob@example.org"), (5, "ann")]);
        assert_eq!(table.findings, []);
    }

    #[test]
    fn one_bad_entry_is_a_finding_and_leaves_the_others_served() {
        let bad = [
            (r#""x": 7"#, Finding::InvalidEntry),
            (r#""x": {"os_user": "x"}"#, Finding::InvalidEntry),
            (r#""x": {"os_user": "x", "port": 1, "port": 2}"#, Finding::InvalidEntry),
            (r#""x": {"os_user": "root", "port": 1}"#, Finding::InvalidUser),
            (r#""x": {"os_user": null, "port": 1}"#, Finding::InvalidUser),
            (r#""x": {"os_user": "x", "port": 0}"#, Finding::InvalidPort),
            (r#""x": {"os_user": "x", "port": 65536}"#, Finding::InvalidPort),
            (r#""x": {"os_user": "x", "port": -1}"#, Finding::InvalidPort),
            (r#""x": {"os_user": "x", "port": "4001"}"#, Finding::InvalidPort),
            (r#""": {"os_user": "x", "port": 1}"#, Finding::InvalidIdentity),
            (r#"" x": {"os_user": "x", "port": 1}"#, Finding::InvalidIdentity),
        ];
        for (member, finding) in bad {
            let table = parse(&format!("{{\n{member},\n\"ann\": {{\"os_user\": \"ann\", \"port\": 4001}}}}"))
                .expect("a table");
            assert_eq!(table.entries.len(), 1, "{member}");
            assert_eq!(table.findings.len(), 1, "{member}");
            assert_eq!(table.findings[0].finding, finding, "{member}");
            assert_eq!(table.findings[0].place.line, Some(2), "{member}");
        }
    }

    #[test]
    fn an_identity_that_comes_twice_comes_twice() {
        let table = parse(r#"{"a": {"os_user": "ann", "port": 1}, "a": {"os_user": "bob", "port": 2}}"#);
        assert_eq!(table.expect("a table").entries.len(), 2);
    }

    #[test]
    fn every_prefix_of_a_table_is_refused_as_a_whole() {
        let whole = "{\"ann\": {\"os_user\": \"ann\", \"port\": 4001}}";
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "the first {length} bytes were taken for a table");
        }
        assert!(parse(whole).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_content_at_all_makes_it_panic(content: Vec<u8>) {
            let _ = super::parse(&content, Path::new("dispatch.json"));
        }
    }
}
