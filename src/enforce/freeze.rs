//! The freeze: a file that forbids the enforcer to begin anything, written by it after a rollback or by an operator,
//! and removed by an operator only. Beside it, the builds that broke here: a followed tag does not bring them again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::journal::write;
use crate::outcome::utc;
use crate::t3::version::Version;

/// Bytes of a freeze file that are shown.
const SHOWN: usize = 300;

/// A build that broke here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broke {
    #[serde(with = "utc")]
    pub at: SystemTime,
    pub why: String,
}

/// Where the freeze and the memory of broken builds lie.
#[derive(Clone, Debug)]
pub struct Freeze {
    file: PathBuf,
    broken: PathBuf,
}

impl Freeze {
    pub fn new(dir: &Path) -> Self {
        Self { file: dir.join("freeze"), broken: dir.join("broken.json") }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What the freeze file says, where there is one. One that cannot be read freezes all the same.
    pub fn reason(&self) -> Option<String> {
        match fs::read_to_string(&self.file) {
            Ok(text) => {
                let line = text.lines().next().unwrap_or_default();
                Some(line.chars().filter(|c| !c.is_control()).take(SHOWN).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("it cannot be read: {error}")),
        }
    }

    /// Freezes because of a build that broke, and remembers the build. What froze before, an operator's words perhaps,
    /// stays.
    pub fn after(&self, version: &Version, why: &str, at: SystemTime) -> io::Result<()> {
        if self.reason().is_none() {
            let (when, beside) = (humantime::format_rfc3339_seconds(at), self.file.with_extension("new"));
            fs::write(&beside, format!("{version} was rolled back at {when}: {why}\n"))?;
            fs::File::open(&beside)?.sync_all()?;
            fs::rename(&beside, &self.file)?;
        }
        let mut broken = self.broken();
        broken.insert(version.to_string(), Broke { at, why: why.to_owned() });
        write(&self.broken, &broken)
    }

    /// Why a build was rolled back here, where it was.
    pub fn broke(&self, version: &Version) -> Option<String> {
        self.broken().remove(&version.to_string()).map(|broke| broke.why)
    }

    /// The builds that were rolled back here, by version.
    pub fn broken(&self) -> BTreeMap<String, Broke> {
        fs::read(&self.broken).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_broke_is_remembered_beyond_the_freeze() {
        let dir = tempfile::tempdir().expect("a directory");
        let freeze = Freeze::new(dir.path());
        let version = Version::new(0, 0, 33);
        assert_eq!((freeze.reason(), freeze.broke(&version)), (None, None));
        freeze.after(&version, "ann fails at exchange", SystemTime::UNIX_EPOCH).expect("written");
        assert_eq!(
            freeze.reason().as_deref(),
            Some("0.0.33 was rolled back at 1970-01-01T00:00:00Z: ann fails at exchange")
        );
        fs::remove_file(freeze.file()).expect("thawed");
        assert_eq!(freeze.reason(), None);
        assert_eq!(freeze.broke(&version).as_deref(), Some("ann fails at exchange"));
        assert_eq!(freeze.broke(&Version::new(0, 0, 26)), None);
        freeze.after(&version, "again", SystemTime::UNIX_EPOCH).expect("written");
        assert!(freeze.reason().is_some_and(|reason| reason.ends_with("again")), "it freezes a second time");
    }

    #[test]
    fn an_operators_own_freeze_is_not_written_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let freeze = Freeze::new(dir.path());
        fs::write(freeze.file(), "until the conference is over\n").expect("written");
        freeze.after(&Version::new(0, 0, 33), "ann fails", SystemTime::UNIX_EPOCH).expect("written");
        assert_eq!(freeze.reason().as_deref(), Some("until the conference is over"));
        assert!(freeze.broke(&Version::new(0, 0, 33)).is_some());
    }

    #[test]
    fn an_empty_file_freezes_as_well() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("freeze"), "").expect("touched");
        assert_eq!(Freeze::new(dir.path()).reason().as_deref(), Some(""));
    }
}
