//! The handshake: the whole login as a user's browser does it, and the probe's session ended again.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use tracing::Instrument;

use super::{Section, Steps, tables};
use crate::outcome::{Endpoint, Failure, Kind, NotDone, Reason, Run, Step, Trigger};
use crate::t3::Instance;
use crate::t3::access::Access;
use crate::t3::descriptor;
use crate::t3::door::{self, Passage};
use crate::t3::http::Client;
use crate::t3::keeper::Limits;
use crate::t3::pairing::{self, Exchanged, SessionCookie};
use crate::t3::session;
use crate::t3::socket;
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;

/// What the probe's sessions are called in t3's own list of clients.
pub const LABEL: &str = "t3-prober";

/// A session with the probe's label that is older than this belongs to no handshake under way.
const ABANDONED_AFTER: Duration = Duration::from_secs(120);

/// Sessions of earlier handshakes that still have to be revoked, oldest first; t3 ends them itself after 30 days.
#[derive(Debug, Default)]
pub struct Leftovers {
    sessions: VecDeque<String>,
    /// Whether the instance was asked for sessions that an earlier start of this program left behind.
    asked: bool,
}

/// The steps of every handshake; `revoke` comes where there is something to revoke.
pub const PLAN: &[Step] =
    &[Step::Version, Step::Mint, Step::Exchange, Step::Session, Step::App, Step::Socket];

/// The same as a first visit at the dispatch, which mints and exchanges. Where it does not get that far, the login is
/// made directly too, so that the run tells whose fault it is.
const COLD: &[Step] = &[Step::Version, Step::Session, Step::App, Step::Socket, Step::Front];

/// Where a first visit asks to go. t3 shows its app on every unknown path (CONTRACT §3).
const DEEP_LINK: &str = "/t3-prober/first-visit?kept=1";

/// Logs in and out again; with a passage, through the dispatch.
pub async fn run(
    instance: &Instance,
    access: &Access,
    leftovers: &mut Leftovers,
    section: &Section,
    passage: Option<Passage<'_>>,
    trigger: Trigger,
) -> Run {
    let span = tracing::info_span!("handshake", user = instance.name);
    let trace = TraceContext::of(&span);
    let plan = if passage.is_some() { COLD } else { PLAN };
    let mut steps = Steps::begin(Kind::Handshake, trigger, instance, plan);
    let mut login = Login {
        client: Client::new(instance, &trace),
        door: passage.map(|passage| Client::through(passage, instance, &trace)),
        access,
        limits: section.handshake_limits(),
        version: None,
        recognised: false,
    };
    async {
        // Where it stopped is in the steps.
        let _ = login.go(&mut steps, leftovers).await;
        let minted = steps.succeeded(Step::Mint) || steps.succeeded(Step::Front);
        if !leftovers.sessions.is_empty() || (minted && !leftovers.asked) {
            steps.take(Step::Revoke, Box::pin(login.revoke(leftovers))).await;
        }
    }
    .instrument(span)
    .await;
    steps.facts.cli_cpu = access.take_cpu();
    steps.facts.sessions_left = Some(leftovers.sessions.len() as u64);
    steps.end(&trace)
}

struct Login<'a> {
    client: Client<'a>,
    /// The way through the dispatch, for a first visit there.
    door: Option<Client<'a>>,
    access: &'a Access,
    limits: Limits,
    /// The running version, once it is known.
    version: Option<Version>,
    /// The instance has recognised the session: its authentication tables are well.
    recognised: bool,
}

