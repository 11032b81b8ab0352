//! From what the sources say to who is served: a plain function, where the dispatch table is held against itself.
//!
//! A user is *withheld* (shown, but never sent a credential) only where the truth contradicts itself: then serving
//! either reading could hand one user's session to another. A disagreement with a compared source takes nothing away.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::account::Account;
use super::dispatch_table::Entry;
use super::sources::{Evidence, Sources};
use super::{Discrepancy, Inventory, Place, Port, Section, Target, UserName, comparison};
use crate::outcome::Finding;

/// What has been found so far.
struct Census<'a> {
    section: &'a Section,
    findings: Vec<Discrepancy>,
    withheld: BTreeMap<UserName, Finding>,
}

pub fn take(section: &Section, sources: Sources) -> Inventory {
    let Sources { table, map, users, strays } = sources;
    let mut census = Census { section, findings: table.findings, withheld: BTreeMap::new() };
    let entries = census.without_duplicates(table.entries);
    census.identities_by_case(&entries);
    census.shared_ports(&entries);
    let chosen = census.one_entry_per_user(&entries);
    for entry in &chosen {
        if let Some(evidence) = users.get(&entry.user) {
            census.account(entry, &evidence.account);
            census.findings.extend(comparison::with_evidence(section, entry, evidence));
        }
    }
    census.findings.extend(comparison::with_user_map(section, &entries, map));
    census.findings.extend(strays.into_iter().map(comparison::stray));
    census.finish(&entries, &chosen, &users)
}

