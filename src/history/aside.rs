//! A damaged history is put aside, never deleted by the program that has just failed to read it: somebody may want to
//! look. Only the newest two are kept.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

/// How many damaged histories are kept.
const KEPT: usize = 2;

/// Renames the database to `<name>.corrupt-<time>` and its write-ahead log with it. Returns the new name.
pub fn put_aside(database: &Path, now: SystemTime) -> io::Result<PathBuf> {
    let time = humantime::format_rfc3339_millis(now.max(SystemTime::UNIX_EPOCH));
    let aside = with_suffix(database, &format!(".corrupt-{time}"));
    fs::rename(database, &aside)?;
    // A log left behind would be taken for the new file's own.
    move_if_there(&with_suffix(database, "-wal"), &with_suffix(&aside, "-wal"))?;
    remove_if_there(&with_suffix(database, "-shm"))?;
    remove_older(database)?;
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn move_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_older(database: &Path) -> io::Result<()> {
    let (Some(directory), Some(name)) = (database.parent(), database.file_name()) else { return Ok(()) };
    let prefix = format!("{}.corrupt-", name.to_string_lossy());
    let mut aside = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && !name.ends_with("-wal") {
            aside.push(name);
        }
    }
    // The time in the name sorts.
    aside.sort_unstable();
    let surplus = aside.len().saturating_sub(KEPT);
    for old in &aside[..surplus] {
        remove_if_there(&directory.join(old))?;
        remove_if_there(&directory.join(format!("{old}-wal")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::at;

    #[test]
    fn the_newest_two_damaged_histories_are_kept_with_their_logs() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let database = directory.path().join("history.sqlite");
        for n in 0..4 {
            fs::write(&database, format!("damaged {n}")).expect("database written");
            fs::write(with_suffix(&database, "-wal"), "log").expect("log written");
            fs::write(with_suffix(&database, "-shm"), "index").expect("index written");
            put_aside(&database, at(n)).expect("put aside");
        }
        let mut names: Vec<String> = fs::read_dir(directory.path())
            .expect("directory read")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        let time = |n| humantime::format_rfc3339_millis(at(n)).to_string();
        assert_eq!(
            names,
            [
                format!("history.sqlite.corrupt-{}", time(2)),
                format!("history.sqlite.corrupt-{}-wal", time(2)),
                format!("history.sqlite.corrupt-{}", time(3)),
                format!("history.sqlite.corrupt-{}-wal", time(3)),
            ]
        );
    }
}
