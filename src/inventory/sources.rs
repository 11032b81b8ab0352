//! Everything the machine says about who is served, read once and not yet judged. Only the dispatch table can make
//! the reading fail: the other sources are compared with it, and one that is not there is itself a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::account::{Account, Accounts, exposed_state};
use super::dispatch_table::{self, Table};
use super::env_file::{self, EnvPort};
use super::source_file::{self, ReadError};
use super::user_map::{self, UserMap};
use super::{Section, UserName};

#[derive(Debug)]
pub struct Sources {
    pub table: Table,
    /// `None` where no user map is configured; the error says why it could not be read.
    pub map: Option<Result<UserMap, String>>,
    /// What was found for each user that the table names.
    pub users: BTreeMap<UserName, Evidence>,
    /// Env files with a port, of users that the table does not name.
    pub strays: Vec<(UserName, PathBuf, usize)>,
}

#[derive(Clone, Debug)]
pub struct Evidence {
    pub env: EnvPort,
    pub account: Account,
    /// `None` where the template needs a home directory and there is none.
    pub base_dir: Option<PathBuf>,
    /// A database file that everybody can read.
    pub exposed: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "the dispatch table {0}: {1}; name the file the provisioner writes as [inventory] dispatch_table, readable by us"
    )]
    Unreadable(PathBuf, ReadError),
    #[error(transparent)]
    Broken(#[from] dispatch_table::Broken),
}

pub fn read(section: &Section, accounts: &mut Accounts) -> Result<Sources, SourceError> {
    let file = &section.dispatch_table;
    let content = source_file::read(file).map_err(|error| SourceError::Unreadable(file.clone(), error))?;
    let table = dispatch_table::parse(&content, file)?;
    let map = section.user_map.as_ref().map(|file| match source_file::read(file) {
        Ok(content) => Ok(user_map::parse(&content, file)),
        Err(error) => Err(error.to_string()),
    });
    let names: BTreeSet<_> = table.entries.iter().map(|entry| entry.user.clone()).collect();
    let strays = section.env_dir.as_deref().map(|dir| strays(dir, &names)).unwrap_or_default();
    let users = names
        .into_iter()
        .map(|user| {
            let evidence = evidence(section, accounts, &user);
            (user, evidence)
        })
        .collect();
    Ok(Sources { table, map, users, strays })
}

/// Where the user's env file would be.
pub fn env_path(dir: &Path, user: &UserName) -> PathBuf {
    dir.join(format!("{user}.env"))
}

fn evidence(section: &Section, accounts: &mut Accounts, user: &UserName) -> Evidence {
    let account = if section.accounts { accounts.look_up(user) } else { Account::NotAsked };
    let base_dir = section.base_dir.of(user, account.home());
    Evidence {
        env: section
            .env_dir
            .as_deref()
            .map_or(EnvPort::NotCompared, |dir| env_file::read(&env_path(dir, user))),
        exposed: base_dir.as_deref().and_then(exposed_state),
        account,
        base_dir,
    }
}

/// A directory that cannot be listed has no strays that we could name; its files are reported one by one.
fn strays(dir: &Path, known: &BTreeSet<UserName>) -> Vec<(UserName, PathBuf, usize)> {
    let Ok(files) = std::fs::read_dir(dir) else { return Vec::new() };
    files
        .filter_map(Result::ok)
        .filter_map(|file| {
            let name = file.file_name();
            let user: UserName = name.to_str()?.strip_suffix(".env")?.parse().ok()?;
            if known.contains(&user) {
                return None;
            }
            // Other services keep env files too: only one with a port speaks of an instance.
            match env_file::read(&file.path()) {
                EnvPort::Port { line, .. } => Some((user, file.path(), line)),
                _ => None,
            }
        })
        .collect()
}
