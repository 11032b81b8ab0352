//! Logging a user in on their way, bounded in every direction: one login at a time per user however many ask, its
//! session shared with all of them; back-off after a failure; never more than six mints in ten minutes; and a browser
//! that does not keep the session is told so instead of being logged in again.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::Instrument;
use tracing::field::{Empty, display};

use crate::inventory::Target;
use crate::outcome::{Endpoint, Failure, Reason, Step};

/// A session is handed to whoever of its user comes without one for this long.
const SHARED_FOR: Duration = Duration::from_secs(60);

/// What sessions made here are called in t3's own list of clients.
const USERS_LABEL: &str = "sign-in";

/// What the prober calls its sessions, and finds those by that it has to end.
const PROBERS_LABEL: &str = "t3-prober";

/// Who asks so soon after it was made need not have seen an answer yet: a burst of first requests, not a loop.
const BURST: Duration = Duration::from_millis(500);

/// After that, the same browser may come back for it this often: a reload, a second tab.
const HANDED_AGAIN: u8 = 3;

/// More mints than this in the window are a loop, not a user. Each leaves a row in t3's database for 30 days.
const MINTS: usize = 6;
const MINT_WINDOW: Duration = Duration::from_secs(600);

/// The prober keeps its own pace; this ends only a defect.
const PROBERS_MINTS: usize = 60;

const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

/// A session that a login ended with. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// The cookie's name, as the instance set it.
    pub name: String,
    /// `name=value`, for the instance.
    pub pair: String,
    /// The whole `Set-Cookie` value, for the browser.
    pub set_cookie: String,
    pub endpoint: Endpoint,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=***", self.name)
    }
}

/// A login that did not end with a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {failure}")]
pub struct LoginFailed {
    pub step: Step,
    pub failure: Failure,
}

/// What an instance says of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub authenticated: bool,
    /// The name of the session cookie, as the instance announces it.
    pub cookie: String,
}

/// What t3 does for us; a trait so that the bounds can be tried without one.
pub trait Login: Send + Sync {
    /// Mints and exchanges; the session carries the label.
    fn log_in<'a>(
        &'a self,
        target: &'a Target,
        label: &'static str,
    ) -> BoxFuture<'a, Result<Session, LoginFailed>>;

    /// Asks the instance about a cookie header.
    fn verify<'a>(&'a self, target: &'a Target, cookie: &'a str) -> BoxFuture<'a, Result<Verified, Failure>>;
}

/// Why there is no session for this request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSession {
    /// The browser was given the session and does not show it.
    DropsCookies,
    /// Come back later; `news` is absent where the failure was reported before.
    Later { after: Duration, reason: Reason, news: Option<LoginFailed> },
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A request that goes on to the instance with the session.
    InPassing,
    /// A browser that is sent back to where it asked to go. `marked`: it shows that it was here a moment ago.
    Browser { fingerprint: u64, marked: bool },
}

/// One user's logins, or the prober's as that user.
#[derive(Debug)]
pub struct Pairing {
    label: &'static str,
    shared_for: Duration,
    mints: usize,
    flight: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fresh: Option<Fresh>,
    mints: VecDeque<Instant>,
    failures: u32,
    not_before: Option<(Instant, Reason)>,
}

#[derive(Debug)]
struct Fresh {
    session: Arc<Session>,
    at: Instant,
    /// By fingerprint: how often it was handed out again.
    handed: HashMap<u64, u8>,
}

impl Pairing {
    pub fn for_users() -> Self {
        Self::new(USERS_LABEL, SHARED_FOR, MINTS)
    }

    /// Each of its visits is a whole login of its own.
    pub fn for_the_prober() -> Self {
        Self::new(PROBERS_LABEL, Duration::ZERO, PROBERS_MINTS)
    }

    fn new(label: &'static str, shared_for: Duration, mints: usize) -> Self {
        let (flight, state) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { label, shared_for, mints, flight, state }
    }

