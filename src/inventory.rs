//! Who is served: each user, their identity at the SSO edge, their port and their base directory. The dispatch table
//! is the truth; whatever contradicts it, or itself, is a finding, and never a reason to stop serving the others.

mod account;
mod admission;
mod census;
mod comparison;
mod dispatch_table;
mod env_file;
pub mod source_file;
mod sources;
mod user_map;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::outcome::Finding;

pub use admission::{Admitted, NotAdmitted, Roster, is_ours_alone};
pub use watch::{Snapshot, Status, Watch, read_once};

/// `[inventory]`: where the provisioner writes who is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The dispatch table, `{"<identity>": {"os_user": …, "port": …}}`. Default `/etc/t3/dispatch.json`.
    pub dispatch_table: PathBuf,
    /// The user map, `identity=os_user` lines. No default; absent, the table is not compared with it.
    pub user_map: Option<PathBuf>,
    /// The directory of `<user>.env` files with `T3_PORT=`. No default; absent, ports are not compared.
    pub env_dir: Option<PathBuf>,
    /// Each instance's `--base-dir`; `{user}` is the account's name, `{home}` its home directory.
    /// Default `/home/{user}/.t3`.
    pub base_dir: BaseDir,
    /// Whether every user is an account of this machine. Default true; false where all instances run as oneself, as
    /// on a laptop: then no account is looked up.
    pub accounts: bool,
}

/// A checked template for base directories: absolute, and another directory for every user.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BaseDir(String);

#[derive(Debug, thiserror::Error)]
pub enum NotABaseDir {
    #[error("'{0}' would be one directory for all users; put {{user}} or {{home}} into it")]
    Shared(String),
    #[error("'{0}' is not an absolute path; begin it with / or {{home}}")]
    Relative(String),
    #[error("'{0}' has a placeholder other than {{user}} and {{home}}; use one of these")]
    Placeholder(String),
}

/// An OS account name, checked when it was read: `[a-z_][a-z0-9_.-]{0,31}`, never `root`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct UserName(String);

/// A TCP port an instance listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(NonZeroU16);

/// One user's instance, as the dispatch table names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub user: UserName,
    /// The identity the SSO edge sends for this user (`X-authentik-username`).
    pub identity: String,
    pub port: Port,
    /// t3's `--base-dir`: `userdata/state.sqlite` lies below it.
    pub base_dir: PathBuf,
    /// The account that the instance's listener must belong to; `None` where it runs as oneself.
    pub uid: Option<u32>,
    /// Why this user is shown but never sent a credential or cookie: the table contradicts itself about them.
    pub withheld: Option<Finding>,
}

/// Everybody who is served, and everything that is wrong with the sources that say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    targets: Vec<Target>,
    /// Identity to place in `targets`: a user may be reached under more than one.
    identities: HashMap<String, usize>,
    findings: Vec<Discrepancy>,
}

/// One finding: what it is, whom and which line it is about, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Discrepancy {
    /// First, so that findings sort as an operator works through them: file by file, line by line.
    pub place: Place,
    pub finding: Finding,
    /// As written in the source: it need not be a valid name.
    pub user: Option<String>,
    pub identity: Option<String>,
    /// What is wrong and the remedy, in one sentence for a person.
    pub detail: String,
}

/// Where in the sources something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub file: PathBuf,
    /// Counted from 1; absent where it is about the file as a whole.
    pub line: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is not an OS user name; expected 1 to 32 of a-z, 0-9, '_', '-', '.', beginning with a letter or '_', and not root"
)]
pub struct NotAUserName(String);

impl Default for Section {
    fn default() -> Self {
        Self {
            dispatch_table: PathBuf::from("/etc/t3/dispatch.json"),
            user_map: None,
            env_dir: None,
            base_dir: BaseDir("/home/{user}/.t3".to_owned()),
            accounts: true,
        }
    }
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        if !self.accounts && self.base_dir.needs_home() {
            complaints.push((
                "base_dir",
                "'{home}' needs the users' accounts, and accounts = false; use {user} instead".to_owned(),
            ));
        }
        let paths = [
            ("dispatch_table", Some(&self.dispatch_table)),
            ("user_map", self.user_map.as_ref()),
            ("env_dir", self.env_dir.as_ref()),
        ];
        for (key, path) in paths {
            if let Some(path) = path.filter(|path| path.is_relative()) {
                complaints
                    .push((key, format!("'{}' is not an absolute path; begin it with /", path.display())));
            }
        }
        complaints
    }
}

