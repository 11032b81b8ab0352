//! `backup take|list|verify|drill|due|restore`: snapshots of users' state, and proof that they restore.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Subcommand;

use super::exit;
use crate::backup::restore::Journal;
use crate::backup::{Done, Drilled, Duty, Snapshot, Tree};
use crate::config::Config;
use crate::helper::Rightful;
use crate::inventory::{self, Target};
use crate::outcome::{BackupAct, BackupRun, Flaw};
use crate::probe::instance_of;
use crate::spool::{self, Event, Spool};
use crate::t3::Instance;

mod restore;

#[derive(Subcommand)]
pub enum Command {
    /// Take a snapshot now, and verify it
    Take(Whom),
    /// What there is, and what is known of it
    List {
        #[command(flatten)]
        whom: Whom,
        /// Print JSON: {"snapshots": [...]}
        #[arg(long)]
        json: bool,
    },
    /// Look at every byte of the newest snapshot
    Verify {
        #[command(flatten)]
        whom: Whom,
        /// Every snapshot, not only the newest
        #[arg(long)]
        all: bool,
    },
    /// Restore the newest snapshot to a copy, log in to it and load the history
    Drill(Whom),
    /// Take, verify and drill whatever is due; for a timer
    Due(Whom),
    /// Put a snapshot back, or repair the login alone; without --yes only say what would happen
    Restore(restore::Args),
}

#[derive(clap::Args)]
pub struct Whom {
    /// Whose; everybody in the inventory when nobody is named
    users: Vec<String>,
}

pub async fn run(command: Command, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Take(whom) => each(&whom, config, Act::Take).await,
        Command::List { whom, json } => list(&whom, config, json),
        Command::Verify { whom, all } => each(&whom, config, Act::Verify { all }).await,
        Command::Drill(whom) => each(&whom, config, Act::Drill).await,
        Command::Due(whom) => each(&whom, config, Act::Due).await,
        Command::Restore(args) => Box::pin(restore::run(args, config)).await,
    }
}

impl Whom {
    fn targets(&self, config: &Config) -> anyhow::Result<Vec<Target>> {
        let inventory = inventory::read_once(&config.inventory).context("cannot read the inventory")?;
        if self.users.is_empty() {
            anyhow::ensure!(
                !inventory.targets().is_empty(),
                "the inventory names no user; see `t3-prober check`"
            );
            return Ok(inventory.targets().to_vec());
        }
        let find = |user: &String| {
            inventory.by_user(user).cloned().with_context(|| format!("no user '{user}' in the inventory"))
        };
        self.users.iter().map(find).collect()
    }
}

/// A take prunes, and a rollout that is under way relies on its copies.
fn nothing_is_under_way(config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(
        !crate::enforce::lock::is_busy(&config.state_dir),
        "a rollout or a restore is under way and takes its own snapshots; try again when it has ended"
    );
    Ok(())
}

/// What is done for each user.
#[derive(Clone, Copy)]
enum Act {
    Take,
    /// Whatever is due.
    Due,
    Verify {
        all: bool,
    },
    Drill,
}

/// For one after the other: whatever is wrong with one of them, the next one's turn comes.
async fn each(whom: &Whom, config: &Config, act: Act) -> anyhow::Result<ExitCode> {
    if matches!(act, Act::Take | Act::Due) {
        nothing_is_under_way(config)?;
    }
    let mut answers = Answers::default();
    for target in whom.targets(config)? {
        let user = target.user.as_str();
        if let Some(finding) = target.withheld {
            let what = format!("the inventory contradicts itself ({finding}); see `t3-prober check`");
            answers.bad(user, &what);
            continue;
        }
        let instance = instance_of(&target);
        let done = match hands(config, &instance) {
            Ok(hands) => one(&duty(config, &instance, &hands), config, act, &mut answers).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            answers.bad(user, &format!("{error:#}"));
        }
    }
    Ok(answers.exit())
}

async fn one(
    duty: &Duty<'_, Rightful<'_>>,
    config: &Config,
    act: Act,
    answers: &mut Answers,
) -> anyhow::Result<()> {
    let user = duty.instance.name.as_str();
    let done = match act {
        Act::Take => duty.take().await,
        Act::Due => duty.due(SystemTime::now()).await?,
        Act::Verify { all } => {
            for path in duty.tree().half_written()? {
                let what = format!("{} is left of a take that was killed", path.display());
                answers.bad(user, &format!("{what} [{}]", Flaw::HalfWritten));
            }
            let snapshots = duty.tree().list()?;
            let first = if all { 0 } else { snapshots.len().saturating_sub(1) };
            if snapshots.is_empty() {
                answers.nothing(user, "there is no snapshot");
            }
            let mut done = Vec::new();
            for snapshot in snapshots.into_iter().skip(first) {
                done.push(duty.verify(snapshot).await);
            }
            done
        }
        Act::Drill => match duty.tree().list()?.pop() {
            Some(snapshot) => vec![duty.drill(snapshot).await],
            None => {
                answers.nothing(user, "there is no snapshot");
                Vec::new()
            }
        },
    };
    done.iter().for_each(|done| answers.told(config, done));
    Ok(())
}

