//! The far side of `as_user`: a process of our own that becomes the user first and only then looks at anything of
//! theirs. What it is to do comes from the helper on stdin; what came of it is one line on stdout.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncRead;

use super::account::Account;
use crate::backup::restore::Present;
use crate::backup::{Copying, Trying, repair};
use crate::outcome::{Failure, NotDone, Reason};
use crate::t3::access::wire::Reply;
use crate::t3::boxed::Boxing;
use crate::t3::cli::Verb;
use crate::t3::guard::{Commands, Guard};
use crate::t3::http::Client;
use crate::t3::job::Job;
use crate::t3::leash::Leash;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;
use crate::t3::{self, Instance, state};

/// An errand and whose it is.
#[derive(Serialize, Deserialize)]
pub struct Errand {
    pub account: Account,
    pub instance: Instance,
    pub t3: t3::Section,
    pub task: Task,
}

#[derive(Serialize, Deserialize)]
pub enum Task {
    /// A verb of t3's command, under the mint guard.
    Command { verb: Verb, flags: Vec<String>, limit: Duration },
    /// A look at the database.
    Inspect,
    /// What a restore would replace: the database's level, and what was written to it since.
    Look(Fingerprint),
    /// The repair that makes only the authentication tables anew.
    Repair(Version),
    /// A consistent copy of the database, into a file that was made for it.
    Copy(Copying),
    /// A trial of a restored copy, in a box where one can be made.
    TryOut(Box<Trying>, Boxing),
    /// A command of the gate, mostly a box.
    Run(Box<Job>),
}

pub fn run() -> ExitCode {
    close_what_was_not_meant_for_us();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let reply = match runtime {
        Ok(runtime) => runtime.block_on(on_leash()),
        Err(error) => Some(Reply::refused(error.to_string())),
    };
    match reply.map(|reply| io::stdout().lock().write_all(&reply.line())) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(_)) | None => ExitCode::FAILURE,
    }
}

/// What came of the errand; `None` where the helper has ended, and with it whatever was begun.
async fn on_leash() -> Option<Reply> {
    let begun = async {
        let mut leash = Leash::on_stdin().map_err(|error| format!("cannot read the errand: {error}"))?;
        Ok::<_, String>((errand(&mut leash).await?, leash))
    };
    match begun.await {
        Ok((errand, mut leash)) => leash.during(perform(&errand)).await,
        Err(what) => Some(Reply::refused(what)),
    }
}

/// Whoever started the helper may have left a file open to it, and what is not marked is inherited by everybody after.
fn close_what_was_not_meant_for_us() {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The directory's own descriptor is among them, and closed already.
        let _ = nix::unistd::close(number);
    }
}

/// The errand, once we are who it is for.
async fn errand<R: AsyncRead + Unpin>(leash: &mut Leash<R>) -> Result<Errand, String> {
    const LONGEST: usize = 64 * 1024;
    let line = leash.line(LONGEST).await.map_err(|error| format!("cannot read the errand: {error}"))?;
    let errand: Errand = serde_json::from_slice(&line).map_err(|_| "stdin holds no errand".to_owned())?;
    errand.account.become_it()?;
    Ok(errand)
}

async fn perform(errand: &Errand) -> Reply {
    let guard = Guard::new(&errand.t3);
    let end = errand.task.perform(&errand.instance, &guard).await;
    Reply { end: end.into(), cpu: guard.take_cpu() }
}

impl Task {
    async fn perform(&self, instance: &Instance, guard: &Guard) -> Result<Value, NotDone> {
        match self {
            Self::Command { verb, flags, limit } => {
                let trace = TraceContext::unsampled();
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                guard.run(&mut Client::new(instance, &trace), *verb, &flags, *limit).await.map(Value::String)
            }
            Self::Inspect => answer(&state::inspect(&instance.database()).await),
            Self::Look(taken) => answer(&Present::of(&instance.database(), taken)?),
            Self::Repair(version) => {
                repair::rebuild(&instance.database(), version).map_err(Failure::from)?;
                Ok(Value::Null)
            }
            Self::Copy(order) => answer(&order.carry_out(instance)?),
            Self::TryOut(order, boxing) => answer(&order.as_ref().clone().carry_out(boxing).await),
            Self::Run(job) => answer(&job.carry_out().await),
        }
    }
}

fn answer(value: &impl Serialize) -> Result<Value, NotDone> {
    serde_json::to_value(value).map_err(|error| Failure::new(Reason::Malformed, error.to_string()).into())
}