impl TryFrom<String> for BaseDir {
    type Error = NotABaseDir;

    fn try_from(template: String) -> Result<Self, NotABaseDir> {
        let rest = template.replace("{user}", "").replace("{home}", "");
        if rest.contains(['{', '}']) {
            Err(NotABaseDir::Placeholder(template))
        } else if rest.len() == template.len() {
            Err(NotABaseDir::Shared(template))
        } else if !template.starts_with('/') && !template.starts_with("{home}/") {
            Err(NotABaseDir::Relative(template))
        } else {
            Ok(Self(template))
        }
    }
}

impl BaseDir {
    /// The user's base directory; `None` where the template needs a home directory and none is known.
    fn of(&self, user: &UserName, home: Option<&Path>) -> Option<PathBuf> {
        let path = self.0.replace("{user}", user.as_str());
        if !self.needs_home() {
            return Some(PathBuf::from(path));
        }
        home.and_then(Path::to_str).map(|home| PathBuf::from(path.replace("{home}", home)))
    }

    fn needs_home(&self) -> bool {
        self.0.contains("{home}")
    }
}

impl Inventory {
    /// Every user once, in the order of the dispatch table.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// What is wrong with the sources, in a stable order.
    pub fn findings(&self) -> &[Discrepancy] {
        &self.findings
    }

    pub fn by_user(&self, user: &str) -> Option<&Target> {
        self.targets.iter().find(|target| target.user.as_str() == user)
    }

    /// Every identity with the instance it leads to: a user may be reached under more than one.
    pub fn identities(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.identities.iter().map(|(identity, place)| (identity.as_str(), &self.targets[*place]))
    }
}

impl fmt::Display for Discrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.place, self.detail, self.finding)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file.display()),
            None => write!(f, "{}", self.file.display()),
        }
    }
}

impl Discrepancy {
    /// About an entry of the dispatch table and what was found at `place`.
    fn about(finding: Finding, entry: &dispatch_table::Entry, place: Place, detail: String) -> Self {
        Self {
            finding,
            user: Some(entry.user.to_string()),
            identity: Some(entry.identity.clone()),
            place,
            detail,
        }
    }
}

impl Place {
    fn line(file: &Path, line: usize) -> Self {
        Self { file: file.to_owned(), line: Some(line) }
    }

    fn file(file: &Path) -> Self {
        Self { file: file.to_owned(), line: None }
    }
}

impl UserName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for UserName {
    type Err = NotAUserName;

    fn from_str(name: &str) -> Result<Self, NotAUserName> {
        let mut letters = name.bytes();
        let first_fits = letters.next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let rest_fits =
            letters.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte));
        if first_fits && rest_fits && name.len() <= 32 && name != "root" {
            Ok(Self(name.to_owned()))
        } else {
            Err(NotAUserName(name.to_owned()))
        }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Port {
    pub fn new(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self)
    }

    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Result<BaseDir, String> {
        BaseDir::try_from(text.to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_base_dir_that_two_users_would_share_is_refused() {
        for bad in ["/srv/t3", "/srv/{name}", "/srv/{user", "srv/{user}", "{user}/t3", "", "~/{user}"] {
            assert!(template(bad).is_err(), "'{bad}' was taken");
        }
    }

    #[test]
    fn a_base_dir_is_made_from_the_users_name_or_their_home() {
        let ann: UserName = "ann".parse().expect("a user name");
        let home = Path::new("/data/homes/ann");
        let of = |text: &str, home| template(text).expect("a template").of(&ann, home);
        assert_eq!(of("/home/{user}/.t3", None), Some(PathBuf::from("/home/ann/.t3")));
        assert_eq!(of("{home}/.t3", Some(home)), Some(PathBuf::from("/data/homes/ann/.t3")));
        assert_eq!(of("{home}/.t3", None), None);
    }

    #[test]
    fn a_user_name_cannot_climb_out_of_a_directory_or_be_root() {
        for bad in ["", ".", "..", "../ann", "a/b", "Ann", "root", "-a", "a b", "ann\n", &"a".repeat(33)] {
            assert!(bad.parse::<UserName>().is_err(), "'{bad}' was taken");
        }
    }
}