fn duty<'a>(config: &'a Config, instance: &'a Instance, hands: &'a Rightful<'a>) -> Duty<'a, Rightful<'a>> {
    Duty { section: &config.backup, t3: &config.t3, instance, hands }
}

/// Root gives itself up before it touches anything of a user's.
fn hands<'a>(config: &'a Config, instance: &Instance) -> anyhow::Result<Rightful<'a>> {
    Rightful::of(config, instance).map_err(|why| anyhow::anyhow!("cannot act as {}: {why}", instance.name))
}

/// A service that runs takes what was done into its metrics; without one there is no spool, and nobody to tell.
fn tell_serve(config: &Config, run: &BackupRun) {
    let dir = config.state_dir.join("spool");
    if dir.is_dir()
        && let Err(error) = Spool::new(dir, spool::Limits::default()).put(&Event::Backup(run.clone()))
    {
        tracing::warn!(%error, "what was done is not in the metrics");
    }
}

fn list(whom: &Whom, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let (mut all, mut text) = (Vec::new(), String::new());
    let mut failed = false;
    for target in whom.targets(config)? {
        let user = target.user.as_str();
        match listed(user, config, &mut text) {
            Ok(snapshots) => all.extend(snapshots.iter().map(|snapshot| {
                serde_json::json!({
                    "user": user, "name": snapshot.name(), "manifest": snapshot.manifest, "proof": snapshot.proof,
                })
            })),
            Err(error) => {
                failed = true;
                let _ = writeln!(text, "{user}: {error:#}");
            }
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "snapshots": all }))?);
    } else {
        print!("{text}");
    }
    Ok(match (failed, all.is_empty()) {
        (true, _) => ExitCode::from(exit::FAILED),
        (false, true) => ExitCode::from(exit::UNKNOWN),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// One user's snapshots, each with its line.
fn listed(user: &str, config: &Config, text: &mut String) -> anyhow::Result<Vec<Snapshot>> {
    let tree = Tree::new(&config.backup, user);
    for path in tree.half_written().context("cannot list snapshots")? {
        let _ = writeln!(text, "{user}: {} [{}]", path.display(), Flaw::HalfWritten);
    }
    if let Some(cut_off) = Journal::read(&tree)? {
        let step = cut_off.step;
        let _ = writeln!(
            text,
            "{user}: a restore was cut off at {step}; `t3-prober backup restore {user} --yes` undoes it first"
        );
    }
    let snapshots = tree.list().context("cannot list snapshots")?;
    for snapshot in &snapshots {
        let _ = writeln!(text, "{user}: {}", told(snapshot));
    }
    Ok(snapshots)
}

/// One line about a snapshot.
fn told(snapshot: &Snapshot) -> String {
    let Some(manifest) = &snapshot.manifest else {
        return format!("{} [{}]", snapshot.name(), Flaw::Manifest);
    };
    let proof = match &snapshot.proof.verified {
        None => "not verified".to_owned(),
        Some(verified) => match verified.flaw {
            None => "verified".to_owned(),
            Some(flaw) => format!("does not restore: {flaw}"),
        },
    };
    let drill = match &snapshot.proof.drilled {
        None => String::new(),
        Some(Drilled { failure: Some(failure), .. }) => format!(", drill failed at {}", failure.step),
        Some(drilled) => format!(", {}", measured(drilled)),
    };
    format!(
        "{} level {}, {}, {:.1} MB in {:.1} s, {proof}{drill}",
        snapshot.name(),
        manifest.level.level,
        manifest.fingerprint,
        manifest.bytes as f64 / 1e6,
        manifest.took.as_secs_f64(),
    )
}

fn measured(drilled: &Drilled) -> String {
    let version = drilled.version.as_ref().map(ToString::to_string).unwrap_or_default();
    let boxed = if drilled.boxed { "boxed" } else { "not boxed" };
    let rpo = humantime::format_duration(Duration::from_secs(drilled.rpo.as_secs()));
    format!("restored in {:.1} s with t3 {version} ({boxed}), {rpo} old", drilled.restore.as_secs_f64())
}

/// A line for every user, and one exit code for all.
#[derive(Default)]
struct Answers {
    failed: bool,
    unknown: bool,
}

impl Answers {
    /// Says how an act ended, here and to the service.
    fn told(&mut self, config: &Config, Done { run, snapshot }: &Done) {
        tell_serve(config, run);
        match (&run.failure, snapshot) {
            (Some(failure), _) => {
                let step = failure.step.map(|step| format!("{step}: ")).unwrap_or_default();
                self.bad(&run.user, &format!("{step}{} [{}]", failure.detail, failure.reason));
            }
            // Its verification, which follows, speaks for both.
            (None, Some(_)) if run.act == BackupAct::Take => {}
            (None, Some(snapshot)) => println!("{}: {}", run.user, told(snapshot)),
            (None, None) => {}
        }
    }

    fn bad(&mut self, user: &str, line: &str) {
        self.failed = true;
        println!("{user}: {line}");
    }

    fn nothing(&mut self, user: &str, line: &str) {
        self.unknown = true;
        println!("{user}: {line}");
    }

    fn exit(&self) -> ExitCode {
        if self.failed {
            ExitCode::from(exit::FAILED)
        } else if self.unknown {
            ExitCode::from(exit::UNKNOWN)
        } else {
            ExitCode::SUCCESS
        }
    }
}
