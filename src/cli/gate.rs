//! `gate` and `verdict`: judge a build, say what is known of one. The exit code is the answer: 0 pass, 1 fail,
//! 3 inconclusive, 4 error, 5 no verdict about the present situation.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::exit;
use crate::backup;
use crate::config::Config;
use crate::gate::evidence::{Evidence, Trouble};
use crate::gate::rehearsal::{self, Orders};
use crate::gate::{self, Request, Setting, Wanted};
use crate::inventory::{self, Target};
use crate::outcome::{Grounds, Verdict};
use crate::probe::instance_of;
use crate::t3::Instance;
use crate::t3::state;
use crate::t3::version::Version;
use crate::verdict::{self, Binding, Covered, Document, Policy, Present};

/// The gate's own exit codes.
const INCONCLUSIVE: u8 = 3;
const NO_VERDICT: u8 = 5;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("candidate").required(true).args(["version", "bin"])))]
pub struct Args {
    /// The version to judge; it is installed aside where it is not installed yet
    version: Option<Version>,
    /// The program to judge, instead of a version
    #[arg(long, value_name = "PATH")]
    bin: Option<PathBuf>,
    /// The known-good build to compare with, a version or a path [default: `[gate] control`, else `[t3] command`]
    #[arg(long, value_name = "VERSION|PATH")]
    control: Option<String>,
    /// Whose data to rehearse on (may be repeated) [default: everybody's]
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,
    /// A database to rehearse on, instead of the users'
    #[arg(long, value_name = "FILE", conflicts_with = "users")]
    seed: Option<PathBuf>,
    /// Print the verdict's document
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct VerdictArgs {
    /// The version; without it, the newest verdict of each
    version: Option<Version>,
    /// Print the verdict's document
    #[arg(long)]
    json: bool,
}

/// Rehearses, judges, keeps the verdict and says it. Whatever goes wrong here is an error and never a fail.
pub async fn run(args: Args, config: &Config) -> ExitCode {
    said(judge_and_keep(&args, config).await)
}

fn said(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("t3-prober: {error:#}");
        ExitCode::from(exit::UNKNOWN)
    })
}

async fn judge_and_keep(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let document = judged(args, config).await?;
    // A verdict that is not kept is said all the same, and the enforcer asks for the kept one.
    if !document.candidate.version.is_empty() {
        verdict::store(&config.state_dir, &document).context("cannot keep the verdict")?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{}", document.report());
    }
    Ok(ExitCode::from(code(document.verdict)))
}

async fn judged(args: &Args, config: &Config) -> anyhow::Result<Document> {
    let candidate = match (&args.version, &args.bin) {
        (Some(version), _) => Wanted::Version(version.clone()),
        (None, Some(bin)) => Wanted::Program(bin.clone()),
        (None, None) => anyhow::bail!("name a version, or a program with --bin"),
    };
    let name = candidate.to_string();
    let users = if args.seed.is_some() { Ok(Vec::new()) } else { covered(&args.users, config) };
    let evidence = match users {
        Ok(users) => {
            let request =
                Request { candidate, control: args.control.clone(), users, seed: args.seed.clone() };
            let quiet = args.json || !std::io::stderr().is_terminal();
            let progress = |line: &str| {
                if quiet {
                    tracing::info!("{line}");
                } else {
                    eprintln!("{line}");
                }
            };
            gate::run(&request, &setting(config), &progress).await
        }
        Err(error) => Evidence {
            candidate: gate::evidence::Build { name, version: version_of(args), ..Default::default() },
            control: gate::evidence::Build::default(),
            boxed: false,
            seeds: Vec::new(),
            trouble: vec![Trouble {
                grounds: Grounds::NoSeed,
                seed: None,
                rehearsal: None,
                detail: format!("{error:#}"),
            }],
        },
    };
    let section = &config.gate;
    let policy =
        Policy { boxed: section.require_box, backup_age: section.backup_age, valid_for: section.valid_for };
    let bound_to = Binding {
        program: program(),
        config: digest(config),
        users: evidence.seeds.iter().filter_map(|seed| Covered::of(&seed.seed)).collect(),
    };
    Ok(verdict::judge(evidence, &policy, bound_to, SystemTime::now()))
}

