//! Proof that somebody can use their instance: a pulse, a whole login, and what is seen while a build is watched. Asked
//! by the same probes as `serve` makes; what they said goes to `serve` as well.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::canary::{Opinion, Watch, Why};
use super::interrupt::Interrupt;
use super::witness::Witness;
use crate::config::Config;
use crate::dispatch::Keys;
use crate::inventory::Target;
use crate::outcome::{BackupRun, Failure, Kind, Outcome, Reason, Run, Skip, Step, Trigger};
use crate::probe::front::Kept;
use crate::probe::handshake::Leftovers;
use crate::probe::instance_of;
use crate::probe::prober::{Known, Shared};
use crate::probe::pulse::Memory;
use crate::spool::{self, Event, Spool};
use crate::t3::access::Access;
use crate::t3::door::Door;
use crate::t3::version::Version;

/// Between two tries of a login that has to succeed.
const RETRY: Duration = Duration::from_millis(250);
/// Failures in a row of a fresh instance's login that are a fact and not its start.
const CONFIRMED: u32 = 3;

/// Asks instances.
pub struct Prover {
    shared: Shared,
    spool: Option<Spool>,
    pulse_interval: Duration,
    handshake_interval: Duration,
    /// What was learned of each user, for as long as the enforcer runs.
    known: BTreeMap<String, Mutex<Learned>>,
}

struct Learned {
    memory: Memory,
    leftovers: Leftovers,
    /// The session for visits through the dispatch.
    kept: Kept,
}

impl Default for Learned {
    /// The session that the service keeps is left alone: it would find it ended, make another and end ours for it.
    fn default() -> Self {
        Self { memory: Memory::default(), leftovers: Leftovers::default(), kept: Kept::once() }
    }
}

impl Prover {
    pub fn new(config: &Config, targets: &[Target]) -> Result<Self, Failure> {
        let access = config.helper.access(&config.t3, &config.state_dir);
        let spool = config.state_dir.join("spool");
        Ok(Self {
            shared: Shared::new(config.probe.clone(), config.t3.clone(), access).behind(door(config)?),
            // Without a service that takes it in, there is nobody to tell.
            spool: spool.is_dir().then(|| Spool::new(spool, spool::Limits::default())),
            pulse_interval: config.probe.pulse_interval,
            handshake_interval: config.enforce.login_interval,
            known: targets.iter().map(|target| (target.user.to_string(), Mutex::default())).collect(),
        })
    }

    /// Why no login can be tried at anybody's instance, where that is so: t3's command, run by another account, would
    /// leave files that break the owner of the data.
    pub fn cannot(config: &Config, targets: &[Target]) -> Option<String> {
        let access = config.helper.access(&config.t3, &config.state_dir);
        let us = nix::unistd::geteuid().as_raw();
        let other = targets.iter().find(|target| instance_of(target).uid != us)?;
        matches!(access, Access::Own(_)).then(|| {
            format!(
                "t3's command may not run as uid {us} on the data of {}; set `[helper] socket`",
                other.user
            )
        })
    }

    /// For how long an instance on a new build may answer and be broken: as long as somebody else would take to notice.
    pub fn pulse_interval(&self) -> Duration {
        self.pulse_interval
    }

    /// What a user's instance says it runs, and how its pulse went.
    pub async fn look(&self, target: &Target) -> (Option<Version>, Run) {
        let Some(known) = self.known.get(target.user.as_str()) else {
            return (
                None,
                self.shared.pulse(&instance_of(target), &mut Memory::default(), Trigger::Demand).await,
            );
        };
        let mut learned = known.lock().await;
        learned.memory = Memory::default();
        let run = self.shared.pulse(&instance_of(target), &mut learned.memory, Trigger::Demand).await;
        let version = learned.memory.version.clone().filter(|_| run.facts.version.is_some());
        (version, run)
    }

    async fn pulse(&self, target: &Target) -> Run {
        let Some(known) = self.known.get(target.user.as_str()) else { return self.look(target).await.1 };
        self.shared.pulse(&instance_of(target), &mut known.lock().await.memory, Trigger::Demand).await
    }

    /// One login, if the pulse before it did not say that none can be tried; and where there is a way through the
    /// dispatch, a visit by it: some builds break only there.
    pub async fn login(&self, target: &Target, pulsed: Option<Outcome>) -> Run {
        let known = Known { withheld: target.withheld, pulsed };
        let Some(of_user) = self.known.get(target.user.as_str()) else { return self.look(target).await.1 };
        let mut of_user = of_user.lock().await;
        let (instance, trigger) = (instance_of(target), Trigger::Demand);
        let login = self.shared.handshake(&instance, known, &mut of_user.leftovers, trigger);
        let login = Box::pin(login).await;
        self.tell(&login);
        if !login.outcome().is_ok() || !self.shared.has_a_door() {
            return login;
        }
        let known = Known { pulsed: Some(Outcome::Ok), ..known };
        let visit = self.shared.visit(&instance, &target.identity, known, &mut of_user.kept, trigger);
        let visit = Box::pin(visit).await;
        self.tell(&visit);
        if visit.outcome().is_ok() { login } else { visit }
    }

    /// Ends the sessions that were kept for visits.
    pub async fn leave(&self, targets: &[Target]) {
        for target in targets {
            if let Some(of_user) = self.known.get(target.user.as_str()) {
                self.shared.leave(&instance_of(target), &mut of_user.lock().await.kept).await;
            }
        }
    }

