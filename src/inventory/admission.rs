//! Whom the privileged helper may act for: a user in the user map, with one instance in the dispatch table and an
//! account that is not root. The sources are root's own files; nothing that belongs to a user is looked at here.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::User;

use super::account::Account;
use super::env_file::{self, EnvPort};
use super::sources::{Evidence, Sources, env_path};
use super::user_map::UserMap;
use super::{Port, Section, UserName, census, dispatch_table, source_file, user_map};
use crate::outcome::Finding;

/// The user map, read now.
pub struct Roster<'a> {
    section: &'a Section,
    map: UserMap,
    mapped: BTreeSet<UserName>,
}

/// Everything that is needed to act as a user on their instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub user: UserName,
    pub port: Port,
    pub base_dir: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
}

/// Why nothing is done for a name. A name that is none is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    #[error("that is not the name of an OS user")]
    NoName,
    #[error("no user map is configured, so nobody is known; set [inventory] user_map")]
    NoMap,
    #[error("{} {what}", file.display())]
    Source { file: PathBuf, what: String },
    #[error("{0} is not in the user map")]
    NotMapped(UserName),
    #[error("{0} has no instance in the dispatch table")]
    NoInstance(UserName),
    #[error("the dispatch table contradicts itself about {0} ({1}); t3-prober check says where")]
    Withheld(UserName, Finding),
    #[error("{0} is no account of this machine")]
    NoAccount(UserName),
    #[error("{0} is root under another name")]
    Root(UserName),
    #[error("the account {0} could not be looked up: {1}")]
    Unanswered(UserName, nix::errno::Errno),
    #[error("{0} has no env file that can be read with a T3_PORT in it")]
    NoPort(UserName),
}

impl<'a> Roster<'a> {
    pub fn read(section: &'a Section) -> Result<Self, NotAdmitted> {
        let file = section.user_map.as_deref().ok_or(NotAdmitted::NoMap)?;
        let map = user_map::parse(&read(file)?, file);
        let mapped = map.mappings.iter().map(|mapping| mapping.user.clone()).collect();
        Ok(Self { section, map, mapped })
    }

    /// Everybody in the map.
    pub fn users(&self) -> impl Iterator<Item = &UserName> {
        self.mapped.iter()
    }

    /// The name, if it is one and in the map.
    pub fn mapped(&self, name: &str) -> Result<UserName, NotAdmitted> {
        let user: UserName = name.parse().map_err(|_| NotAdmitted::NoName)?;
        if self.mapped.contains(&user) { Ok(user) } else { Err(NotAdmitted::NotMapped(user)) }
    }

    /// The user, their instance and their account.
    pub fn admit(&self, name: &str) -> Result<Admitted, NotAdmitted> {
        let user = self.mapped(name)?;
        let account = User::from_name(user.as_str())
            .map_err(|errno| NotAdmitted::Unanswered(user.clone(), errno))?
            .ok_or_else(|| NotAdmitted::NoAccount(user.clone()))?;
        let (uid, gid, home) = (account.uid.as_raw(), account.gid.as_raw(), account.dir);
        if uid == 0 {
            return Err(NotAdmitted::Root(user));
        }
        let file = &self.section.dispatch_table;
        let broken = |error: dispatch_table::Broken| NotAdmitted::Source {
            file: file.clone(),
            what: format!("is broken: {error}"),
        };
        let table = dispatch_table::parse(&read(file)?, file).map_err(broken)?;
        let evidence = Evidence {
            env: EnvPort::NotCompared,
            base_dir: self.section.base_dir.of(&user, Some(&home)),
            account: Account::Known { uid, home: home.clone() },
            exposed: None,
        };
        let map = UserMap { mappings: self.map.mappings.clone(), findings: Vec::new() };
        let sources = Sources {
            table,
            map: Some(Ok(map)),
            users: BTreeMap::from([(user.clone(), evidence)]),
            strays: Vec::new(),
        };
        let inventory = census::take(self.section, sources);
        let target = inventory.by_user(user.as_str()).ok_or_else(|| NotAdmitted::NoInstance(user.clone()))?;
        if let Some(finding) = target.withheld {
            return Err(NotAdmitted::Withheld(user, finding));
        }
        Ok(Admitted { port: target.port, base_dir: target.base_dir.clone(), user, uid, gid, home })
    }

