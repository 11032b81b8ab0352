//! Which versions are wanted, installed, proven and running, and where they differ: the moment a binary and a running
//! server no longer match is the moment before the outage.

mod difference;
mod pattern;
mod since;

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use serde::Deserialize;

pub use self::difference::{Difference, Running, Subject};
pub use self::pattern::Pattern;
pub use self::since::Since;

use crate::outcome::Place;
use crate::t3::cli::Cli;
use crate::t3::install::Installs;
use crate::t3::version::Version;

/// A script or a pin file is written by hand.
const LARGEST_FILE: u64 = 1 << 20;

/// `[pins]`: where versions are written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The wanted version itself. No default; absent, `files` say it.
    pub version: Option<Version>,
    /// Files that name the wanted version, and how. All must agree. Default none.
    pub files: Vec<PinFile>,
    /// A file that holds the version that was last proven. No default; absent, it is not compared.
    pub last_good: Option<PathBuf>,
}

/// One file that names the wanted version.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinFile {
    pub file: PathBuf,
    /// The text around the version: `T3_PIN:-{version}`.
    pub pattern: Pattern,
}

/// What each place says now; `Err` is why it cannot be told, `Ok(None)` that nobody asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    pub pinned: Result<Option<Version>, String>,
    pub installed: Result<Option<Version>, String>,
    pub last_good: Result<Option<Version>, String>,
    /// The followed tag, and what it stands for.
    pub tracked: Option<(String, Version)>,
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        if self.version.is_some() && !self.files.is_empty() {
            complaints.push(("version", "the files say it as well; keep one of the two".to_owned()));
        }
        let files = self.files.iter().map(|pin| ("files", &pin.file));
        for (key, path) in files.chain(self.last_good.iter().map(|path| ("last_good", path))) {
            if path.is_relative() {
                let path = path.display();
                complaints.push((key, format!("'{path}' is not an absolute path; begin it with /")));
            }
        }
        complaints
    }

    /// Reads every place. The installed version is read from its package and executed only where there is none.
    pub async fn read(&self, installs: &Installs, cli: &Cli, tracked: Option<(String, Version)>) -> Versions {
        Versions {
            pinned: self.pinned(),
            installed: installs.installed(cli).await.map(Some).map_err(|failure| failure.detail),
            last_good: self.last_good.as_deref().map(last_good).transpose(),
            tracked,
        }
    }

    /// The wanted version, where one is pinned.
    pub fn pinned(&self) -> Result<Option<Version>, String> {
        if self.version.is_some() {
            return Ok(self.version.clone());
        }
        let mut agreed: Option<(&Path, Version)> = None;
        for PinFile { file, pattern } in &self.files {
            let found =
                pattern.version_in(&read(file)?).map_err(|what| format!("{}: {what}", file.display()))?;
            match &agreed {
                Some((other, version)) if *version != found => {
                    return Err(format!(
                        "{} pins {version} and {} pins {found}; write the same version into both",
                        other.display(),
                        file.display()
                    ));
                }
                _ => agreed = Some((file, found)),
            }
        }
        Ok(agreed.map(|(_, version)| version))
    }
}

impl Versions {
    /// Every place that names a version.
    pub fn known(&self) -> impl Iterator<Item = (Place, &Version)> {
        let read = [
            (Place::Pinned, self.pinned.as_ref()),
            (Place::Installed, self.installed.as_ref()),
            (Place::LastGood, self.last_good.as_ref()),
        ];
        let read = read.into_iter().filter_map(|(place, found)| Some((place, found.ok()?.as_ref()?)));
        read.chain(self.tracked.iter().map(|(_, version)| (Place::Tracked, version)))
    }
}

fn last_good(file: &Path) -> Result<Version, String> {
    read(file)?.trim().parse().map_err(|error| format!("{}: {error}", file.display()))
}

fn read(file: &Path) -> Result<String, String> {
    let cannot = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
    // Opening a pipe would wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file);
    let opened = opened.map_err(|error| cannot(&error))?;
    if !opened.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(cannot(&"it is not an ordinary file"));
    }
    let mut text = String::new();
    opened.take(LARGEST_FILE).read_to_string(&mut text).map_err(|error| cannot(&error))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V24: Version = Version::new(0, 0, 24);

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn pin(&self, name: &str, text: Option<&str>) -> PinFile {
            let file = self.0.path().join(name);
            if let Some(text) = text {
                std::fs::write(&file, text).expect("written");
            }
            PinFile { file, pattern: "T3_PIN:-{version}".parse().expect("a pattern") }
        }
    }

    fn pinned(files: Vec<PinFile>) -> Result<Option<Version>, String> {
        Section { files, ..Section::default() }.pinned()
    }

    #[test]
    fn two_scripts_that_agree_name_one_version() {
        let files = Files::new();
        let scripts = vec![
            files.pin("install", Some("VERSION=\"${T3_PIN:-0.0.24}\"\n")),
            files.pin("update", Some("npm install t3@${T3_PIN:-0.0.24} # pinned\n")),
        ];
        assert_eq!(pinned(scripts), Ok(Some(V24)));
        assert_eq!(pinned(Vec::new()), Ok(None));
    }

    #[test]
    fn two_scripts_that_disagree_are_named_with_what_each_says() {
        let files = Files::new();
        let scripts =
            vec![files.pin("a", Some("${T3_PIN:-0.0.24}")), files.pin("b", Some("${T3_PIN:-0.0.26}"))];
        let (one, other) = (scripts[0].file.display().to_string(), scripts[1].file.display().to_string());
        assert_eq!(
            pinned(scripts),
            Err(format!("{one} pins 0.0.24 and {other} pins 0.0.26; write the same version into both"))
        );
    }

    #[test]
    fn a_missing_file_a_directory_and_bytes_that_are_no_text_are_each_said() {
        let files = Files::new();
        let missing = pinned(vec![files.pin("gone", None)]).expect_err("missing");
        assert!(missing.contains("gone") && missing.contains("No such file"), "{missing}");
        std::fs::create_dir(files.0.path().join("dir")).expect("a directory");
        let directory = pinned(vec![files.pin("dir", None)]).expect_err("a directory");
        assert!(directory.ends_with("it is not an ordinary file"), "{directory}");
        std::fs::write(files.0.path().join("bytes"), [0xff, 0xfe]).expect("written");
        assert!(pinned(vec![files.pin("bytes", None)]).is_err());
    }

    #[tokio::test]
    async fn every_place_is_read_for_itself_and_one_that_cannot_be_takes_nothing_from_the_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let package = dir.path().join("lib/node_modules/t3/package.json");
        let command = dir.path().join("bin/t3");
        for (path, text) in [(&package, r#"{"name":"t3","version":"0.0.26"}"#), (&command, "")] {
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, text).expect("written");
        }
        let installs = Installs::new(&crate::t3::Section {
            command: vec![command.to_string_lossy().into_owned()],
            ..crate::t3::Section::default()
        });
        let section = Section {
            version: Some(V24),
            last_good: Some(dir.path().join("last-good")),
            ..Section::default()
        };
        let read = section.read(&installs, &Cli::default(), None).await;
        assert!(read.last_good.is_err());
        std::fs::write(dir.path().join("last-good"), "0.0.24\n").expect("written");
        let tracked = Some(("nightly".to_owned(), Version::new(0, 0, 33)));
        let read = section.read(&installs, &Cli::default(), tracked).await;
        let known: Vec<_> = read.known().map(|(place, version)| format!("{place} {version}")).collect();
        assert_eq!(known, ["pinned 0.0.24", "installed 0.0.26", "last_good 0.0.24", "tracked 0.0.33"]);
    }
}
