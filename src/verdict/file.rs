//! The verdict's file, `<state_dir>/verdicts/<version>.json`: written beside its place and renamed, so that a reader
//! sees the whole old one or the whole new one, whenever the writer is killed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Document, FORMAT};

/// Why there is no verdict to be read.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    #[error("there is no verdict about t3 {0}; run `t3-prober gate {0}`")]
    Missing(String),
    #[error("'{0}' is no version, so there can be no verdict about it")]
    NotAName(String),
    #[error("cannot read the verdict {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} is not a verdict of format {FORMAT}; run the gate again")]
    Garbage { path: PathBuf },
}

/// Writes the verdict and waits until it is on disk.
pub fn store(state_dir: &Path, document: &Document) -> io::Result<PathBuf> {
    let path = path(state_dir, &document.candidate.version)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the candidate has no version"))?;
    let dir = state_dir.join("verdicts");
    open(state_dir, &dir)?;
    sweep(&dir)?;
    let beside = dir.join(format!(".{:016x}.new", rand::random::<u64>()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(document)?)?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    fs::File::open(&dir)?.sync_all()?;
    Ok(path)
}

/// Whoever runs the gate first, the directory belongs to whoever has the state: both write verdicts.
fn open(state_dir: &Path, dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let owner = fs::metadata(state_dir)?;
    if nix::unistd::geteuid().is_root() && owner.uid() != 0 {
        std::os::unix::fs::chown(dir, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Reads the verdict about a version.
pub fn load(state_dir: &Path, version: &str) -> Result<Document, NotKept> {
    let path = path(state_dir, version).ok_or_else(|| NotKept::NotAName(version.to_owned()))?;
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Document>(&bytes) {
            Ok(document) if document.format == FORMAT => Ok(document),
            _ => Err(NotKept::Garbage { path }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NotKept::Missing(version.to_owned())),
        Err(source) => Err(NotKept::Unreadable { path, source }),
    }
}

/// The verdicts that were written last and can be read, the newest first.
pub fn recent(state_dir: &Path, most: usize) -> Vec<Document> {
    let entries = fs::read_dir(state_dir.join("verdicts")).into_iter().flatten().flatten();
    let version = |entry: fs::DirEntry| {
        let version = entry.file_name().to_str()?.strip_suffix(".json")?.to_owned();
        Some((entry.metadata().ok()?.modified().ok()?, version))
    };
    let mut versions: Vec<_> = entries.filter_map(version).collect();
    versions.sort_by(|one, other| other.cmp(one));
    let newest = versions.iter().take(most);
    let mut documents: Vec<_> = newest.filter_map(|(_, version)| load(state_dir, version).ok()).collect();
    documents.sort_by_key(|document| std::cmp::Reverse(document.made_at));
    documents
}

/// A version is a file name here and nothing else.
fn path(state_dir: &Path, version: &str) -> Option<PathBuf> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
    let is_name = !version.is_empty() && !version.starts_with('.') && version.chars().all(harmless);
    is_name.then(|| state_dir.join("verdicts").join(format!("{version}.json")))
}

/// Removes what a killed writer left: nobody writes for a minute.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_left = entry.file_name().to_string_lossy().ends_with(".new");
        let is_old = || {
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            age.is_ok_and(|age| age.is_ok_and(|age| age.as_secs() >= 60))
        };
        if is_left && is_old() {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}
