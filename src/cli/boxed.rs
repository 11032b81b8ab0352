//! What runs inside a box or as somebody else: a rehearsal, a drill, a look into a snapshot, another command. What it is
//! to do is one line on stdin, what came of it is on stdout, and it ends when whoever asked for it does.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::backup::{Reading, Trial};
use crate::gate::rehearsal;
use crate::t3::leash::Leash;

/// Far more than any orders.
const LONGEST_ORDERS: usize = 1 << 20;

/// One rehearsal of the gate.
pub fn rehearsal() -> anyhow::Result<ExitCode> {
    on_leash(async |orders| {
        answered(&rehearsal::run(understood(&orders)?).await.context("cannot work in the box")?)
    })
}

/// One drill.
pub fn drill() -> anyhow::Result<ExitCode> {
    on_leash(async |trial| answered(&understood::<Trial>(&trial)?.carry_out_in_box().await))
}

/// A look into a snapshot; no box is needed where it is done by whoever its data belongs to.
pub fn reading() -> anyhow::Result<ExitCode> {
    on_leash(async |reading| {
        let reading: Reading = understood(&reading)?;
        let read = tokio::task::spawn_blocking(move || reading.carry_out()).await?;
        answered(&read?)
    })
}

/// A command that knows nothing of a leash; its orders are an empty line.
pub fn command(words: &[String]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = words.split_first().context("no command")?;
    on_leash(async |_| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let status = command.status().await.with_context(|| format!("cannot run {program}"))?;
        // A signal has no code: whoever reads this one sees that it was not the command's own.
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::from(255), ExitCode::from))
    })
}

fn on_leash(work: impl AsyncFnOnce(Vec<u8>) -> anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut leash = Leash::on_stdin().context("cannot read the orders")?;
        let orders = leash.line(LONGEST_ORDERS).await.context("cannot read the orders")?;
        // Nothing at all, not even an empty line: they were gone before we began.
        let done = if orders.is_empty() { None } else { leash.during(work(orders)).await };
        done.unwrap_or_else(|| Err(anyhow!("nobody waits any more")))
    });
    // Nor is a thread waited for that is still reading a large file for somebody who has gone.
    runtime.shutdown_background();
    done
}

fn understood<T: DeserializeOwned>(orders: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(orders).context("the orders are not understood")
}

fn answered(found: &impl Serialize) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string(found)?);
    Ok(ExitCode::SUCCESS)
}
