//! `backup restore`: the full restore, and `--auth-only`, the repair that loses nothing.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::super::exit;
use super::{Whom, duty, hands, tell_serve};
use crate::backup::repair;
use crate::backup::restore::{ByHand, Journal, NotRestored, Plan, Present, Restore};
use crate::backup::{Hands, Snapshot, Tree, running_version};
use crate::config::Config;
use crate::enforce::lock::{self, Lock};
use crate::outcome::{
    BackupAct, BackupFailure, BackupRun, Ended, Failure, Outcome, Reason, RestoreStep, Run, Trigger,
};
use crate::pause;
use crate::probe::handshake::Leftovers;
use crate::probe::instance_of;
use crate::probe::prober::{Known, Shared};
use crate::probe::pulse::Memory;
use crate::t3::Instance;
use crate::t3::access::Access;
use crate::t3::schema::SchemaLevel;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::version::Version;

/// Why a user is paused while a snapshot is put back, and for how long at most.
const PAUSE: &str = "a snapshot is put back";
const LONGEST: Duration = Duration::from_secs(30 * 60);

#[derive(clap::Args)]
pub struct Args {
    /// Whose
    user: String,
    /// Which snapshot, by its name in `backup list` [default: the newest that is proven, else the newest verified]
    #[arg(long, value_name = "NAME", conflicts_with = "auth_only")]
    from: Option<String>,
    /// Make only the authentication tables anew, where that is enough: no history is lost, the instance goes on
    #[arg(long)]
    auth_only: bool,
    /// The version that the instance runs, where it cannot be asked
    #[arg(long = "for", value_name = "VERSION")]
    version: Option<Version>,
    /// Do it
    #[arg(long)]
    yes: bool,
}

pub async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let target = Whom { users: vec![args.user.clone()] }.targets(config)?.remove(0);
    if let Some(finding) = target.withheld {
        anyhow::bail!(
            "the inventory contradicts itself about {} ({finding}); see `t3-prober check`",
            args.user
        );
    }
    let instance = instance_of(&target);
    let running = running_version(&instance).await;
    let version = running.or_else(|| args.version.clone());
    if args.auth_only {
        repair(&args, config, &instance, version).await
    } else {
        let by_hand = ByHand { ask: &ask, given_up: CancellationToken::new() };
        let given_up = by_hand.given_up.clone();
        if !args.yes {
            return full(&args, config, &instance, version, by_hand).await;
        }
        tokio::select! {
            done = full(&args, config, &instance, version, by_hand) => done,
            insisted = insisted(&given_up) => {
                insisted?;
                anyhow::bail!("ended where it was; `t3-prober backup restore {} --yes` undoes it", args.user)
            }
        }
    }
}

async fn repair(
    args: &Args,
    config: &Config,
    instance: &Instance,
    version: Option<Version>,
) -> anyhow::Result<ExitCode> {
    let hands = hands(config, instance)?;
    let Present { level: found, fingerprint: before, .. } =
        hands.look(instance, Fingerprint::default()).await?;
    let wanted = repair::applies(&found, version.as_ref())?;
    let (name, version) = (&instance.name, version.context(repair::Refusal::VersionUnknown)?);
    println!(
        "{name}: the database is at level {} ({}), t3 {version} needs {wanted}; it holds {before}",
        found.level, found.name
    );
    println!(
        "{name}: the authentication tables are made anew at level {wanted}; everybody logs in anew, no history is lost"
    );
    if !args.yes {
        return Ok(dry());
    }
    let _alone = alone(config, true)?;
    let clock = Instant::now();
    let mut kept = None;
    for done in duty(config, instance, &hands).take().await {
        tell_serve(config, &done.run);
        if let Some(failure) = done.run.failure {
            anyhow::bail!("nothing was changed: {}", failure.detail);
        }
        kept = done.run.snapshot;
    }
    println!("{name}: the state before is kept as {}", kept.as_deref().unwrap_or_default());
    let failure = match hands.repair(instance, version).await {
        Err(failure) => {
            println!("{name}: nothing was changed: {}", failure.detail);
            Some(failure.into())
        }
        Ok(()) => match log_in(config, instance).await {
            Ok(how) => {
                println!("{name}: repaired; {how}; {}", holds(&hands, instance).await);
                None
            }
            Err(failure) => {
                println!("{name}: repaired, but nobody can log in: {}", failure.detail);
                Some(BackupFailure { step: Some(RestoreStep::Prove), ..failure.into() })
            }
        },
    };
    Ok(end(config, instance, BackupAct::AuthOnly, clock, kept, failure))
}

