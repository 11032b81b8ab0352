//! One user's probes. Pulses go on while a handshake or a visit is under way, which may wait for its turn or for somebody
//! who does not answer; of those two there is one at a time. So they do during a look at the database, which may wait for
//! a disk, and behind a helper for everybody's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::front::Kept;
use super::handshake::Leftovers;
use super::prober::{Known, Order, Shared};
use super::pulse::Memory;
use super::{Section, instance_of, schedule, state};
use crate::inventory::Target;
use crate::outcome::{Ended, Kind, Outcome, Reason, Run, Step, Trigger};
use crate::t3::Instance;
use crate::t3::version::Version;

/// After a failed handshake the next one comes this soon, so that a repair is seen before the interval is over.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(60);

pub struct Task {
    shared: Arc<Shared>,
    target: Target,
    instance: Instance,
    runs: mpsc::Sender<Run>,
    memory: Memory,
    /// Away during a look.
    state: state::Memory,
    /// Whether a snapshot was put back during the look under way.
    restored: bool,
    /// Away while work is under way.
    lent: Lent,
    /// Whether the next handshake is a first visit at the dispatch.
    cold: bool,
    /// Whether a real login may stand for the next handshake: one does, where the last handshake was well. Somebody who
    /// comes in again and again would else put it off for ever.
    may_be_put_off: bool,
    pulsed: Option<Outcome>,
    tasks: TaskTracker,
}

/// What a handshake or a visit is lent, and gives back.
#[derive(Default)]
struct Lent {
    leftovers: Leftovers,
    kept: Kept,
}

/// A handshake or a visit under way.
type UnderWay = JoinHandle<(Run, Lent)>;

/// A look at the database under way; a second one where the first found a schema that does not fit.
struct Looking {
    work: JoinHandle<(Run, state::Memory)>,
    again: bool,
}

impl Task {
    pub fn new(target: &Target, shared: Arc<Shared>, runs: mpsc::Sender<Run>, tasks: TaskTracker) -> Self {
        Self {
            shared,
            target: target.clone(),
            instance: instance_of(target),
            runs,
            memory: Memory::default(),
            state: state::Memory::default(),
            restored: false,
            lent: Lent::default(),
            cold: false,
            may_be_put_off: false,
            pulsed: None,
            tasks,
        }
    }

    /// What takes its turn for a moment is boxed: between two turns every user's task would else hold as much.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let Section { pulse_interval, state_interval, front_interval, .. } = *self.shared.section();
        let start = Instant::now();
        let due = |interval| start + schedule::phase(&self.instance.name, interval);
        let mut pulse_due = due(pulse_interval);
        let mut handshake_due = due(self.shared.handshake_interval());
        let mut state_due = start + self.shared.state_phase(&self.instance.name);
        let mut visit_due = due(front_interval);
        let mut wanted = Some(Trigger::Start);
        let mut under_way: Option<UnderWay> = None;
        let mut looking: Option<Looking> = None;
        let mut asked: Vec<Asked> = Vec::new();
        loop {
            // The first handshake follows the first pulse.
            if under_way.is_none()
                && self.pulsed.is_some()
                && let Some(trigger) = wanted.take()
            {
                under_way = Some(self.login(trigger));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                (run, lent) = ended(&mut under_way) => {
                    self.lent = lent;
                    self.send(&run).await;
                    if run.kind == Kind::Handshake {
                        handshake_due = self.after(&run, handshake_due);
                    }
                    if run.trigger == Trigger::Demand {
                        let visit = run.kind == Kind::Handshake && self.shared.has_a_door();
                        asked = answered(asked, &run, visit);
                        if visit {
                            under_way = Some(self.visit(Trigger::Demand));
                        }
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::Probe(answer)) => {
                        asked.push((vec![Box::pin(self.pulse(Trigger::Demand)).await.0], answer));
                        wanted = Some(Trigger::Demand);
                    }
                    Some(Order::Restored) => {
                        self.shared.replaced();
                        self.restored = looking.is_some();
                        self.state.restored();
                        state_due = Instant::now();
                    }
                    Some(Order::LoggedIn) => {
                        if std::mem::take(&mut self.may_be_put_off) {
                            handshake_due = Instant::now() + self.shared.handshake_interval();
                        }
                    }
                    None => break,
                },
                () = sleep_until(pulse_due) => {
                    let trigger = wanted.unwrap_or(Trigger::Schedule);
                    let (_, changed) = Box::pin(self.pulse(trigger)).await;
                    wanted = wanted.or(changed);
                    pulse_due = schedule::next(pulse_due, pulse_interval, Instant::now());
                }
                () = sleep_until(state_due), if looking.is_none() => {
                    looking = Some(self.look(self.memory.version.clone(), false));
                    state_due = schedule::next(state_due, state_interval, Instant::now());
                }
                (run, again) = self.looked(&mut looking) => {
                    if again {
                        let (changed, version) = Box::pin(self.asked_anew()).await;
                        wanted = wanted.or(changed);
                        looking = Some(self.look(version, true));
                    } else {
                        self.send(&run).await;
                    }
                }
                () = sleep_until(handshake_due), if wanted.is_none() && under_way.is_none() => {
                    wanted = Some(Trigger::Schedule);
                }
                () = sleep_until(visit_due),
                    if self.shared.has_a_door() && self.pulsed.is_some() && under_way.is_none() =>
                {
                    under_way = Some(self.visit(Trigger::Schedule));
                    visit_due = schedule::next(visit_due, front_interval, Instant::now());
                }
            }
        }
        if let Some(look) = looking {
            look.work.abort();
        }
        // A handshake that is cut short leaves its session behind.
        if under_way.is_some() {
            let (run, lent) = ended(&mut under_way).await;
            self.lent = lent;
            self.send(&run).await;
        }
        Box::pin(self.shared.leave(&self.instance, &mut self.lent.kept)).await;
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

