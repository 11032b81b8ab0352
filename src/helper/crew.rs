//! Everybody whom one run of the gate has act, in one process: root becomes each user for what is theirs and an account
//! that has nothing for the rest, and never runs a build itself. Whoever is not root acts with the rights they have.

use nix::unistd::User;

use super::account::Account;
use super::as_user::Children;
use super::owner::Owner;
use crate::backup::restore::Present;
use crate::backup::{Copied, Copying, Defect, Found, Hands, Ourselves, Reading, Tried, Trying};
use crate::config::Config;
use crate::gate::hands as gate;
use crate::inventory::Roster;
use crate::outcome::Failure;
use crate::t3::Instance;
use crate::t3::job::{Job, Ran, Stopped};
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::version::Version;

/// See above.
pub struct Crew<'a> {
    config: &'a Config,
    /// All of them know each other: whoever is nobody's child of this process is swept away.
    children: Option<Children>,
}

/// One of them.
pub enum Hand<'a> {
    Ourselves(Ourselves),
    Owner(Box<Owner<'a>>),
}

impl<'a> Crew<'a> {
    pub fn new(config: &'a Config) -> Result<Self, String> {
        // On a laptop all instances run as oneself, be that root.
        let gives_up_root = nix::unistd::geteuid().is_root() && config.inventory.accounts;
        let children = gives_up_root.then(Children::new).transpose()?;
        Ok(Self { config, children })
    }

    /// Whoever has the right to a user's data.
    pub fn of(&'a self, instance: &Instance) -> Result<Hand<'a>, String> {
        let Some(children) = self.children.as_ref().filter(|_| instance.uid != 0) else {
            return Ok(Hand::Ourselves(Ourselves { boxing: self.config.gate.boxing() }));
        };
        let roster = Roster::read(&self.config.inventory).map_err(|error| error.to_string())?;
        let admitted = roster.admit(&instance.name).map_err(|error| error.to_string())?;
        Ok(Hand::Owner(Box::new(Owner::new(self.config, &admitted, children))))
    }

    /// Whoever runs what is nobody's.
    pub fn nobody(&'a self) -> Result<Hand<'a>, String> {
        let Some(children) = &self.children else {
            return Ok(Hand::Ourselves(Ourselves { boxing: self.config.gate.boxing() }));
        };
        let name = &self.config.gate.account;
        let remedy = "name another one in `[gate] account`";
        let account = User::from_name(name)
            .map_err(|errno| format!("the account {name} could not be looked up: {errno}"))?
            .ok_or_else(|| format!("{name} is no account of this machine; {remedy}"))?;
        let (uid, gid) = (account.uid.as_raw(), account.gid.as_raw());
        if uid == 0 {
            return Err(format!("{name} is root, who runs no build; {remedy}"));
        }
        let account = Account { name: name.clone(), uid, gid };
        Ok(Hand::Owner(Box::new(Owner::nobody(self.config, account, children))))
    }
}

impl Hands for Hand<'_> {
    fn account(&self) -> Option<(u32, u32)> {
        match self {
            Self::Ourselves(ourselves) => ourselves.account(),
            Self::Owner(owner) => owner.account(),
        }
    }

    async fn copy(&self, instance: &Instance, order: Copying) -> Result<Copied, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.copy(instance, order).await,
            Self::Owner(owner) => owner.copy(instance, order).await,
        }
    }

    async fn look(&self, instance: &Instance, taken: Fingerprint) -> Result<Present, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.look(instance, taken).await,
            Self::Owner(owner) => owner.look(instance, taken).await,
        }
    }

    async fn repair(&self, instance: &Instance, version: Version) -> Result<(), Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.repair(instance, version).await,
            Self::Owner(owner) => owner.repair(instance, version).await,
        }
    }

    async fn read(&self, order: Reading) -> Result<Result<Found, Defect>, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.read(order).await,
            Self::Owner(owner) => owner.read(order).await,
        }
    }

    async fn try_out(&self, order: Trying) -> Result<Tried, Failure> {
        match self {
            Self::Ourselves(ourselves) => ourselves.try_out(order).await,
            Self::Owner(owner) => owner.try_out(order).await,
        }
    }
}

impl gate::Hands for Hand<'_> {
    async fn run(&self, job: Job) -> Result<Ran, Stopped> {
        match self {
            Self::Ourselves(ourselves) => ourselves.run(job).await,
            Self::Owner(owner) => owner.run(job).await,
        }
    }
}
