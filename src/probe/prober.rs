//! The prober: one task per user, so that no two probes of a user overlap and one that hangs or panics is nobody
//! else's trouble. Outcomes leave through one channel.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ages::Ages;
use super::front::{self, Kept};
use super::handshake::{self, Leftovers};
use super::pulse::{self, Memory};
use super::task::Task;
use super::{Section, Steps, schedule, state};
use crate::inventory::Target;
use crate::outcome::{
    Facts, Failure, Finding, Kind, NotDone, Outcome, Reason, Run, Skip, Step, StepResult, Trigger,
};
use crate::t3::access::Access;
use crate::t3::door::{Door, Passage};
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;
use crate::t3::{self, Instance};

/// What a handshake takes before one has been measured.
const TYPICAL_HANDSHAKE: Duration = Duration::from_millis(100);

/// What the probes of all users share.
pub struct Shared {
    section: Section,
    t3: t3::Section,
    access: Access,
    ages: Ages,
    pulses: Semaphore,
    handshakes: Semaphore,
    /// The way in through the dispatch, where there is one.
    door: Option<Door>,
    visits: Semaphore,
    pace: Mutex<Pace>,
}

/// How long handshakes take and how many there are: what decides the interval they fit into.
#[derive(Clone, Copy)]
struct Pace {
    typical: Duration,
    users: usize,
}

impl Shared {
    pub fn new(section: Section, t3: t3::Section, access: Access) -> Self {
        Self {
            pulses: Semaphore::new(section.concurrent_pulses.max(1)),
            handshakes: Semaphore::new(section.concurrent_handshakes.max(1)),
            visits: Semaphore::new(section.concurrent_handshakes.max(1)),
            door: None,
            access,
            ages: Ages::default(),
            pace: Mutex::new(Pace { typical: TYPICAL_HANDSHAKE, users: 0 }),
            section,
            t3,
        }
    }

    /// The interval that handshakes really have: longer than configured when they do not fit.
    pub fn handshake_interval(&self) -> Duration {
        let pace = *self.pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Section { handshake_interval, concurrent_handshakes, .. } = self.section;
        schedule::stretched(handshake_interval, pace.users, pace.typical, concurrent_handshakes)
    }

    /// The same, with the front tier probed through this door.
    pub fn behind(self, door: Option<Door>) -> Self {
        Self { door, ..self }
    }

    pub fn section(&self) -> &Section {
        &self.section
    }

    /// When the first look at a user's database is due: by a helper at everybody's at once, else spread.
    pub fn state_phase(&self, user: &str) -> Duration {
        let whose = if matches!(self.access, Access::Helper(..)) { "everybody" } else { user };
        schedule::phase(whose, self.section.state_interval)
    }

    pub fn has_a_door(&self) -> bool {
        self.door.is_some()
    }

    fn measured(&self, handshake: Duration) {
        let mut pace = self.pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pace.typical = (pace.typical * 7 + handshake) / 8;
    }

    /// One pulse now.
    pub async fn pulse(&self, instance: &Instance, memory: &mut Memory, trigger: Trigger) -> Run {
        let _turn = self.pulses.acquire().await;
        let context =
            pulse::Context { section: &self.section, t3: &self.t3, access: &self.access, ages: &self.ages };
        // Boxed: it is large, and so would be whatever calls it.
        let work = Box::pin(pulse::run(instance, memory, &context, trigger));
        survive(Kind::Pulse, Step::Reach, trigger, instance, work).await
    }

    /// One look at the database now.
    pub async fn state(
        &self,
        instance: &Instance,
        memory: &mut state::Memory,
        version: Option<&Version>,
        trigger: Trigger,
    ) -> Run {
        let round = self.section.state_interval;
        let work = Box::pin(state::run(instance, &self.access, round, memory, version, trigger));
        survive(Kind::State, Step::Database, trigger, instance, work).await
    }

    /// A snapshot was put back.
    pub fn replaced(&self) {
        self.access.replaced();
    }