impl Login<'_> {
    /// Version, mint and exchange (or a first visit), session, app, socket; `None` as soon as one does not succeed.
    async fn go(&mut self, steps: &mut Steps<'_>, leftovers: &mut Leftovers) -> Option<()> {
        let Self { client, door, access, limits, version, recognised } = self;
        let (instance, limit) = (client.instance, limits.request);

        let descriptor = async { Ok(descriptor::read(client, limit).await?.version) };
        let running = &*version.insert(steps.take(Step::Version, descriptor).await?);
        steps.facts.version = Some(running.to_string());
        let generation = running.generation();
        let running = Some(running);

        let visited = match door {
            Some(door) => steps.take(Step::Front, first_visit(door, leftovers, limit)).await,
            None => None,
        };
        let (client, cookie) = match (door, visited) {
            (Some(door), Some(cookie)) => (door, cookie),
            _ => {
                let minted = access.mint(client, LABEL, *limits);
                let credential = steps.take(Step::Mint, explained(access, instance, running, minted)).await?;
                let exchanged =
                    async { Ok(pairing::exchange(client, generation, &credential, limit).await?) };
                let exchanged = explained(access, instance, running, exchanged);
                let Exchanged { cookie, endpoint } = steps.take(Step::Exchange, exchanged).await?;
                steps.facts.endpoint = Some(endpoint);
                if endpoint != Endpoint::preferred(generation) {
                    let path = endpoint.path();
                    steps.remark(format!("answered at {path}, where another generation of t3 has it"));
                }
                // Whatever fails from here on, a session has been made and has to go.
                leftovers.sessions.extend(cookie.session_id());
                (client, cookie)
            }
        };
        steps.facts.cookie = Some(cookie.name.clone());
        let session_id = cookie.session_id();

        let checked = check_session(client, &cookie, session_id.as_deref(), limit);
        steps.take(Step::Session, explained(access, instance, running, checked)).await?;
        *recognised = true;
        let ticket = async { Ok(socket::ticket(client, generation, cookie.proof(), limit).await?) };
        let ticket = steps.take(Step::App, not_the_tables(ticket)).await?;
        let round_trip = async { Ok(socket::round_trip(client, generation, &ticket, limit).await?) };
        steps.take(Step::Socket, not_the_tables(round_trip)).await.map(|_| ())
    }

    async fn find_abandoned(&mut self, leftovers: &mut Leftovers) -> Result<(), NotDone> {
        let abandoned = self.access.labelled(&mut self.client, LABEL, ABANDONED_AFTER, self.limits).await?;
        leftovers.asked = true;
        for session in abandoned {
            if !leftovers.sessions.contains(&session) {
                leftovers.sessions.push_front(session);
            }
        }
        Ok(())
    }

    /// Ends every session that is left over; what cannot be ended now is kept for the next handshake.
    async fn revoke(&mut self, leftovers: &mut Leftovers) -> Result<(), NotDone> {
        if !leftovers.asked {
            self.find_abandoned(leftovers).await?;
        }
        while let Some(session_id) = leftovers.sessions.front() {
            let instance = self.client.instance;
            let revoked = self.access.revoke(&mut self.client, session_id, self.limits);
            let revoked = explained(self.access, instance, self.version.as_ref(), revoked);
            if self.recognised {
                not_the_tables(revoked).await?;
            } else {
                revoked.await?;
            }
            leftovers.sessions.pop_front();
        }
        Ok(())
    }
}

/// Comes in as somebody who was never here: sent back with a session to where they asked to go, and shown the page.
async fn first_visit(
    door: &mut Client<'_>,
    leftovers: &mut Leftovers,
    limit: Duration,
) -> Result<SessionCookie, NotDone> {
    let cookie = door::first_visit(door, DEEP_LINK, limit).await?;
    leftovers.sessions.extend(cookie.session_id());
    door::page(door, DEEP_LINK, cookie.proof(), limit).await?;
    Ok(cookie)
}

/// Asks the database why the authentication tables are unusable, where that is what came out.
async fn explained<T>(
    access: &Access,
    instance: &Instance,
    version: Option<&Version>,
    work: impl Future<Output = Result<T, NotDone>>,
) -> Result<T, NotDone> {
    match work.await {
        Err(NotDone::Failed(failure)) if failure.reason == Reason::AuthStore => {
            Err(tables::refine(access, instance, version, failure).await.into())
        }
        result => result,
    }
}

/// After the instance has recognised the session a 500 is not about the authentication tables: people can log in.
async fn not_the_tables<T>(work: impl Future<Output = Result<T, NotDone>>) -> Result<T, NotDone> {
    work.await.map_err(|why| match why {
        NotDone::Failed(Failure { reason: Reason::AuthStore, detail }) => {
            Failure { reason: Reason::InternalError, detail }.into()
        }
        why => why,
    })
}

/// The instance knows the session, and the cookie is the announced one, protected, and names its session.
pub async fn check_session(
    client: &mut Client<'_>,
    cookie: &SessionCookie,
    session_id: Option<&str>,
    limit: Duration,
) -> Result<(), NotDone> {
    let document = session::read(client, cookie.proof(), limit).await?;
    cookie.check(document.cookie_name())?;
    if !document.authenticated {
        return Err(Failure::new(
            Reason::NotAuthenticated,
            "the instance does not recognise the session that it issued a moment ago",
        )
        .into());
    }
    if session_id.is_none() {
        return Err(Failure::new(
            Reason::Malformed,
            "the session cookie does not name its session, so it cannot be revoked",
        )
        .into());
    }
    Ok(())
}
