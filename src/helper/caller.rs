//! Who asks, and for what they may ask. Never what a request says about itself: the kernel or sudo says it.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, User, getuid};

use super::Section;
use crate::outcome::HelperVerb;

/// An account and the verbs it may ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    uid: u32,
    /// As the configuration names it.
    name: Option<String>,
    verbs: BTreeSet<HelperVerb>,
}

/// An account by its name or its number.
pub fn uid_of(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()))
}

impl Caller {
    /// Whoever made the connection.
    pub fn of_connection(section: &Section, socket: &impl AsFd) -> Result<Self, String> {
        let peer = getsockopt(socket, PeerCredentials)
            .map_err(|errno| format!("stdin is no unix socket whose caller could be known: {errno}"))?;
        Ok(Self::known(section, peer.uid()))
    }

    /// Whoever ran sudo, or root itself.
    pub fn of_process(section: &Section) -> Result<Self, String> {
        match std::env::var("SUDO_UID") {
            Ok(uid) => {
                uid.parse().map(|uid| Self::known(section, uid)).map_err(|_| "SUDO_UID is no uid".to_owned())
            }
            Err(std::env::VarError::NotPresent) => Ok(Self::known(section, getuid().as_raw())),
            Err(error) => Err(format!("SUDO_UID: {error}")),
        }
    }

    fn known(section: &Section, uid: u32) -> Self {
        if Uid::from_raw(uid).is_root() {
            let verbs = HelperVerb::ALL.iter().copied().collect();
            return Self { uid, name: Some("root".to_owned()), verbs };
        }
        // A name is looked up, not the uid: two accounts may share a uid, and only one of them is listed.
        let is_them = |name: &str| uid_of(name) == Some(uid);
        let listed: Vec<_> = section.callers.iter().filter(|(name, _)| is_them(name)).collect();
        Self {
            uid,
            name: listed.first().map(|(name, _)| (*name).clone()),
            verbs: listed.into_iter().flat_map(|(_, verbs)| verbs).copied().collect(),
        }
    }

    pub fn may(&self, verb: HelperVerb) -> Result<(), String> {
        if self.verbs.contains(&verb) {
            return Ok(());
        }
        let verbs: Vec<_> = self.verbs.iter().map(|verb| verb.as_str()).collect();
        let verbs = if verbs.is_empty() { "nothing".to_owned() } else { verbs.join(", ") };
        Err(format!("{self} may ask for {verbs}, not for {verb}; see [helper] callers"))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}"),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn section(callers: &[(&str, &[HelperVerb])]) -> Section {
        let callers: BTreeMap<_, _> =
            callers.iter().map(|(name, verbs)| ((*name).to_owned(), verbs.to_vec())).collect();
        Section { callers, ..Section::default() }
    }

    #[test]
    fn a_caller_may_ask_for_its_own_verbs_and_for_no_other() {
        let nobody = User::from_name("nobody").expect("an answer").expect("an account").uid.as_raw();
        let by_name = Caller::known(&section(&[("nobody", &[HelperVerb::Mint])]), nobody);
        assert_eq!(by_name.may(HelperVerb::Mint), Ok(()));
        assert_eq!(
            by_name.may(HelperVerb::Revoke),
            Err("nobody may ask for mint, not for revoke; see [helper] callers".to_owned())
        );
        let by_uid = Caller::known(&section(&[("4242", &[HelperVerb::Port])]), 4242);
        assert_eq!(by_uid.may(HelperVerb::Port), Ok(()));
    }

    #[test]
    fn whoever_is_not_listed_may_ask_for_nothing_and_root_for_everything() {
        let stranger = Caller::known(&section(&[]), 4243);
        let root = Caller::known(&section(&[]), 0);
        for verb in HelperVerb::ALL {
            assert!(stranger.may(*verb).expect_err("refused").starts_with("uid 4243 may ask for nothing"));
            assert_eq!(root.may(*verb), Ok(()));
        }
    }

    #[test]
    fn the_caller_of_a_connection_is_whoever_made_it() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let caller = Caller::of_connection(&section(&[]), &ours).expect("known");
        assert_eq!(caller.uid, nix::unistd::geteuid().as_raw());
    }
}
