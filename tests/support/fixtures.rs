//! Databases that real servers made, in the directory that `T3_FIXTURES` names. Where the variable is missing a test
//! fails, unless `T3_PROBER_LEAVE_OUT` names `fixtures`: a suite that passes in silence proves nothing.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Copies the database of a version to `<dir>/userdata/state.sqlite` and answers that path; `None` where fixtures are
/// left out by name.
pub fn copy(version: &str, dir: &Path) -> Option<PathBuf> {
    let fixture = directory()?.join(format!("state-{version}.sqlite"));
    let database = dir.join("userdata/state.sqlite");
    std::fs::create_dir_all(dir.join("userdata")).expect("a directory for the copy");
    let content = std::fs::read(&fixture)
        .unwrap_or_else(|error| panic!("{} cannot be read: {error}", fixture.display()));
    std::fs::write(&database, content).expect("the copy is written");
    Some(database)
}

fn directory() -> Option<PathBuf> {
    let left_out = std::env::var("T3_PROBER_LEAVE_OUT").unwrap_or_default();
    if left_out.split(',').any(|name| name.trim() == "fixtures") {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Past the capture of the test harness.
        writeln!(std::io::stderr(), "left out: {test}, which needs fixtures").expect("stderr is open");
        return None;
    }
    let directory = std::env::var_os("T3_FIXTURES").unwrap_or_else(|| {
        panic!("T3_FIXTURES does not name the databases of real servers; set it, or leave out what needs them with T3_PROBER_LEAVE_OUT=fixtures")
    });
    Some(PathBuf::from(directory))
}
