//! Which build a user's next start executes: `<installs>/users/<user>` is a link to a version beside it. So a crash
//! restarts what ran, one user can be moved alone, and going back needs no network and no package manager.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::t3::version::Version;

/// The builds of a host and the links to them.
#[derive(Clone, Debug)]
pub struct Links {
    installs: PathBuf,
    last_good: PathBuf,
}

impl Links {
    /// `last_good` is the file that names the version that was last proven.
    pub fn new(installs: &Path, last_good: Option<&Path>) -> Self {
        let last_good = last_good.map_or_else(|| installs.join("last-good"), Path::to_path_buf);
        Self { installs: installs.to_path_buf(), last_good }
    }

    pub fn build(&self, version: &Version) -> PathBuf {
        self.installs.join(version.to_string())
    }

    /// Every build with a program in it.
    pub fn builds(&self) -> Vec<Version> {
        let entries = fs::read_dir(&self.installs).into_iter().flatten().flatten();
        let version = |entry: fs::DirEntry| {
            let version = entry.file_name().to_str()?.parse::<Version>().ok()?;
            entry.path().join("bin/t3").exists().then_some(version)
        };
        entries.filter_map(version).collect()
    }

    pub fn of(&self, user: &str) -> Option<Version> {
        named(&self.installs.join("users").join(user))
    }

    pub fn set(&self, user: &str, version: &Version) -> io::Result<()> {
        let users = self.installs.join("users");
        fs::create_dir_all(&users)?;
        replace(&users, user, &Path::new("..").join(version.to_string()))
    }

    /// The build that a user without a link starts with.
    pub fn default(&self) -> Option<Version> {
        named(&self.installs.join("default"))
    }

    pub fn set_default(&self, version: &Version) -> io::Result<()> {
        replace(&self.installs, "default", Path::new(&version.to_string()))
    }

    pub fn last_good(&self) -> Option<Version> {
        fs::read_to_string(&self.last_good).ok()?.trim().parse().ok()
    }

    pub fn set_last_good(&self, version: &Version) -> io::Result<()> {
        let beside = self.last_good.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&beside)?;
        writeln!(file, "{version}")?;
        file.sync_all()?;
        fs::rename(&beside, &self.last_good)?;
        sync(self.last_good.parent().unwrap_or(Path::new("/")))
    }
}

/// The version that a link names; `None` for no link, or one to something else.
fn named(link: &Path) -> Option<Version> {
    fs::read_link(link).ok()?.file_name()?.to_str()?.parse().ok()
}

/// Whoever starts at this moment sees the old link or the new one.
fn replace(dir: &Path, name: &str, to: &Path) -> io::Result<()> {
    let beside = dir.join(format!(".{name}.new"));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(to, &beside)?;
    fs::rename(&beside, dir.join(name))?;
    sync(dir)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version::new(0, 0, 24);
    const NEW: Version = Version::new(0, 0, 33);

    #[test]
    fn a_link_leads_to_the_program_of_its_version_and_is_replaced_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        for version in ["0.0.24", "0.0.33"] {
            let bin = dir.path().join(version).join("bin");
            fs::create_dir_all(&bin).expect("a build");
            fs::write(bin.join("t3"), version).expect("a program");
        }
        let links = Links::new(dir.path(), None);
        assert_eq!(links.of("ann"), None);
        for version in [OLD, NEW, OLD] {
            links.set("ann", &version).expect("set");
            assert_eq!(links.of("ann"), Some(version.clone()));
            let program = fs::read_to_string(dir.path().join("users/ann/bin/t3")).expect("through the link");
            assert_eq!(program, version.to_string());
        }
        let mut builds = links.builds();
        builds.sort();
        assert_eq!(builds, [OLD, NEW]);
    }

    #[test]
    fn default_and_last_good_are_what_was_set() {
        let dir = tempfile::tempdir().expect("a directory");
        let links = Links::new(dir.path(), None);
        assert_eq!((links.default(), links.last_good()), (None, None));
        links.set_default(&NEW).expect("set");
        links.set_last_good(&OLD).expect("set");
        assert_eq!((links.default(), links.last_good()), (Some(NEW), Some(OLD)));
        assert_eq!(fs::read_to_string(dir.path().join("last-good")).expect("the file"), "0.0.24\n");
    }
}
