//! The prober: one task per user, so that no two probes of a user overlap and one that hangs or panics is nobody
//! else's trouble. Outcomes leave through one channel.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, PollSemaphore};
use tokio_util::task::TaskTracker;

use super::handshake::{self, Leftovers};
use super::pulse::{self, Memory};
use super::{Section, Steps, instance_of, schedule};
use crate::inventory::Target;
use crate::outcome::{
    Ended, Facts, Failure, Finding, Kind, NotDone, Outcome, Reason, Run, Step, StepResult, Trigger,
};
use crate::t3::keeper::Keepers;
use crate::t3::trace::TraceContext;
use crate::t3::{self, Instance};

/// After a failed handshake the next one comes this soon, so that a repair is seen before the interval is over.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// What a handshake takes before one has been measured.
const TYPICAL_HANDSHAKE: Duration = Duration::from_millis(100);

/// What the probes of all users share.
pub struct Shared {
    section: Section,
    t3: t3::Section,
    keepers: Keepers,
    pulses: Semaphore,
    handshakes: Arc<Semaphore>,
    pace: Mutex<Pace>,
}

/// How long handshakes take and how many there are: what decides the interval they fit into.
#[derive(Clone, Copy)]
struct Pace {
    typical: Duration,
    users: usize,
}

impl Shared {
    pub fn new(section: Section, t3: t3::Section, state_dir: &Path) -> Self {
        Self {
            pulses: Semaphore::new(section.concurrent_pulses.max(1)),
            handshakes: Arc::new(Semaphore::new(section.concurrent_handshakes.max(1))),
            keepers: Keepers::new(state_dir.join("keepers"), &t3),
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
        let context = pulse::Context { section: &self.section, t3: &self.t3 };
        survive(Kind::Pulse, Step::Reach, trigger, instance, pulse::run(instance, memory, &context, trigger))
            .await
    }

    /// Waits until few enough others log in.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.handshakes.clone().acquire_owned().await.ok()
    }

    /// The same as a place in the queue, which is kept while something else is done.
    fn queue(&self) -> PollSemaphore {
        PollSemaphore::new(self.handshakes.clone())
    }

    /// One handshake now, whoever else is logging in.
    pub async fn handshake(&self, instance: &Instance, leftovers: &mut Leftovers, trigger: Trigger) -> Run {
        let work = handshake::run(instance, &self.keepers, leftovers, &self.section, trigger);
        let run = survive(Kind::Handshake, Step::Version, trigger, instance, work).await;
        self.measured(run.duration);
        run
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
            leftovers: Leftovers::default(),
            pulsed: None,
        };
        self.tasks.spawn(task.run(incoming, stop.clone()));
        User { target: target.clone(), orders, stop }
    }
}

/// One user's probes.
struct Task {
    shared: Arc<Shared>,
    instance: Instance,
    withheld: Option<Finding>,
    runs: mpsc::Sender<Run>,
    memory: Memory,
    leftovers: Leftovers,
    pulsed: Option<Outcome>,
}

impl Task {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let Section { pulse_interval, .. } = self.shared.section;
        let start = Instant::now();
        let mut pulse_due = start + schedule::phase(&self.instance.name, pulse_interval);
        let mut handshake_due =
            start + schedule::phase(&self.instance.name, self.shared.handshake_interval());
        // The first handshake follows the first pulse.
        let mut wanted = Some(Trigger::Start);
        let mut queue = self.shared.queue();
        loop {
            let login = wanted.filter(|trigger| *trigger != Trigger::Start || self.pulsed.is_some());
            tokio::select! {
                // Only between probes: a handshake that is cut short leaves its session behind.
                () = stop.cancelled() => return,
                order = orders.recv() => match order {
                    // Somebody waits for the answer, so it waits for nobody.
                    Some(Order::Probe(answer)) => {
                        let runs = vec![self.pulse(Trigger::Demand).await.0, self.handshake(Trigger::Demand).await];
                        // Whoever asked may have gone; the runs are recorded all the same.
                        let _ = answer.send(runs);
                    }
                    Some(Order::LoggedIn) => handshake_due = Instant::now() + self.shared.handshake_interval(),
                    None => return,
                },
                () = sleep_until(pulse_due) => {
                    let trigger = if self.pulsed.is_none() { Trigger::Start } else { Trigger::Schedule };
                    let (_, changed) = self.pulse(trigger).await;
                    wanted = wanted.or(changed);
                    pulse_due = schedule::next(pulse_due, pulse_interval, Instant::now());
                }
                () = sleep_until(handshake_due), if wanted.is_none() => wanted = Some(Trigger::Schedule),
                // Pulses go on while a login waits for its turn: where everybody's is due at once, as at a start, the
                // last one's comes minutes later.
                Some(_turn) = poll_fn(|context| queue.poll_acquire(context)), if login.is_some() => {
                    let trigger = wanted.take().unwrap_or(Trigger::Schedule);
                    let outcome = self.handshake(trigger).await.outcome();
                    let interval = self.shared.handshake_interval();
                    let now = Instant::now();
                    handshake_due = match outcome.ended() {
                        Ended::Failed => now + interval.min(RETRY_AFTER_FAILURE),
                        _ if trigger == Trigger::Schedule => schedule::next(handshake_due, interval, now),
                        _ => handshake_due.max(now),
                    };
                }
            }
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

    async fn handshake(&mut self, trigger: Trigger) -> Run {
        let not_tried = match (self.withheld, self.pulsed) {
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
        };
        let run = match not_tried {
            Some((step, why)) => {
                let mut steps = Steps::begin(Kind::Handshake, trigger, &self.instance, handshake::PLAN);
                steps.take(step, async { Err::<(), NotDone>(why) }).await;
                steps.end(&TraceContext::unsampled())
            }
            None => self.shared.handshake(&self.instance, &mut self.leftovers, trigger).await,
        };
        self.send(&run).await;
        run
    }

    async fn send(&self, run: &Run) {
        // Nobody listens any more when the program stops.
        let _ = self.runs.send(run.clone()).await;
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
mod tests {
    use super::*;

    /// Ann's, not yet begun.
    fn task(section: Section, port: u16, runs: mpsc::Sender<Run>) -> Task {
        let nowhere = Path::new("/nonexistent");
        Task {
            shared: Arc::new(Shared::new(section, t3::Section::default(), nowhere)),
            instance: Instance { name: "ann".to_owned(), port, base_dir: nowhere.to_owned(), uid: 0 },
            withheld: None,
            runs,
            memory: Memory::default(),
            leftovers: Leftovers::default(),
            pulsed: None,
        }
    }

    #[tokio::test]
    async fn pulses_go_on_while_a_login_waits_for_its_turn() {
        let section = Section {
            pulse_interval: Duration::from_millis(20),
            pulse_timeout: Duration::from_millis(5),
            concurrent_handshakes: 1,
            ..Section::default()
        };
        let (runs, mut recorded) = mpsc::channel(1);
        let task = task(section, 1, runs);
        let turn = task.shared.turn().await;
        let (_orders, incoming) = mpsc::channel(1);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(task.run(incoming, stop.clone()));

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
        let (runs, _recorded) = mpsc::channel(1);
        let mut task = Task {
            withheld: Some(Finding::SharedPort),
            pulsed: Some(Outcome::Ok),
            ..task(Section::default(), port, runs)
        };
        let run = task.handshake(Trigger::Schedule).await;
        assert_eq!(run.outcome(), Outcome::Failed(Reason::Withheld));
        assert_eq!(run.decided_by().map(|step| step.step), Some(Step::Mint));
        assert!(listener.accept().is_err(), "something was sent");
    }
}
