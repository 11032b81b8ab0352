//! Where administrative sessions are kept: one file per instance in a directory that nobody else may look into.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::outcome::{Failure, Reason};

/// An administrative session.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keeper {
    session_id: String,
    pub token: String,
    #[serde(with = "super::rfc3339")]
    pub expires_at: SystemTime,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({}, ***)", self.session_id)
    }
}

pub struct Store {
    dir: PathBuf,
}

/// The right to issue a session, held by one process at a time; given back when it is dropped.
pub struct Turn(#[expect(dead_code, reason = "held for its Drop")] Flock<fs::File>);

impl Store {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub fn load(&self, name: &str) -> Result<Option<Keeper>, Failure> {
        let path = self.path(name);
        match fs::read(&path) {
            // A file that is not whole is as good as none: another keeper is issued over it.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path, &error)),
        }
    }

    /// Written beside its place and renamed: a reader sees the old one or the new one.
    pub fn save(&self, name: &str, keeper: &Keeper) -> Result<(), Failure> {
        let write = || {
            let beside = self.dir.join(format!(".{name}.new"));
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(serde_json::to_string(keeper)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, self.path(name))
        };
        write().map_err(|error: io::Error| {
            let dir = self.dir.display();
            let detail = format!("cannot keep the administrative session in {dir}: {error}");
            Failure::new(Reason::Unreadable, detail)
        })
    }

    /// Waits until nobody else issues a session: the probe, the dispatch and the helper's connections are processes of
    /// their own, and each issue starts a whole Node (CONTRACT §2.1).
    pub async fn turn(&self, limit: Duration) -> Result<Turn, Failure> {
        const PAUSE: Duration = Duration::from_millis(25);
        self.make_dir()?;
        let path = self.dir.join(".issuing");
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| unreadable(&path, &error))?;
        let deadline = Instant::now() + limit;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Turn(lock)),
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Failure::new(
                        Reason::Timeout,
                        "another process of ours is still issuing an administrative session",
                    ));
                }
                Err((_, errno)) => return Err(unreadable(&path, &errno.into())),
            }
            sleep(PAUSE).await;
        }
    }

    /// A directory that others can enter is refused, not repaired: what lay open may have been read.
    fn make_dir(&self) -> Result<(), Failure> {
        let dir = &self.dir;
        let metadata = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .and_then(|()| dir.metadata())
            .map_err(|error| unreadable(dir, &error))?;
        let own = metadata.uid() == nix::unistd::geteuid().as_raw();
        if own && metadata.mode() & 0o077 == 0 {
            return Ok(());
        }
        Err(Failure::new(
            Reason::Unreadable,
            format!(
                "{} is open to other accounts (uid {}, mode {:04o}), so no administrative session is kept in it; \
                 remove it, and it is made anew",
                dir.display(),
                metadata.uid(),
                metadata.mode() & 0o7777
            ),
        ))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keeper(token: &str) -> Keeper {
        Keeper { session_id: "s".to_owned(), token: token.to_owned(), expires_at: SystemTime::UNIX_EPOCH }
    }

    #[tokio::test]
    async fn a_session_is_kept_where_nobody_else_reads_it_and_shown_by_no_debug_output() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path().join("keepers"));
        let _turn = store.turn(Duration::ZERO).await.expect("nobody else");
        store.save("ann", &keeper("hunter2")).expect("kept");
        let kept = store.load("ann").expect("readable").expect("there");
        assert_eq!((kept.token.as_str(), format!("{kept:?}").as_str()), ("hunter2", "Keeper(s, ***)"));
        let mode = |path: &Path| path.metadata().expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("keepers")), 0o700);
        assert_eq!(mode(&dir.path().join("keepers/ann.json")), 0o600);
    }

    #[tokio::test]
    async fn only_one_process_at_a_time_issues_a_session() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path().join("keepers"));
        let turn = store.turn(Duration::ZERO).await.expect("nobody else");
        assert_eq!(store.turn(Duration::ZERO).await.err().map(|why| why.reason), Some(Reason::Timeout));
        drop(turn);
        assert!(store.turn(Duration::ZERO).await.is_ok());
    }

    #[tokio::test]
    async fn a_directory_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).expect("mode");
        let refused = Store::new(dir.path().to_path_buf()).turn(Duration::ZERO).await.err().expect("refused");
        assert!(refused.detail.contains("mode 0750"), "{refused}");
    }

    #[test]
    fn half_a_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("ann.json"), r#"{"sessionId":"s","tok"#).expect("written");
        assert!(Store::new(dir.path().to_path_buf()).load("ann").expect("readable").is_none());
    }
}
