//! Becoming a user for good: uid, gid and every group, verified, with no way back.

use std::ffi::CString;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, getgrouplist, getgroups, getresgid, getresuid, initgroups, setresgid, setresuid,
};
use procfs::process::Process;
use serde::{Deserialize, Serialize};

/// An account to become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// Gives up everything that is not this account's. To be called while the process has one thread.
    pub fn become_it(&self) -> Result<(), String> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if uid.is_root() {
            return Err("nothing is done as root".to_owned());
        }
        let name = CString::new(self.name.as_str()).map_err(|_| "the name holds a zero byte".to_owned())?;
        let cannot = |what: &str| {
            let who = &self.name;
            let what = what.to_owned();
            move |errno: nix::errno::Errno| format!("cannot {what} {who}: {errno}")
        };
        initgroups(&name, gid).map_err(cannot("take the groups of"))?;
        setresgid(gid, gid, gid).map_err(cannot("take the group of"))?;
        setresuid(uid, uid, uid).map_err(cannot("become"))?;
        // No program that runs from here on can gain what was given up, setuid or not.
        prctl::set_no_new_privs().map_err(cannot("renounce new privileges as"))?;
        self.verify(&name, uid, gid)?;
        // What t3 writes is as t3 itself would write it (CONTRACT §8), and no dump holds a token.
        umask(Mode::from_bits_truncate(0o022));
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(cannot("forbid core dumps of"))?;
        Ok(())
    }

    fn verify(&self, name: &CString, uid: Uid, gid: Gid) -> Result<(), String> {
        let still = |what: &str| format!("still {what} after becoming {}", self.name);
        let unknown = |errno: nix::errno::Errno| format!("cannot see who we are: {errno}");
        let (uids, gids) = (getresuid().map_err(unknown)?, getresgid().map_err(unknown)?);
        if [uids.real, uids.effective, uids.saved] != [uid; 3] {
            return Err(still("another user"));
        }
        if [gids.real, gids.effective, gids.saved] != [gid; 3] {
            return Err(still("in another group"));
        }
        let sorted = |mut groups: Vec<Gid>| {
            groups.sort_by_key(|gid| gid.as_raw());
            groups.dedup();
            groups
        };
        let theirs = getgrouplist(name, gid).map_err(unknown)?;
        if sorted(getgroups().map_err(unknown)?) != sorted(theirs) {
            return Err(still("in other groups"));
        }
        let status = Process::myself()
            .and_then(|process| process.status())
            .map_err(|error| format!("cannot see our capabilities: {error}"))?;
        if status.capprm | status.capeff | status.capamb.unwrap_or(0) != 0 {
            return Err(still("in possession of capabilities"));
        }
        let root = Uid::from_raw(0);
        if setresuid(root, root, root).is_ok() {
            return Err(still("able to become root again"));
        }
        Ok(())
    }
}
