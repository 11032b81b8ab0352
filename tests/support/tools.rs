//! Programs of other people that a test needs. A missing one is a failure, unless it is left out by name: a suite that
//! passes in silence because its tool is not there proves nothing.

use std::io::Write;
use std::path::PathBuf;

/// Names the tools that may be absent, separated by commas.
pub const LEAVE_OUT: &str = "T3_PROBER_LEAVE_OUT";

/// Where the program is; `None` where it is left out by name, which is said on stderr past the test harness's capture.
pub fn find(tool: &str) -> Option<PathBuf> {
    let left_out = std::env::var(LEAVE_OUT).unwrap_or_default();
    if left_out.split(',').any(|name| name.trim() == tool) {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        writeln!(std::io::stderr(), "left out: {test}, which needs {tool}").expect("stderr is open");
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|program| program.is_file());
    Some(found.unwrap_or_else(|| {
        panic!("{tool} is not on the PATH; install it, or leave out what needs it with {LEAVE_OUT}={tool}")
    }))
}
