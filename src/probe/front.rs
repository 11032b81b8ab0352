//! The front tier: a warm visit through the dispatch proxy with a session that is kept for it. It fails only where the
//! instance itself, asked directly, knows that session: what it names is visible nowhere but behind the dispatch.

use std::time::Duration;

use tracing::Instrument;

use super::{Section, Steps, handshake};
use crate::outcome::{Failure, Kind, NotDone, Reason, Run, Skip, Step, Trigger};
use crate::t3::Instance;
use crate::t3::access::Access;
use crate::t3::descriptor;
use crate::t3::door::{self, Passage};
use crate::t3::http::Client;
use crate::t3::keeper::Limits;
use crate::t3::pairing::{self, SessionCookie};
use crate::t3::session;
use crate::t3::trace::TraceContext;

/// What the kept session is called in t3's own list of clients.
const LABEL: &str = "t3-prober front";

pub const PLAN: &[Step] = &[Step::Front];

/// One user's session for visits through the dispatch. Its `Debug` shows no secret.
#[derive(Debug, Default)]
pub struct Kept {
    cookie: Option<SessionCookie>,
    /// It ends with the command that made it, and is none of the service's.
    once: bool,
}

impl Kept {
    /// For one command's visits: the session that the service keeps is left alone.
    pub fn once() -> Self {
        Self { cookie: None, once: true }
    }
}

/// One visit.
pub async fn run(
    instance: &Instance,
    passage: Passage<'_>,
    access: &Access,
    kept: &mut Kept,
    section: &Section,
    trigger: Trigger,
) -> Run {
    let span = tracing::info_span!("front", user = instance.name);
    let trace = TraceContext::of(&span);
    let mut steps = Steps::begin(Kind::Front, trigger, instance, PLAN);
    let mut visit = Visit {
        direct: Client::new(instance, &trace),
        through: Client::through(passage, instance, &trace),
        access,
        limits: section.front_limits(),
    };
    steps.take(Step::Front, Box::pin(visit.go(kept))).instrument(span).await;
    steps.facts.cli_cpu = access.take_cpu();
    steps.end(&trace)
}

/// Ends the kept session; what cannot be ended now is ended when the next one is made.
pub async fn leave(instance: &Instance, access: &Access, kept: &mut Kept, limits: Limits) {
    let Some(session_id) = kept.cookie.take().and_then(|cookie| cookie.session_id()) else { return };
    let trace = TraceContext::unsampled();
    let mut client = Client::new(instance, &trace);
    if let Err(why) = access.revoke(&mut client, &session_id, limits).await {
        tracing::debug!(user = instance.name, %why, "a kept session was not ended");
    }
}

struct Visit<'a> {
    direct: Client<'a>,
    through: Client<'a>,
    access: &'a Access,
    limits: Limits,
}

impl Visit<'_> {
    async fn go(&mut self, kept: &mut Kept) -> Result<(), NotDone> {
        loop {
            let (cookie, is_new) = match kept.cookie.take() {
                Some(cookie) => (cookie, false),
                None => (self.log_in(kept.once).await?, true),
            };
            let cookie = kept.cookie.insert(cookie);
            let failure = match self.visit(cookie).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if self.is_alive(cookie).await? {
                return Err(failure.into());
            }
            kept.cookie = None;
            if is_new {
                let detail = "the instance forgot a session that it had issued a moment ago";
                return Err(NotDone::skipped(Skip::EarlierStep, detail));
            }
            // Sessions end with a restored database and after 30 days (CONTRACT §4): that is no fault of the dispatch's.
        }
    }

    /// The page and one call of the app's, answered by the instance that knows the session.
    async fn visit(&mut self, cookie: &SessionCookie) -> Result<(), Failure> {
        door::page(&mut self.through, "/", cookie.proof(), self.limits.request).await?;
        let document = session::read(&mut self.through, cookie.proof(), self.limits.request).await?;
        if document.authenticated {
            return Ok(());
        }
        Err(Failure::new(
            Reason::WrongInstance,
            "the dispatch leads to an instance that does not know the session that this user's own has issued",
        ))
    }

    async fn is_alive(&mut self, cookie: &SessionCookie) -> Result<bool, NotDone> {
        self.direct.reconnect();
        let document = session::read(&mut self.direct, cookie.proof(), self.limits.request).await;
        document.map(|document| document.authenticated).map_err(|failure| not_the_dispatch(&failure))
    }

    /// A session of our own, made at the instance itself; those of earlier starts of the service are ended by its next.
    async fn log_in(&mut self, once: bool) -> Result<SessionCookie, NotDone> {
        let Self { direct, access, limits, .. } = self;
        // What is left of a command's visits is ended as what is left of a handshake.
        let label = if once { handshake::LABEL } else { LABEL };
        let made = async {
            if !once {
                for session_id in access.labelled(direct, label, Duration::ZERO, *limits).await? {
                    access.revoke(direct, &session_id, *limits).await?;
                }
            }
            let generation = descriptor::read(direct, limits.request).await?.version.generation();
            let credential = access.mint(direct, label, *limits).await?;
            Ok(pairing::exchange(direct, generation, &credential, limits.request).await?.cookie)
        };
        made.await.map_err(|why: NotDone| match why {
            NotDone::Failed(failure) => not_the_dispatch(&failure),
            skipped @ NotDone::Skipped { .. } => skipped,
        })
    }
}

/// The instance itself fails: the pulse and the handshake say how.
fn not_the_dispatch(failure: &Failure) -> NotDone {
    NotDone::skipped(Skip::EarlierStep, format!("asked directly, the instance fails too: {failure}"))
}
