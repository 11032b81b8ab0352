//! What is known of logins besides the enforcer's own: real users' and the service's, judged by `rollout` for those who
//! were moved. Whoever cannot be asked says nothing, because the enforcer's own logins are proof enough.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::canary::Why;
use crate::config::Config;
use crate::docket::live;
use crate::inventory::Target;
use crate::outcome::Decision;
use crate::rollout::{self, Judgement, Observed};
use crate::t3::sockets;
use crate::t3::version::Version;

/// Nobody is left on a bad build for longer because a service is slow.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Witness<'a> {
    config: &'a Config,
    say: &'a (dyn Fn(&str) + Sync),
    /// Whether it was said that nobody answers.
    missed: AtomicBool,
}

impl<'a> Witness<'a> {
    pub fn new(config: &'a Config, say: &'a (dyn Fn(&str) + Sync)) -> Self {
        Self { config, say, missed: AtomicBool::new(false) }
    }

    /// Why the build is a bad one, where the logins of those who were moved say so.
    pub async fn against(&self, version: &Version, moved: &[&Target]) -> Option<Why> {
        let asked = async {
            self.is_ours()?;
            timeout(PATIENCE, live::asked(self.config, version)).await?
        };
        let judgement = match asked.await {
            Ok(judgement) => judgement,
            Err(error) => {
                if !self.missed.swap(true, Ordering::Relaxed) {
                    (self.say)(&format!("real logins are not judged, the enforcer's own are: {error:#}"));
                }
                return None;
            }
        };
        let moved: Vec<_> = moved.iter().map(|target| target.user.as_str()).collect();
        against(judgement, &moved, &self.config.rollout)
    }

    /// A port of this machine is anybody's who comes first: what a user's process says of the logins moves nobody.
    fn is_ours(&self) -> anyhow::Result<()> {
        if self.config.rollout.prometheus.is_some() {
            return Ok(());
        }
        let address = live::address(self.config);
        let Some(listener) = sockets::listener(address)? else {
            anyhow::bail!("nobody listens on {address}; is `t3-prober serve` running?")
        };
        let service = std::fs::metadata(&self.config.state_dir).map(|dir| dir.uid())?;
        let ours = [0, nix::unistd::geteuid().as_raw(), service];
        anyhow::ensure!(
            ours.contains(&listener.uid),
            "port {} belongs to uid {}, which is not the service's",
            address.port(),
            listener.uid
        );
        Ok(())
    }
}

/// The logins of others say nothing here: who was not moved runs the build since another day. Those of several hosts,
/// which Prometheus knows, are one decision for all of them.
fn against(judgement: Judgement, moved: &[&str], section: &rollout::Section) -> Option<Why> {
    if judgement.decision != Decision::RollBack {
        return None;
    }
    let judgement = if section.prometheus.is_some() {
        judgement
    } else {
        let Judgement { version, mut users, in_use, .. } = judgement;
        users.retain(|user, _| moved.contains(&user.as_str()));
        rollout::judge(&version, Observed { users, in_use: Some(in_use) }, section)
    };
    if judgement.decision != Decision::RollBack {
        return None;
    }
    let worst = judgement.users.iter().max_by_key(|(_, of_user)| (of_user.consecutive, of_user.after.failed));
    Some(Why {
        user: worst.map_or_else(String::new, |(user, _)| user.clone()),
        step: None,
        reason: judgement.basis.to_string(),
        detail: judgement.detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{OfUser, Tally};

    fn judged(users: &[(&str, u64, u64)]) -> Judgement {
        let section = rollout::Section::default();
        let of_user = |consecutive, ok| OfUser {
            before: Tally { ok: 9, failed: 0 },
            after: Tally { ok, failed: consecutive },
            consecutive,
        };
        let users =
            users.iter().map(|(user, failed, ok)| ((*user).to_owned(), of_user(*failed, *ok))).collect();
        let observed = Observed { users, in_use: Some(Duration::from_secs(60)) };
        rollout::judge("0.0.33", observed, &section)
    }

    #[test]
    fn failed_logins_of_somebody_who_was_moved_are_a_reason_and_name_them() {
        let why =
            against(judged(&[("ann", 0, 3), ("bob", 2, 0)]), &["ann", "bob"], &rollout::Section::default());
        let why = why.expect("a reason");
        assert_eq!((why.user.as_str(), why.reason.as_str()), ("bob", "consecutive_limit"));
        assert_eq!(
            why.to_string(),
            "the last 2 logins of bob failed, and they went well before [consecutive_limit]"
        );
    }

    #[test]
    fn who_was_not_moved_now_is_no_reason_to_bring_others_back() {
        let section = rollout::Section::default();
        assert_eq!(against(judged(&[("ann", 0, 3), ("bob", 2, 0)]), &["ann"], &section), None);
        assert_eq!(against(judged(&[("ann", 0, 3)]), &["ann"], &section), None);
    }
}
