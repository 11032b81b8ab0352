//! `pause` and `resume`: planned absence, by a file that `serve` follows.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;

use crate::config::Config;
use crate::inventory;
use crate::pause::{Pause, Pauses};

#[derive(clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    whom: Whom,
    /// How long; it ends by itself
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    length: Duration,
    /// Why, for whoever looks at the page
    #[arg(long)]
    reason: String,
}

#[derive(clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    whom: Whom,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// One user
    user: Option<String>,
    /// Everybody
    #[arg(long)]
    all: bool,
}

pub fn pause(args: &PauseArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let now = SystemTime::now();
    let user = args.whom.known(config)?;
    let pause = Pause::new(user, now, args.length, &args.reason)?;
    let until = humantime::format_rfc3339_seconds(pause.until);
    let whom = args.whom.name();
    Pauses::change(&config.state_dir.join("pauses.json"), now, |pauses| pauses.add(pause))?;
    println!("{whom} paused until {until}: still probed and shown, no alert");
    Ok(ExitCode::SUCCESS)
}

pub fn resume(args: &ResumeArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let path = config.state_dir.join("pauses.json");
    let ended = Pauses::change(&path, SystemTime::now(), |pauses| pauses.remove(args.whom.user.as_deref()))?;
    let whom = args.whom.name();
    println!(
        "{}",
        if ended { format!("{whom} resumed") } else { format!("{whom} had no pause of their own") }
    );
    Ok(ExitCode::SUCCESS)
}

impl Whom {
    /// The user's name, `None` for everybody; a name that nobody has is a mistake worth hearing of now.
    fn known(&self, config: &Config) -> anyhow::Result<Option<String>> {
        if let Some(user) = &self.user {
            let inventory = inventory::read_once(&config.inventory).context("cannot read the inventory")?;
            anyhow::ensure!(inventory.by_user(user).is_some(), "no user '{user}' in the inventory");
        }
        Ok(self.user.clone())
    }

    fn name(&self) -> &str {
        self.user.as_deref().unwrap_or("everybody")
    }
}
