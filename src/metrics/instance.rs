//! `t3_user_…` and `t3_instance_…`: who is served, and what is known of their instance.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;

use super::Served;
use super::book::metrics;
use super::labels::{NoLabels, labels};
use super::series::{ByUser, InfoByUser};
use crate::outcome::{Endpoint, Facts};

labels! {
    pub struct UserFacts {
        /// the identity that the SSO edge sends for this user
        pub identity: Arc<str>,
        /// the port of the user's instance, by the dispatch table
        pub port: u16,
    }
}

labels! {
    #[derive(Default)]
    pub struct InstanceFacts {
        /// the version that the running instance says it is; empty until it has said so
        pub version: Arc<str>,
        /// the name of the session cookie, as the instance announces it; empty until it has said so
        pub cookie: Arc<str>,
        /// the exchange endpoint that answered; empty until one did
        pub endpoint: Option<Endpoint>,
    }
}

metrics! {
    pub struct Instance {
        /// The users that are served
        user: InfoByUser<UserFacts> = "t3_user_info",
        /// Whether the user is paused (1): still probed and shown, no alert
        paused: ByUser<NoLabels, Gauge> = "t3_user_paused",
        /// What the user's instance last said of itself
        instance: InfoByUser<InstanceFacts> = "t3_instance_info",
    }
}

/// What an instance says of itself may be any text of any length: a user's own process may be behind the port.
const LONGEST_FACT: usize = 64;

impl Instance {
    pub(super) fn begin(&self, served: &Served<'_>) {
        self.user.change(served.user, |facts| {
            *facts = Some(UserFacts { identity: served.identity.into(), port: served.port });
        });
        self.paused.with(served.user, NoLabels, |_| ());
    }

    pub fn set_paused(&self, user: &str, paused: bool) {
        self.paused.with(user, NoLabels, |gauge| {
            gauge.set(i64::from(paused));
        });
    }

    pub(super) fn learn(&self, user: &str, learned: &Facts) {
        if learned.version.is_none() && learned.cookie.is_none() && learned.endpoint.is_none() {
            return;
        }
        self.instance.change(user, |known| {
            let known = known.get_or_insert_default();
            if let Some(version) = &learned.version
                && replace(&mut known.version, version)
            {
                // The endpoint belongs to a version; the next handshake says which it is now.
                known.endpoint = None;
            }
            if let Some(cookie) = &learned.cookie {
                replace(&mut known.cookie, cookie);
            }
            known.endpoint = learned.endpoint.or(known.endpoint);
        });
    }
}

/// Whether the text is another than before.
fn replace(known: &mut Arc<str>, said: &str) -> bool {
    let said = said.char_indices().nth(LONGEST_FACT).map_or(said, |(end, _)| &said[..end]);
    let changed = **known != *said;
    if changed {
        *known = said.into();
    }
    changed
}
