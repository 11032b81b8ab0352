//! `backup take|list|verify|drill|due|restore`: snapshots of users' state, and proof that they restore.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Subcommand;

use super::exit;
use crate::backup::{self, Defect, Drilled, Due, Snapshot, Tree};
use crate::config::Config;
use crate::inventory::{self, Target};
use crate::outcome::{Failure, Flaw};
use crate::probe::instance_of;
use crate::t3::http::Client;
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;
use crate::t3::{Instance, descriptor};

mod restore;

/// How long an instance is asked for its version; a stopped one refuses at once.
const PATIENCE: Duration = Duration::from_secs(2);

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
        Command::Take(whom) => take(&whom, config).await,
        Command::List { whom, json } => list(&whom, config, json),
        Command::Verify { whom, all } => verify(&whom, config, all),
        Command::Drill(whom) => drill(&whom, config).await,
        Command::Due(whom) => due(&whom, config).await,
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

async fn take(whom: &Whom, config: &Config) -> anyhow::Result<ExitCode> {
    let mut answers = Answers::default();
    for target in whom.targets(config)? {
        take_one(&target, config, &mut answers).await;
    }
    Ok(answers.exit())
}

async fn take_one(target: &Target, config: &Config, answers: &mut Answers) -> bool {
    let instance = instance_of(target);
    let version = running_version(&instance).await;
    let taken = take_and_prove(config, &instance, version).await;
    match &taken {
        Ok(snapshot) => answers.good(target, &told(snapshot)),
        Err(failure) => answers.bad(target, &failure.detail),
    }
    taken.is_ok()
}

/// Whatever is due for each user. After a take comes its verification, and after that its drill.
async fn due(whom: &Whom, config: &Config) -> anyhow::Result<ExitCode> {
    let mut answers = Answers::default();
    for target in whom.targets(config)? {
        let tree = Tree::new(&config.backup, target.user.as_str());
        for _ in 0..3 {
            let mut snapshots = tree.list()?;
            let went_well = match backup::due(&config.backup, &snapshots, SystemTime::now()) {
                None => false,
                Some(Due::Take) => take_one(&target, config, &mut answers).await,
                Some(Due::Verify) => match snapshots.last_mut() {
                    Some(newest) => prove_one(&target, newest, &mut answers)?,
                    None => false,
                },
                Some(Due::Drill) => match snapshots.last_mut() {
                    Some(newest) => drill_one(&target, config, newest, &mut answers).await?,
                    None => false,
                },
            };
            if !went_well {
                break;
            }
        }
    }
    Ok(answers.exit())
}

/// A snapshot that was found to be whole.
async fn take_and_prove(
    config: &Config,
    instance: &Instance,
    version: Option<Version>,
) -> Result<Snapshot, Failure> {
    let (section, instance) = (config.backup.clone(), instance.clone());
    let work = move || {
        let mut snapshot = backup::take(&section, &instance, version.as_ref(), SystemTime::now())?;
        let answer = backup::prove(&mut snapshot, SystemTime::now())?;
        answer.map_err(|defect| defect.as_failure(&snapshot.name()))?;
        Ok(snapshot)
    };
    let work = tokio::task::spawn_blocking(work).await;
    work.unwrap_or_else(|error| {
        Err(Failure::new(crate::outcome::Reason::Panicked, format!("taking a snapshot: {error}")))
    })
}

fn list(whom: &Whom, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let mut all = Vec::new();
    let mut text = String::new();
    for target in whom.targets(config)? {
        let tree = Tree::new(&config.backup, target.user.as_str());
        for path in tree.half_written().context("cannot list snapshots")? {
            let _ = writeln!(text, "{}: {} [{}]", target.user, path.display(), Flaw::HalfWritten);
        }
        for snapshot in tree.list().context("cannot list snapshots")? {
            let _ = writeln!(text, "{}: {}", target.user, told(&snapshot));
            all.push(serde_json::json!({
                "user": target.user, "name": snapshot.name(), "manifest": snapshot.manifest, "proof": snapshot.proof,
            }));
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "snapshots": all }))?);
    } else {
        print!("{text}");
    }
    Ok(if all.is_empty() { ExitCode::from(exit::UNKNOWN) } else { ExitCode::SUCCESS })
}

