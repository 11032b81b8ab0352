//! Programs of other people that a test needs. A missing one is a failure, unless it is left out by name: a suite that
//! passes in silence because its tool is not there proves nothing.

use std::io::Write;
use std::path::PathBuf;

/// Names the tools that may be absent, separated by commas.
pub const LEAVE_OUT: &str = "T3_PROBER_LEAVE_OUT";

/// Whether this test may do what only root can, such as making accounts; `false` where `root` is left out by name.
#[allow(dead_code)] // Unit tests share this file, and none of them needs root.
pub fn root() -> bool {
    if is_left_out("root") {
        return false;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes accounts and acts as them; run it as root, or leave it out with {LEAVE_OUT}=root"
    );
    true
}

/// Where the program is; `None` where it is left out by name, which is said on stderr past the test harness's capture.
pub fn find(tool: &str) -> Option<PathBuf> {
    if is_left_out(tool) {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|program| program.is_file());
    Some(found.unwrap_or_else(|| {
        panic!("{tool} is not on the PATH; install it, or leave out what needs it with {LEAVE_OUT}={tool}")
    }))
}

fn is_left_out(name: &str) -> bool {
    let left_out = std::env::var(LEAVE_OUT).unwrap_or_default();
    let is_named = left_out.split(',').any(|word| word.trim() == name);
    if is_named {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        writeln!(std::io::stderr(), "left out: {test}, which needs {name}").expect("stderr is open");
    }
    is_named
}
