//! The prober: one task per user, so that no two probes of a user overlap and one that hangs or panics is nobody
//! else's trouble. Outcomes leave through one channel.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ages::Ages;
use super::handshake::{self, Leftovers};
use super::pulse::{self, Memory};
use super::{Section, Steps, instance_of, schedule, state};
use crate::inventory::Target;
use crate::outcome::{
    Ended, Facts, Failure, Finding, Kind, NotDone, Outcome, Reason, Run, Step, StepResult, Trigger,
};
use crate::t3::access::Access;
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;
use crate::t3::{self, Instance};

/// After a failed handshake the next one comes this soon, so that a repair is seen before the interval is over.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(60);
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

    fn measured(&self, handshake: Duration) {
        let mut pace = self.pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pace.typical = (pace.typical * 7 + handshake) / 8;
    }

    /// One pulse now.
    pub async fn pulse(&self, instance: &Instance, memory: &mut Memory, trigger: Trigger) -> Run {
        let _turn = self.pulses.acquire().await;
        let context =
            pulse::Context { section: &self.section, t3: &self.t3, access: &self.access, ages: &self.ages };
        // Boxed: it is large, and between two pulses every user's task would hold as much.
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
        let work = state::run(instance, &self.access, memory, version, trigger);
        survive(Kind::State, Step::Database, trigger, instance, work).await
    }

    /// One handshake now, unless it is known beforehand that none may or can be made.
    pub async fn handshake(
        &self,
        instance: &Instance,
        known: Known,
        leftovers: &mut Leftovers,
        trigger: Trigger,
    ) -> Run {
        if let Some((step, why)) = known.against_a_login() {
            let mut steps = Steps::begin(Kind::Handshake, trigger, instance, handshake::PLAN);
            steps.take(step, async { Err::<(), NotDone>(why) }).await;
            return steps.end(&TraceContext::unsampled());
        }
        let _turn = self.handshakes.acquire().await;
        // Boxed: it is large, and all who wait for their turn would hold as much.
        let work = Box::pin(handshake::run(instance, &self.access, leftovers, &self.section, trigger));
        let run = survive(Kind::Handshake, Step::Version, trigger, instance, work).await;
        self.measured(run.duration);
        run
    }
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
    /// A pulse and a handshake now; the runs are answered as well as recorded.
    Probe(oneshot::Sender<Vec<Run>>),
    /// A real user has just logged in: the same evidence as a handshake.
    LoggedIn,
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
        let task = Task {
            shared: self.shared.clone(),
            instance: instance_of(target),
            withheld: target.withheld,
            runs: self.runs.clone(),
            memory: Memory::default(),
            state: state::Memory::default(),
            leftovers: Leftovers::default(),
            pulsed: None,
            tasks: self.tasks.clone(),
        };
        self.tasks.spawn(task.run(incoming, stop.clone()));
        User { target: target.clone(), orders, stop }
    }
}

/// One user's probes: pulses go on while a handshake is under way, which may wait for its turn or for an instance that
/// does not answer.
struct Task {
    shared: Arc<Shared>,
    instance: Instance,
    withheld: Option<Finding>,
    runs: mpsc::Sender<Run>,
    memory: Memory,
    state: state::Memory,
    /// Away while a handshake is under way.
    leftovers: Leftovers,
    pulsed: Option<Outcome>,
    tasks: TaskTracker,
}

/// A handshake under way; it gives back what it was lent.
type UnderWay = JoinHandle<(Run, Leftovers)>;

