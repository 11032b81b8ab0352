//! What there is to do: a plain function of what is installed, linked, running, wanted and known. It touches nothing.

use std::fmt;
use std::time::Duration;

use crate::outcome::{Deferral, Hold};
use crate::t3::version::Version;

/// One user as the enforcer found them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub user: String,
    /// What the user's link names; `None` where there is none yet.
    pub linked: Option<Version>,
    /// What the instance says it runs; `None` where it does not answer.
    pub running: Option<Version>,
    pub presence: Presence,
}

/// Whether stopping the user's instance now would cut somebody off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    Idle,
    /// Stopped on purpose: nobody would notice, and nothing can be proven.
    Stopped,
    /// Why the instance is not touched, with a sentence.
    Away(Deferral, String),
}

/// Where the wanted version comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The operator named it: it may be older than what runs.
    Pinned(Version),
    /// A followed tag stands for it.
    Tracked(String, Version),
    /// Only those who were left behind are brought to the build that is proven here.
    Drained(Version),
}

/// Everything that the decision rests on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub wanted: &'a Wanted,
    pub last_good: Option<&'a Version>,
    /// Why this build was rolled back here before, where it was.
    pub broke_before: Option<&'a str>,
    /// Every user, in the order in which they would be moved.
    pub users: &'a [Found],
    pub except: &'a [String],
    /// The builds that are installed side by side.
    pub installed: &'a [Version],
}

/// A user who stays behind, why, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferred {
    pub user: String,
    pub why: Deferral,
    pub detail: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub target: Version,
    /// Links for users who have none: to what they run.
    pub adopt: Vec<(String, Version)>,
    /// Users who run the target already and whose link has to say so.
    pub settle: Vec<String>,
    /// Who is moved, first to last, and from which build.
    pub queue: Vec<(String, Version)>,
    /// Users whose instance is stopped: their link is moved, nothing is started.
    pub stopped: Vec<(String, Version)>,
    pub deferred: Vec<Deferred>,
}

/// Decides, or says why nothing may be done.
pub fn plan(situation: &Situation<'_>) -> Result<Plan, (Hold, String)> {
    guard(situation, situation.wanted.version())?;
    Ok(Plan::of(situation))
}

fn guard(situation: &Situation<'_>, target: &Version) -> Result<(), (Hold, String)> {
    if let Some(why) = situation.broke_before {
        let detail =
            format!("{target} was rolled back here before: {why}; name it with --to to try it once more");
        return Err((Hold::RolledBackBefore, detail));
    }
    let Wanted::Tracked(tag, _) = situation.wanted else { return Ok(()) };
    let running = situation.users.iter().filter_map(|found| found.running.as_ref());
    if let Some(newer) = running.chain(situation.last_good).filter(|version| *version > target).max() {
        let detail = format!(
            "'{tag}' stands for {target}, and {newer} is in use: databases go one way; pin {target} to go back to it all the same"
        );
        return Err((Hold::Downgrade, detail));
    }
    Ok(())
}

impl Plan {
    /// Who is moved and who is not, where it was decided already that the build is taken.
    pub fn of(situation: &Situation<'_>) -> Self {
        let mut plan = Self {
            target: situation.wanted.version().clone(),
            adopt: Vec::new(),
            settle: Vec::new(),
            queue: Vec::new(),
            stopped: Vec::new(),
            deferred: Vec::new(),
        };
        for found in situation.users {
            plan.take_in(found, situation);
        }
        plan
    }

