//! Who runs a build. Root never does: on a user's data its owner does, on nobody's an account that has nothing. What a
//! gate without privilege may not touch at all, the helper rehearses, and says what was found.

use std::path::Path;

use nix::unistd::{getegid, geteuid};

use super::evidence::{Chained, Trouble};
use crate::backup;
use crate::outcome::{Grounds, NotDone};
use crate::t3::Instance;
use crate::t3::access::helper::Helper;
use crate::t3::access::wire::{self, Builds};
use crate::t3::boxed::{Boxes, Boxing};
use crate::t3::job::{Job, Ran, Stopped};

/// Whoever has the right to the data that a build runs on.
pub trait Hands: backup::Hands {
    /// Runs it as that account.
    async fn run(&self, job: Job) -> Result<Ran, Stopped>;

    /// Who does, where it is not we.
    fn by(&self) -> String {
        self.account().map_or_else(String::new, |(uid, _)| format!(" as uid {uid}"))
    }
}

/// Where these can make boxes; the error says why not.
pub async fn boxes(boxing: &Boxing, program: &Path, hands: &impl Hands) -> Result<Boxes, String> {
    let boxes = Boxes::of(boxing, program)?;
    let ran = hands.run(boxes.trial()).await;
    boxes.made(ran, &hands.by())
}

impl Hands for backup::Ourselves {
    async fn run(&self, job: Job) -> Result<Ran, Stopped> {
        job.carry_out().await
    }
}

/// An account, as the kernel knows it.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    pub fn of(hands: &impl Hands) -> Self {
        match hands.account() {
            Some((uid, gid)) => Self { uid, gid },
            None => Self::ours(),
        }
    }

    pub fn ours() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }
}

/// A user whose data a build is rehearsed on.
pub struct Served<H> {
    pub instance: Instance,
    pub whose: Whose<H>,
}

/// Who rehearses on it.
pub enum Whose<H> {
    /// The gate, with these hands.
    Here(H),
    /// The helper does all of it.
    Helper(Helper),
}

/// Has the helper rehearse; the request names the user and the two builds, and nothing that a box could be widened with.
pub async fn by_helper(
    helper: &Helper,
    user: &str,
    builds: Builds,
    limit: std::time::Duration,
) -> Result<Chained, Trouble> {
    let request = wire::Request::Rehearse { user: user.to_owned(), builds, limit };
    let trouble =
        |detail| Trouble { grounds: Grounds::NoBox, seed: Some(user.to_owned()), rehearsal: None, detail };
    let answer: Result<Result<Chained, Trouble>, NotDone> = helper.ask(&request).await;
    answer.map_err(|why| trouble(why.detail().to_owned()))?
}