    /// One handshake now, unless it is known beforehand that none may or can be made.
    pub async fn handshake(
        &self,
        instance: &Instance,
        known: Known,
        leftovers: &mut Leftovers,
        trigger: Trigger,
    ) -> Run {
        self.log_in(instance, Ok(None), known, leftovers, trigger).await
    }

    /// The same as a first visit at the dispatch, by somebody whom the edge calls so.
    pub async fn first_visit(
        &self,
        instance: &Instance,
        identity: &str,
        known: Known,
        leftovers: &mut Leftovers,
        trigger: Trigger,
    ) -> Run {
        self.log_in(instance, self.passage(identity).map(Some), known, leftovers, trigger).await
    }

    async fn log_in(
        &self,
        instance: &Instance,
        passage: Result<Option<Passage<'_>>, NotDone>,
        known: Known,
        leftovers: &mut Leftovers,
        trigger: Trigger,
    ) -> Run {
        if let Some((step, why)) = known.against_a_login() {
            return without_trying(Kind::Handshake, handshake::PLAN, instance, trigger, step, why).await;
        }
        let passage = match passage {
            Ok(passage) => passage,
            Err(why) => {
                let step = Step::Front;
                return without_trying(Kind::Handshake, handshake::PLAN, instance, trigger, step, why).await;
            }
        };
        let _turn = self.handshakes.acquire().await;
        // Boxed: it is large, and all who wait for their turn would hold as much.
        let work =
            Box::pin(handshake::run(instance, &self.access, leftovers, &self.section, passage, trigger));
        let run = survive(Kind::Handshake, Step::Version, trigger, instance, work).await;
        self.measured(run.duration);
        run
    }

    /// One warm visit through the dispatch now; not where the instance itself is known to fail.
    pub async fn visit(
        &self,
        instance: &Instance,
        identity: &str,
        known: Known,
        kept: &mut Kept,
        trigger: Trigger,
    ) -> Run {
        let passage = match known.against_a_visit() {
            None => self.passage(identity),
            Some(why) => Err(why),
        };
        let passage = match passage {
            Ok(passage) => passage,
            Err(why) => {
                return without_trying(Kind::Front, front::PLAN, instance, trigger, Step::Front, why).await;
            }
        };
        let _turn = self.visits.acquire().await;
        let work = Box::pin(front::run(instance, passage, &self.access, kept, &self.section, trigger));
        survive(Kind::Front, Step::Front, trigger, instance, work).await
    }

    /// Ends what visits have kept.
    pub async fn leave(&self, instance: &Instance, kept: &mut Kept) {
        front::leave(instance, &self.access, kept, self.section.front_limits()).await;
    }

    fn passage(&self, identity: &str) -> Result<Passage<'_>, NotDone> {
        match &self.door {
            Some(door) => Ok(door.passage(identity)?),
            None => Err(NotDone::skipped(Skip::NotConfigured, "there is no [probe] front to go through")),
        }
    }
}

/// A run that was decided before anything was asked.
async fn without_trying(
    kind: Kind,
    plan: &'static [Step],
    instance: &Instance,
    trigger: Trigger,
    step: Step,
    why: NotDone,
) -> Run {
    let mut steps = Steps::begin(kind, trigger, instance, plan);
    steps.take(step, async { Err::<(), NotDone>(why) }).await;
    steps.end(&TraceContext::unsampled())
}

/// What is known of a user before a handshake.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What in the inventory forbids that a secret is sent to this user's port.
    pub withheld: Option<Finding>,
    /// How the last pulse ended.
    pub pulsed: Option<Outcome>,
}

impl Known {
    fn against_a_login(self) -> Option<(Step, NotDone)> {
        match (self.withheld, self.pulsed) {
            (Some(finding), _) => {
                let detail = format!("no login was tried: {finding} (t3-prober check names the place)");
                Some((Step::Mint, Failure::new(Reason::Withheld, detail).into()))
            }
            // No listener, or one that is only starting: a login cannot be tried, and that is not its failure.
            (None, Some(Outcome::Skipped(skip))) => {
                let detail = "the pulse could not tell, so no login was tried";
                Some((Step::Version, NotDone::skipped(skip, detail)))
            }
            _ => None,
        }
    }

