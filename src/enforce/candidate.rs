//! The build in question: which version is wanted, whether the gate lets it pass, and its install beside the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Section;
use super::command;
use super::links::Links;
use crate::backup::Ourselves;
use crate::config::Config;
use crate::docket;
use crate::gate;
use crate::gate::candidate::Located;
use crate::helper::Crew;
use crate::outcome::{Failure, Hold, Reason, Verdict};
use crate::t3::boxed::Boxes;
use crate::t3::version::Version;

/// A registry answers within seconds.
const RESOLVE_LIMIT: Duration = Duration::from_secs(60);

/// The version that a followed tag stands for now.
pub async fn tracked(section: &Section, tag: &str) -> Result<Version, Failure> {
    let what = format!("resolve the tag '{tag}'");
    let ended = command::run(&what, &section.track_command, &[("tag", tag)], RESOLVE_LIMIT).await?;
    let failed = |detail: String| Failure::new(Reason::CliFailed, format!("cannot {what}: {detail}"));
    if ended.code != Some(0) {
        return Err(failed(format!(
            "`[enforce] track_command` ended with {:?}: {}",
            ended.code, ended.complaint
        )));
    }
    let last = ended.stdout.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    last.parse().map_err(|error: crate::t3::version::NotAVersion| failed(error.to_string()))
}

/// Whether a build may be given to users: by a verdict that holds, else by the gate, which is run now. Only an exit code
/// of 0 is a pass.
pub async fn judge(
    config: &Config,
    config_file: Option<&Path>,
    version: &Version,
    last_good: &Version,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(), Refused> {
    let section = &config.enforce;
    if docket::standing(config, version).await.verdict() == Some(Verdict::Pass) {
        say(&format!("there is a verdict about t3 {version}: pass"));
        return Ok(());
    }
    let (version, last_good) = (version.to_string(), last_good.to_string());
    let values = [("version", version.as_str()), ("last_good", last_good.as_str())];
    say(&format!("the gate rehearses t3 {version} beside t3 {last_good}"));
    let gate = if section.gate_command.is_empty() {
        let mut own = ourselves(config_file).map_err(Refused::Unknown)?;
        own.extend(["gate", "{version}", "--control", "{last_good}"].map(str::to_owned));
        own
    } else {
        section.gate_command.clone()
    };
    let ended = command::run("run the gate", &gate, &values, section.gate_timeout).await;
    let ended = ended.map_err(Refused::Unknown)?;
    let first = ended.stdout.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let said = if first.is_empty() { &ended.complaint } else { first.trim() };
    match ended.code {
        Some(0) => {
            say(&format!("the gate says pass: {said}"));
            Ok(())
        }
        Some(1) => Err(Refused::NotPassed(format!("the gate says fail: {said}"))),
        Some(3) => Err(Refused::NotPassed(format!("the gate cannot tell: {said}"))),
        code => {
            let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
            let detail = format!("the gate ended with {code}, so there is no verdict: {said}");
            Err(Refused::Unknown(Failure::new(Reason::CliFailed, detail)))
        }
    }
}

/// Why a build is not given to anybody.
#[derive(Debug)]
pub enum Refused {
    NotPassed(String),
    Unknown(Failure),
}

/// This program with this configuration.
fn ourselves(config_file: Option<&Path>) -> Result<Vec<String>, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::new(Reason::CliMissing, format!("cannot find this program: {error}")))?;
    let mut own = vec![own.to_string_lossy().into_owned()];
    if let Some(file) = config_file {
        own.extend(["--config".to_owned(), file.to_string_lossy().into_owned()]);
    }
    Ok(own)
}

/// Makes sure that a build is installed side by side: in a box as the gate does it, beside its place, and under its name
/// only when it is whole.
pub async fn install(config: &Config, links: &Links, version: &Version) -> Result<(), Failure> {
    let place = links.build(version);
    if !place.join("bin/t3").exists() {
        let room = Room(links.build(version).with_file_name(format!(".{version}.new")));
        let failed = |error: std::io::Error| unwritable(&room.0, &error);
        clear(&room.0).map_err(failed)?;
        fs::create_dir_all(&room.0).map_err(failed)?;
        let prefix = make(&config.gate, &room.0, version).await?;
        // What is left under the name has no program in it.
        clear(&place).and_then(|()| fs::rename(&prefix, &place)).map_err(failed)?;
    }
    is_what_it_is_called(config, &place.join("bin/t3"), version).await
}

/// A build of another version than its directory names would be judged as one and run as the other. Where no package says
/// which it is, it is asked: never by root, and in a box where one can be made.
async fn is_what_it_is_called(config: &Config, program: &Path, version: &Version) -> Result<(), Failure> {
    let failed = |detail: String| Failure::new(Reason::CliFailed, detail);
    let unreadable = |error: std::io::Error| failed(format!("cannot read {}: {error}", program.display()));
    let located = Located::at(program).map_err(unreadable)?;
    let found = match located.packaged() {
        Some(version) => version,
        None => {
            let own = std::env::current_exe().map_err(unreadable)?;
            let boxes = match Boxes::find(&config.gate.boxing(), &own).await {
                Ok(boxes) => Some(boxes),
                Err(why) if config.gate.require_box => {
                    let program = program.display();
                    return Err(failed(format!(
                        "no package says which version {program} is, and it is run in a box only ({why})"
                    )));
                }
                Err(_) => None,
            };
            let crew = Crew::new(config).map_err(failed)?;
            let nobody = crew.nobody().map_err(failed)?;
            located.says_it_is(boxes.as_ref(), &nobody).await.map_err(failed)?
        }
    };
    if found == *version {
        return Ok(());
    }
    Err(failed(format!("{} is t3 {found}, not the version its directory names", program.display())))
}

