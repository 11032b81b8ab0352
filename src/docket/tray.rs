//! What a service that may make no boxes itself hands to whoever may: one empty file a version, named after it, and what
//! the followed tag was found to stand for. A version is all that is read of it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::gate::track::Pace;
use crate::inventory::source_file;
use crate::t3::version::Version;

/// More than this is somebody's mistake.
const MOST: usize = 64;

/// What a tag stands for, and how often its builds were judged.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tracked {
    pub tag: String,
    pub version: Version,
    #[serde(default)]
    pub pace: Pace,
}

/// Asks for a version to be judged.
pub fn ask(state_dir: &Path, version: &Version) -> io::Result<()> {
    let dir = asked(state_dir);
    DirBuilder::new().recursive(true).mode(0o770).create(&dir)?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o660)
        .open(dir.join(version.to_string()))?;
    Ok(())
}

/// Whether it is still asked for.
pub fn has(state_dir: &Path, version: &Version) -> bool {
    asked(state_dir).join(version.to_string()).exists()
}

/// It was judged, or cannot be.
pub fn done(state_dir: &Path, version: &Version) -> io::Result<()> {
    fs::remove_file(asked(state_dir).join(version.to_string()))
}

/// What is asked for, the oldest first. What is named after no version is nothing that anybody asked for; it is removed.
pub fn waiting(state_dir: &Path) -> io::Result<Vec<Version>> {
    let mut found: Vec<(SystemTime, Version)> = Vec::new();
    let entries = match fs::read_dir(asked(state_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries.take(MOST) {
        let entry = entry?;
        match entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            Some(version) => found.push((entry.metadata()?.modified()?, version)),
            None => fs::remove_file(entry.path())?,
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, version)| version).collect())
}

/// Replaces what was remembered.
pub fn remember(state_dir: &Path, tracked: &Tracked) -> io::Result<()> {
    source_file::replace(&tracked_in(state_dir), tracked, 0o644)
}

/// What was remembered; what cannot be read is found out anew.
pub fn remembered(state_dir: &Path) -> Option<Tracked> {
    serde_json::from_slice(&fs::read(tracked_in(state_dir)).ok()?).ok()
}

fn asked(state_dir: &Path) -> PathBuf {
    state_dir.join("docket/asked")
}

fn tracked_in(state_dir: &Path) -> PathBuf {
    state_dir.join("docket/tracked.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_waits_in_order_and_once_until_it_is_done() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(waiting(dir.path()).expect("none yet"), []);
        let (one, other) = (Version::new(0, 0, 33), Version::new(0, 0, 26));
        for version in [&one, &other, &one] {
            ask(dir.path(), version).expect("asked");
        }
        let later = SystemTime::now() + std::time::Duration::from_secs(1);
        let file = fs::File::open(asked(dir.path()).join("0.0.26")).expect("a file");
        file.set_modified(later).expect("a time");
        fs::write(asked(dir.path()).join("--help"), "").expect("written");
        assert_eq!(waiting(dir.path()).expect("two"), [one.clone(), other.clone()]);
        assert!(has(dir.path(), &one));
        done(dir.path(), &one).expect("done");
        assert_eq!(waiting(dir.path()).expect("one"), [other]);
        assert!(!asked(dir.path()).join("--help").exists(), "it would start the unit again and again");
    }

    #[test]
    fn what_a_tag_stands_for_is_remembered_with_its_pace() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(remembered(dir.path()).is_none());
        ask(dir.path(), &Version::new(0, 0, 26)).expect("the directory");
        let (section, now) = (crate::gate::track::Section::default(), SystemTime::now());
        let mut tracked =
            Tracked { tag: "nightly".to_owned(), version: Version::new(0, 0, 33), pace: Pace::default() };
        tracked.pace.ended(&section, &tracked.version, None, now);
        remember(dir.path(), &tracked).expect("remembered");
        let mut again = remembered(dir.path()).expect("it is there");
        assert_eq!((again.tag.as_str(), &again.version), ("nightly", &tracked.version));
        assert!(!again.pace.allows(&section, &tracked.version, now), "it rests, whoever asks");
    }
}
