//! The long-running service: everything is started here, values flow from probes to metrics, board and history, and
//! everything is waited for at the end.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backup::Ourselves;
use crate::board::{Before, Board};
use crate::config::{Config, Source};
use crate::credential;
use crate::enforce;
use crate::history::{self, History};
use crate::inventory::{Snapshot, Watch};
use crate::metrics::{Build, Metrics, Served};
use crate::operator::{Access, Doors, Reload, Seen};
use crate::outcome::{BackupAct, BackupRun, Ended, EventKind, Finding, Run};
use crate::pause::PauseFile;
use crate::probe::prober::{Order, Prober, Shared};
use crate::spool::{self, Event, Spool};
use crate::t3::door::Door;

use self::front::Front;

mod backups;
mod builds;
mod credentials;
mod front;
mod gating;
mod log;
mod rollouts;
mod upgrades;
mod verdicts;
mod versions;

pub use self::backups::Standings;
use self::builds::{Builds, Means};

/// How often files that other processes write are looked at: an event is in the metrics within a second.
const LOOK: Duration = Duration::from_millis(500);
/// How long the last handshakes and the last of the history may take after the program was told to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// Everything that lives as long as the service.
struct Service {
    source: Source,
    config: Config,
    /// The same, for those who work beside the main loop.
    current: watch::Sender<Arc<Config>>,
    metrics: Arc<Metrics>,
    history: Arc<History>,
    inventory: Watch,
    board: Arc<Mutex<Board>>,
    prober: Arc<Mutex<Prober>>,
    front: Front,
    pauses: Arc<Mutex<PauseFile>>,
    access: Arc<Mutex<Access>>,
    credentials: Arc<Mutex<credential::Watch>>,
    shared: Arc<Shared>,
    spool: Spool,
    enforcer: Arc<Mutex<enforce::Seen>>,
    /// Whether the log has been told that the spool cannot be read.
    spool_broken: bool,
}

/// The signals that this program lives by. Once listened for, none of them ends the process by itself any more, so what
/// was begun is also cleared away.
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind, name| signal(kind).with_context(|| format!("cannot listen for {name}"));
        Ok(Self {
            hangup: listen(SignalKind::hangup(), "SIGHUP")?,
            terminate: listen(SignalKind::terminate(), "SIGTERM")?,
            interrupt: listen(SignalKind::interrupt(), "SIGINT")?,
        })
    }

    /// The program is told to stop.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves until SIGTERM or SIGINT. `ready` is told the operator's address once everything runs.
