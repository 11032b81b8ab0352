//! The user map: `identity=os_user`, one per line, `#` begins a comment. It is only compared with the dispatch table,
//! so nothing in it can take anybody's service away.

use std::path::Path;

use super::{Discrepancy, Place, UserName};
use crate::outcome::Finding;

/// The lines that make sense, in the order of the file, and what is wrong with the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UserMap {
    pub mappings: Vec<Mapping>,
    pub findings: Vec<Discrepancy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub line: usize,
    pub identity: String,
    pub user: UserName,
}

/// Reads the map; `file` is only for the places in what it reports.
pub fn parse(content: &[u8], file: &Path) -> UserMap {
    let mut map = UserMap::default();
    for (index, bytes) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = index + 1;
        let text = String::from_utf8_lossy(bytes);
        let text = without_comment(&text);
        if text.is_empty() {
            continue;
        }
        match mapping(text) {
            Ok((identity, user)) => map.mappings.push(Mapping { line, identity, user }),
            Err(what) => map.findings.push(Discrepancy {
                finding: Finding::InvalidLine,
                user: None,
                identity: None,
                place: Place::line(file, line),
                detail: format!("the line is passed over: {what}; write it as identity=os_user"),
            }),
        }
    }
    map
}

/// `#` begins a comment at the start of a line and after a space; within an identity it is a letter like any other.
fn without_comment(text: &str) -> &str {
    let text = text.trim();
    if text.starts_with('#') {
        return "";
    }
    let end = text.find(" #").or_else(|| text.find("\t#")).unwrap_or(text.len());
    text[..end].trim_end()
}

/// The last `=` divides: an identity may hold one, an account name cannot.
fn mapping(text: &str) -> Result<(String, UserName), String> {
    let (identity, user) = text.rsplit_once('=').ok_or_else(|| "it has no '='".to_owned())?;
    let identity = identity.trim_end();
    if identity.is_empty() {
        return Err("it has no identity before the '='".to_owned());
    }
    let user = user.trim_start().parse().map_err(|error: super::NotAUserName| error.to_string())?;
    Ok((identity.to_owned(), user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blank_lines_and_spaces_mean_nothing() {
        let map = parse(
            b"# who is who\n\nann@example.org = ann # since May\n  a=b=bob\n#cid=cid\nc#d=cid\r\n",
            Path::new("m"),
        );
        let found: Vec<_> =
            map.mappings.iter().map(|m| (m.line, m.identity.as_str(), m.user.as_str())).collect();
        assert_eq!(found, [(3, "ann@example.org", "ann"), (4, "a=b", "bob"), (6, "c#d", "cid")]);
        assert_eq!(map.findings, []);
    }

    #[test]
    fn a_line_that_is_no_mapping_is_a_finding_at_its_line() {
        for bad in ["ann", "=ann", "ann=", "ann=Ann", "ann=root", "ann=\u{fffd}"] {
            let map = parse(format!("bob=bob\n{bad}\n").as_bytes(), Path::new("m"));
            assert_eq!(map.mappings.len(), 1, "{bad}");
            assert_eq!(map.findings.len(), 1, "{bad}");
            assert_eq!(map.findings[0].place.line, Some(2), "{bad}");
        }
    }
}