    /// The port in the user's env file; nothing else of that file leaves it.
    pub fn env_port(&self, name: &str) -> Result<Port, NotAdmitted> {
        let user = self.mapped(name)?;
        let dir = self.section.env_dir.as_deref();
        match dir.map(|dir| env_file::read(&env_path(dir, &user))) {
            Some(EnvPort::Port { port, .. }) => Ok(port),
            _ => Err(NotAdmitted::NoPort(user)),
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, NotAdmitted> {
    let source = |what: String| NotAdmitted::Source { file: file.to_owned(), what };
    is_ours_alone(file).map_err(source)?;
    source_file::read(file).map_err(|error| source(format!("cannot be used: {error}")))
}

/// Whoever can write what the helper believes could make it act for anybody.
pub fn is_ours_alone(file: &Path) -> Result<(), String> {
    let metadata = file.metadata().map_err(|error| format!("cannot be used: {error}"))?;
    let own = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
    if own && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(format!(
        "can be changed by other accounts (uid {}, mode {:04o}), so the helper does not believe it; make it root's \
         with mode 0644",
        metadata.uid(),
        metadata.mode() & 0o7777
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Files {
        dir: tempfile::TempDir,
        section: Section,
    }

    /// A user map and a dispatch table; `{me}` stands for the account that the test runs as.
    fn files(map: &str, table: &str) -> Files {
        let me = User::from_uid(nix::unistd::geteuid()).expect("an answer").expect("an account").name;
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text.replace("{me}", &me)).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode");
            path
        };
        let section = Section {
            user_map: Some(write("users.map", map)),
            dispatch_table: write("dispatch.json", table),
            env_dir: Some(dir.path().to_owned()),
            ..Section::default()
        };
        Files { dir, section }
    }

    fn refused(files: &Files, name: &str) -> String {
        let roster = Roster::read(&files.section).expect("a map");
        roster.admit(name).expect_err(name).to_string()
    }

    #[test]
    fn names_that_are_none_or_in_no_map_are_refused_without_being_repeated() {
        let files = files("ann=ann\n", "{}");
        let long = "a".repeat(300);
        for bad in ["", "root", "../ann", "ann/..", "-a", "--all", "ann\n", "ann bob", "Ann", "ann\0", &long]
        {
            assert_eq!(refused(&files, bad), "that is not the name of an OS user", "{bad}");
        }
        assert_eq!(refused(&files, "bob"), "bob is not in the user map");
    }

    #[test]
    fn a_mapped_name_without_an_account_or_an_instance_is_refused() {
        let files = files("x=no-such-account-1\nn=nobody\n", "{}");
        assert_eq!(refused(&files, "no-such-account-1"), "no-such-account-1 is no account of this machine");
        assert_eq!(refused(&files, "nobody"), "nobody has no instance in the dispatch table");
    }

    #[test]
    fn a_user_about_whom_the_table_contradicts_itself_is_refused() {
        let files = files(
            "n=nobody\n",
            r#"{"n": {"os_user": "nobody", "port": 4001}, "m": {"os_user": "nobody", "port": 4002}}"#,
        );
        assert!(refused(&files, "nobody").contains("(two_ports)"));
    }

    #[test]
    fn an_admitted_user_comes_with_port_directory_and_account() {
        let files = files("n=nobody\n", r#"{"n": {"os_user": "nobody", "port": 4001}}"#);
        let nobody = User::from_name("nobody").expect("an answer").expect("an account");
        let roster = Roster::read(&files.section).expect("a map");
        let admitted = roster.admit("nobody").expect("admitted");
        assert_eq!((admitted.port.get(), admitted.uid), (4001, nobody.uid.as_raw()));
        assert_eq!(admitted.base_dir, Path::new("/home/nobody/.t3"));
    }

    #[test]
    fn only_the_port_of_an_env_file_comes_out_and_only_for_the_mapped() {
        let files = files("ann=ann\n", "{}");
        std::fs::write(files.dir.path().join("ann.env"), "TOKEN=hunter2\nT3_PORT=4001\n").expect("written");
        std::fs::write(files.dir.path().join("bob.env"), "T3_PORT=4002\n").expect("written");
        let roster = Roster::read(&files.section).expect("a map");
        assert_eq!(roster.env_port("ann").expect("a port").get(), 4001);
        assert!(matches!(roster.env_port("bob"), Err(NotAdmitted::NotMapped(_))));
    }

    #[test]
    fn a_map_that_others_can_write_is_not_believed() {
        let files = files("ann=ann\n", "{}");
        let map = files.section.user_map.as_ref().expect("a map");
        std::fs::set_permissions(map, std::fs::Permissions::from_mode(0o664)).expect("mode");
        let error = Roster::read(&files.section).err().expect("refused").to_string();
        assert!(error.contains("mode 0664"), "{error}");
    }
}
