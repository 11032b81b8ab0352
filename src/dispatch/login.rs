//! A login through t3's own contract, by the very functions that the probe uses: what a probe measures is what a first
//! visit does.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use tracing::{Instrument, Span};

use super::pairing::{Login, LoginFailed, Session, Verified};
use crate::inventory::Target;
use crate::outcome::{Endpoint, Failure, NotDone, Reason, Step};
use crate::t3::access::Access;
use crate::t3::http::{Client, Proof};
use crate::t3::keeper::Limits;
use crate::t3::trace::TraceContext;
use crate::t3::version::Generation;
use crate::t3::{Instance, descriptor, pairing, session};

/// A browser waits for this: short, and the page behind it tries again.
const LIMITS: Limits = Limits { request: Duration::from_secs(3), command: Duration::from_secs(20) };

/// A navigation waits for this.
const VERIFY_LIMIT: Duration = Duration::from_secs(2);

pub struct ThroughT3 {
    access: Access,
    /// The generation whose endpoint answered last, by user. A wrong one costs a request more, nothing else.
    generations: Mutex<HashMap<String, Generation>>,
}

impl ThroughT3 {
    /// `access`: who mints, the helper where there is one.
    pub fn new(access: Access) -> Self {
        Self { access, generations: Mutex::default() }
    }

    async fn login(&self, instance: &Instance, label: &str) -> Result<Session, LoginFailed> {
        let trace = TraceContext::of(&Span::current());
        let mut client = Client::new(instance, &trace);
        let generation = match self.known(&instance.name) {
            Some(generation) => generation,
            None => {
                let running = descriptor::read(&mut client, LIMITS.request);
                step(Step::Version, running).await?.version.generation()
            }
        };
        // An instance that cannot exchange anything would only waste the credential.
        let refused = pairing::refuses_the_impossible(&mut client, generation, LIMITS.request);
        let endpoint = step(Step::Contract, refused).await?;
        let generation = match endpoint {
            Endpoint::Bootstrap => Generation::A,
            Endpoint::BrowserSession => Generation::B,
        };
        self.remember(&instance.name, generation);
        let minted = self.access.mint(&mut client, label, LIMITS).map_err(not_minted);
        let credential = step(Step::Mint, minted).await?;
        let exchanged = pairing::exchange(&mut client, generation, &credential, LIMITS.request);
        let exchanged = step(Step::Exchange, exchanged).await?;
        Ok(Session {
            name: exchanged.cookie.name.clone(),
            pair: exchanged.cookie.pair(),
            set_cookie: exchanged.cookie.header().to_owned(),
            endpoint: exchanged.endpoint,
        })
    }

    fn known(&self, user: &str) -> Option<Generation> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner).get(user).copied()
    }

    fn remember(&self, user: &str, generation: Generation) {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner).insert(user.to_owned(), generation);
    }
}

impl Login for ThroughT3 {
    fn log_in<'a>(
        &'a self,
        target: &'a Target,
        label: &'static str,
    ) -> BoxFuture<'a, Result<Session, LoginFailed>> {
        async move { self.login(&instance_of(target), label).await }.boxed()
    }

    fn verify<'a>(&'a self, target: &'a Target, cookie: &'a str) -> BoxFuture<'a, Result<Verified, Failure>> {
        async move {
            let instance = instance_of(target);
            let trace = TraceContext::of(&Span::current());
            let mut client = Client::new(&instance, &trace);
            let (name, value) = cookie.split_once('=').unwrap_or((cookie, ""));
            let document = session::read(&mut client, Proof::Cookie { name, value }, VERIFY_LIMIT).await?;
            Ok(Verified { authenticated: document.authenticated, cookie: document.cookie_name().to_owned() })
        }
        .boxed()
    }
}

/// One step of a login, with a span of its own below the pairing's.
async fn step<T>(step: Step, work: impl Future<Output = Result<T, Failure>>) -> Result<T, LoginFailed> {
    let span = tracing::trace_span!("step", otel.name = step.as_str());
    work.instrument(span).await.map_err(|failure| LoginFailed { step, failure })
}

fn instance_of(target: &Target) -> Instance {
    Instance {
        name: target.user.to_string(),
        port: target.port.get(),
        base_dir: target.base_dir.clone(),
        uid: target.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
    }
}

/// A mint that may not be tried is, to a user, one that failed.
fn not_minted(why: NotDone) -> Failure {
    match why {
        NotDone::Failed(failure) => failure,
        NotDone::Skipped { skip, detail } => Failure::new(Reason::KeeperLost, format!("{detail} [{skip}]")),
    }
}
