//! The box: a bubblewrap with a network of its own (loopback only), an empty home and next to no files. The driver runs
//! in it beside the candidate; the candidate runs in a second one inside, which has the same network and sees neither
//! the driver's processes nor its files. An install has the network and no data; a rehearsal has data and no network.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::job::{Job, Limits, Ran, Stopped};
use crate::outcome::Grounds;

/// What a Node program needs of the machine; none of it belongs to a user. Directories only: a file that is replaced
/// while a box exists (as `useradd` replaces /etc/passwd) cannot be passed on to the box inside it.
const SYSTEM: &[&str] = &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives"];
/// What reaching a package registry needs besides.
const NETWORK: &[&str] =
    &["/etc/resolv.conf", "/etc/hosts", "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/gai.conf"];
/// All that t3 may start: none of the providers' commands (CONTRACT §11).
const PROGRAMS: &[&str] = &["node", "git", "sh"];
const FULL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The command of ours that runs another one on a leash.
pub const LEASHED: &str = "leashed";
/// Making a box and doing next to nothing in it.
const QUICK: Limits = Limits { memory: 1 << 30, deadline: std::time::Duration::from_secs(30) };

/// What it takes to make boxes, as the operator says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boxing {
    /// The bubblewrap program.
    pub bwrap: String,
    /// What builds may read besides the system's own and theirs.
    pub expose: Vec<PathBuf>,
}

/// How boxes are made on this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boxes {
    bwrap: PathBuf,
    /// Our own program, which is the driver.
    program: PathBuf,
    expose: Vec<PathBuf>,
}

impl Boxes {
    /// Where we ourselves can make boxes; the error says why we cannot.
    pub async fn find(boxing: &Boxing, program: &Path) -> Result<Self, String> {
        let boxes = Self::of(boxing, program)?;
        let ran = boxes.trial().carry_out().await;
        boxes.made(ran, "")
    }

    /// Those that are to be tried by whoever is to make them.
    pub fn of(boxing: &Boxing, program: &Path) -> Result<Self, String> {
        let bwrap = &boxing.bwrap;
        let bwrap = on_path(bwrap)
            .ok_or_else(|| format!("no command '{bwrap}' on the path; install the package bubblewrap"))?;
        Ok(Self { bwrap, program: program.to_path_buf(), expose: boxing.expose.clone() })
    }

    /// A box in a box, with nothing to be done in it: as the driver and the candidate have them.
    pub fn trial(&self) -> Job {
        let mut command = self.wrapped(&["--unshare-net"], SYSTEM);
        let own = text(&self.bwrap);
        command.extend(words(&["--ro-bind", &own, &own, "--", &own, "--unshare-pid", "--proc", "/proc"]));
        command.extend(words(&["--ro-bind", "/", "/", "--", "/bin/true"]));
        Job::new(command, QUICK, Grounds::NoBox)
    }

    /// What came of the trial, and who made it.
    pub fn made(self, ran: Result<Ran, Stopped>, by: &str) -> Result<Self, String> {
        let ran = ran.map_err(|stopped| format!("bubblewrap cannot make a box here: {}", stopped.detail))?;
        if ran.code == Some(0) {
            return Ok(self);
        }
        Err(format!("bubblewrap cannot make a box here{by}: {}", ran.complaint))
    }

    /// The driver's box around one rehearsal: `dir` is its own, `builds` are read-only.
    pub fn around_driver(&self, dir: &Path, builds: &[&Path]) -> Vec<String> {
        let mut command = self.wrapped(&["--unshare-net"], SYSTEM);
        command.extend(words(&["--setenv", "PATH", FULL_PATH, "--setenv", "HOME"]));
        command.push(text(&dir.join("driver")));
        command.extend(self.shown(builds.iter().copied().chain([&*self.program])));
        let (dir, program) = (text(dir), text(&self.program));
        command.extend(words(&["--bind", &dir, &dir, "--", &program]));
        command
    }

    /// The box around an install: the network, an empty home, and the prefix that is to be filled.
    pub fn around_install(&self, dir: &Path) -> Vec<String> {
        // Root would keep what it may do.
        let mut command = self.wrapped(&["--cap-drop", "ALL"], SYSTEM);
        command.extend(words(&["--setenv", "PATH", FULL_PATH, "--setenv", "HOME"]));
        command.push(text(&dir.join("home")));
        for path in NETWORK {
            command.extend(words(&["--ro-bind-try", path, path]));
        }
        command.extend(self.shown([&*self.program]));
        let dir = text(dir);
        command.extend(words(&["--bind", &dir, &dir, "--chdir", &dir, "--"]));
        command.extend(self.leashed());
        command
    }