impl Task {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let Section { pulse_interval, state_interval, .. } = self.shared.section;
        let start = Instant::now();
        let mut pulse_due = start + schedule::phase(&self.instance.name, pulse_interval);
        let mut handshake_due =
            start + schedule::phase(&self.instance.name, self.shared.handshake_interval());
        let mut state_due = start + schedule::phase(&self.instance.name, state_interval);
        let mut wanted = Some(Trigger::Start);
        let mut login: Option<UnderWay> = None;
        let mut asked = Vec::new();
        loop {
            // The first handshake follows the first pulse.
            if login.is_none()
                && self.pulsed.is_some()
                && let Some(trigger) = wanted.take()
            {
                login = Some(self.login(trigger));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                (run, leftovers) = ended(&mut login) => {
                    self.leftovers = leftovers;
                    self.send(&run).await;
                    handshake_due = self.after(&run, handshake_due);
                    if run.trigger == Trigger::Demand {
                        for (pulse, answer) in asked.drain(..) {
                            // Whoever asked may have gone; the runs are recorded all the same.
                            let _ = oneshot::Sender::send(answer, vec![pulse, run.clone()]);
                        }
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::Probe(answer)) => {
                        asked.push((self.pulse(Trigger::Demand).await.0, answer));
                        wanted = Some(Trigger::Demand);
                    }
                    Some(Order::LoggedIn) => handshake_due = Instant::now() + self.shared.handshake_interval(),
                    None => break,
                },
                () = sleep_until(pulse_due) => {
                    let trigger = wanted.unwrap_or(Trigger::Schedule);
                    let (_, changed) = self.pulse(trigger).await;
                    wanted = wanted.or(changed);
                    pulse_due = schedule::next(pulse_due, pulse_interval, Instant::now());
                }
                () = sleep_until(state_due) => {
                    let version = self.memory.version.as_ref();
                    let run = self.shared.state(&self.instance, &mut self.state, version, Trigger::Schedule).await;
                    self.send(&run).await;
                    state_due = schedule::next(state_due, state_interval, Instant::now());
                }
                () = sleep_until(handshake_due), if wanted.is_none() && login.is_none() => {
                    wanted = Some(Trigger::Schedule);
                }
            }
        }
        // A handshake that is cut short leaves its session behind.
        if login.is_some() {
            let (run, _) = ended(&mut login).await;
            self.send(&run).await;
        }
    }

    /// Pulses; answers what in it calls for a handshake at once.
    async fn pulse(&mut self, trigger: Trigger) -> (Run, Option<Trigger>) {
        let version = self.memory.version.clone();
        let run = self.shared.pulse(&self.instance, &mut self.memory, trigger).await;
        let outcome = run.outcome();
        let calls = match (self.pulsed.map(Outcome::ended), outcome.ended()) {
            (Some(Ended::Failed), Ended::Failed) => None,
            (_, Ended::Failed) => Some(Trigger::PulseFailed),
            (Some(Ended::Failed | Ended::Skipped), Ended::Ok) => Some(Trigger::Change),
            _ if version.is_some() && version != self.memory.version => Some(Trigger::Change),
            _ => None,
        };
        self.pulsed = Some(outcome);
        self.send(&run).await;
        (run, calls)
    }

    /// Begins a handshake.
    fn login(&mut self, trigger: Trigger) -> UnderWay {
        let (shared, instance) = (self.shared.clone(), self.instance.clone());
        let known = Known { withheld: self.withheld, pulsed: self.pulsed };
        let mut leftovers = std::mem::take(&mut self.leftovers);
        self.tasks.spawn(async move {
            let run = shared.handshake(&instance, known, &mut leftovers, trigger).await;
            (run, leftovers)
        })
    }

    /// When the next handshake is due after one that has just ended.
    fn after(&self, run: &Run, due: Instant) -> Instant {
        let interval = self.shared.handshake_interval();
        let now = Instant::now();
        match run.outcome().ended() {
            Ended::Failed => now + interval.min(RETRY_AFTER_FAILURE),
            _ if run.trigger == Trigger::Schedule => schedule::next(due, interval, now),
            _ => due.max(now),
        }
    }

    async fn send(&self, run: &Run) {
        // Nobody listens any more when the program stops.
        let _ = self.runs.send(run.clone()).await;
    }
}

/// What the handshake under way came to; without one, never.
async fn ended(login: &mut Option<UnderWay>) -> (Run, Leftovers) {
    if let Some(work) = login {
        let ended = work.await;
        *login = None;
        if let Ok(ended) = ended {
            return ended;
        }
    }
    std::future::pending().await
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
mod tests {
    use super::*;

    #[tokio::test]
    async fn pulses_go_on_while_a_login_waits_for_its_turn() {
        let section = Section {
            pulse_interval: Duration::from_millis(20),
            pulse_timeout: Duration::from_millis(5),
            concurrent_handshakes: 1,
            ..Section::default()
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let access = Access::own(dir.path().join("keepers"), &t3::Section::default());
        let shared = Arc::new(Shared::new(section, t3::Section::default(), access));
        let (runs, mut recorded) = mpsc::channel(1);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let turn = shared.handshakes.acquire().await.expect("a turn");
        let mut prober = Prober::new(shared.clone(), runs, tasks, stop.clone());
        prober.serve(&[Target {
            user: "ann".parse().expect("a user name"),
            identity: "ann".to_owned(),
            port: crate::inventory::Port::new(1).expect("a port"),
            base_dir: dir.path().to_owned(),
            uid: None,
            withheld: None,
        }]);

        for _ in 0..5 {
            assert_eq!(recorded.recv().await.expect("a run").kind, Kind::Pulse);
        }
        drop(turn);
        while recorded.recv().await.expect("a run").kind != Kind::Handshake {}
        stop.cancel();
    }

    #[tokio::test]
    async fn a_panic_in_a_probe_is_an_outcome() {
        let instance = Instance { name: "ann".to_owned(), port: 1, base_dir: "/nowhere".into(), uid: 0 };
        let run =
            survive(Kind::Pulse, Step::Reach, Trigger::Schedule, &instance, async { panic!("broken") }).await;
        assert_eq!(run.outcome(), Outcome::Failed(Reason::Panicked));
        assert_eq!(
            run.decided_by().and_then(|step| step.detail.as_deref()),
            Some("the probe panicked: broken")
        );
    }

    #[tokio::test]
    async fn a_withheld_user_fails_to_log_in_and_nothing_is_sent_to_the_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("non-blocking");
        let port = listener.local_addr().expect("an address").port();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let access = Access::own(dir.path().join("keepers"), &t3::Section::default());
        let shared = Shared::new(Section::default(), t3::Section::default(), access);
        let instance = Instance { name: "ann".to_owned(), port, base_dir: dir.path().to_owned(), uid: 0 };
        let known = Known { withheld: Some(Finding::SharedPort), pulsed: Some(Outcome::Ok) };
        let run = shared.handshake(&instance, known, &mut Leftovers::default(), Trigger::Schedule).await;
        assert_eq!(run.outcome(), Outcome::Failed(Reason::Withheld));
        assert_eq!(run.decided_by().map(|step| step.step), Some(Step::Mint));
        assert!(listener.accept().is_err(), "something was sent");
    }
}