/// What the database holds now, counted anew: what is promised of a restore is to be seen.
async fn holds(hands: &impl Hands, instance: &Instance) -> String {
    match hands.look(instance, Fingerprint::default()).await {
        Ok(Present { fingerprint, .. }) => format!("the database holds {fingerprint}"),
        Err(failure) => format!("what the database holds cannot be told: {}", failure.detail),
    }
}

/// Tells the service how it ended, and answers the exit code.
fn end(
    config: &Config,
    instance: &Instance,
    act: BackupAct,
    clock: Instant,
    snapshot: Option<String>,
    failure: Option<BackupFailure>,
) -> ExitCode {
    let exit = if failure.is_none() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) };
    let user = instance.name.clone();
    let duration = clock.elapsed();
    tell_serve(config, &BackupRun { user, act, at: SystemTime::now(), duration, snapshot, failure });
    exit
}

async fn full(
    args: &Args,
    config: &Config,
    instance: &Instance,
    version: Option<Version>,
    by_hand: ByHand<'_>,
) -> anyhow::Result<ExitCode> {
    // Before anything else: what another restore has half done is not cut off, it is under way.
    let _alone = alone(config, args.yes)?;
    let tree = Tree::new(&config.backup, &instance.name);
    if let Some(cut_off) = Journal::read(&tree)? {
        let (name, step, of) = (&instance.name, cut_off.step, cut_off.snapshot.clone());
        let ago = SystemTime::now().duration_since(cut_off.began).unwrap_or_default();
        let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
        println!(
            "{name}: an earlier restore, from {of}, was cut off at {step} {ago} ago; it is undone first,"
        );
        println!("{name}: and what has been written to its copy since is put aside");
        if !args.yes {
            return Ok(dry());
        }
        let undone = cut_off.undo(&config.backup, instance, SystemTime::now(), Some(by_hand.clone())).await;
        match undone.context("the restore that was cut off is not undone")? {
            None => println!("{name}: the former state is back in its place"),
            Some(since) => println!(
                "{name}: the former state is back in its place; what ran meanwhile lies in {}",
                since.display()
            ),
        }
    }
    let now = SystemTime::now();
    let hands = hands(config, instance)?;
    let snapshot = match &args.from {
        Some(name) => {
            tree.find(name)?.with_context(|| format!("no snapshot '{name}'; see `t3-prober backup list`"))?
        }
        None => match newest(&tree, version.as_ref())? {
            Some(newest) => newest,
            None => anyhow::bail!(without_snapshot(&hands, instance, version.as_ref()).await),
        },
    };
    print!("{}", Plan::of(&config.backup, instance, &hands, &snapshot, version.as_ref(), now).await?);
    if !args.yes {
        return Ok(dry());
    }
    let clock = Instant::now();
    // What is seen of the database meanwhile is announced.
    let pauses = config.state_dir.join("pauses.json");
    pause::for_work(&pauses, &instance.name, LONGEST, PAUSE);
    let (section, by_hand) = (&config.backup, Some(by_hand));
    let restore = Restore { section, instance, snapshot: &snapshot, version, now, by_hand };
    let mut how = String::new();
    let restored = restore
        .run(&hands, async |instance| {
            how = log_in(config, instance).await?;
            Ok(())
        })
        .await;
    pause::work_is_over(&pauses, &instance.name, PAUSE);
    let failure = match restored {
        Ok(restored) => {
            println!("{}: restored; {how}; {}", instance.name, holds(&hands, instance).await);
            if let Some(aside) = restored.aside {
                println!("{}: the former state lies in {}", instance.name, aside.display());
            }
            None
        }
        Err(failed) => {
            println!("{}: not restored: {failed}", instance.name);
            let NotRestored { step, failure, .. } = failed;
            Some(BackupFailure { step: Some(step), ..failure.into() })
        }
    };
    Ok(end(config, instance, BackupAct::Restore, clock, Some(snapshot.name()), failure))
}