/// Where an install is made, however it ends: nothing of it is left.
struct Room(PathBuf);

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The prefix in the room, with the program in it.
async fn make(section: &gate::Section, room: &Path, version: &Version) -> Result<PathBuf, Failure> {
    let failed = |detail: String| {
        let full = nix::sys::statvfs::statvfs(room)
            .is_ok_and(|system| system.blocks_available() * system.fragment_size() < 1 << 16);
        Failure::new(if full { Reason::NoSpace } else { Reason::CliFailed }, detail)
    };
    let own =
        std::env::current_exe().map_err(|error| failed(format!("cannot find this program: {error}")))?;
    let ourselves = Ourselves { boxing: section.boxing() };
    let prefix = match Boxes::find(&section.boxing(), &own).await {
        Ok(boxes) => gate::candidate::install(version, section, &boxes, room, &ourselves)
            .await
            .map_err(|(_, detail)| failed(detail))?,
        Err(why) if section.require_box => {
            let detail = format!(
                "cannot install t3 {version}: an install runs other people's scripts, so it is made in a box only ({why}); install the build below `[t3] installs` yourself"
            );
            return Err(failed(detail));
        }
        Err(_) => unboxed(section, room, version).await.map_err(|failure| failed(failure.detail))?,
    };
    if prefix.join("bin/t3").exists() {
        return Ok(prefix);
    }
    Err(failed(format!("cannot install t3 {version}: `[gate] install_command` made no bin/t3")))
}

async fn unboxed(section: &gate::Section, room: &Path, version: &Version) -> Result<PathBuf, Failure> {
    let prefix = room.join("prefix");
    fs::create_dir_all(&prefix).map_err(|error| unwritable(&prefix, &error))?;
    let (text, version) = (prefix.to_string_lossy(), version.to_string());
    let values = [("prefix", text.as_ref()), ("version", version.as_str())];
    let what = format!("install t3 {version}");
    let ended = command::run(&what, &section.install_command, &values, section.install_timeout).await?;
    if ended.code == Some(0) {
        return Ok(prefix);
    }
    let detail =
        format!("cannot {what}: `[gate] install_command` ended with {:?}: {}", ended.code, ended.complaint);
    Err(Failure::new(Reason::CliFailed, detail))
}

fn clear(dir: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let reason = match error.kind() {
        std::io::ErrorKind::StorageFull => Reason::NoSpace,
        _ => Reason::Unreadable,
    };
    Failure::new(reason, format!("cannot install to {}: {error}", path.display()))
}

impl From<Refused> for super::Stop {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotPassed(detail) => Self::Held(Hold::NotPassed, detail),
            Refused::Unknown(failure) => Self::Failed(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: Version = Version::new(0, 0, 33);

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn a_tag_is_what_the_command_prints_last() {
        let section = |script| Section { track_command: sh(script), ..Section::default() };
        let version = tracked(&section("echo npm says; echo 0.0.33; echo"), "nightly").await;
        assert_eq!(version.expect("a version"), VERSION);
        let failure = tracked(&section("echo offline >&2; exit 1"), "nightly").await.expect_err("offline");
        assert!(failure.detail.contains("'nightly'") && failure.detail.contains("offline"), "{failure}");
        assert!(tracked(&section("echo latest"), "nightly").await.is_err());
    }

    #[tokio::test]
    async fn an_install_counts_when_it_is_whole_and_leaves_nothing_when_it_fails() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = |script: &str| {
            let mut config = Config::default();
            config.t3.installs = dir.path().to_path_buf();
            // This is not the program, which stands at the door of each box and is run as others.
            config.gate.require_box = false;
            config.gate.bwrap = "/no/such/bwrap".to_owned();
            config.inventory.accounts = false;
            config.gate.install_command = sh(script);
            config
        };
        let links = Links::new(dir.path(), None);
        let failure =
            install(&config("mkdir {prefix}/bin; exit 7"), &links, &VERSION).await.expect_err("it failed");
        assert!(failure.detail.contains("cannot install t3 0.0.33"), "{failure}");
        assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "nothing is left");
        let script = r#"mkdir -p {prefix}/bin; printf '#!/bin/sh\necho t3 v{version}\n' > {prefix}/bin/t3; chmod +x {prefix}/bin/t3"#;
        Box::pin(install(&config(script), &links, &VERSION)).await.expect("installed");
        assert_eq!(links.builds(), [VERSION]);
        install(&config("exit 7"), &links, &VERSION).await.expect("it is there already");
    }
}
