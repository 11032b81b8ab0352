//! The two builds that are compared: where they come from, what they say they are, and a checksum over all their files,
//! so that a verdict is about these bytes and no others.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::evidence::Build;
use super::hands::{Account, Hands};
use super::place::{self, Place};
use super::{Section, Wanted};
use crate::outcome::Grounds;
use crate::t3;
use crate::t3::boxed::{self, Boxes};
use crate::t3::install;
use crate::t3::job::{Job, Limits};
use crate::t3::version::Version;

/// npm and a browserful of packages.
const INSTALL_MEMORY: u64 = 4 << 30;
/// `t3 --version` takes 0.65 to 1 s on an idle machine (CONTRACT §2.1).
const QUESTION: Limits = Limits { memory: 1 << 30, deadline: Duration::from_secs(30) };

/// Where a build lies.
#[derive(Clone, Debug)]
pub struct Located {
    pub program: String,
    /// What the program needs: the directory above `bin`, or the one that the program lies in.
    pub prefix: PathBuf,
    is_package: bool,
}

/// A build that is on this machine.
#[derive(Clone, Debug)]
pub struct Found {
    pub located: Located,
    pub build: Build,
}

impl Located {
    pub fn at(program: &Path) -> io::Result<Self> {
        // The link's own place decides what the prefix is: npm links bin/t3 into the package.
        let program = std::path::absolute(program)?;
        program.metadata()?;
        let prefix = boxed::prefix_of(&program);
        let is_package = program.parent() != Some(&prefix);
        Ok(Self { program: program.to_string_lossy().into_owned(), prefix, is_package })
    }

    /// `sha256:…` over the package, or over the program where there is no package. Reads all of it.
    pub async fn integrity(&self) -> io::Result<String> {
        let measured = if self.is_package {
            self.prefix.join("lib/node_modules/t3")
        } else {
            PathBuf::from(&self.program)
        };
        tokio::task::spawn_blocking(move || integrity(&measured)).await.map_err(io::Error::other)?
    }
}

impl Found {
    /// A program that somebody names, or that the host has. Where no package says its version it is asked for it, in a
    /// box where there is one.
    async fn at(program: &Path, boxes: Option<&Boxes>, hands: &impl Hands) -> Result<Self, String> {
        let unreadable = |error: io::Error| format!("cannot read {}: {error}", program.display());
        let located = Located::at(program).map_err(unreadable)?;
        let version = match located.packaged() {
            Some(version) => version,
            None => located.says_it_is(boxes, hands).await?,
        };
        let integrity = located.integrity().await.map_err(unreadable)?;
        let build = Build { name: located.program.clone(), version: version.to_string(), integrity };
        Ok(Self { located, build })
    }

    /// The candidate: a program, a side-by-side install, or an install made now and for this run only.
    pub async fn candidate(
        wanted: &Wanted,
        section: &Section,
        t3: &t3::Section,
        boxes: Option<&Boxes>,
        place: &Place,
        hands: &impl Hands,
    ) -> Result<Self, (Grounds, String)> {
        let missing = |detail| (Grounds::NoCandidate, detail);
        let version = match wanted {
            Wanted::Program(program) => return Self::at(program, boxes, hands).await.map_err(missing),
            Wanted::Version(version) => version,
        };
        let beside = t3.installs.join(version.to_string()).join("bin/t3");
        if beside.exists() {
            return Self::at(&beside, boxes, hands).await.map_err(missing);
        }
        let boxes = boxes.ok_or_else(|| {
            (Grounds::NoBox, "an install runs other people's scripts, so it is made in a box only; install bubblewrap, or install the build yourself and name it with --bin".to_owned())
        })?;
        let prefix = install(version, section, boxes, &place.dir().join("install"), hands).await?;
        let mut found = Self::at(&prefix.join("bin/t3"), Some(boxes), hands).await.map_err(missing)?;
        if found.build.version != version.to_string() {
            let detail = format!("what was installed as {version} says it is {}", found.build.version);
            return Err(missing(detail));
        }
        found.build.name = version.to_string();
        Ok(found)
    }

    /// The known-good build: a version that is installed side by side, a program, or the host's own command.
    pub async fn control(
        wanted: Option<&str>,
        t3: &t3::Section,
        boxes: Option<&Boxes>,
        hands: &impl Hands,
    ) -> Result<Self, String> {
        if let Some(path) = wanted.filter(|wanted| wanted.contains('/')) {
            return Self::at(Path::new(path), boxes, hands).await;
        }
        let version: Option<Version> = wanted
            .map(|wanted| wanted.parse().map_err(|error: t3::version::NotAVersion| error.to_string()))
            .transpose()?;
        let beside = version.as_ref().map(|version| t3.installs.join(version.to_string()).join("bin/t3"));
        let program = match beside.filter(|beside| beside.exists()) {
            Some(beside) => beside,
            None => command(t3)?,
        };
        let found = Self::at(&program, boxes, hands).await?;
        match version.filter(|version| version.to_string() != found.build.version) {
            None => Ok(found),
            Some(version) => {
                let (program, other) = (program.display(), found.build.version);
                Err(format!(
                    "{program} is t3 {other}, and t3 {version} is not installed beside it; name a known-good build with --control or `[gate] control`"
                ))
            }
        }
    }
}

