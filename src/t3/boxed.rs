//! The box: a bubblewrap with a network of its own (loopback only), an empty home and next to no files. The driver runs
//! in it beside the candidate; the candidate runs in a second one inside, which has the same network and sees neither
//! the driver's processes nor its files. An install has the network and no data; a rehearsal has data and no network.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

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
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// What it takes to make boxes, as the operator says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boxing {
    /// The bubblewrap program.
    pub bwrap: String,
    /// What builds may read besides the system's own and theirs.
    pub expose: Vec<PathBuf>,
}

/// How boxes are made on this machine.
#[derive(Clone, Debug)]
pub struct Boxes {
    bwrap: PathBuf,
    /// Our own program, which is the driver.
    program: PathBuf,
    expose: Vec<PathBuf>,
}

/// What a process in a box may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub memory: u64,
    pub deadline: Duration,
}

/// Why there is no answer from a box.
#[derive(Debug)]
pub struct Stopped {
    pub grounds: Grounds,
    pub detail: String,
}

impl Stopped {
    fn new(grounds: Grounds, detail: impl Into<String>) -> Self {
        Self { grounds, detail: detail.into() }
    }
}

impl Boxes {
    /// Where the machine can make boxes; the error says why it cannot.
    pub fn find(bwrap: &str, program: &Path, expose: &[PathBuf]) -> Result<Self, String> {
        let bwrap = on_path(bwrap)
            .ok_or_else(|| format!("no command '{bwrap}' on the path; install the package bubblewrap"))?;
        let boxes = Self { bwrap, program: program.to_path_buf(), expose: expose.to_vec() };
        let mut probe = boxes.wrapped(&["--unshare-net"], SYSTEM);
        // Two levels, as the driver and the candidate have them.
        let inner = ["--unshare-pid", "--proc", "/proc", "--ro-bind", "/", "/", "--", "/bin/true"];
        let probe = probe.args(["--ro-bind"]).arg(&boxes.bwrap).arg(&boxes.bwrap).arg("--").arg(&boxes.bwrap);
        let output = probe.args(inner).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => Ok(boxes),
            Ok(output) => Err(format!("bubblewrap cannot make a box here: {}", first_line(&output.stderr))),
            Err(error) => Err(format!("bubblewrap cannot be started: {error}")),
        }
    }

    /// The driver's box around one rehearsal: `dir` is its own, `builds` are read-only.
    pub fn around_driver(&self, dir: &Path, builds: &[PathBuf]) -> std::process::Command {
        let mut command = self.wrapped(&["--unshare-net"], SYSTEM);
        command.args(["--setenv", "PATH", FULL_PATH, "--setenv", "HOME"]).arg(dir.join("driver"));
        for path in builds.iter().chain([&self.program]).chain(&self.expose) {
            command.arg("--ro-bind").arg(path).arg(path);
        }
        command.arg("--bind").arg(dir).arg(dir).arg("--").arg(&self.program);
        command
    }

    /// The box around an install: the network, an empty home, and the prefix that is to be filled.
    pub fn around_install(&self, dir: &Path) -> std::process::Command {
        let mut command = self.wrapped(&[], SYSTEM);
        command.args(["--setenv", "PATH", FULL_PATH, "--setenv", "HOME"]).arg(dir.join("home"));
        for path in NETWORK {
            command.args(["--ro-bind-try", path, path]);
        }
        for path in [&self.program].into_iter().chain(&self.expose) {
            command.arg("--ro-bind").arg(path).arg(path);
        }
        command.arg("--bind").arg(dir).arg(dir).arg("--chdir").arg(dir).arg("--");
        command
    }

    /// The candidate's box inside the driver's, as the leading words of a command.
    pub fn inner(&self, dir: &Path, prefix: &Path) -> Vec<String> {
        let mut words: Vec<String> = vec![text(&self.bwrap)];
        let mut say = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        say(&["--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL"]);
        say(&["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        for path in SYSTEM {
            say(&["--ro-bind-try", path, path]);
        }
        for path in [&prefix.to_path_buf(), &dir.join("bin")].into_iter().chain(&self.expose) {
            say(&["--ro-bind", &text(path), &text(path)]);
        }
        say(&["--ro-bind", &text(&dir.join("etc/passwd")), "/etc/passwd"]);
        for own in ["base", "home", "work"] {
            let path = text(&dir.join(own));
            say(&["--bind", &path, &path]);
        }
        say(&["--setenv", "PATH", &text(&dir.join("bin")), "--setenv", "HOME", &text(&dir.join("home"))]);
        say(&["--chdir", &text(&dir.join("work")), "--"]);
        words
    }

    fn wrapped(&self, more: &[&str], system: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.bwrap);
        command
            .args(["--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--new-session"])
            .args(more)
            .args(["--clearenv", "--setenv", "LANG", "C.UTF-8"])
            .args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        for path in system {
            command.args(["--ro-bind-try", path, path]);
        }
        command
    }
}

