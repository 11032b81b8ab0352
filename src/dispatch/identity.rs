//! From what the edge calls a user to their instance: the whole name first, then its local part where the domain is
//! allowed; anything else is nobody.

use std::collections::HashMap;

use crate::outcome::Refusal;

/// Longer than any account name at an edge.
const MAX_IDENTITY: usize = 254;

/// Identities and what they lead to.
#[derive(Debug)]
pub struct Directory<T> {
    by_identity: HashMap<String, T>,
    domains: Domains,
}

/// The domains whose local part may stand for the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Domains {
    #[default]
    None,
    These(Vec<String>),
    Any,
}

/// Where an identity leads, and by which way.
#[derive(Debug, PartialEq, Eq)]
pub struct Found<'t, T> {
    pub entry: &'t T,
    pub by_local_part: bool,
}

impl Domains {
    /// `["*"]` is any domain.
    pub fn new(domains: &[String]) -> Self {
        if domains.is_empty() {
            Self::None
        } else if domains.iter().any(|domain| domain == "*") {
            Self::Any
        } else {
            Self::These(domains.to_vec())
        }
    }

    fn allow(&self, domain: &str) -> bool {
        match self {
            Self::None => false,
            Self::These(domains) => domains.iter().any(|allowed| allowed.eq_ignore_ascii_case(domain)),
            Self::Any => !domain.is_empty(),
        }
    }
}

impl<T> Default for Directory<T> {
    fn default() -> Self {
        Self { by_identity: HashMap::new(), domains: Domains::None }
    }
}

impl<T> Directory<T> {
    pub fn new(entries: impl IntoIterator<Item = (String, T)>, domains: Domains) -> Self {
        Self { by_identity: entries.into_iter().collect(), domains }
    }

    pub fn entries(&self) -> impl Iterator<Item = &T> {
        self.by_identity.values()
    }

    pub fn find(&self, identity: &[u8]) -> Result<Found<'_, T>, Refusal> {
        let identity = checked(identity)?;
        if let Some(entry) = self.by_identity.get(identity) {
            return Ok(Found { entry, by_local_part: false });
        }
        identity
            .split_once('@')
            .filter(|(local, domain)| {
                !local.is_empty() && !domain.contains('@') && self.domains.allow(domain)
            })
            .and_then(|(local, _)| self.by_identity.get(local))
            .map(|entry| Found { entry, by_local_part: true })
            .ok_or(Refusal::UnknownIdentity)
    }
}

/// One name without anything that somebody else could cut or decode.
pub fn checked(identity: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(identity).map_err(|_| Refusal::IdentityMalformed)?;
    let plain = !text.is_empty()
        && text.len() <= MAX_IDENTITY
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || matches!(c, ',' | ';' | '%' | '"' | '\\'));
    if plain { Ok(text) } else { Err(Refusal::IdentityMalformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn directory(domains: &[&str]) -> Directory<u8> {
        let domains: Vec<String> = domains.iter().map(|&domain| domain.to_owned()).collect();
        let entries = [("ann".to_owned(), 1), ("bob".to_owned(), 2), ("ann@other.example".to_owned(), 3)];
        Directory::new(entries, Domains::new(&domains))
    }

    fn find(domains: &[&str], identity: &str) -> Result<u8, Refusal> {
        directory(domains).find(identity.as_bytes()).map(|found| *found.entry)
    }

    #[test]
    fn the_whole_identity_comes_before_its_local_part() {
        assert_eq!(find(&["*"], "ann@other.example"), Ok(3));
        assert_eq!(find(&["*"], "ann@home.example"), Ok(1));
        assert_eq!(find(&[], "ann"), Ok(1));
    }

    #[test]
    fn a_local_part_counts_only_in_an_allowed_domain() {
        assert_eq!(find(&["home.example"], "bob@home.example"), Ok(2));
        assert_eq!(find(&["home.example"], "bob@HOME.example"), Ok(2));
        for foreign in [
            "bob@evil.example",
            "bob@home.example.evil",
            "bob@sub.home.example",
            "bob@",
            "@home.example",
            "bob@evil@home.example",
            "bob@home.example@evil",
            "bob@@home.example",
        ] {
            assert_eq!(find(&["home.example"], foreign), Err(Refusal::UnknownIdentity), "{foreign}");
        }
        assert_eq!(find(&[], "bob@home.example"), Err(Refusal::UnknownIdentity));
    }

    #[test]
    fn what_looks_like_a_user_is_not_one() {
        use Refusal::{IdentityMalformed, UnknownIdentity};
        let long = "a".repeat(8192);
        for (identity, expected) in [
            ("", IdentityMalformed),
            ("ann,bob", IdentityMalformed),
            ("ann, bob", IdentityMalformed),
            ("ann bob", IdentityMalformed),
            ("ann\0", IdentityMalformed),
            ("ann\u{a0}", IdentityMalformed),
            ("%61nn", IdentityMalformed),
            ("ann%00", IdentityMalformed),
            ("\"ann\"", IdentityMalformed),
            ("ann;", IdentityMalformed),
            ("ann\u{2028}", IdentityMalformed),
            (long.as_str(), IdentityMalformed),
            ("Ann", UnknownIdentity),
            ("ANN", UnknownIdentity),
            ("ann.", UnknownIdentity),
            ("/ann", UnknownIdentity),
            ("аnn", UnknownIdentity),
            ("ann\u{200b}", UnknownIdentity),
            ("anｎ", UnknownIdentity),
            ("=?utf-8?q?ann?=", UnknownIdentity),
        ] {
            assert_eq!(find(&["*"], identity), Err(expected), "{identity:?}");
        }
        assert_eq!(directory(&["*"]).find(b"ann\xff"), Err(IdentityMalformed));
    }

    proptest! {
        #[test]
        fn only_a_known_name_leads_to_a_user(identity in "[ -~]{0,20}|[a-c]nn@?[a-z.]{0,12}") {
            if let Ok(found) = directory(&["home.example"]).find(identity.as_bytes()) {
                let known = ["ann", "bob", "ann@other.example"];
                let local = identity.strip_suffix("@home.example");
                prop_assert!(known.contains(&identity.as_str()) || local.is_some_and(|local| known.contains(&local)));
                prop_assert_eq!(found.by_local_part, local.is_some());
            }
        }
    }
}