    /// The box around a build that is asked something: neither network nor data.
    pub fn around_question(&self, prefix: &Path) -> Vec<String> {
        let mut command = self.wrapped(&["--unshare-net", "--cap-drop", "ALL"], SYSTEM);
        command.extend(words(&["--setenv", "PATH", FULL_PATH, "--setenv", "HOME", "/tmp"]));
        command.extend(self.shown([prefix, &*self.program]));
        command.push("--".to_owned());
        command.extend(self.leashed());
        command
    }

    /// Before a command of somebody else's: bubblewrap does not see that its parent died before it looked.
    fn leashed(&self) -> [String; 2] {
        [text(&self.program), LEASHED.to_owned()]
    }

    fn shown<'a>(&'a self, paths: impl IntoIterator<Item = &'a Path>) -> impl Iterator<Item = String> {
        let all = paths.into_iter().chain(self.expose.iter().map(PathBuf::as_path));
        all.flat_map(|path| ["--ro-bind".to_owned(), text(path), text(path)])
    }

    /// The candidate's box inside the driver's, as the leading words of a command.
    pub fn inner(&self, dir: &Path, prefix: &Path) -> Vec<String> {
        let mut command = words(&[&text(&self.bwrap), "--die-with-parent", "--unshare-pid", "--unshare-ipc"]);
        command.extend(words(&["--cap-drop", "ALL"]));
        command.extend(words(&["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]));
        for path in SYSTEM {
            command.extend(words(&["--ro-bind-try", path, path]));
        }
        command.extend(self.shown([prefix, &*dir.join("bin")]));
        command.extend(words(&["--ro-bind", &text(&dir.join("etc/passwd")), "/etc/passwd"]));
        for own in ["base", "home", "work"] {
            let path = text(&dir.join(own));
            command.extend(words(&["--bind", &path, &path]));
        }
        let (path, home) = (text(&dir.join("bin")), text(&dir.join("home")));
        command.extend(words(&["--setenv", "PATH", &path, "--setenv", "HOME", &home]));
        command.extend(words(&["--chdir", &text(&dir.join("work")), "--"]));
        command
    }

    fn wrapped(&self, more: &[&str], system: &[&str]) -> Vec<String> {
        let mut command = words(&[&text(&self.bwrap), "--die-with-parent", "--unshare-pid", "--unshare-ipc"]);
        command.push("--new-session".to_owned());
        command.extend(words(more));
        command.extend(words(&["--clearenv", "--setenv", "LANG", "C.UTF-8"]));
        command.extend(words(&["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]));
        for path in system {
            command.extend(words(&["--ro-bind-try", path, path]));
        }
        command
    }
}

/// Makes `dir/bin` with the few programs that t3 may start, and `dir/etc/passwd` with nobody in it but whoever runs it:
/// Node asks who it is, and who else has an account is not the candidate's business.
pub fn furnish(dir: &Path, (uid, gid): (u32, u32)) -> std::io::Result<()> {
    let home = dir.join("home");
    std::fs::create_dir_all(dir.join("etc"))?;
    let line = format!("t3:x:{uid}:{gid}::{}:/bin/sh\n", home.display());
    std::fs::write(dir.join("etc/passwd"), line)?;
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin)?;
    for name in PROGRAMS {
        if let Some(program) = on_path(name) {
            std::os::unix::fs::symlink(program.canonicalize()?, bin.join(name))?;
        }
    }
    Ok(())
}

/// What a program needs of its own: the directory above `bin` where a package manager put it there, else the one that
/// it lies in.
pub fn prefix_of(program: &Path) -> PathBuf {
    let dir = program.parent().unwrap_or(Path::new("/"));
    let is_prefix = dir.file_name() == Some(OsStr::new("bin")) && dir.join("../lib/node_modules/t3").is_dir();
    if is_prefix { dir.parent().unwrap_or(dir) } else { dir }.to_path_buf()
}

/// The file that a program's name stands for.
pub fn on_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).is_file().then(|| PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
