//! `enforce`: bring a build to everybody, or everybody back. The exit code is the answer: 0 done or nothing to do,
//! 1 rolled back, 3 held or waiting, 4 error or told to stop, 6 the rollback failed.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{Config, Source};
use crate::enforce::{self, Request};
use crate::outcome::End;
use crate::t3::version::Version;

#[derive(clap::Args)]
pub struct Args {
    /// This version and no other, for this run; it may be older, and one that was rolled back before
    #[arg(long, value_name = "VERSION", conflicts_with = "drain")]
    to: Option<Version>,
    /// Only bring those who were left behind to the build that is proven here
    #[arg(long)]
    drain: bool,
    /// How long to wait for those who are busy
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    wait: Duration,
    /// Leave this user behind, visibly (may be repeated)
    #[arg(long, value_name = "USER")]
    except: Vec<String>,
    /// Give users a build from which there is no way back, as where their databases are ahead of what runs
    #[arg(long)]
    forward_fix: bool,
    /// Bring everybody back whom an unfinished rollout has moved, and freeze, as if the build had broken
    #[arg(long, conflicts_with_all = ["to", "drain", "wait", "except", "forward_fix"])]
    back: bool,
    /// Only print the plan, and how long it would take
    #[arg(long)]
    dry_run: bool,
}

/// Also where it comes to its end before it can begin: its exit codes are its own, and no end of it is silent.
pub fn start(args: Args, mut source: Source) -> ExitCode {
    let is_dry = args.dry_run;
    let never_began = |detail: String, state_dir: &Path| {
        if !is_dry {
            enforce::never_began(detail, state_dir);
        }
    };
    let config = match Config::load(&mut source) {
        Ok(config) => config,
        Err(refused) => {
            eprintln!("{refused}");
            let detail =
                format!("the configuration {} is refused; t3-prober check says why", source.path().display());
            never_began(detail, &source.state_dir());
            return ExitCode::from(super::exit::CONFIG);
        }
    };
    let work = async |config: Config| Ok(Box::pin(run(args, &config, source.path())).await);
    super::within_runtime(&config, work).unwrap_or_else(|error| {
        eprintln!("t3-prober: {error:#}");
        never_began(format!("it cannot begin: {error:#}"), &config.state_dir);
        ExitCode::from(End::Error.code())
    })
}

async fn run(args: Args, config: &Config, config_file: &Path) -> ExitCode {
    let Args { to, drain, wait, except, forward_fix, back, dry_run } = args;
    let is_dry = dry_run;
    let request = Request { to, drain, wait, except, forward_fix, back, dry_run };
    let config_file = config_file.exists().then_some(config_file);
    let report = enforce::run(&request, config, config_file, &say).await;
    let word = report.hold.map_or_else(|| report.end.to_string(), |hold| format!("{}: {hold}", report.end));
    // What would be done has no end yet.
    let is_plan = is_dry && report.end == End::NothingToDo;
    say(&if is_plan { report.detail.clone() } else { format!("{} [{word}]", report.detail) });
    match report.end {
        End::RollbackFailed => tracing::error!(
            detail = report.detail,
            "THE ROLLBACK FAILED: somebody is without a working t3; look at once"
        ),
        End::RolledBack | End::Error => tracing::error!(detail = report.detail, "{}", report.end.meaning()),
        End::Held | End::Interrupted | End::Killed => {
            tracing::warn!(detail = report.detail, "{}", report.end.meaning());
        }
        End::Done | End::NothingToDo | End::Waiting => {}
    }
    ExitCode::from(report.end.code())
}

/// A rollback does not end half-way because nobody reads any more what it says.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