/// Makes `dir/bin` with the few programs that t3 may start, and `dir/etc/passwd` with nobody in it but ourselves: Node
/// asks who it is, and who else has an account is not the candidate's business.
pub fn furnish(dir: &Path) -> std::io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
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

/// Runs a command to its end within its limits; killed with everything below it when it exceeds them, and when this is
/// dropped.
pub async fn run(
    command: std::process::Command,
    input: &[u8],
    limits: Limits,
    grounds: Grounds,
) -> Result<Output, Stopped> {
    let broken = |what: &str, error: std::io::Error| Stopped::new(grounds, format!("cannot {what}: {error}"));
    let mut command = command;
    command.process_group(0);
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| broken("start a box", error))?;
    let mut tree = Tree(child.id().and_then(|id| i32::try_from(id).ok()));
    if let Some(mut stdin) = child.stdin.take() {
        // A box that ends before it reads says on stderr why.
        let _ = stdin.write_all(input).await;
    }
    let ended = child.wait_with_output();
    tokio::pin!(ended);
    let deadline = sleep_until(Instant::now() + limits.deadline);
    tokio::pin!(deadline);
    let mut watch = interval(WATCH_EVERY);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            output = &mut ended => {
                // Its number may be somebody else's from here on.
                tree.0 = None;
                return output.map_err(|error| broken("wait for a box", error));
            }
            () = &mut deadline => {
                let limit = humantime::format_duration(limits.deadline);
                return Err(Stopped::new(Grounds::Deadline, format!("it did not end within {limit}, killed")));
            }
            _ = watch.tick() => {
                let used = tree.memory();
                if used > limits.memory {
                    let (used, limit) = (used >> 20, limits.memory >> 20);
                    return Err(Stopped::new(
                        Grounds::OutOfMemory,
                        format!("it used {used} MiB of memory, the limit is {limit} MiB, killed"),
                    ));
                }
            }
        }
    }
}

/// A process and everything below it, killed when this is dropped.
struct Tree(Option<i32>);

impl Tree {
    fn processes(&self) -> Vec<Process> {
        let mut found: Vec<Process> = self.0.and_then(|pid| Process::new(pid).ok()).into_iter().collect();
        let mut next = 0;
        while let Some(process) = found.get(next) {
            let tasks = process.tasks().into_iter().flatten().flatten();
            let children: Vec<_> = tasks.filter_map(|task| task.children().ok()).flatten().collect();
            found.extend(children.into_iter().filter_map(|pid| Process::new(i32::try_from(pid).ok()?).ok()));
            next += 1;
        }
        found
    }

    /// Resident bytes, summed: what is shared counts for each that shares it.
    fn memory(&self) -> u64 {
        let pages = |process: &Process| process.statm().map_or(0, |memory| memory.resident);
        self.processes().iter().map(pages).sum::<u64>() * procfs::page_size()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Without a box nothing dies with its parent, so all are looked up before the first one is killed.
        for process in self.processes() {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
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

/// What a box said on stderr, shortened.
pub fn first_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
    line.chars().take(240).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