pub async fn run(
    source: Source,
    config: Config,
    signals: Signals,
    ready: impl FnOnce(std::net::SocketAddr),
) -> anyhow::Result<()> {
    let doors = Doors::open(&config.operator).await?;
    let address = doors.address().context("cannot read the address of the operator's listener")?;
    let _alone = claim(&config.state_dir)?;
    let spool = config.state_dir.join("spool");
    std::fs::create_dir_all(&spool).with_context(|| format!("cannot make the spool {}", spool.display()))?;

    let mut limits = spool::Limits::default();
    // The dispatch tells of logins, and has an account of its own.
    limits.accepted_uids.extend(config.helper.caller_uids());

    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let (runs, finished) = mpsc::channel(1024);
    let (reload, reloads) = mpsc::channel(4);

    let (logins, news) = mpsc::channel(256);

    let metrics = Arc::new(Metrics::new(Build::THIS));
    let front = Front::open(&config, &metrics, logins, &tasks, &stop)?;
    let shared = Arc::new(shared(&config, &config.state_dir, front.door(&config)?));
    let history = Arc::new(History::open(&config.state_dir.join("history.sqlite"), &config.history).await);
    let mut credentials = credential::Watch::default();
    credentials.configure(&config.credential);
    let service = Box::new(Service {
        credentials: Arc::new(Mutex::new(credentials)),
        metrics,
        front,
        inventory: Watch::start(config.inventory.clone()).await,
        board: Arc::new(Mutex::new(remembered(&history).await)),
        prober: Arc::new(Mutex::new(Prober::new(shared.clone(), runs, tasks.clone(), stop.clone()))),
        access: Arc::new(Mutex::new(Access::new(&config.operator)?)),
        pauses: Arc::new(Mutex::new(PauseFile::new(config.state_dir.join("pauses.json")))),
        spool: Spool::new(spool, limits),
        spool_broken: false,
        enforcer: Arc::default(),
        history: history.clone(),
        shared,
        source,
        current: watch::Sender::new(Arc::new(config.clone())),
        config,
    });
    let said = versions::Said::default();
    let means = Means {
        config: service.current.subscribe(),
        source: service.source.path().to_owned(),
        metrics: service.metrics.clone(),
        history: history.clone(),
        inventory: service.inventory.clone(),
        board: service.board.clone(),
    };
    let Builds { candidates, line, tracked, named } = Builds::begin(means, &tasks, &stop);
    let watch = versions::Versions {
        pins: service.config.pins.clone(),
        t3: service.config.t3.clone(),
        board: service.board.clone(),
        metrics: service.metrics.clone(),
        history: history.clone(),
        said: said.clone(),
        tracked,
        named,
        memory: service.config.state_dir.join("differences.json"),
    };
    let standings = Standings::default();
    let backups = backups::Backups {
        section: service.config.backup.clone(),
        inventory: service.inventory.clone(),
        metrics: service.metrics.clone(),
        standings: standings.clone(),
    };
    let (ended, acts) = mpsc::channel(64);
    let keeper = backups::Keeper {
        state_dir: service.config.state_dir.clone(),
        section: service.config.backup.clone(),
        t3: service.config.t3.clone(),
        hands: Ourselves { boxing: service.config.gate.boxing() },
        inventory: service.inventory.clone(),
        ended,
    };
    let seen = Seen {
        started: SystemTime::now(),
        metrics: service.metrics.clone(),
        history: history.clone(),
        inventory: service.inventory.clone(),
        board: service.board.clone(),
        prober: service.prober.clone(),
        pauses: service.pauses.clone(),
        access: service.access.clone(),
        turns: crate::operator::probe::Turns::default(),
        differences: said,
        standings,
        credentials: service.credentials.clone(),
        candidates,
        line,
        enforcer: service.enforcer.clone(),
        config: service.current.subscribe(),
        reload,
    };
    doors.serve(seen, &tasks, &stop);
    tasks.spawn(service.inventory.clone().run(stop.clone()));
    tasks.spawn(watch.watch(stop.clone()));
    tasks.spawn(backups.watch(stop.clone()));
    // Where there is a helper, the users' data is not ours to read: root's timer takes the snapshots.
    if !service.config.helper.is_used() {
        tasks.spawn(keeper.keep(stop.clone()));
    }
    let credentials = credentials::Credentials {
        watch: service.credentials.clone(),
        metrics: service.metrics.clone(),
        memory: service.config.state_dir.join("credentials.json"),
    };
    tasks.spawn(credentials.watch(stop.clone()));
    tracing::info!(%address, "t3-prober serves");
    ready(address);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let farewell = FAREWELL + service.front.drain();
    service.work(finished, acts, reloads, news, signals).await;

    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(farewell, tasks.wait()).await.is_err() {
        tracing::warn!(
            "not every probe and connection ended in time; sessions that probes made are revoked after the next start"
        );
    }
    history.close(FAREWELL).await?;
    Ok(())
}

