//! The dispatch table held against the other sources: user map, env files, the databases' modes. Each disagreement
//! is a finding and takes nothing away; the table is followed.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::dispatch_table::Entry;
use super::env_file::EnvPort;
use super::sources::{Evidence, env_path};
use super::user_map::UserMap;
use super::{Discrepancy, Place, Section, UserName};
use crate::outcome::Finding;

/// What the user's env file and database say against their entry.
pub fn with_evidence(section: &Section, entry: &Entry, evidence: &Evidence) -> Vec<Discrepancy> {
    [env_file(section, entry, &evidence.env), exposure(entry, evidence)].into_iter().flatten().collect()
}

/// An env file with a port, of a user whom the table does not name.
pub fn stray((user, file, line): (UserName, PathBuf, usize)) -> Discrepancy {
    Discrepancy {
        finding: Finding::NoInstance,
        user: Some(user.to_string()),
        identity: None,
        place: Place::line(&file, line),
        detail: format!(
            "{user} has an env file with a port and no instance in the dispatch table; add the user to the table, or \
             remove the file"
        ),
    }
}

/// What the user map says against the table, and what is wrong with the map itself.
pub fn with_user_map(
    section: &Section,
    entries: &[Entry],
    map: Option<Result<UserMap, String>>,
) -> Vec<Discrepancy> {
    let Some(file) = &section.user_map else { return Vec::new() };
    let map = match map {
        None => return Vec::new(),
        Some(Ok(map)) => map,
        Some(Err(why)) => {
            let detail = format!(
                "the dispatch table is not compared with the user map: {why}; make it readable by us"
            );
            return vec![Discrepancy {
                finding: Finding::MapUnreadable,
                user: None,
                identity: None,
                place: Place::file(file),
                detail,
            }];
        }
    };
    let served: HashSet<_> = entries.iter().map(|entry| entry.identity.as_str()).collect();
    let mut found = map.findings;
    let mut mapped: HashMap<&str, (&UserName, usize)> = HashMap::new();
    for mapping in &map.mappings {
        let (identity, user) = (mapping.identity.as_str(), &mapping.user);
        let earlier = *mapped.entry(identity).or_insert((user, mapping.line));
        let (finding, detail) = if earlier.0 != user {
            let detail = format!(
                "'{identity}' is {user} here and {} on line {}; remove the wrong line",
                earlier.0, earlier.1
            );
            (Finding::MapConflict, detail)
        } else if !served.contains(identity) {
            let detail = format!(
                "{user} is in the user map and '{identity}' has no instance in the dispatch table; add one, or \
                 remove the line"
            );
            (Finding::NoInstance, detail)
        } else {
            continue;
        };
        found.push(Discrepancy {
            finding,
            user: Some(user.to_string()),
            identity: Some(identity.to_owned()),
            place: Place::line(file, mapping.line),
            detail,
        });
    }
    for entry in entries {
        let place = || Place::line(&section.dispatch_table, entry.line);
        match mapped.get(entry.identity.as_str()) {
            None => {
                let detail = format!(
                    "'{}' is served as {} and not in the user map {}; add '{}={}', or remove the entry",
                    entry.identity,
                    entry.user,
                    file.display(),
                    entry.identity,
                    entry.user
                );
                found.push(Discrepancy::about(Finding::NotInMap, entry, place(), detail));
            }
            Some((user, line)) if **user != entry.user => {
                let detail = format!(
                    "'{}' is {} here and {user} in {}:{line}; the dispatch table is followed, so correct \
                     whichever is wrong",
                    entry.identity,
                    entry.user,
                    file.display()
                );
                found.push(Discrepancy::about(Finding::UserDiffers, entry, place(), detail));
            }
            Some(_) => {}
        }
    }
    found
}

fn env_file(section: &Section, entry: &Entry, env: &EnvPort) -> Option<Discrepancy> {
    let dir = section.env_dir.as_ref()?;
    let file = env_path(dir, &entry.user);
    let user = &entry.user;
    let (finding, line, detail) = match env {
        EnvPort::NotCompared => return None,
        EnvPort::Port { port, .. } if *port == entry.port => return None,
        EnvPort::Port { port, line } => (
            Finding::PortDiffers,
            Some(*line),
            format!(
                "{user}'s instance is started on port {port} and the dispatch table says {}; the table is \
                 followed, so correct whichever is wrong",
                entry.port
            ),
        ),
        EnvPort::Missing => (
            Finding::EnvMissing,
            None,
            format!("{user} has no env file, so the instance may not start with the machine; write one"),
        ),
        EnvPort::Unreadable(why) => (
            Finding::EnvUnreadable,
            None,
            format!(
                "{user}'s port is not compared: {why}; that is normal without privilege, a helper can tell the port"
            ),
        ),
        EnvPort::Invalid(Some(line)) => (
            Finding::EnvInvalid,
            Some(*line),
            format!("{user}'s T3_PORT is not a number from 1 to 65535; write {}", entry.port),
        ),
        EnvPort::Invalid(None) => (
            Finding::EnvInvalid,
            None,
            format!("{user}'s env file names no port; add T3_PORT={}", entry.port),
        ),
    };
    Some(Discrepancy::about(finding, entry, Place { file, line }, detail))
}

fn exposure(entry: &Entry, evidence: &Evidence) -> Option<Discrepancy> {
    let file = evidence.exposed.as_ref()?;
    let base_dir = evidence.base_dir.as_ref()?;
    let detail = format!(
        "every account of this machine can read {}'s database, which holds credentials; run chmod o-rwx {}",
        entry.user,
        base_dir.display()
    );
    Some(Discrepancy::about(Finding::StateExposed, entry, Place::file(file), detail))
}