    fn take_in(&mut self, found: &Found, situation: &Situation<'_>) {
        let Found { user, linked, running, presence } = found;
        let current = running.as_ref().or(linked.as_ref());
        if let (None, Some(current)) = (linked, current)
            && *current != self.target
        {
            self.adopt.push((user.clone(), current.clone()));
        }
        if current == Some(&self.target) {
            if linked.as_ref() != Some(&self.target) {
                self.settle.push(user.clone());
            }
            return;
        }
        let mut defer = |why, detail: String| {
            self.deferred.push(Deferred { user: user.clone(), why, detail });
        };
        if situation.except.contains(user) {
            return defer(Deferral::Excepted, "named with --except".to_owned());
        }
        if let Presence::Away(why, detail) = presence {
            return defer(*why, detail.clone());
        }
        let Some(current) = current else {
            let detail = "nobody can tell which build the instance is of, so there would be no way back; link it first";
            return defer(Deferral::Unknown, detail.to_owned());
        };
        if !situation.installed.contains(current) {
            let detail = format!("{current} is not installed side by side, so there would be no way back");
            return defer(Deferral::NotInstalled, detail);
        }
        let queue = if *presence == Presence::Stopped { &mut self.stopped } else { &mut self.queue };
        queue.push((user.clone(), current.clone()));
    }

    /// Whether there is somebody to move, and none of them may be moved now.
    pub fn finds_nobody_idle(&self) -> bool {
        let excepted = |deferred: &Deferred| deferred.why == Deferral::Excepted;
        self.queue.is_empty() && self.stopped.is_empty() && !self.deferred.iter().all(excepted)
    }

    /// The users of the queue, group by group.
    pub fn groups(&self) -> Vec<&[(String, Version)]> {
        let mut rest = self.queue.as_slice();
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let (group, after) = rest.split_at(group_size(groups.len()).min(rest.len()));
            groups.push(group);
            rest = after;
        }
        groups
    }

    /// How long it takes at least: the soaks, one after another.
    pub fn soaks(&self, soak: Duration) -> Duration {
        (0..self.groups().len()).map(|group| soak_of(group, soak)).sum()
    }
}

/// How many users the group of this number has: the canary, then 1, 2, 4…
pub fn group_size(group: usize) -> usize {
    match group {
        0 => 1,
        _ => 1 << (group - 1).min(16),
    }
}

/// How long a group is watched before the next one: the canary for the whole soak, the others for half of it.
pub fn soak_of(group: usize, soak: Duration) -> Duration {
    if group == 0 { soak } else { soak / 2 }
}

impl Wanted {
    pub fn version(&self) -> &Version {
        match self {
            Self::Pinned(version) | Self::Tracked(_, version) | Self::Drained(version) => version,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned(version) => write!(f, "{version}, pinned"),
            Self::Tracked(tag, version) => write!(f, "{version}, for which '{tag}' stands"),
            Self::Drained(version) => write!(f, "{version}, which is proven here"),
        }
    }
}

