//! Administrative acts on instances, whoever has the right to do them: we ourselves (the laptop), or the helper that
//! alone holds the keepers' sessions and may act as the users. Callers see no difference but the reason `helper`.

pub mod helper;
pub mod wire;

use std::path::PathBuf;
use std::time::Duration;

pub use self::helper::Way;

use self::helper::Helper;
use self::wire::Request;
use super::cli::Verb;
use super::guard::Guard;
use super::http::Client;
use super::keeper::{Keepers, Limits};
use super::pairing::Credential;
use super::state::{self, Inspection};
use super::{Instance, Section};
use crate::outcome::{Failure, NotDone, Skip};

/// Who mints, revokes and reads databases for us.
pub enum Access {
    /// We do, with the rights we have.
    Own(Keepers<Guard>),
    /// The privileged helper does.
    Helper(Helper),
}

impl Access {
    /// Our own hands; `keepers` is the directory of the administrative sessions.
    pub fn own(keepers: PathBuf, section: &Section) -> Self {
        Self::Own(Keepers::new(keepers, section.mint, Guard::new(section)))
    }

    pub fn helper(way: Way) -> Self {
        Self::Helper(Helper::new(way))
    }

    /// Makes a pairing credential whose session will carry `label`.
    pub async fn mint(
        &self,
        client: &mut Client<'_>,
        label: &str,
        limits: Limits,
    ) -> Result<Credential, NotDone> {
        match self {
            Self::Own(keepers) => keepers.mint(client, label, limits).await,
            Self::Helper(helper) => {
                let (user, label) = (client.instance.name.clone(), label.to_owned());
                let answer: wire::Minted = helper.ask(&Request::Mint { user, label, limits }).await?;
                Ok(answer.credential)
            }
        }
    }

    /// Ends a session: its cookie is `authenticated:false` from then on.
    pub async fn revoke(
        &self,
        client: &mut Client<'_>,
        session_id: &str,
        limits: Limits,
    ) -> Result<(), NotDone> {
        match self {
            Self::Own(keepers) => keepers.revoke(client, session_id, limits).await,
            Self::Helper(helper) => {
                let (user, session) = (client.instance.name.clone(), session_id.to_owned());
                helper.ask(&Request::Revoke { user, session, limits }).await
            }
        }
    }

    /// The live sessions that carry exactly this label and are older than `age`.
    pub async fn labelled(
        &self,
        client: &mut Client<'_>,
        label: &str,
        age: Duration,
        limits: Limits,
    ) -> Result<Vec<String>, NotDone> {
        match self {
            Self::Own(keepers) => keepers.labelled(client, label, age, limits).await,
            Self::Helper(helper) => {
                let (user, label) = (client.instance.name.clone(), label.to_owned());
                helper.ask(&Request::Labelled { user, label, age, limits }).await
            }
        }
    }

    /// Whether we ourselves may open a user's database: root may not.
    pub fn may_read(&self, instance: &Instance) -> bool {
        matches!(self, Self::Own(_)) && (instance.uid == 0 || !nix::unistd::geteuid().is_root())
    }

    /// Looks at one database, as whoever may read it without leaving files behind.
    pub async fn inspect(&self, instance: &Instance, limit: Duration) -> Result<Inspection, NotDone> {
        match self {
            // What root opens may have been made to harm whoever opens it, and what it leaves there breaks the owner.
            Self::Own(_) if !self.may_read(instance) => {
                let detail =
                    "root does not open a user's database; configure `[helper]`, which reads it as the user";
                Err(NotDone::skipped(Skip::NotConfigured, detail))
            }
            Self::Own(_) => Ok(state::inspect(&instance.database()).await),
            Self::Helper(helper) => {
                let request = Request::Inspect { user: Some(instance.name.clone()), limit };
                let mut found: wire::Inspections = helper.ask(&request).await?;
                found.remove(&instance.name).unwrap_or_else(|| Err(not_inspected(&instance.name)))
            }
        }
    }

    /// CPU time of every run of t3's command since this was last asked.
    pub fn take_cpu(&self) -> Vec<(Verb, Duration)> {
        match self {
            Self::Own(keepers) => keepers.take_cpu(),
            Self::Helper(helper) => helper.take_cpu(),
        }
    }
}

fn not_inspected(user: &str) -> NotDone {
    let detail = format!("the helper did not look at {user}; is the user in its user map");
    Failure::new(crate::outcome::Reason::Helper, detail).into()
}
