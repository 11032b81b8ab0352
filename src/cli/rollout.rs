//! `rollout`: how a build does that users have got. The exit code is the answer: 0 promote, 1 roll back, 3 hold, 4 could
//! not tell.

use std::process::ExitCode;

use super::exit;
use crate::config::Config;
use crate::docket::live;
use crate::outcome::Decision;
use crate::rollout::Judgement;
use crate::t3::version::Version;

const HOLD: u8 = 3;

#[derive(clap::Args)]
pub struct Args {
    /// The version that users have got
    version: Version,
    /// Print the judgement's document
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args, config: &Config) -> ExitCode {
    match live::asked(config, &args.version).await {
        Ok(judgement) => said(&judgement, args.json),
        Err(error) => {
            eprintln!("t3-prober: {error:#}");
            ExitCode::from(exit::UNKNOWN)
        }
    }
}

fn said(judgement: &Judgement, json: bool) -> ExitCode {
    let Judgement { version, decision, basis, detail, .. } = judgement;
    if json {
        println!("{}", serde_json::to_string_pretty(judgement).unwrap_or_default());
    } else {
        println!("{decision} [{basis}]: t3 {version}: {detail}");
        for (user, of_user) in &judgement.users {
            let (before, after) = (of_user.before, of_user.after);
            println!(
                "  {user:<20} {} of {} logins ok, before it {} of {}",
                after.ok,
                after.all(),
                before.ok,
                before.all()
            );
        }
    }
    match decision {
        Decision::Promote => ExitCode::SUCCESS,
        Decision::RollBack => ExitCode::from(exit::FAILED),
        Decision::Hold => ExitCode::from(HOLD),
    }
}
