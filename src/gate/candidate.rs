//! The two builds that are compared: where they come from, what they say they are, and a checksum over all their files,
//! so that a verdict is about these bytes and no others.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::evidence::Build;
use super::place::{self, Place};
use super::{Section, Wanted};
use crate::outcome::Grounds;
use crate::t3;
use crate::t3::boxed::{self, Boxes, Limits};
use crate::t3::cli::Cli;
use crate::t3::install::Installs;
use crate::t3::version::Version;

/// npm and a browserful of packages.
const INSTALL_MEMORY: u64 = 4 << 30;

/// A build that is on this machine.
#[derive(Clone, Debug)]
pub struct Found {
    pub program: String,
    /// What the program needs: the directory above `bin`, or the one that the program lies in.
    pub prefix: PathBuf,
    pub build: Build,
}

impl Found {
    /// A program that somebody names, or that the host has.
    pub async fn at(program: &Path) -> Result<Self, String> {
        let unreadable = |error: io::Error| format!("cannot read {}: {error}", program.display());
        // The link's own place decides what the prefix is: npm links bin/t3 into the package.
        let program = std::path::absolute(program).map_err(unreadable)?;
        program.metadata().map_err(unreadable)?;
        let prefix = boxed::prefix_of(&program);
        let text = program.to_string_lossy().into_owned();
        let section = t3::Section { command: vec![text.clone()], ..t3::Section::default() };
        let version =
            Installs::new(&section).installed(&Cli::default()).await.map_err(|failure| failure.detail)?;
        let is_packaged = program.parent() != Some(&prefix);
        let measured = if is_packaged { prefix.join("lib/node_modules/t3") } else { program.clone() };
        let integrity = tokio::task::spawn_blocking(move || integrity(&measured)).await;
        let integrity = integrity.map_err(|error| error.to_string())?.map_err(unreadable)?;
        let build = Build { name: text.clone(), version: version.to_string(), integrity };
        Ok(Self { program: text, prefix, build })
    }

    /// The candidate: a program, a side-by-side install, or an install made now and for this run only.
    pub async fn candidate(
        wanted: &Wanted,
        section: &Section,
        t3: &t3::Section,
        boxes: Option<&Boxes>,
        place: &Place,
    ) -> Result<Self, (Grounds, String)> {
        let missing = |detail| (Grounds::NoCandidate, detail);
        let version = match wanted {
            Wanted::Program(program) => return Self::at(program).await.map_err(missing),
            Wanted::Version(version) => version,
        };
        let beside = t3.installs.join(version.to_string()).join("bin/t3");
        if beside.exists() {
            return Self::at(&beside).await.map_err(missing);
        }
        let boxes = boxes.ok_or_else(|| {
            (Grounds::NoBox, "an install runs other people's scripts, so it is made in a box only; install bubblewrap, or install the build yourself and name it with --bin".to_owned())
        })?;
        let prefix = install(version, section, boxes, &place.dir().join("install")).await?;
        let mut found = Self::at(&prefix.join("bin/t3")).await.map_err(missing)?;
        if found.build.version != version.to_string() {
            let detail = format!("what was installed as {version} says it is {}", found.build.version);
            return Err(missing(detail));
        }
        found.build.name = version.to_string();
        Ok(found)
    }

    /// The known-good build: a version that is installed side by side, a program, or the host's own command.
    pub async fn control(wanted: Option<&str>, t3: &t3::Section) -> Result<Self, String> {
        let Some(wanted) = wanted else {
            let [command] = t3.command.as_slice() else {
                let why =
                    "`[t3] command` is more than a program, so it is no control; name one with --control";
                return Err(why.to_owned());
            };
            let program = boxed::on_path(command).ok_or_else(|| {
                format!("no command '{command}' on the path to compare with; name a known-good build with --control or `[gate] control`")
            })?;
            return Self::at(&program).await;
        };
        if wanted.contains('/') {
            return Self::at(Path::new(wanted)).await;
        }
        let version: Version = wanted.parse().map_err(|error: t3::version::NotAVersion| error.to_string())?;
        let program = Installs::new(t3).of_version(&version, &Cli::default()).await;
        match program.map_err(|failure| failure.detail)?.as_slice() {
            [program] => {
                let program =
                    boxed::on_path(program).ok_or_else(|| format!("no command '{program}' on the path"))?;
                Self::at(&program).await
            }
            _ => Err(format!("the command of {version} is more than a program; name one with --control")),
        }
    }
}

/// Installs a version with the configured command, in a box that has the network, this room and no data. Answers the
/// prefix in the room.
pub async fn install(
    version: &Version,
    section: &Section,
    boxes: &Boxes,
    room: &Path,
) -> Result<PathBuf, (Grounds, String)> {
    let failed = |detail: String| (Grounds::NoCandidate, format!("cannot install t3 {version}: {detail}"));
    place::furnish(room).map_err(|error| failed(error.to_string()))?;
    let prefix = room.join("prefix");
    std::fs::create_dir_all(&prefix).map_err(|error| failed(error.to_string()))?;
    let mut command = boxes.around_install(room);
    let replace = |word: &String| {
        word.replace("{version}", &version.to_string()).replace("{prefix}", &prefix.to_string_lossy())
    };
    command.args(section.install_command.iter().map(replace));
    let limits = Limits { memory: INSTALL_MEMORY, deadline: section.install_timeout };
    let output = boxed::run(command, b"", limits, Grounds::NoCandidate).await;
    let output = output
        .map_err(|stopped| (stopped.grounds, format!("installing t3 {version}: {}", stopped.detail)))?;
    if output.status.success() {
        return Ok(prefix);
    }
    Err(failed(format!("{}: {}", output.status, boxed::first_line(&output.stderr))))
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