impl fmt::Display for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} stays: {} [{}]", self.user, self.detail, self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version::new(0, 0, 24);
    const NEW: Version = Version::new(0, 0, 33);

    fn on(user: &str, version: Version, presence: Presence) -> Found {
        Found { user: user.to_owned(), linked: Some(version.clone()), running: Some(version), presence }
    }

    fn busy() -> Presence {
        Presence::Away(Deferral::Busy, "1 turn".to_owned())
    }

    fn decide(wanted: &Wanted, users: &[Found]) -> Result<Plan, (Hold, String)> {
        plan(&Situation {
            wanted,
            last_good: Some(&OLD),
            broke_before: None,
            users,
            except: &["cid".to_owned()],
            installed: &[OLD, Version::new(0, 0, 26)],
        })
    }

    fn tracked(version: Version) -> Wanted {
        Wanted::Tracked("nightly".to_owned(), version)
    }

    fn queue(plan: &Plan) -> Vec<&str> {
        plan.queue.iter().map(|(user, _)| user.as_str()).collect()
    }

    #[test]
    fn the_idle_are_moved_in_order_and_who_is_busy_or_excepted_stays_visibly() {
        let users = [
            on("ann", OLD, busy()),
            on("bob", OLD, Presence::Idle),
            on("cid", OLD, Presence::Idle),
            on("dot", OLD, Presence::Idle),
            on("eve", NEW, Presence::Idle),
        ];
        let plan = decide(&tracked(NEW), &users).expect("a plan");
        assert_eq!(queue(&plan), ["bob", "dot"]);
        let deferred: Vec<_> = plan.deferred.iter().map(|it| (it.user.as_str(), it.why)).collect();
        assert_eq!(deferred, [("ann", Deferral::Busy), ("cid", Deferral::Excepted)]);
        assert!(plan.adopt.is_empty() && plan.settle.is_empty());
    }

    #[test]
    fn groups_grow_as_one_one_two_four_and_the_last_takes_who_is_left() {
        let users: Vec<_> = (0..10).map(|n| on(&format!("u{n}"), OLD, Presence::Idle)).collect();
        let plan = decide(&tracked(NEW), &users).expect("a plan");
        assert_eq!(plan.groups().iter().map(|group| group.len()).collect::<Vec<_>>(), [1, 1, 2, 4, 2]);
        assert_eq!(plan.soaks(Duration::from_secs(120)), Duration::from_secs(120 + 4 * 60));
    }

    #[test]
    fn a_tag_that_went_back_is_not_followed_and_a_pin_is() {
        let users = [on("ann", NEW, Presence::Idle)];
        let older = Version::new(0, 0, 26);
        let (hold, detail) = decide(&tracked(older.clone()), &users).expect_err("held");
        assert_eq!(hold, Hold::Downgrade);
        assert!(detail.contains("0.0.33 is in use"), "{detail}");
        let mut situation = Situation {
            wanted: &Wanted::Pinned(older),
            last_good: Some(&NEW),
            broke_before: None,
            users: &users,
            except: &[],
            installed: &[NEW],
        };
        assert_eq!(queue(&plan(&situation).expect("a plan")), ["ann"]);
        let older = tracked(OLD);
        situation.wanted = &older;
        assert_eq!(plan(&situation).expect_err("held").0, Hold::Downgrade);
    }

    #[test]
    fn nothing_is_to_do_where_everybody_is_there() {
        let plan = decide(&tracked(NEW), &[on("ann", NEW, busy())]).expect("a plan");
        assert!(plan.queue.is_empty() && plan.settle.is_empty() && plan.deferred.is_empty());
    }

    #[test]
    fn where_nobody_is_idle_it_says_why_for_each() {
        let plan = decide(&tracked(NEW), &[on("ann", OLD, busy()), on("cid", OLD, Presence::Idle)]);
        let mut plan = plan.expect("a plan");
        assert!(plan.finds_nobody_idle());
        assert_eq!(plan.deferred[0].to_string(), "ann stays: 1 turn [busy]");
        plan.deferred.remove(0);
        assert!(!plan.finds_nobody_idle(), "whoever is excepted is waited for by nobody");
    }

    #[test]
    fn a_build_that_broke_here_is_not_taken_again() {
        let wanted = tracked(NEW);
        let situation = Situation {
            wanted: &wanted,
            last_good: None,
            broke_before: Some("ann could not log in"),
            users: &[],
            except: &[],
            installed: &[],
        };
        assert_eq!(plan(&situation).expect_err("held").0, Hold::RolledBackBefore);
    }

    #[test]
    fn who_has_no_link_gets_one_to_what_they_run_and_nobody_is_moved_without_a_way_back() {
        let unlinked = |user: &str, version: Option<Version>| Found {
            linked: None,
            running: version,
            ..on(user, OLD, Presence::Idle)
        };
        let users = [
            unlinked("ann", Some(OLD)),
            unlinked("bob", Some(Version::new(0, 0, 20))),
            unlinked("eve", Some(NEW)),
            unlinked("fay", None),
            on("gus", OLD, Presence::Stopped),
        ];
        let plan = decide(&tracked(NEW), &users).expect("a plan");
        assert_eq!(plan.adopt, [("ann".to_owned(), OLD), ("bob".to_owned(), Version::new(0, 0, 20))]);
        assert_eq!(plan.settle, ["eve"]);
        assert_eq!(queue(&plan), ["ann"]);
        assert_eq!(plan.stopped, [("gus".to_owned(), OLD)]);
        let deferred: Vec<_> = plan.deferred.iter().map(|it| (it.user.as_str(), it.why)).collect();
        assert_eq!(deferred, [("bob", Deferral::NotInstalled), ("fay", Deferral::Unknown)]);
    }
}
