//! `gate` and `verdict`: judge a build, say what is known of one. The exit code is the answer: 0 pass, 1 fail,
//! 3 inconclusive, 4 error, 5 no verdict about the present situation.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::exit;
use crate::config::Config;
use crate::docket::{self, Asked, Standing};
use crate::gate::Wanted;
use crate::outcome::{Elsewhere, Verdict};
use crate::t3::version::Version;
use crate::verdict;

/// The gate's own exit codes.
const INCONCLUSIVE: u8 = 3;
const NO_VERDICT: u8 = 5;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("candidate").required(true).args(["version", "bin", "due"])))]
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
    /// Judge what `serve` was asked for, and what the followed tag stands for, for a timer; exit 0 whatever is found
    #[arg(long, conflicts_with_all = ["control", "users", "seed", "json"])]
    due: bool,
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
pub async fn run(args: Args, config: &Config, source: &Path) -> ExitCode {
    if args.due {
        return said(docket::due::judge(config, source).await.map(|()| ExitCode::SUCCESS));
    }
    said(judged(args, config).await)
}

fn said(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("t3-prober: {error:#}");
        ExitCode::from(exit::UNKNOWN)
    })
}

async fn judged(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let candidate = match (args.version, args.bin) {
        (Some(version), _) => Wanted::Version(version),
        (None, Some(bin)) => Wanted::Program(bin),
        (None, None) => anyhow::bail!("name a version, or a program with --bin"),
    };
    let asked =
        Asked { control: args.control, users: args.users, seed: args.seed, ..Asked::about(candidate) };
    let quiet = args.json || !std::io::stderr().is_terminal();
    let progress = |line: &str| {
        if quiet {
            tracing::info!("{line}");
        } else {
            eprintln!("{line}");
        }
    };
    let document = docket::judge(&asked, config, &progress).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{}", document.report());
    }
    Ok(ExitCode::from(code(document.verdict)))
}

/// `verdict [VERSION]`.
pub async fn verdict(args: VerdictArgs, config: &Config) -> ExitCode {
    said(kept(&args, config).await)
}

async fn kept(args: &VerdictArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let Some(version) = &args.version else {
        let documents = verdict::recent(&config.state_dir, usize::MAX);
        for document in &documents {
            println!(
                "{}: {} [{}]: {}",
                document.candidate.version, document.verdict, document.grounds, document.summary
            );
        }
        return Ok(if documents.is_empty() { ExitCode::from(NO_VERDICT) } else { ExitCode::SUCCESS });
    };
    let standing = docket::standing(config, version).await;
    if let Some(document) = standing.document() {
        if args.json {
            println!("{}", serde_json::to_string_pretty(document)?);
        } else {
            print!("{}", document.report());
        }
    }
    match &standing {
        Standing::Holds(_) => {}
        Standing::Elsewhere { why: Elsewhere::CannotTell, detail, .. } => {
            eprintln!("t3-prober: whether this verdict still holds cannot be told: {detail}");
        }
        Standing::Elsewhere { why, detail, .. } => {
            eprintln!("t3-prober: this verdict does not hold any more: {detail} [{why}]; run the gate again");
        }
        Standing::Missing(detail) => eprintln!("t3-prober: {detail}"),
    }
    let without = if standing.is_unknown() { exit::UNKNOWN } else { NO_VERDICT };
    Ok(ExitCode::from(standing.verdict().map_or(without, code)))
}

fn code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Fail => exit::FAILED,
        Verdict::Inconclusive => INCONCLUSIVE,
        Verdict::Error => exit::UNKNOWN,
    }
}
