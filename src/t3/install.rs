//! Which t3 commands are on this host, and which version each is. A version is read from the package beside the
//! command; only where there is none is the command executed, once per path, inode, time and size.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;

use super::Section;
use super::cli::Cli;
use super::version::Version;
use crate::outcome::{Failure, Reason};

/// `t3 --version` takes 0.65 to 1 s on an idle machine (CONTRACT §2.1).
const VERSION_LIMIT: Duration = Duration::from_secs(15);

/// The commands that the configuration names.
pub struct Installs {
    command: Vec<String>,
    dir: PathBuf,
    executed: Mutex<HashMap<Executed, Version>>,
}

/// What must be unchanged for an executed version to be believed again.
#[derive(PartialEq, Eq, Hash)]
struct Executed {
    path: PathBuf,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Installs {
    pub fn new(section: &Section) -> Self {
        Self { command: section.command.clone(), dir: section.installs.clone(), executed: Mutex::default() }
    }

    /// The command of exactly this version: the side-by-side install, else the configured command if it is that.
    /// `Err` names the version that was found instead.
    pub async fn of_version(&self, wanted: &Version, cli: &Cli) -> Result<Vec<String>, Failure> {
        let beside = self.dir.join(wanted.to_string()).join("bin/t3");
        if beside.exists() {
            let program = vec![beside.to_string_lossy().into_owned()];
            let found = self.version(&program, cli).await?;
            if found == *wanted {
                return Ok(program);
            }
            return Err(Failure::new(
                Reason::CliFailed,
                format!("{} is t3 {found}, not the version its directory names", beside.display()),
            ));
        }
        let found = self.version(&self.command, cli).await?;
        if found == *wanted {
            Ok(self.command.clone())
        } else {
            Err(Failure::new(
                Reason::CliMissing,
                format!("the instance runs {wanted}, the installed command is {found}"),
            ))
        }
    }

    /// Whether there is a side-by-side install of this version.
    pub fn has(&self, version: &Version) -> bool {
        self.dir.join(version.to_string()).join("bin/t3").exists()
    }

    /// The version of the configured command.
    pub async fn installed(&self, cli: &Cli) -> Result<Version, Failure> {
        self.version(&self.command, cli).await
    }

    async fn version(&self, program: &[String], cli: &Cli) -> Result<Version, Failure> {
        let path = resolve(program)?;
        if program.len() == 1
            && let Some(version) = packaged(&path)
        {
            return Ok(version);
        }
        let unreadable =
            |error| Failure::new(Reason::CliMissing, format!("cannot read {}: {error}", path.display()));
        let metadata = path.metadata().map_err(unreadable)?;
        let key = Executed {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
            path,
        };
        let known = self.executed.lock().ok().and_then(|executed| executed.get(&key).cloned());
        if let Some(version) = known {
            return Ok(version);
        }
        let printed = cli.version(program, VERSION_LIMIT).await?;
        let version: Version = printed.parse().map_err(|_| {
            Failure::new(
                Reason::CliGarbage,
                format!("{} --version does not print a version", program.join(" ")),
            )
        })?;
        if let Ok(mut executed) = self.executed.lock() {
            executed.insert(key, version.clone());
        }
        Ok(version)
    }
}

/// The file that a program name stands for, as a shell would find it.
fn resolve(program: &[String]) -> Result<PathBuf, Failure> {
    let missing = |what: String| Failure::new(Reason::CliMissing, what);
    let name = program.first().ok_or_else(|| missing("no t3 command is configured".to_owned()))?;
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file()).ok_or_else(
        || {
            missing(format!(
                "no command '{name}' on the path; set `[t3] command`, or install builds below `[t3] installs`"
            ))
        },
    )
}

/// The version in the package that the command belongs to: npm links `bin/t3` into the package.
pub fn packaged(command: &Path) -> Option<Version> {
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: Version,
    }
    let real = command.canonicalize().ok()?;
    let above = real.ancestors().skip(1).take(3).map(|dir| dir.join("package.json"));
    let prefix = command.parent()?.parent()?.join("lib/node_modules/t3/package.json");
    above.chain([prefix]).find_map(|path| {
        let package: Package = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (package.name == "t3").then_some(package.version)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
        std::fs::write(path, text).expect("script");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    }

    fn installs(dir: &Path, command: &Path) -> Installs {
        Installs::new(&Section {
            command: vec![command.to_string_lossy().into_owned()],
            installs: dir.to_path_buf(),
            ..Section::default()
        })
    }

    #[tokio::test]
    async fn a_packaged_version_is_read_and_nothing_is_executed() {
        let dir = tempfile::tempdir().expect("a directory");
        let command = dir.path().join("0.0.26/bin/t3");
        script(&command, "#!/bin/sh\nexit 7\n");
        let package = dir.path().join("0.0.26/lib/node_modules/t3/package.json");
        std::fs::create_dir_all(package.parent().expect("a parent")).expect("directory");
        std::fs::write(package, r#"{"name":"t3","version":"0.0.26"}"#).expect("package");
        let found = installs(dir.path(), &command).of_version(&Version::new(0, 0, 26), &Cli::default()).await;
        assert_eq!(found.expect("the install"), [command.to_string_lossy()]);
    }

    #[tokio::test]
    async fn a_bare_command_is_executed_once_until_the_file_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (command, calls) = (dir.path().join("t3"), dir.path().join("calls"));
        script(&command, &format!("#!/bin/sh\necho x >> {}\necho 't3 v0.0.24'\n", calls.display()));
        let (installs, cli) = (installs(&dir.path().join("none"), &command), Cli::default());
        for _ in 0..3 {
            assert_eq!(installs.installed(&cli).await.expect("a version"), Version::new(0, 0, 24));
        }
        assert_eq!(std::fs::read_to_string(&calls).expect("calls"), "x\n");
        script(&command, "#!/bin/sh\necho 't3 v0.0.26 '\n");
        assert_eq!(installs.installed(&cli).await.expect("a version"), Version::new(0, 0, 26));
    }

    #[tokio::test]
    async fn another_version_than_the_running_one_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let command = dir.path().join("t3");
        script(&command, "#!/bin/sh\necho 't3 v0.0.26'\n");
        let failure = installs(&dir.path().join("none"), &command)
            .of_version(&Version::new(0, 0, 24), &Cli::default())
            .await
            .expect_err("another version");
        assert_eq!(failure.detail, "the instance runs 0.0.24, the installed command is 0.0.26");
    }
}