impl Census<'_> {
    fn about(&mut self, finding: Finding, entry: &Entry, detail: String) {
        let place = Place::line(&self.section.dispatch_table, entry.line);
        self.findings.push(Discrepancy::about(finding, entry, place, detail));
    }

    fn withhold(&mut self, user: &UserName, finding: Finding) {
        self.withheld.entry(user.clone()).or_insert(finding);
    }

    /// JSON readers keep the last of two equal keys, or the first, in silence: whose session that identity gets must
    /// not depend on which.
    fn without_duplicates(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut first: HashMap<String, Entry> = HashMap::new();
        let mut kept = Vec::new();
        for entry in entries {
            let Some(earlier) = first.get(&entry.identity) else {
                first.insert(entry.identity.clone(), entry.clone());
                kept.push(entry);
                continue;
            };
            let before = earlier.line;
            if (&earlier.user, earlier.port) == (&entry.user, entry.port) {
                let detail = format!(
                    "'{}' is here and on line {before} with the same values; remove one",
                    entry.identity
                );
                self.about(Finding::DuplicateIdentity, &entry, detail);
                continue;
            }
            let detail = format!(
                "'{}' is {} on port {} here and {} on port {} on line {before}, so neither is sent a credential; \
                 remove the wrong one",
                entry.identity, entry.user, entry.port, earlier.user, earlier.port
            );
            let users = [earlier.user.clone(), entry.user.clone()];
            self.about(Finding::DuplicateIdentity, &entry, detail);
            for user in &users {
                self.withhold(user, Finding::DuplicateIdentity);
            }
            kept.push(entry);
        }
        kept
    }

    fn identities_by_case(&mut self, entries: &[Entry]) {
        let mut folded: HashMap<String, &Entry> = HashMap::new();
        for entry in entries {
            match folded.get(&entry.identity.to_lowercase()) {
                None => {
                    folded.insert(entry.identity.to_lowercase(), entry);
                }
                Some(earlier) if earlier.identity != entry.identity => {
                    let detail = format!(
                        "'{}' and '{}' (line {}) differ only in case; identities are compared exactly, so keep the \
                         one that the SSO edge sends",
                        entry.identity, earlier.identity, earlier.line
                    );
                    self.about(Finding::IdentityCase, entry, detail);
                }
                Some(_) => {}
            }
        }
    }

    fn shared_ports(&mut self, entries: &[Entry]) {
        let mut users: BTreeMap<Port, BTreeSet<&UserName>> = BTreeMap::new();
        for entry in entries {
            users.entry(entry.port).or_default().insert(&entry.user);
        }
        for entry in entries {
            let others: Vec<_> = users[&entry.port]
                .iter()
                .filter(|user| **user != &entry.user)
                .map(|user| user.as_str())
                .collect();
            if others.is_empty() {
                continue;
            }
            let detail = format!(
                "port {} is given to {} and also to {}, so none of them is sent a credential; give each user a port \
                 of their own",
                entry.port,
                entry.user,
                others.join(" and ")
            );
            self.about(Finding::SharedPort, entry, detail);
            self.withhold(&entry.user, Finding::SharedPort);
        }
    }

    /// A second identity for the same instance is what the table says, and is served; a second port cannot be right.
    fn one_entry_per_user(&mut self, entries: &[Entry]) -> Vec<Entry> {
        let mut chosen: Vec<Entry> = Vec::new();
        let mut firsts: HashMap<&UserName, &Entry> = HashMap::new();
        for entry in entries {
            let Some(first) = firsts.get(&entry.user).copied() else {
                firsts.insert(&entry.user, entry);
                chosen.push(entry.clone());
                continue;
            };
            if first.port != entry.port {
                let detail = format!(
                    "{} has port {} here and port {} on line {}, so no credential is sent to either; keep the one \
                     the instance listens on",
                    entry.user, entry.port, first.port, first.line
                );
                self.about(Finding::TwoPorts, entry, detail);
                self.withhold(&entry.user, Finding::TwoPorts);
            } else if first.identity != entry.identity {
                let detail = format!(
                    "{} is reached as '{}' and as '{}' (line {}); both are served, so remove the one that is not \
                     meant",
                    entry.user, entry.identity, first.identity, first.line
                );
                self.about(Finding::SharedUser, entry, detail);
            }
        }
        chosen
    }

    fn account(&mut self, entry: &Entry, account: &Account) {
        let user = &entry.user;
        let (finding, detail) = match account {
            Account::NotAsked => return,
            Account::Known { uid: 0, .. } => (
                Finding::InvalidUser,
                format!("{user} is root under another name, which is never served; name an ordinary account"),
            ),
            Account::Known { .. } => return,
            Account::Unknown => (
                Finding::UnknownAccount,
                format!(
                    "this machine has no account {user}, so no credential is sent; create the account or remove the \
                     entry (where instances run as oneself, set [inventory] accounts = false)"
                ),
            ),
            Account::Unanswered(why) => (
                Finding::UnknownAccount,
                format!(
                    "the account {user} could not be looked up ({why}), so no credential is sent; see why \
                     'getent passwd {user}' fails, it is tried again by itself"
                ),
            ),
        };
        self.about(finding, entry, detail);
        self.withhold(user, finding);
    }

    fn finish(
        mut self,
        entries: &[Entry],
        chosen: &[Entry],
        users: &BTreeMap<UserName, Evidence>,
    ) -> Inventory {
        let targets: Vec<_> = chosen
            .iter()
            .filter_map(|entry| {
                let evidence = users.get(&entry.user)?;
                Some(Target {
                    user: entry.user.clone(),
                    identity: entry.identity.clone(),
                    port: entry.port,
                    base_dir: evidence.base_dir.clone()?,
                    uid: evidence.account.uid(),
                    withheld: self.withheld.get(&entry.user).copied(),
                })
            })
            .collect();
        let places: HashMap<_, _> =
            targets.iter().enumerate().map(|(place, target)| (&target.user, place)).collect();
        let identities = entries
            .iter()
            .filter_map(|entry| Some((entry.identity.clone(), *places.get(&entry.user)?)))
            .collect();
        self.findings.sort();
        Inventory { targets, identities, findings: self.findings }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::inventory::env_file::EnvPort;
    use crate::inventory::{dispatch_table, user_map};

    /// The inventory of this table and user map, with nothing else to compare.
    fn inventory(table: &str, map: Option<&str>) -> Inventory {
        let section = Section {
            dispatch_table: "/t3/dispatch.json".into(),
            user_map: map.map(|_| "/t3/users.map".into()),
            ..Section::default()
        };
        let table = dispatch_table::parse(table.as_bytes(), &section.dispatch_table).expect("a table");
        let users = table.entries.iter().map(|entry| {
            let user = entry.user.clone();
            let evidence = Evidence {
                env: EnvPort::NotCompared,
                account: account(&user),
                base_dir: section.base_dir.of(&user, None),
                exposed: None,
            };
            (user, evidence)
        });
        let users = users.collect();
        let map = map.map(|map| Ok(user_map::parse(map.as_bytes(), Path::new("/t3/users.map"))));
        take(&section, Sources { table, map, users, strays: Vec::new() })
    }

    fn account(user: &UserName) -> Account {
        match user.as_str() {
            "gone" => Account::Unknown,
            "toor" => Account::Known { uid: 0, home: "/root".into() },
            "slow" => Account::Unanswered("timed out".to_owned()),
            name => Account::Known { uid: 1000, home: format!("/home/{name}").into() },
        }
    }

    fn found(inventory: &Inventory) -> Vec<(Finding, Option<usize>)> {
        inventory.findings().iter().map(|found| (found.finding, found.place.line)).collect()
    }

    /// Compared exactly: no case folding, no domain taken off.
    fn by_identity<'a>(inventory: &'a Inventory, identity: &str) -> Option<&'a Target> {
        inventory.identities().find(|(known, _)| *known == identity).map(|(_, target)| target)
    }

    fn withheld(inventory: &Inventory, user: &str) -> Option<Finding> {
        inventory.by_user(user).expect("the user is in the list").withheld
    }

    #[test]
    fn a_table_and_a_map_that_agree_have_no_findings() {
        let table = r#"{"ann@x": {"os_user": "ann", "port": 4001}, "bob": {"os_user": "bob", "port": 4002}}"#;
        let inventory = inventory(table, Some("ann@x=ann\nbob=bob\n"));
        assert_eq!(inventory.findings(), []);
        assert_eq!(inventory.targets().len(), 2);
        let ann = by_identity(&inventory, "ann@x").expect("ann is served");
        assert_eq!(Some(ann), inventory.by_user("ann"));
        assert_eq!((ann.port.get(), ann.uid, ann.withheld), (4001, Some(1000), None));
    }

    #[test]
    fn identities_are_compared_exactly() {
        let inventory = inventory(r#"{"ann@x": {"os_user": "ann", "port": 4001}}"#, None);
        for other in ["ann", "Ann@x", "ann@x ", "ann@y", ""] {
            assert_eq!(by_identity(&inventory, other), None, "'{other}' was taken for ann@x");
        }
    }

    #[test]
    fn of_two_users_on_one_port_neither_is_sent_a_credential_and_the_third_is_served() {
        let inventory = inventory(
            "{\"ann\": {\"os_user\": \"ann\", \"port\": 4001},\n\"bob\": {\"os_user\": \"bob\", \"port\": 4001},\n\
             \"cid\": {\"os_user\": \"cid\", \"port\": 4003}}",
            None,
        );
        assert_eq!(found(&inventory), [(Finding::SharedPort, Some(1)), (Finding::SharedPort, Some(2))]);
        assert_eq!(withheld(&inventory, "ann"), Some(Finding::SharedPort));
        assert_eq!(withheld(&inventory, "bob"), Some(Finding::SharedPort));
        assert_eq!(withheld(&inventory, "cid"), None);
    }

    #[test]
    fn a_user_under_two_identities_is_one_target_that_both_reach() {
        let table = r#"{"ann": {"os_user": "ann", "port": 4001}, "ann@x": {"os_user": "ann", "port": 4001}}"#;
        let inventory = inventory(table, None);
        assert_eq!(found(&inventory), [(Finding::SharedUser, Some(1))]);
        assert_eq!(inventory.targets().len(), 1);
        assert_eq!(by_identity(&inventory, "ann"), by_identity(&inventory, "ann@x"));
        assert_eq!(withheld(&inventory, "ann"), None);
    }

    #[test]
    fn a_user_with_two_ports_is_withheld_and_so_is_whoever_has_the_second_port() {
        let inventory = inventory(
            r#"{"ann": {"os_user": "ann", "port": 4001}, "a": {"os_user": "ann", "port": 4002},
                "bob": {"os_user": "bob", "port": 4002}}"#,
            None,
        );
        assert!(withheld(&inventory, "ann").is_some());
        assert_eq!(withheld(&inventory, "bob"), Some(Finding::SharedPort));
        assert!(found(&inventory).contains(&(Finding::TwoPorts, Some(1))));
    }

    #[test]
    fn an_identity_twice_with_the_same_values_is_served_and_with_others_is_not() {
        let same = inventory(
            r#"{"a": {"os_user": "ann", "port": 4001}, "a": {"os_user": "ann", "port": 4001}}"#,
            None,
        );
        assert_eq!(found(&same), [(Finding::DuplicateIdentity, Some(1))]);
        assert_eq!(withheld(&same, "ann"), None);
        let other = inventory(
            r#"{"a": {"os_user": "ann", "port": 4001}, "a": {"os_user": "bob", "port": 4002}}"#,
            None,
        );
        assert_eq!(found(&other), [(Finding::DuplicateIdentity, Some(1))]);
        assert_eq!(withheld(&other, "ann"), Some(Finding::DuplicateIdentity));
        assert_eq!(withheld(&other, "bob"), Some(Finding::DuplicateIdentity));
    }

    #[test]
    fn identities_that_differ_only_in_case_are_each_served_exactly_and_reported() {
        let table = r#"{"ann": {"os_user": "ann", "port": 4001}, "Ann": {"os_user": "bob", "port": 4002}}"#;
        let inventory = inventory(table, None);
        assert_eq!(found(&inventory), [(Finding::IdentityCase, Some(1))]);
        assert_eq!(by_identity(&inventory, "Ann").map(|target| target.user.as_str()), Some("bob"));
    }

    #[test]
    fn an_account_that_does_not_exist_or_is_root_is_never_sent_a_credential() {
        let inventory = inventory(
            r#"{"gone": {"os_user": "gone", "port": 1}, "slow": {"os_user": "slow", "port": 2},
                "toor": {"os_user": "toor", "port": 3}, "ann": {"os_user": "ann", "port": 4}}"#,
            None,
        );
        assert_eq!(withheld(&inventory, "gone"), Some(Finding::UnknownAccount));
        assert_eq!(withheld(&inventory, "slow"), Some(Finding::UnknownAccount));
        assert_eq!(withheld(&inventory, "toor"), Some(Finding::InvalidUser));
        assert_eq!(withheld(&inventory, "ann"), None);
    }

    #[test]
    fn the_user_map_is_compared_and_takes_nobodys_service_away() {
        let inventory = inventory(
            "{\"ann\": {\"os_user\": \"ann\", \"port\": 1},\n\"bob\": {\"os_user\": \"bob\", \"port\": 2},\n\
             \"cid\": {\"os_user\": \"cid\", \"port\": 3}}",
            Some("ann=ann\nann=bob\nbob=cid\ndan=dan\n"),
        );
        // Sorted by place: the dispatch table's lines, then the user map's.
        let expected = [
            (Finding::UserDiffers, Some(2)),
            (Finding::NotInMap, Some(3)),
            (Finding::MapConflict, Some(2)),
            (Finding::NoInstance, Some(4)),
        ];
        assert_eq!(found(&inventory), expected);
        assert!(inventory.targets().iter().all(|target| target.withheld.is_none()));
        assert_eq!(by_identity(&inventory, "bob").map(|target| target.user.as_str()), Some("bob"));
    }
}