fn verify(whom: &Whom, config: &Config, all: bool) -> anyhow::Result<ExitCode> {
    let mut answers = Answers::default();
    for target in whom.targets(config)? {
        let tree = Tree::new(&config.backup, target.user.as_str());
        for path in tree.half_written()? {
            answers.bad(
                &target,
                &format!("{} is left of a take that was killed [{}]", path.display(), Flaw::HalfWritten),
            );
        }
        let mut snapshots = tree.list()?;
        if !all {
            snapshots = snapshots.pop().into_iter().collect();
        }
        if snapshots.is_empty() {
            answers.nothing(&target, "there is no snapshot");
        }
        for mut snapshot in snapshots {
            prove_one(&target, &mut snapshot, &mut answers)?;
        }
    }
    Ok(answers.exit())
}

async fn drill(whom: &Whom, config: &Config) -> anyhow::Result<ExitCode> {
    let mut answers = Answers::default();
    for target in whom.targets(config)? {
        let tree = Tree::new(&config.backup, target.user.as_str());
        let Some(mut snapshot) = tree.list()?.pop() else {
            answers.nothing(&target, "there is no snapshot");
            continue;
        };
        drill_one(&target, config, &mut snapshot, &mut answers).await?;
    }
    Ok(answers.exit())
}

fn prove_one(target: &Target, snapshot: &mut Snapshot, answers: &mut Answers) -> anyhow::Result<bool> {
    let proven = backup::prove(snapshot, SystemTime::now())?;
    match &proven {
        Ok(()) => answers.good(target, &told(snapshot)),
        Err(defect) => answers.bad(target, &defect.as_failure(&snapshot.name()).detail),
    }
    Ok(proven.is_ok())
}

async fn drill_one(
    target: &Target,
    config: &Config,
    snapshot: &mut Snapshot,
    answers: &mut Answers,
) -> anyhow::Result<bool> {
    let owner = instance_of(target).uid;
    let drilled = backup::drill(&config.backup, &config.t3, owner, snapshot, SystemTime::now()).await?;
    let name = snapshot.name();
    match &drilled.failure {
        None => answers.good(target, &format!("{name}: {}", measured(&drilled))),
        Some(failure) => {
            let (step, detail, reason) = (failure.step, &failure.detail, failure.reason);
            answers.bad(target, &format!("{name}: {step}: {detail} [{reason}]"));
        }
    }
    Ok(drilled.failure.is_none())
}

/// The version that answers on the instance's port; `None` where none does.
async fn running_version(instance: &Instance) -> Option<Version> {
    let trace = TraceContext::unsampled();
    let mut client = Client::new(instance, &trace);
    descriptor::read(&mut client, PATIENCE).await.ok().map(|descriptor| descriptor.version)
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
        "{} level {}, {} events, {} messages, {:.1} MB in {:.1} s, {proof}{drill}",
        snapshot.name(),
        manifest.level.level,
        manifest.fingerprint.events(),
        manifest.fingerprint.messages(),
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

impl Defect {
    fn as_failure(&self, name: &str) -> Failure {
        Failure::new(crate::outcome::Reason::Corrupt, format!("{name} does not restore: {self}"))
    }
}

/// A line for every user, and one exit code for all.
#[derive(Default)]
struct Answers {
    failed: bool,
    unknown: bool,
}

impl Answers {
    fn good(&mut self, target: &Target, line: &str) {
        println!("{}: {line}", target.user);
    }

    fn bad(&mut self, target: &Target, line: &str) {
        self.failed = true;
        println!("{}: {line}", target.user);
    }

    fn nothing(&mut self, target: &Target, line: &str) {
        self.unknown = true;
        println!("{}: {line}", target.user);
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