/// The newest snapshot that the instance's version can use: one that is proven rather than one that is only verified, which
/// after the outage may be of the database as it was then.
fn newest(tree: &Tree, version: Option<&Version>) -> anyhow::Result<Option<Snapshot>> {
    let expected = version.and_then(SchemaLevel::expected);
    let fits = |snapshot: &Snapshot| {
        let level = snapshot.manifest.as_ref().map(|manifest| manifest.level.level);
        level.is_some_and(|level| expected.is_none_or(|expected| level <= expected))
    };
    let mut fitting: Vec<_> = tree.list()?.into_iter().filter(fits).collect();
    let proven = fitting.iter().rposition(Snapshot::is_proven);
    Ok(match proven.or_else(|| fitting.iter().rposition(Snapshot::is_verified)) {
        Some(at) => Some(fitting.swap_remove(at)),
        None => fitting.pop(),
    })
}

/// That there is nothing to restore from, and what helps all the same.
async fn without_snapshot(hands: &impl Hands, instance: &Instance, version: Option<&Version>) -> String {
    let none = "there is no snapshot that this version could use; see `t3-prober backup list`";
    let repairable = match hands.look(instance, Fingerprint::default()).await {
        Ok(Present { level, .. }) => repair::applies(&level, version).is_ok(),
        Err(_) => false,
    };
    if !repairable {
        return none.to_owned();
    }
    let user = &instance.name;
    format!(
        "{none}. None is needed: t3-prober backup restore {user} --auth-only --yes repairs the login and loses nothing"
    )
}

/// The lock of whatever stops and starts instances. Whoever only looks is told of it, and need not be able to take it.
fn alone(config: &Config, to_act: bool) -> anyhow::Result<Option<Lock>> {
    match lock::claim(&config.state_dir) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            anyhow::bail!("an upgrade or another restore is at work; try again when it has ended")
        }
        Err(_) if !to_act => Ok(None),
        Err(error) => Err(error).context("cannot take the lock of upgrades"),
    }
}

/// Whoever gave the command is there to be asked.
fn ask(what: &str) {
    println!("{what}");
}

/// Ctrl-C and its like end the waiting, and what was done is undone. Answers when somebody insists.
async fn insisted(given_up: &CancellationToken) -> anyhow::Result<()> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut hangup = listen(SignalKind::hangup())?;
    for _ in 0..2 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        if !given_up.is_cancelled() {
            given_up.cancel();
            eprintln!("told to stop: nothing is left half-way; once more ends it where it is");
        }
    }
    Ok(())
}

fn dry() -> ExitCode {
    println!("dry run: nothing was done; add --yes to do it");
    ExitCode::SUCCESS
}

/// Proves that somebody can log in, and says how that was proven.
async fn log_in(config: &Config, instance: &Instance) -> Result<String, Failure> {
    let access = config.helper.access(&config.t3, &config.state_dir);
    // Running t3's command on a user's data as another account would leave files that break its owner.
    let as_owner = matches!(access, Access::Helper(..)) || instance.uid == nix::unistd::geteuid().as_raw();
    let shared = Shared::new(config.probe.clone(), config.t3.clone(), access);
    let pulse = Box::pin(shared.pulse(instance, &mut Memory::default(), Trigger::Demand)).await;
    decided(&pulse)?;
    if as_owner {
        let known = Known { withheld: None, pulsed: Some(pulse.outcome()) };
        let mut leftovers = Leftovers::default();
        let run = Box::pin(shared.handshake(instance, known, &mut leftovers, Trigger::Demand)).await;
        if run.outcome().ended() != Ended::Skipped {
            return decided(&run).map(|()| "somebody logged in".to_owned());
        }
    }
    Ok("the login endpoint works; no login was tried, as no t3 command may run".to_owned())
}

fn decided(run: &Run) -> Result<(), Failure> {
    let Some(step) = run.decided_by() else { return Ok(()) };
    let reason = match step.outcome {
        Outcome::Failed(reason) => reason,
        Outcome::Ok | Outcome::Skipped(_) => Reason::NotAuthenticated,
    };
    let detail = step.detail.as_deref().unwrap_or_default();
    Err(Failure::new(reason, format!("{} of {} is {}: {detail}", step.step, run.kind, step.outcome)))
}