    fn against_a_visit(self) -> Option<NotDone> {
        let failed = matches!(self.pulsed, Some(Outcome::Failed(_)));
        let detail = "the instance itself fails, as the pulse shows";
        let failed = failed.then(|| NotDone::skipped(Skip::EarlierStep, detail));
        self.against_a_login().map(|(_, why)| why).or(failed)
    }
}

/// Everybody's probes, on their schedule.
pub struct Prober {
    shared: Arc<Shared>,
    runs: mpsc::Sender<Run>,
    users: HashMap<String, User>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct User {
    target: Target,
    orders: mpsc::Sender<Order>,
    stop: CancellationToken,
}

/// What is asked of a user's task from outside.
pub enum Order {
    /// A pulse, a handshake and, where there is a way, a visit now; the runs are answered as well as recorded.
    Probe(oneshot::Sender<Vec<Run>>),
    /// A real user has just logged in: the same evidence as a handshake.
    LoggedIn,
    /// A snapshot was put back: what the database has lost by that is lost on purpose.
    Restored,
}

impl Prober {
    pub fn new(
        shared: Arc<Shared>,
        runs: mpsc::Sender<Run>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { shared, runs, users: HashMap::new(), tasks, stop }
    }

    /// Takes over a new inventory: who is new is started, who is gone or moved is stopped.
    pub fn serve(&mut self, targets: &[Target]) {
        self.users.retain(|_, user| {
            let stays = targets.contains(&user.target);
            if !stays {
                user.stop.cancel();
            }
            stays
        });
        for target in targets {
            if !self.users.contains_key(target.user.as_str()) {
                let user = self.start(target);
                self.users.insert(target.user.to_string(), user);
            }
        }
        self.shared.pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner).users = self.users.len();
    }

    /// Takes other settings into use: every user's probes begin anew with them.
    pub fn replace(&mut self, shared: Arc<Shared>) {
        self.shared = shared;
        let targets: Vec<_> = self
            .users
            .drain()
            .map(|(_, user)| {
                user.stop.cancel();
                user.target
            })
            .collect();
        self.serve(&targets);
    }

    /// Where orders for a user are sent; `None` for a user who is not served.
    pub fn orders(&self, user: &str) -> Option<mpsc::Sender<Order>> {
        self.users.get(user).map(|user| user.orders.clone())
    }

    fn start(&self, target: &Target) -> User {
        let (orders, incoming) = mpsc::channel(4);
        let stop = self.stop.child_token();
        let task = Task::new(target, self.shared.clone(), self.runs.clone(), self.tasks.clone());
        self.tasks.spawn(task.run(incoming, stop.clone()));
        User { target: target.clone(), orders, stop }
    }
}

/// Turns a panic into an outcome: a defect of one probe ends neither the task nor the program.
async fn survive(
    kind: Kind,
    step: Step,
    trigger: Trigger,
    instance: &Instance,
    work: impl Future<Output = Run>,
) -> Run {
    let started = SystemTime::now();
    let clock = Instant::now();
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(run) => run,
        Err(panic) => {
            let message = panic
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| panic.downcast_ref::<String>().cloned());
            let detail =
                format!("the probe panicked: {}", message.unwrap_or_else(|| "no message".to_owned()));
            let duration = clock.elapsed();
            let failed = StepResult {
                step,
                outcome: Outcome::Failed(Reason::Panicked),
                duration,
                detail: Some(detail),
            };
            Run {
                user: instance.name.clone(),
                kind,
                trigger,
                started,
                duration,
                steps: vec![failed],
                facts: Facts::default(),
                trace_id: TraceContext::unsampled().trace_id(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
