//! `probe [USER…]`: one pulse, one handshake and, where there is a front door, one visit now, every step with its time.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::task::JoinSet;

use super::exit;
use crate::config::Config;
use crate::dispatch::Keys;
use crate::inventory::{self, Target};
use crate::operator::probe::text;
use crate::outcome::{Ended, Run, Trigger};
use crate::probe::front::Kept;
use crate::probe::handshake::Leftovers;
use crate::probe::instance_of;
use crate::probe::prober::{Known, Shared};
use crate::probe::pulse::Memory;
use crate::spool::{self, Event, Spool};
use crate::t3::door::Door;

#[derive(clap::Args)]
pub struct Args {
    /// Whom to probe; everybody in the inventory when nobody is named
    users: Vec<String>,
    /// Print JSON: {"runs": [...]}
    #[arg(long)]
    json: bool,
}

/// Exit 0 when all is well, 1 when a step failed, 4 when nothing failed and something could not be told.
pub async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let inventory = inventory::read_once(&config.inventory).context("cannot read the inventory")?;
    let targets: Vec<Target> = if args.users.is_empty() {
        inventory.targets().to_vec()
    } else {
        let find = |user: &String| {
            inventory.by_user(user).cloned().with_context(|| format!("no user '{user}' in the inventory"))
        };
        args.users.iter().map(find).collect::<Result<_, _>>()?
    };
    anyhow::ensure!(!targets.is_empty(), "the inventory names no user; see `t3-prober check`");
    let access = config.helper.access(&config.t3, &config.state_dir);
    let shared = Shared::new(config.probe.clone(), config.t3.clone(), access).behind(door(config));
    let shared = Arc::new(shared);
    let mut probes = JoinSet::new();
    for target in targets {
        probes.spawn(probe(target, shared.clone()));
    }
    let mut runs: Vec<Run> = probes.join_all().await.into_iter().flatten().collect();
    runs.sort_by(|one, other| one.user.cmp(&other.user).then(one.kind.cmp(&other.kind)));
    tell_serve(&config.state_dir, &runs);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "runs": runs }))?);
    } else {
        for run in &runs {
            print!("{}", text(run));
        }
    }
    let any = |ended: Ended| runs.iter().any(|run| run.outcome().ended() == ended);
    Ok(if any(Ended::Failed) {
        ExitCode::from(exit::FAILED)
    } else if any(Ended::Skipped) {
        ExitCode::from(exit::UNKNOWN)
    } else {
        ExitCode::SUCCESS
    })
}

/// The way in that `[probe] front` names; where its keys are closed to whoever asks, nobody goes there.
fn door(config: &Config) -> Option<Door> {
    let address = config.probe.front?;
    let door = Keys::read(&config.dispatch).and_then(|keys| keys.door(address, &config.probe.front_uids));
    door.inspect_err(|error| eprintln!("t3-prober: the front door is not visited: {error:#}")).ok()
}

async fn probe(target: Target, shared: Arc<Shared>) -> Vec<Run> {
    let instance = instance_of(&target);
    let pulse = shared.pulse(&instance, &mut Memory::default(), Trigger::Demand).await;
    let known = Known { withheld: target.withheld, pulsed: Some(pulse.outcome()) };
    let handshake = shared.handshake(&instance, known, &mut Leftovers::default(), Trigger::Demand).await;
    let mut runs = vec![pulse, handshake];
    if shared.has_a_door() {
        let mut kept = Kept::once();
        runs.push(shared.visit(&instance, &target.identity, known, &mut kept, Trigger::Demand).await);
        shared.leave(&instance, &mut kept).await;
    }
    runs
}

/// A service that runs takes the outcomes into its metrics; without one there is no spool, and nobody to tell.
fn tell_serve(state_dir: &Path, runs: &[Run]) {
    let dir = state_dir.join("spool");
    if dir.is_dir() {
        let spool = Spool::new(dir, spool::Limits::default());
        for run in runs {
            if let Err(error) = spool.put(&Event::Run(run.clone())) {
                tracing::warn!(%error, "the outcome is not in the metrics");
            }
        }
    }
}