    /// Begins a look at the database, which is judged by this version.
    fn look(&mut self, version: Option<Version>, again: bool) -> Looking {
        let (shared, instance) = (self.shared.clone(), self.instance.clone());
        let mut memory = std::mem::take(&mut self.state);
        let work = self.tasks.spawn(async move {
            let run = shared.state(&instance, &mut memory, version.as_ref(), Trigger::Schedule).await;
            (run, memory)
        });
        Looking { work, again }
    }

    /// What a look found, and whether there has to be another one. A schema that does not fit what ran at the last pulse
    /// is judged by what runs now, and by nothing while that cannot be told: an upgrade is no outage.
    async fn looked(&mut self, looking: &mut Option<Looking>) -> (Run, bool) {
        let Some(look) = looking else { return std::future::pending().await };
        let (ended, again) = ((&mut look.work).await, look.again);
        *looking = None;
        let Ok((run, memory)) = ended else { return std::future::pending().await };
        self.state = memory;
        if std::mem::take(&mut self.restored) {
            // What it saw may have been lost on purpose.
            self.state.restored();
            return (run, true);
        }
        let again = !again && is_about_the_version(&run);
        (run, again)
    }

    /// Pulses; answers what in it calls for a handshake, and the version that runs now where it can be told.
    async fn asked_anew(&mut self) -> (Option<Trigger>, Option<Version>) {
        let (pulse, calls) = self.pulse(Trigger::Schedule).await;
        let is_known = tells_the_version(&pulse) || self.memory.is_of_who_listens();
        (calls, self.memory.version.clone().filter(|_| is_known))
    }

    fn known(&self) -> Known {
        Known { withheld: self.target.withheld, pulsed: self.pulsed }
    }

    /// Begins a handshake, every second one as a first visit at the dispatch.
    fn login(&mut self, trigger: Trigger) -> UnderWay {
        let (shared, instance, known) = (self.shared.clone(), self.instance.clone(), self.known());
        let cold = self.cold && shared.has_a_door();
        let identity = cold.then(|| self.target.identity.clone());
        let mut lent = std::mem::take(&mut self.lent);
        self.tasks.spawn(async move {
            let leftovers = &mut lent.leftovers;
            let run = match identity {
                Some(identity) => shared.first_visit(&instance, &identity, known, leftovers, trigger).await,
                None => shared.handshake(&instance, known, leftovers, trigger).await,
            };
            (run, lent)
        })
    }

    /// Begins a visit through the dispatch.
    fn visit(&mut self, trigger: Trigger) -> UnderWay {
        let (shared, instance, known) = (self.shared.clone(), self.instance.clone(), self.known());
        let identity = self.target.identity.clone();
        let mut lent = std::mem::take(&mut self.lent);
        self.tasks.spawn(async move {
            let run = shared.visit(&instance, &identity, known, &mut lent.kept, trigger).await;
            (run, lent)
        })
    }

    /// When the next handshake is due after one that has just ended, and by which way.
    fn after(&mut self, run: &Run, due: Instant) -> Instant {
        // Until the dispatch lets a first visit in, no direct login says that all is well.
        let turned_away = run
            .steps
            .iter()
            .any(|result| result.step == Step::Front && matches!(result.outcome, Outcome::Failed(_)));
        self.cold = turned_away || !self.cold;
        self.may_be_put_off = run.outcome().is_ok();
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

fn is_about_the_version(run: &Run) -> bool {
    matches!(run.outcome(), Outcome::Failed(Reason::SchemaAhead | Reason::SchemaBehind))
}

/// Whether the instance was there, and its version was read where it was due.
fn tells_the_version(pulse: &Run) -> bool {
    let mut steps = pulse.steps.iter().filter(|result| matches!(result.step, Step::Reach | Step::Version));
    steps.all(|result| result.outcome.is_ok())
}

/// What somebody who asked has been answered with so far, and where the answer goes.
type Asked = (Vec<Run>, oneshot::Sender<Vec<Run>>);

/// Takes in a run on demand, and answers those it is the last one for; answers who still waits.
fn answered(asked: Vec<Asked>, run: &Run, more: bool) -> Vec<Asked> {
    let mut waiting = Vec::new();
    for (mut runs, answer) in asked {
        // Who asked during a visit waits for the handshake of their own.
        let is_theirs = run.kind == Kind::Handshake || runs.len() > 1;
        runs.extend(is_theirs.then(|| run.clone()));
        if is_theirs && !more {
            // Whoever asked may have gone; the runs are recorded all the same.
            let _ = answer.send(runs);
        } else {
            waiting.push((runs, answer));
        }
    }
    waiting
}

/// What the work under way came to; without any, never.
async fn ended(under_way: &mut Option<UnderWay>) -> (Run, Lent) {
    if let Some(work) = under_way {
        let ended = work.await;
        *under_way = None;
        if let Ok(ended) = ended {
            return ended;
        }
    }
    std::future::pending().await
}
