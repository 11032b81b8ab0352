//! A machine's root directory of its own, on which t3-prober is installed as deploy/README.md says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::world::PROGRAM;

pub struct Root(TempDir);

/// A file of this repository.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

impl Root {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("t3-root-").tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name.trim_start_matches('/'))
    }

    /// `install.sh` of a checkout on this root.
    pub fn run(&self, script: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(script);
        command.args(arguments).arg("--root").arg(self.0.path());
        command.output().expect("the script runs")
    }

    /// Installs; a failure is one of the test. Answers what the script said.
    pub fn install(&self) -> String {
        let output = self.run(&source("deploy/install.sh"), &["--binary", PROGRAM]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Every path below the root: what it is, whose, its mode, and when it was written.
    pub fn listing(&self) -> BTreeMap<String, String> {
        let (mut found, mut waiting) = (BTreeMap::new(), vec![self.0.path().to_owned()]);
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                let metadata = path.symlink_metadata().expect("it is there");
                let name = format!("/{}", path.strip_prefix(self.0.path()).expect("below").display());
                let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
                let times =
                    if metadata.is_dir() { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) };
                found.insert(name, format!("{mode:04o} {uid}:{gid} {times:?}"));
                if metadata.is_dir() {
                    waiting.push(path);
                }
            }
        }
        found
    }

    /// The ids of an account of this root.
    pub fn account(&self, name: &str) -> (u32, u32) {
        let accounts = fs::read_to_string(self.path("/etc/passwd")).expect("accounts");
        let line = accounts.lines().find(|line| line.starts_with(&format!("{name}:"))).expect(name);
        let fields: Vec<_> = line.split(':').collect();
        (fields[2].parse().expect("a uid"), fields[3].parse().expect("a gid"))
    }
}

/// A unit of this repository, as (section, key, value) in its order. Continuation lines are not used in them.
pub fn unit(name: &str) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(source("deploy/systemd").join(name)).expect(name);
    let mut section = String::new();
    let mut settings = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[') {
            Some(header) => header.trim_end_matches(']').clone_into(&mut section),
            None => {
                let (key, value) = line.split_once('=').expect("key=value");
                settings.push((section.clone(), key.to_owned(), value.to_owned()));
            }
        }
    }
    settings
}

/// What a unit sets a key to; absent where it does not.
pub fn setting(name: &str, key: &str) -> Option<String> {
    unit(name).into_iter().rev().find(|(_, found, _)| found == key).map(|(_, _, value)| value)
}
