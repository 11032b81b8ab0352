//! `t3_dispatch_…`: what users met at the front door.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::NoLabels;
use super::labels::labels;
use super::series::{ByLabels, ByUser, Seconds};
use crate::outcome::{Asker, CloseCause, Endpoint, Initiator, Reason, Refusal, Step};

labels! {
    pub struct OfCodeAndAsker {
        /// the class of the status
        pub code: &'static str,
        /// whose request it was
        pub client: Asker,
    }
}

labels! {
    pub struct OfEndpoint {
        /// the exchange endpoint that answered
        pub endpoint: Endpoint,
    }
}

labels! {
    pub struct OfLoginFailure {
        /// the step of the login that failed
        pub step: Step,
        /// why it failed
        pub reason: Reason,
    }
}

labels! {
    pub struct OfRefusal {
        /// why the request was refused
        pub reason: Refusal,
    }
}

labels! {
    pub struct OfClose {
        /// who ended it
        pub initiator: Initiator,
        /// how it ended
        pub cause: CloseCause,
    }
}

metrics! {
    pub struct Dispatch {
        /// Requests answered, by class of status and by whose request it was
        requests: ByUser<OfCodeAndAsker, Counter> = "t3_dispatch_requests_total",
        /// Time from a request's head to the last byte of its answer; upgrades are not in it
        request_duration: Seconds = "t3_dispatch_request_duration_seconds",
        /// Users logged in on their way, by the exchange endpoint that answered
        pairings: ByUser<OfEndpoint, Counter> = "t3_dispatch_pairings_total",
        /// Logins that failed, by step and reason; a series begins with the first failure of its kind
        pairing_failures: ByUser<OfLoginFailure, Counter> = "t3_dispatch_pairing_failures_total",
        /// Time a login took, from the first request without a session to the cookie
        pairing_duration: Seconds = "t3_dispatch_pairing_duration_seconds",
        /// Requests refused before any instance saw them
        refused: ByLabels<OfRefusal, Counter> = "t3_dispatch_refused_total",
        /// WebSockets that are open now
        websockets: ByUser<NoLabels, Gauge> = "t3_dispatch_websockets",
        /// WebSockets that ended, by who ended them and how
        websocket_closes: ByUser<OfClose, Counter> = "t3_dispatch_websocket_closes_total",
        /// How long WebSockets lived
        websocket_duration: Seconds = "t3_dispatch_websocket_duration_seconds",
    }
}

/// One user's counters, resolved once: counting a request touches no map and no label.
#[derive(Clone, Debug)]
pub struct DispatchUser {
    user: Arc<str>,
    metrics: Dispatch,
    /// By asker, then by class of status, 1xx to 5xx.
    requests: [[Counter; 5]; 2],
    websockets: Gauge,
}

const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Dispatch {
    /// Every way to be refused begins at zero, in a process that has a dispatch.
    pub fn start(&self) {
        for &reason in Refusal::ALL {
            self.refused.with(OfRefusal { reason }, |_| ());
        }
    }

    /// The handles of a user who is served, all at zero from now on; counts for anybody else go nowhere.
    pub fn of_user(&self, user: &str) -> DispatchUser {
        for &endpoint in Endpoint::ALL {
            self.pairings.with(user, OfEndpoint { endpoint }, |_| ());
        }
        // A burst of these within one scrape must be seen as one, also when it is the first.
        for &cause in CloseCause::ALL.iter().filter(|cause| cause.is_a_drop()) {
            for initiator in [Initiator::Client, Initiator::Instance] {
                self.websocket_closes.with(user, OfClose { initiator, cause }, |_| ());
            }
        }
        let counter = |asker: Asker, code: &'static str| {
            let mut counter = Counter::default();
            self.requests.with(user, OfCodeAndAsker { code, client: asker }, |found| counter = found.clone());
            counter
        };
        let mut websockets = Gauge::default();
        self.websockets.with(user, NoLabels, |found| websockets = found.clone());
        DispatchUser {
            user: user.into(),
            metrics: self.clone(),
            requests: [Asker::User, Asker::Probe].map(|asker| CODES.map(|code| counter(asker, code))),
            websockets,
        }
    }

    pub fn refused(&self, reason: Refusal) {
        self.refused.with(OfRefusal { reason }, |refused| {
            refused.inc();
        });
    }
}

impl DispatchUser {
    /// An answer ended; `took` is absent for an upgrade, `trace_id` where nobody records the request.
    pub fn answered(&self, status: u16, asker: Asker, took: Option<Duration>, trace_id: Option<Arc<str>>) {
        let of_asker = match asker {
            Asker::User => &self.requests[0],
            Asker::Probe => &self.requests[1],
        };
        if let Some(counter) = of_asker.get(usize::from(status / 100).saturating_sub(1)) {
            counter.inc();
        }
        if let Some(took) = took {
            self.metrics.request_duration.observe_now(took, trace_id);
        }
    }

    pub fn paired(&self, endpoint: Endpoint, took: Duration, trace_id: Option<Arc<str>>) {
        self.metrics.pairings.with(&self.user, OfEndpoint { endpoint }, |pairings| {
            pairings.inc();
        });
        self.metrics.pairing_duration.observe_now(took, trace_id);
    }

    pub fn pairing_failed(&self, step: Step, reason: Reason) {
        self.metrics.pairing_failures.with(&self.user, OfLoginFailure { step, reason }, |failures| {
            failures.inc();
        });
    }

    pub fn websocket_opened(&self) {
        self.websockets.inc();
    }

    pub fn websocket_closed(
        &self,
        initiator: Initiator,
        cause: CloseCause,
        lived: Duration,
        trace_id: Option<Arc<str>>,
    ) {
        self.websockets.dec();
        self.metrics.websocket_closes.with(&self.user, OfClose { initiator, cause }, |closes| {
            closes.inc();
        });
        self.metrics.websocket_duration.observe_now(lived, trace_id);
    }
}