    fn tell(&self, run: &Run) {
        self.put(&Event::Run(run.clone()));
    }

    /// What was written to the database that was put aside is not missed by the service.
    pub fn tell_of_restore(&self, run: BackupRun) {
        self.put(&Event::Backup(run));
    }

    fn put(&self, event: &Event) {
        if let Some(spool) = &self.spool
            && let Err(error) = spool.put(event)
        {
            tracing::debug!(%error, "what was done is not in the metrics");
        }
    }

    /// Waits until somebody has logged in to a freshly started instance of this version. `confirmed` is for how long it
    /// may answer and be broken.
    pub async fn log_in(
        &self,
        target: &Target,
        version: &Version,
        limit: Duration,
        confirmed: Duration,
    ) -> Result<(), Why> {
        let deadline = Instant::now() + limit;
        let (mut failures, mut broken_since) = (0, None);
        loop {
            let (_, pulse) = self.look(target).await;
            let run =
                if pulse.outcome().is_ok() { self.login(target, Some(pulse.outcome())).await } else { pulse };
            match run.outcome() {
                Outcome::Ok if run.facts.version.as_deref() == Some(version.to_string().as_str()) => {
                    return Ok(());
                }
                Outcome::Ok => {
                    let runs = run.facts.version.as_deref().unwrap_or("nothing known");
                    let detail = format!(
                        "the instance runs {runs}, its link names {version}: its start command does not go through the link"
                    );
                    let user = target.user.to_string();
                    return Err(Why {
                        user,
                        step: Some(Step::Version),
                        reason: OTHER_VERSION.to_owned(),
                        detail,
                    });
                }
                Outcome::Failed(_) if run.kind != Kind::Pulse => {
                    failures += 1;
                    broken_since = None;
                }
                // It starts, or starts anew.
                Outcome::Failed(Reason::Refused | Reason::Timeout | Reason::Closed) | Outcome::Skipped(_) => {
                    (failures, broken_since) = (0, None);
                }
                Outcome::Failed(_) => {
                    failures = 0;
                    broken_since.get_or_insert_with(Instant::now);
                }
            }
            let lasting = broken_since.is_some_and(|since| since.elapsed() >= confirmed);
            if failures >= CONFIRMED || lasting || Instant::now() >= deadline {
                return Err(Why::of(&run));
            }
            sleep(RETRY).await;
        }
    }

    /// Watches these users on a build for a while, or until it is told to stop; `Err` is what makes it a bad one.
    pub async fn watch(
        &self,
        watch: &mut Watch,
        witness: &Witness<'_>,
        version: &Version,
        targets: &[&Target],
        span: Duration,
        interrupt: &Interrupt,
    ) -> Result<(), Why> {
        let against = async || witness.against(version, targets).await.map_or(Ok(()), Err);
        let end = Instant::now() + span;
        let (mut pulse_due, mut login_due) = (Instant::now(), Instant::now() + self.handshake_interval);
        loop {
            let next = pulse_due.min(login_due).min(end);
            // A look that was begun is finished, so that it leaves no session behind.
            tokio::select! {
                () = sleep_until(next) => {}
                () = interrupt.wait() => return Ok(()),
            }
            if next == end {
                break;
            }
            if next == login_due {
                against().await?;
                self.see_all(watch, targets, Look::Login).await?;
                login_due = Instant::now() + self.handshake_interval;
            } else {
                self.see_all(watch, targets, Look::Pulse).await?;
                pulse_due = Instant::now() + self.pulse_interval;
            }
        }
        against().await?;
        // What could not be told all along is not proven.
        self.see_all(watch, targets, Look::LastLogin).await
    }

    async fn see_all(&self, watch: &mut Watch, targets: &[&Target], look: Look) -> Result<(), Why> {
        let mut due: Vec<&Target> = targets.to_vec();
        let mut tries = 0;
        while !due.is_empty() {
            tries += 1;
            let runs = join_all(due.iter().map(|target| async move {
                match look {
                    Look::Pulse => self.pulse(target).await,
                    Look::Login | Look::LastLogin => self.login(target, None).await,
                }
            }));
            let runs = runs.await;
            let mut again = Vec::new();
            for (target, run) in due.into_iter().zip(&runs) {
                match watch.see(run) {
                    Opinion::Well => {}
                    Opinion::Bad(why) => return Err(why),
                    Opinion::Unknown if look != Look::LastLogin => {}
                    Opinion::Unknown if tries >= CONFIRMED => return Err(Why::of(run)),
                    Opinion::Unknown | Opinion::LookAgain => again.push(target),
                }
            }
            due = again;
            if !due.is_empty() {
                sleep(RETRY).await;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Pulse,
    Login,
    /// Nothing less than a login counts.
    LastLogin,
}

/// The word where an instance runs another build than its link names.
pub const OTHER_VERSION: &str = "other_version";

/// Whether the supervisor says that an instance was stopped on purpose.
pub fn is_stopped(pulse: &Run) -> bool {
    pulse.outcome() == Outcome::Skipped(Skip::NotRunning)
}

/// The way through the dispatch, where the configuration names one.
fn door(config: &Config) -> Result<Option<Door>, Failure> {
    let Some(address) = config.probe.front else { return Ok(None) };
    let door = Keys::read(&config.dispatch).and_then(|keys| keys.door(address, &config.probe.front_uids));
    door.map(Some)
        .map_err(|error| Failure::new(Reason::Unreadable, format!("no way through the dispatch: {error:#}")))
}
