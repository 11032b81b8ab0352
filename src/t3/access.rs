//! Administrative acts on instances, whoever has the right to do them: we ourselves (the laptop), or the helper that
//! alone holds the keepers' sessions and may act as the users. Callers see no difference but the reason `helper`.

pub mod helper;
pub mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use self::helper::Way;

use tokio::sync::Mutex;
use tokio::time::Instant;

use self::helper::Helper;
use self::wire::{Inspections, Request};
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
    Helper(Helper, Round),
}

/// The helper's last look at everybody: one request a round serves all users whose look is due in it.
#[derive(Default)]
pub struct Round {
    last: Mutex<Option<Looked>>,
    /// How often a database was replaced since we began: what was seen before the last time is not shown any more.
    replaced: AtomicU64,
}

struct Looked {
    at: Instant,
    replaced: u64,
    found: Result<Inspections, NotDone>,
}

impl Access {
    /// Our own hands; `keepers` is the directory of the administrative sessions.
    pub fn own(keepers: PathBuf, section: &Section) -> Self {
        Self::Own(Keepers::new(keepers, section.mint, Guard::new(section)))
    }

    pub fn helper(way: Way) -> Self {
        Self::Helper(Helper::new(way), Round::default())
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
            Self::Helper(helper, _) => {
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
            Self::Helper(helper, _) => {
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
            Self::Helper(helper, _) => {
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
            Self::Helper(helper, _) => {
                let request = Request::Inspect { user: Some(instance.name.clone()), limit };
                let mut found: Inspections = helper.ask(&request).await?;
                found.remove(&instance.name).unwrap_or_else(|| Err(not_inspected(&instance.name)))
            }
        }
    }

    /// The same as part of a round over everybody, which is as long as `interval`.
    pub async fn inspect_in_round(
        &self,
        instance: &Instance,
        interval: Duration,
        limit: Duration,
    ) -> Result<Inspection, NotDone> {
        let Self::Helper(helper, round) = self else { return self.inspect(instance, limit).await };
        let mut last = round.last.lock().await;
        let replaced = round.replaced.load(Ordering::Relaxed);
        // Whoever comes between two rounds, being new, is shown what is not older than half of one.
        let is_recent = |looked: &Looked| looked.replaced == replaced && looked.at.elapsed() < interval / 2;
        if !last.as_ref().is_some_and(is_recent) {
            let request = Request::Inspect { user: None, limit: EVERYBODY };
            let found = helper.ask(&request).await;
            *last = Some(Looked { at: Instant::now(), replaced, found });
        }
        // What keeps the helper from answering is everybody's answer: asked for each alone it would last for as many times
        // as there are users.
        let found = match last.as_ref().map(|looked| &looked.found) {
            Some(Err(why)) => return Err(why.clone()),
            Some(Ok(found)) => found.get(&instance.name).cloned(),
            None => None,
        };
        drop(last);
        match found {
            Some(found) => found,
            // Who is not in it learns the reason for themselves.
            None => self.inspect(instance, limit).await,
        }
    }

    /// A snapshot was put back: what was seen of databases before is out of date.
    pub fn replaced(&self) {
        if let Self::Helper(_, round) = self {
            round.replaced.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// CPU time of every run of t3's command since this was last asked.
    pub fn take_cpu(&self) -> Vec<(Verb, Duration)> {
        match self {
            Self::Own(keepers) => keepers.take_cpu(),
            Self::Helper(helper, _) => helper.take_cpu(),
        }
    }
}

/// A look at everybody takes this long at most; where one user's disk hangs it is five seconds.
const EVERYBODY: Duration = Duration::from_secs(30);

fn not_inspected(user: &str) -> NotDone {
    let detail = format!("the helper did not look at {user}; is the user in its user map");
    Failure::new(crate::outcome::Reason::Helper, detail).into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;
    use crate::outcome::Reason;

    fn instance(name: &str) -> Instance {
        Instance { name: name.to_owned(), port: 1, base_dir: PathBuf::from("/nowhere"), uid: 1 }
    }

    fn found() -> Inspection {
        let gone = || Failure::new(Reason::Unreadable, "gone");
        Inspection { level: Err(gone()), state: Err(gone()), locked_by: None }
    }

    #[tokio::test]
    async fn a_helper_that_does_not_look_is_asked_once_a_round_and_not_for_each() {
        const ROUND: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let access = Access::helper(Way::Socket(path));
        let refuse = async { drop(listener.accept().await.expect("a connection")) };
        let ask = async {
            let mut why = Vec::new();
            for name in ["ann", "bob"] {
                why.push(
                    access.inspect_in_round(&instance(name), ROUND, ROUND).await.expect_err("no answer"),
                );
            }
            why
        };
        let ((), why) = tokio::join!(refuse, ask);
        assert!(why[0] == why[1] && why[0].detail().contains("the helper's socket"), "{why:?}");
    }

    #[tokio::test]
    async fn one_request_a_round_serves_everybody_and_who_is_not_in_its_answer_is_asked_for_alone() {
        const ROUND: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let serve = async {
            let (connection, _) = listener.accept().await.expect("a connection");
            let mut connection = BufReader::new(connection);
            let mut asked = Vec::new();
            let mut line = String::new();
            while connection.read_line(&mut line).await.expect("a request") > 0 {
                let request: Request = serde_json::from_str(&line).expect("a request");
                let everybody: Inspections =
                    ["ann", "bob"].map(|name| (name.to_owned(), Ok(found()))).into_iter().collect();
                let value = serde_json::to_value(everybody).expect("json");
                asked.push(request.user().map(ToOwned::to_owned));
                let reply = wire::Reply { end: Ok(value).into(), cpu: Vec::new() };
                connection.get_mut().write_all(&reply.line()).await.expect("written");
                line.clear();
            }
            asked
        };
        let ask = async {
            let access = Access::helper(Way::Socket(path));
            for name in ["ann", "bob", "ann"] {
                assert_eq!(
                    access.inspect_in_round(&instance(name), ROUND, ROUND).await,
                    Ok(found()),
                    "{name}"
                );
            }
            let why = access.inspect_in_round(&instance("cid"), ROUND, ROUND).await.expect_err("not mapped");
            assert!(why.detail().contains("did not look at cid"), "{why}");
            // What is older than a restore is not shown.
            access.replaced();
            assert!(access.inspect_in_round(&instance("ann"), ROUND, ROUND).await.is_ok());
            // The round is over at once.
            assert!(access.inspect_in_round(&instance("ann"), Duration::ZERO, ROUND).await.is_ok());
        };
        let (asked, ()) = tokio::join!(serve, ask);
        assert_eq!(asked, [None, Some("cid".to_owned()), None, None]);
    }
}