    /// A session for this user: the one made a moment ago, or a new one. The second value is how long its making took,
    /// for the caller that made it.
    pub async fn session(
        &self,
        login: &dyn Login,
        target: &Target,
        caller: Caller,
    ) -> Result<(Arc<Session>, Option<Duration>), NoSession> {
        let arrived = Instant::now();
        if matches!(caller, Caller::Browser { marked: true, .. }) {
            return Err(NoSession::DropsCookies);
        }
        let _flight = self.flight.lock().await;
        if let Some(decided) = self.before(caller, arrived) {
            return decided.map(|session| (session, None));
        }
        let start = Instant::now();
        let span = tracing::trace_span!(
            "pairing",
            otel.status_code = Empty,
            endpoint = Empty,
            step = Empty,
            reason = Empty
        );
        let result = login.log_in(target, self.label).instrument(span.clone()).await;
        let mut state = self.lock();
        match result {
            Ok(session) => {
                span.record("endpoint", display(session.endpoint));
                let session = Arc::new(session);
                state.mints.push_back(start);
                (state.failures, state.not_before) = (0, None);
                state.fresh =
                    Some(Fresh { session: Arc::clone(&session), at: Instant::now(), handed: HashMap::new() });
                Ok((session, Some(arrived.elapsed())))
            }
            Err(failed) => {
                span.record("otel.status_code", "ERROR");
                span.record("step", display(failed.step)).record("reason", display(failed.failure.reason));
                // Before the exchange nothing was minted, and nothing is left behind.
                if matches!(failed.step, Step::Exchange | Step::Session) {
                    state.mints.push_back(start);
                }
                let after = FIRST_BACK_OFF.saturating_mul(1 << state.failures.min(8)).min(LONGEST_BACK_OFF);
                state.failures += 1;
                state.not_before = Some((Instant::now() + after, failed.failure.reason));
                Err(NoSession::Later { after, reason: failed.failure.reason, news: Some(failed) })
            }
        }
    }

    /// The instance does not know this cookie: whoever is given it again would come back with it for ever.
    pub fn forget(&self, cookie: &str) {
        let mut state = self.lock();
        if state.fresh.as_ref().is_some_and(|fresh| fresh.session.pair == cookie) {
            state.fresh = None;
        }
    }