fn version_of(args: &Args) -> String {
    args.version.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn setting(config: &Config) -> Setting<'_> {
    let backup: &backup::Section = &config.backup;
    Setting { gate: &config.gate, t3: &config.t3, backup, state_dir: &config.state_dir }
}

/// The users whose data counts.
fn covered(names: &[String], config: &Config) -> anyhow::Result<Vec<Instance>> {
    let inventory = inventory::read_once(&config.inventory).context(
        "cannot read the inventory, so nobody's data can be rehearsed; name a database with --seed",
    )?;
    if names.is_empty() {
        return Ok(inventory.targets().iter().map(instance_of).collect());
    }
    let find = |user: &String| {
        let target: Option<&Target> = inventory.by_user(user);
        target.map(instance_of).with_context(|| format!("no user '{user}' in the inventory"))
    };
    names.iter().map(find).collect()
}

/// `verdict [VERSION]`.
pub async fn verdict(args: VerdictArgs, config: &Config) -> ExitCode {
    said(kept(&args, config).await)
}

async fn kept(args: &VerdictArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let Some(version) = &args.version else {
        let documents = verdict::recent(&config.state_dir);
        for document in &documents {
            println!(
                "{}: {} [{}]: {}",
                document.candidate.version, document.verdict, document.grounds, document.summary
            );
        }
        return Ok(if documents.is_empty() { ExitCode::from(NO_VERDICT) } else { ExitCode::SUCCESS });
    };
    let document = match verdict::load(&config.state_dir, &version.to_string()) {
        Ok(document) => document,
        Err(not_kept) => {
            eprintln!("t3-prober: {:#}", anyhow::Error::new(not_kept));
            return Ok(ExitCode::from(NO_VERDICT));
        }
    };
    let elsewhere = document.elsewhere(&present(config, version).await);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{}", document.report());
    }
    if let Some((word, sentence)) = elsewhere {
        eprintln!("t3-prober: this verdict does not hold any more: {sentence} [{word}]; run the gate again");
        return Ok(ExitCode::from(NO_VERDICT));
    }
    Ok(ExitCode::from(code(document.verdict)))
}

/// The situation that a verdict about `version` is asked in.
async fn present(config: &Config, version: &Version) -> Present {
    let mut users = Vec::new();
    // Without an inventory nobody can be left out; the gate itself says what is wrong with it.
    for instance in covered(&[], config).unwrap_or_default() {
        let level = state::level(&instance.database()).await.ok().map(|level| level.level.0);
        users.push((instance.name, level));
    }
    let beside = config.t3.installs.join(version.to_string()).join("bin/t3");
    let installed = gate::candidate::Found::at(&beside).await.ok().map(|found| found.build.integrity);
    Present { now: SystemTime::now(), program: program(), config: digest(config), users, installed }
}

fn program() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Over what the gate reads; the same text under the same version of this program, which a verdict is bound to as well.
fn digest(config: &Config) -> String {
    let read = format!("{:?} {:?}", config.gate, config.t3);
    let hex: String = Sha256::digest(read).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Fail => exit::FAILED,
        Verdict::Inconclusive => INCONCLUSIVE,
        Verdict::Error => exit::UNKNOWN,
    }
}

/// The hidden half of `gate`, inside the box: orders on stdin, evidence on stdout.
pub fn driver() -> anyhow::Result<ExitCode> {
    let mut orders = String::new();
    std::io::stdin().read_to_string(&mut orders).context("cannot read the orders")?;
    let orders: Orders = serde_json::from_str(&orders).context("the orders are not understood")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rehearsed = runtime.block_on(rehearsal::run(orders)).context("cannot work in the box")?;
    println!("{}", serde_json::to_string(&rehearsed)?);
    Ok(ExitCode::SUCCESS)
}