impl Service {
    /// The main loop: ends when the program is told to stop.
    async fn work(
        mut self: Box<Self>,
        mut finished: mpsc::Receiver<Run>,
        mut acts: mpsc::Receiver<BackupRun>,
        mut reloads: mpsc::Receiver<Reload>,
        mut news: mpsc::Receiver<Event>,
        Signals { mut hangup, mut terminate, mut interrupt }: Signals,
    ) {
        let mut inventory = self.inventory.subscribe();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.metrics.prober.config_reloaded(true, SystemTime::now());
        inventory.mark_changed();
        loop {
            tokio::select! {
                Some(run) = finished.recv() => self.record(run),
                Some(act) = acts.recv() => self.record_backup(&act),
                Ok(()) = inventory.changed() => {
                    let snapshot = inventory.borrow_and_update().clone();
                    self.take_over(&snapshot);
                }
                Some(event) = news.recv() => self.take_in(event),
                _ = look.tick() => self.look_around(),
                _ = hangup.recv() => {
                    if let Err(error) = self.reload().await {
                        tracing::error!(error, "the reload was refused, the old configuration stays in use");
                    }
                }
                Some(answer) = reloads.recv() => {
                    let result = self.reload().await;
                    // Whoever asked may have gone.
                    let _ = answer.send(result);
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tracing::info!("told to stop");
    }

    fn record(&self, run: Run) {
        self.metrics.record(&run);
        if let Some(turn) = lock(&self.board).record(&run) {
            log::turn(&run, &turn);
        }
        self.history.record(run);
    }

    /// An act on snapshots, ours or another process's.
    fn record_backup(&self, run: &BackupRun) {
        self.metrics.backup.record(run);
        let BackupRun { user, act, snapshot, .. } = run;
        if (*act, &run.failure) == (BackupAct::Restore, &None)
            && let Some(orders) = lock(&self.prober).orders(user)
        {
            // Who has four orders waiting looks again in the next round, and shouts for an hour at most.
            let _ = orders.try_send(Order::Restored);
        }
        let snapshot = snapshot.as_deref().unwrap_or_default();
        let mut detail = serde_json::json!({ "duration_seconds": run.duration.as_secs_f64() });
        if !snapshot.is_empty() {
            detail["snapshot"] = snapshot.into();
        }
        match &run.failure {
            None => tracing::info!(user, %act, snapshot, took = ?run.duration, "an act on snapshots is done"),
            Some(failure) => {
                let reason = failure.flaw.map_or_else(|| failure.reason.as_str(), |flaw| flaw.as_str());
                tracing::error!(user, %act, snapshot, reason, detail = failure.detail, "an act on snapshots failed");
                detail["reason"] = reason.into();
                detail["detail"] = failure.detail.as_str().into();
                if let Some(step) = failure.step {
                    detail["step"] = step.as_str().into();
                }
            }
        }
        self.history.record_event(history::Event {
            at: run.at,
            user: Some(user.clone()),
            kind: EventKind::Backup,
            subject: act.to_string(),
            outcome: run.ended().to_string(),
            detail,
        });
    }

    /// A new inventory, or news about the one in use.
    fn take_over(&self, snapshot: &Snapshot) {
        let targets = snapshot.inventory.targets();
        let served: Vec<_> = targets
            .iter()
            .map(|target| Served {
                user: target.user.as_str(),
                identity: &target.identity,
                port: target.port.get(),
            })
            .collect();
        self.metrics.set_users(&served);
        lock(&self.board).serve(targets.iter().map(|target| target.user.as_str()));
        lock(&self.prober).serve(targets);
        self.front.serve(snapshot.clone());
        let findings = snapshot.inventory.findings();
        let counts: Vec<_> = Finding::ALL
            .iter()
            .map(|finding| {
                (finding.as_str(), findings.iter().filter(|found| found.finding == *finding).count() as u64)
            })
            .collect();
        self.metrics.inventory.set_findings(&counts);
        self.metrics.inventory.reloaded(snapshot.status.is_ok(), SystemTime::now());
    }

    /// What other processes left for us, and gauges that nobody pushes.
    fn look_around(&mut self) {
        match self.spool.take() {
            Ok(taken) => {
                for taken in taken {
                    match taken {
                        Ok(event) => {
                            self.metrics.prober.spool_event(event.word());
                            self.take_in(event);
                        }
                        Err(rejection) => {
                            self.metrics.prober.spool_rejected();
                            tracing::warn!(%rejection, "a spool file was not taken in");
                        }
                    }
                }
                self.spool_broken = false;
            }
            Err(error) if !self.spool_broken => {
                tracing::warn!(%error, "the spool cannot be read; what other processes report is not in the metrics");
                self.spool_broken = true;
            }
            Err(_) => {}
        }
        let now = SystemTime::now();
        let mut pauses = lock(&self.pauses);
        if let Err(error) = pauses.refresh(now) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the pauses cannot be read; those known go on to their end"
            );
        }
        for (user, _) in lock(&self.board).users() {
            self.metrics.instance.set_paused(user, pauses.pauses().is_paused(user, now));
        }
        *lock(&self.enforcer) = upgrades::look(&self.config.state_dir, &self.metrics, &lock(&self.board));
        self.metrics
            .prober
            .set_handshake_interval(self.shared.handshake_interval(), self.config.probe.handshake_interval);
        let counts = self.history.counts();
        self.metrics.prober.set_history(counts.lost, counts.errors, counts.bytes);
    }

    /// What another process, or our own dispatch, saw: a probe counts as one of ours, a real login stands for the next handshake.
    fn take_in(&self, event: Event) {
        let (user, subject, outcome, detail, at) = match event {
            Event::Run(run) => return self.record(run),
            Event::Backup(run) => return self.record_backup(&run),
            Event::Login { user, endpoint, duration, at } => {
                if let Some(orders) = lock(&self.prober).orders(&user) {
                    // A user's task that is busy probing needs no postponement.
                    let _ = orders.try_send(Order::LoggedIn);
                }
                let detail = serde_json::json!({ "duration_seconds": duration.as_secs_f64() });
                (user, endpoint.as_str(), Ended::Ok, detail, at)
            }
            Event::Upgrade(upgrade) => {
                self.metrics.enforcer.ended(upgrade.end);
                return self.history.record_event(upgrades::event(upgrade));
            }
            Event::LoginFailed { user, step, reason, at } => {
                (user, step.as_str(), Ended::Failed, serde_json::json!({ "reason": reason }), at)
            }
        };
        self.history.record_event(history::Event {
            at,
            user: Some(user),
            kind: EventKind::Login,
            subject: subject.to_owned(),
            outcome: outcome.to_string(),
            detail,
        });
    }

    async fn reload(&mut self) -> Result<String, String> {
        let now = SystemTime::now();
        let refuse = |error| {
            self.metrics.prober.config_reloaded(false, now);
            error
        };
        let config = Config::load(&mut self.source).map_err(|refused| refuse(refused.to_string()))?;
        let wrong = |error: anyhow::Error| refuse(format!("{error:#}\n"));
        let access = Access::new(&config.operator).map_err(wrong)?;
        let door = self.front.door(&config).map_err(wrong)?;
        *lock(&self.access) = access;
        self.metrics.prober.config_reloaded(true, now);
        let fixed = self.config.needs_restart(&config);
        let read_by_probes =
            |config: &Config| (config.probe.clone(), config.t3.clone(), config.helper.clone());
        if read_by_probes(&config) != read_by_probes(&self.config) {
            self.shared = Arc::new(shared(&config, &self.config.state_dir, door));
            lock(&self.prober).replace(self.shared.clone());
        }
        lock(&self.credentials).configure(&config.credential);
        let status = self.inventory.reconfigure(config.inventory.clone()).await;
        self.current.send_replace(Arc::new(config.clone()));
        self.config = config;
        let mut report = "the configuration was taken over\n".to_owned();
        if !fixed.is_empty() {
            report.push_str(&format!("needs a restart: {}\n", fixed.join(", ")));
        }
        if let Some(error) = status.error {
            return Err(format!("{report}the inventory was not: {error}\n"));
        }
        tracing::info!(needs_restart = fixed.join(", "), "reloaded");
        Ok(report)
    }
}

/// What all probes have in common, by this configuration.
fn shared(config: &Config, state_dir: &Path, door: Option<Door>) -> Shared {
    let access = config.helper.access(&config.t3, state_dir);
    Shared::new(config.probe.clone(), config.t3.clone(), access).behind(door)
}

/// The board as the history left it: since when everybody stands as they do. Without a history it begins now.
async fn remembered(history: &History) -> Board {
    let mut board = Board::default();
    for standing in history.reader().standings().await.unwrap_or_default() {
        let definite = standing.definite.zip(standing.since);
        board.remember(standing.user, standing.kind, Before { definite, skipped: standing.skipped_since });
    }
    board
}

/// Makes the state directory ours: one service a directory, because its history has one writer.
fn claim(state_dir: &Path) -> anyhow::Result<Flock<std::fs::File>> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let dir = state_dir.display();
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(state_dir).with_context(|| {
        format!("cannot make the state directory {dir}; create it, owned by this account, or set state_dir")
    })?;
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(state_dir.join("serve.lock"))
        .with_context(|| format!("cannot write in the state directory {dir}"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!("another t3-prober serves from {dir}; stop it first, or set another state_dir")
    })
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