/// The host's own command.
fn command(t3: &t3::Section) -> Result<PathBuf, String> {
    let [command] = t3.command.as_slice() else {
        return Err(
            "`[t3] command` is more than a program, so it is no control; name one with --control".to_owned()
        );
    };
    boxed::on_path(command).ok_or_else(|| {
        format!("no command '{command}' on the path to compare with; name a known-good build with --control or `[gate] control`")
    })
}

impl Located {
    /// The version that its package names; nothing of it is run.
    pub fn packaged(&self) -> Option<Version> {
        install::packaged(Path::new(&self.program))
    }

    pub async fn says_it_is(&self, boxes: Option<&Boxes>, hands: &impl Hands) -> Result<Version, String> {
        let mut words = boxes.map(|boxes| boxes.around_question(&self.prefix)).unwrap_or_default();
        words.extend([self.program.clone(), "--version".to_owned()]);
        let mut job = Job::new(words, QUESTION, Grounds::NoCandidate);
        if boxes.is_none() {
            job.env = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/nonexistent")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        }
        let cannot = |what: &str| format!("cannot ask {} for its version: {what}", self.program);
        let ran = hands.run(job).await.map_err(|stopped| cannot(&stopped.detail))?;
        let said = ran.stdout.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let word = said.split_whitespace().next_back().unwrap_or_default();
        word.trim_start_matches('v').parse().map_err(|_| {
            cannot(&format!("it ends with {} and prints no version: {}", ran.status(), ran.complaint))
        })
    }
}

/// Installs a version with the configured command, in a box that has the network, this room and no data. Answers the
/// prefix in the room, which everybody can read.
pub async fn install(
    version: &Version,
    section: &Section,
    boxes: &Boxes,
    room: &Path,
    hands: &impl Hands,
) -> Result<PathBuf, (Grounds, String)> {
    let failed = |detail: String| (Grounds::NoCandidate, format!("cannot install t3 {version}: {detail}"));
    let account = Account::of(hands);
    let prefix = room.join("prefix");
    place::furnish(room, account)
        .and_then(|()| place::make(&prefix, 0o755))
        .and_then(|()| place::give(&prefix, account))
        .and_then(|()| place::hand_over(room, account))
        .map_err(|error| failed(error.to_string()))?;
    let mut words = boxes.around_install(room);
    let replace = |word: &String| {
        word.replace("{version}", &version.to_string()).replace("{prefix}", &prefix.to_string_lossy())
    };
    words.extend(section.install_command.iter().map(replace));
    let limits = Limits { memory: INSTALL_MEMORY, deadline: section.install_timeout };
    let ran = hands.run(Job::new(words, limits, Grounds::NoCandidate)).await;
    let ran =
        ran.map_err(|stopped| (stopped.grounds, format!("installing t3 {version}: {}", stopped.detail)))?;
    if ran.code != Some(0) {
        return Err(failed(format!("{}: {}", ran.status(), ran.complaint)));
    }
    take_back(&prefix)
        .and_then(|()| std::fs::set_permissions(room, std::fs::Permissions::from_mode(0o711)))
        .map_err(|error| failed(error.to_string()))?;
    Ok(prefix)
}

/// Makes what was installed ours, for everybody to read and for nobody else to write, whatever the installer left.
fn take_back(path: &Path) -> io::Result<()> {
    let us = Account::ours();
    let metadata = path.symlink_metadata()?;
    place::give(path, us)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.permissions().mode();
    let executable = if mode & 0o111 != 0 { 0o111 } else { 0 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode((mode & 0o700) | 0o444 | executable))?;
    if metadata.is_dir() {
        return std::fs::read_dir(path)?.try_for_each(|entry| take_back(&entry?.path()));
    }
    Ok(())
}

/// `sha256:…` over a file, or over names, modes and contents of everything below a directory.
fn integrity(path: &Path) -> io::Result<String> {
    let mut sha = Sha256::new();
    measure(path, Path::new(""), &mut sha)?;
    let hex: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

fn measure(path: &Path, name: &Path, sha: &mut Sha256) -> io::Result<()> {
    // What is named at first may be a link; within a package a link is measured as a link.
    let metadata = if name.as_os_str().is_empty() { path.metadata()? } else { path.symlink_metadata()? };
    if metadata.is_dir() {
        let mut entries = std::fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        return entries
            .iter()
            .try_for_each(|entry| measure(&entry.path(), &name.join(entry.file_name()), sha));
    }
    sha.update(name.as_os_str().as_bytes());
    // The kind, whether it may be executed and the length: no two trees look alike.
    sha.update([0, u8::from(metadata.is_symlink()), u8::from(metadata.permissions().mode() & 0o111 != 0)]);
    if metadata.is_symlink() {
        let to = std::fs::read_link(path)?;
        sha.update((to.as_os_str().len() as u64).to_le_bytes());
        sha.update(to.as_os_str().as_bytes());
        return Ok(());
    }
    sha.update(metadata.len().to_le_bytes());
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(()),
            length => sha.update(&buffer[..length]),
        }
    }
}

/// How long an install may take by default.
pub const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);