    /// What is decided without a login; `None` means that one is due.
    fn before(&self, caller: Caller, arrived: Instant) -> Option<Result<Arc<Session>, NoSession>> {
        let now = Instant::now();
        let mut state = self.lock();
        if let Some(fresh) = state.fresh.as_mut().filter(|fresh| now - fresh.at < self.shared_for) {
            if let Caller::Browser { fingerprint, .. } = caller
                && arrived > fresh.at + BURST
            {
                // A bound on fingerprints: past it, everybody counts as one.
                let key = if fresh.handed.len() < 256 { fingerprint } else { 0 };
                let handed = fresh.handed.entry(key).or_default();
                *handed = handed.saturating_add(1);
                if *handed > HANDED_AGAIN {
                    return Some(Err(NoSession::DropsCookies));
                }
            }
            return Some(Ok(Arc::clone(&fresh.session)));
        }
        if let Some((until, reason)) = state.not_before.filter(|(until, _)| *until > now) {
            return Some(Err(NoSession::Later { after: until - now, reason, news: None }));
        }
        while state.mints.front().is_some_and(|mint| now - *mint >= MINT_WINDOW) {
            state.mints.pop_front();
        }
        let oldest = *state.mints.front()?;
        (state.mints.len() >= self.mints).then(|| {
            let after = MINT_WINDOW.saturating_sub(now - oldest);
            Err(NoSession::Later { after, reason: Reason::Unauthorized, news: None })
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;
    use crate::inventory::Port;

    /// Counts its logins; each takes a second and ends as told.
    struct Counting {
        logins: AtomicU32,
        fails: Option<(Step, Reason)>,
    }

    impl Login for Counting {
        fn log_in<'a>(
            &'a self,
            _: &'a Target,
            _: &'static str,
        ) -> BoxFuture<'a, Result<Session, LoginFailed>> {
            async move {
                let nth = self.logins.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                match self.fails {
                    Some((step, reason)) => {
                        Err(LoginFailed { step, failure: Failure::new(reason, "as told") })
                    }
                    None => Ok(Session {
                        name: "t3_session".to_owned(),
                        pair: format!("t3_session={nth}"),
                        set_cookie: format!("t3_session={nth}; Path=/"),
                        endpoint: Endpoint::Bootstrap,
                    }),
                }
            }
            .boxed()
        }

        fn verify<'a>(&'a self, _: &'a Target, _: &'a str) -> BoxFuture<'a, Result<Verified, Failure>> {
            async { Ok(Verified { authenticated: true, cookie: "t3_session".to_owned() }) }.boxed()
        }
    }

    fn counting(fails: Option<(Step, Reason)>) -> Counting {
        Counting { logins: AtomicU32::new(0), fails }
    }

    fn ann() -> Target {
        Target {
            user: "ann".parse().expect("a user name"),
            identity: "ann".to_owned(),
            port: Port::new(3801).expect("a port"),
            base_dir: "/home/ann/.t3".into(),
            uid: None,
            withheld: None,
        }
    }

    fn browser(fingerprint: u64) -> Caller {
        Caller::Browser { fingerprint, marked: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_first_requests_are_one_login() {
        let (pairing, login, ann) = (Pairing::for_users(), counting(None), ann());
        let all = join_all((0..100).map(|n| {
            let caller = if n % 2 == 0 { browser(1) } else { Caller::InPassing };
            pairing.session(&login, &ann, caller)
        }));
        let sessions = all.await;
        assert!(
            sessions
                .iter()
                .all(|session| session.as_ref().is_ok_and(|(session, _)| session.pair == "t3_session=1"))
        );
        assert_eq!(sessions.iter().filter(|session| matches!(session, Ok((_, Some(_))))).count(), 1);
        assert_eq!(login.logins.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_drops_every_cookie_costs_one_mint_and_is_told() {
        let (pairing, login, ann) = (Pairing::for_users(), counting(None), ann());
        let mut answers = Vec::new();
        for _ in 0..20 {
            answers.push(pairing.session(&login, &ann, browser(1)).await.is_ok());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let in_burst = 5;
        assert_eq!(answers.iter().filter(|ok| **ok).count(), 1 + in_burst + usize::from(HANDED_AGAIN));
        assert_eq!(answers.last(), Some(&false));
        assert!(
            pairing.session(&login, &ann, browser(2)).await.is_ok(),
            "another browser is not told off for it"
        );
        assert_eq!(login.logins.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_marked_browser_is_told_at_once() {
        let (pairing, login, ann) = (Pairing::for_users(), counting(None), ann());
        let caller = Caller::Browser { fingerprint: 1, marked: true };
        assert_eq!(pairing.session(&login, &ann, caller).await, Err(NoSession::DropsCookies));
        assert_eq!(login.logins.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_the_next_login_waits_longer_each_time() {
        let (pairing, login, ann) =
            (Pairing::for_users(), counting(Some((Step::Contract, Reason::AuthStore))), ann());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(300) {
            assert!(pairing.session(&login, &ann, Caller::InPassing).await.is_err());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let logins = login.logins.load(Ordering::Relaxed);
        assert!((10..=14).contains(&logins), "{logins} logins in five minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn six_mints_in_ten_minutes_are_the_most_whatever_happens() {
        for fails in [None, Some((Step::Exchange, Reason::Unauthorized))] {
            let (pairing, login, ann) = (Pairing::for_users(), counting(fails), ann());
            let start = Instant::now();
            while start.elapsed() < MINT_WINDOW - Duration::from_secs(5) {
                if let Ok((session, _)) = pairing.session(&login, &ann, Caller::InPassing).await {
                    pairing.forget(&session.pair);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            assert_eq!(login.logins.load(Ordering::Relaxed), 6);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_the_instance_does_not_know_is_not_handed_out_again() {
        let (pairing, login, ann) = (Pairing::for_users(), counting(None), ann());
        let (first, _) = pairing.session(&login, &ann, Caller::InPassing).await.expect("a session");
        pairing.forget("t3_session=another");
        assert_eq!(pairing.session(&login, &ann, Caller::InPassing).await.expect("a session").0, first);
        pairing.forget(&first.pair);
        assert_ne!(pairing.session(&login, &ann, Caller::InPassing).await.expect("a session").0, first);
    }

    #[test]
    fn a_session_never_shows_in_debug_output() {
        let session = Session {
            name: "t3_session".to_owned(),
            pair: "t3_session=hush".to_owned(),
            set_cookie: "t3_session=hush; Path=/".to_owned(),
            endpoint: Endpoint::Bootstrap,
        };
        assert_eq!(format!("{session:?}"), "t3_session=***");
    }
}
