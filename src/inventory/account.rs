//! The users' accounts on this machine, and who else can read their database.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::User;

use super::UserName;

/// What the machine knows about a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// Accounts are not looked up: every instance runs as oneself.
    NotAsked,
    Unknown,
    /// The directory of accounts did not answer; the text says why.
    Unanswered(String),
    Known {
        uid: u32,
        home: PathBuf,
    },
}

/// Looks accounts up. Where the directory (LDAP, say) does not answer, the last answer stands: its bad minute must
/// not lock anybody out.
#[derive(Debug, Default)]
pub struct Accounts {
    known: HashMap<UserName, Account>,
}

impl Accounts {
    pub fn look_up(&mut self, user: &UserName) -> Account {
        self.remember(user, User::from_name(user.as_str()))
    }

    fn remember(&mut self, user: &UserName, answer: nix::Result<Option<User>>) -> Account {
        match answer {
            Ok(Some(found)) => {
                let account = Account::Known { uid: found.uid.as_raw(), home: found.dir };
                self.known.insert(user.clone(), account.clone());
                account
            }
            Ok(None) => {
                self.known.remove(user);
                Account::Unknown
            }
            Err(error) => self
                .known
                .get(user)
                .cloned()
                .unwrap_or_else(|| Account::Unanswered(error.desc().to_ascii_lowercase())),
        }
    }
}

impl Account {
    pub fn uid(&self) -> Option<u32> {
        match self {
            Self::Known { uid, .. } => Some(*uid),
            Self::NotAsked | Self::Unknown | Self::Unanswered(_) => None,
        }
    }

    pub fn home(&self) -> Option<&Path> {
        match self {
            Self::Known { home, .. } => Some(home),
            Self::NotAsked | Self::Unknown | Self::Unanswered(_) => None,
        }
    }
}

/// A database file below the base directory that every account can read, directories on the way included. What we
/// cannot even look at, others cannot either.
pub fn exposed_state(base_dir: &Path) -> Option<PathBuf> {
    let mode = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.permissions().mode());
    let userdata = base_dir.join("userdata").canonicalize().ok()?;
    if !userdata.ancestors().all(|directory| mode(directory).is_ok_and(|mode| mode & 0o001 != 0)) {
        return None;
    }
    ["state.sqlite", "state.sqlite-wal"]
        .into_iter()
        .map(|name| userdata.join(name))
        .find(|file| mode(file).is_ok_and(|mode| mode & 0o004 != 0))
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir, create_dir_all, set_permissions, write};

    use super::*;

    #[test]
    fn an_account_is_remembered_while_the_directory_does_not_answer_and_forgotten_when_it_is_gone() {
        let ann: UserName = "ann".parse().expect("a user name");
        let mut accounts = Accounts::default();
        let silent = || Err(nix::errno::Errno::EIO);
        assert_eq!(accounts.remember(&ann, silent()), Account::Unanswered("i/o error".to_owned()));
        let anybody = User::from_uid(nix::unistd::geteuid()).expect("an answer").expect("our own account");
        let known = accounts.remember(&ann, Ok(Some(anybody)));
        assert_eq!(known.uid(), Some(nix::unistd::geteuid().as_raw()));
        assert_eq!(accounts.remember(&ann, silent()), known);
        assert_eq!(accounts.remember(&ann, Ok(None)), Account::Unknown);
        assert!(matches!(accounts.remember(&ann, silent()), Account::Unanswered(_)));
    }

    #[test]
    fn a_database_is_exposed_when_the_file_and_every_directory_above_it_are_open_to_all() {
        let mode = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
        let dir = tempfile::tempdir().expect("a temporary directory");
        mode(dir.path(), 0o755);
        let base = dir.path().join("ann");
        create_dir(&base).expect("a directory");
        create_dir_all(base.join("userdata")).expect("directories");
        let state = base.join("userdata/state.sqlite");
        write(&state, "").expect("a file");
        mode(&base, 0o755);
        mode(&base.join("userdata"), 0o755);
        mode(&state, 0o644);
        assert_eq!(exposed_state(&base), state.canonicalize().ok());
        mode(&base, 0o750);
        assert_eq!(exposed_state(&base), None);
        mode(&base, 0o755);
        mode(&state, 0o640);
        assert_eq!(exposed_state(&base), None);
    }
}
