//! What is done for a request: the caller's right to the verb, the user's place in the map, then the act itself.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout};

use super::as_user::{AsUser, Children, plain};
use super::caller::Caller;
use super::child::Task;
use super::owner::Owner;
use crate::backup::Duty;
use crate::config::Config;
use crate::gate::{self, Setting};
use crate::inventory::{Admitted, NotAdmitted, Roster};
use crate::outcome::{BackupAct, Failure, HelperVerb, NotDone, Reason, Skip};
use crate::t3::Instance;
use crate::t3::access::wire::{Builds, End, EnvPort, Inspections, Reply, Request};
use crate::t3::cli::Verb;
use crate::t3::http::Client;
use crate::t3::keeper::{Keepers, Limits};
use crate::t3::leash::Leash;
use crate::t3::state::Inspection;
use crate::t3::trace::TraceContext;

/// Looks at databases under way at once, when everybody's are due.
const CONCURRENT_INSPECTIONS: usize = 4;
/// How long one of many may take: a user's broken disk is nobody else's trouble.
const ONE_OF_MANY: Duration = Duration::from_secs(5);

/// The verbs, for one caller.
pub struct Verbs<'a> {
    config: &'a Config,
    caller: Caller,
    children: Children,
}

/// Nothing was done: the caller, the user or the request is not one that anything is done for.
struct Refused(String);

impl From<NotAdmitted> for Refused {
    fn from(error: NotAdmitted) -> Self {
        Self(error.to_string())
    }
}

type Done = Result<(Result<Value, NotDone>, Vec<(Verb, Duration)>), Refused>;

impl<'a> Verbs<'a> {
    pub fn new(config: &'a Config, caller: Caller) -> Result<Self, String> {
        Ok(Self { config, caller, children: Children::new()? })
    }

    /// Does what is asked, and leaves nothing running. `None` where nobody waits any more: a rehearsal whose gate was
    /// killed is given up, and everything else is seen through.
    pub async fn answer<R: AsyncRead + Unpin>(
        &self,
        request: &Request,
        leash: &mut Leash<R>,
    ) -> Option<Reply> {
        match request.verb() {
            HelperVerb::Rehearse => leash.during(self.done(request)).await,
            _ => Some(self.done(request).await),
        }
    }

    /// Within the request's own limit and ours.
    pub async fn done(&self, request: &Request) -> Reply {
        let started = Instant::now();
        let longest = match request.verb() {
            // Builds take their time; the gate's own limits say how long.
            HelperVerb::Rehearse => self.config.gate.longest_chain(),
            _ => self.config.helper.longest,
        };
        let limit = request.limit().min(longest);
        let reply = match timeout(limit, self.carry_out(request)).await {
            Ok(Ok((end, cpu))) => Reply { end: end.into(), cpu },
            Ok(Err(Refused(what))) => Reply::refused(what),
            Err(_) => {
                let what =
                    format!("{} was not done within {}", request.verb(), humantime::format_duration(limit));
                Reply { end: Err(Failure::new(Reason::Timeout, what).into()).into(), cpu: Vec::new() }
            }
        };
        self.children.sweep().await;
        let user = request.user().map_or_else(|| "everybody".to_owned(), name_in_log);
        let (caller, verb, took) = (&self.caller, request.verb(), started.elapsed());
        let (ended, detail) = match &reply.end {
            End::Ok { .. } => {
                tracing::info!(%caller, %verb, user, ?took, "done for a caller");
                return reply;
            }
            End::Failed { reason, detail } => (reason.as_str(), detail),
            End::Skipped { skip, detail } => (skip.as_str(), detail),
            End::Refused { detail } => ("refused", detail),
        };
        tracing::warn!(%caller, %verb, user, ?took, ended, detail, "not done for a caller");
        reply
    }

    async fn carry_out(&self, request: &Request) -> Done {
        self.caller.may(request.verb()).map_err(Refused)?;
        let roster = Roster::read(&self.config.inventory)?;
        match request {
            Request::Mint { user, label, limits } => {
                let label = checked(label, 64, " _.-", "label")?;
                self.keep(&roster.admit(user)?, *limits, Act::Mint(label)).await
            }
            Request::Revoke { user, session, limits } => {
                let session = checked(session, 128, "_-", "session")?;
                self.keep(&roster.admit(user)?, *limits, Act::Revoke(session)).await
            }
            Request::Labelled { user, label, age, limits } => {
                let label = checked(label, 64, " _.-", "label")?;
                self.keep(&roster.admit(user)?, *limits, Act::Labelled(label, *age)).await
            }
            Request::Inspect { user: Some(user), limit } => {
                let admitted = roster.admit(user)?;
                let found = self.inspect(&admitted, *limit).await;
                Ok((value(&Inspections::from([(admitted.user.to_string(), found)])), Vec::new()))
            }
            Request::Inspect { user: None, .. } => Ok((value(&self.inspect_all(&roster).await), Vec::new())),
            Request::Snapshot { user, .. } => {
                Ok((self.snapshot(&roster.admit(user)?, BackupAct::Take).await, Vec::new()))
            }
            Request::Verify { user, .. } => {
                Ok((self.snapshot(&roster.admit(user)?, BackupAct::Verify).await, Vec::new()))
            }
            Request::Rehearse { user, builds, .. } => {
                Ok((self.rehearse(&roster.admit(user)?, builds).await, Vec::new()))
            }
            Request::Port { user } => {
                let port = roster.env_port(user)?.get();
                Ok((value(&EnvPort { port }), Vec::new()))
            }
        }
    }

    /// An act with the keeper's session, which never leaves this process but to the user's own listener.
    async fn keep(&self, admitted: &Admitted, limits: Limits, act: Act<'_>) -> Done {
        let as_user = AsUser::new(admitted, self.config, &self.children);
        let instance: Instance = as_user.instance();
        let trace = TraceContext::unsampled();
        let mut client = Client::new(&instance, &trace);
        let keepers = Keepers::new(self.config.helper.keepers.clone(), self.config.t3.mint, as_user);
        let done = match act {
            Act::Mint(label) => keepers
                .mint(&mut client, label, limits)
                .await
                .map(|credential| json!({ "credential": credential.reveal() })),
            Act::Revoke(session) => keepers.revoke(&mut client, session, limits).await.map(|()| Value::Null),
            Act::Labelled(label, age) => {
                keepers.labelled(&mut client, label, age, limits).await.map(|sessions| json!(sessions))
            }
        };
        Ok((done, keepers.take_cpu()))
    }

    /// The tree is root's; what is copied into it is read by the owner.
    async fn snapshot(&self, admitted: &Admitted, act: BackupAct) -> Result<Value, NotDone> {
        let instance = AsUser::new(admitted, self.config, &self.children).instance();
        let hands = Owner::new(self.config, admitted, &self.children);
        let config = self.config;
        let duty = Duty { section: &config.backup, t3: &config.t3, instance: &instance, hands: &hands };
        let done = if act == BackupAct::Take {
            duty.take().await.pop()
        } else {
            match duty.tree().list()?.pop() {
                Some(newest) => Some(duty.verify(newest).await),
                None => None,
            }
        };
        let run = done.map(|done| done.run).ok_or_else(|| {
            NotDone::skipped(Skip::NotConfigured, format!("there is no snapshot of {}", instance.name))
        })?;
        match run.failure {
            None => value(&run),
            Some(failure) => Err(Failure::new(failure.reason, failure.detail).into()),
        }
    }

    /// Whatever keeps it from being done is part of the answer: it is the gate's trouble, and no failure of a build.
    async fn rehearse(&self, admitted: &Admitted, builds: &Builds) -> Result<Value, NotDone> {
        let (config, hands) = (self.config, Owner::new(self.config, admitted, &self.children));
        let instance = AsUser::new(admitted, config, &self.children).instance();
        let setting = Setting {
            gate: &config.gate,
            t3: &config.t3,
            backup: &config.backup,
            state_dir: &config.state_dir,
        };
        value(&gate::on_one(&instance, &hands, builds, &setting).await)
    }

    async fn inspect(&self, admitted: &Admitted, limit: Duration) -> Result<Inspection, NotDone> {
        let as_user = AsUser::new(admitted, self.config, &self.children);
        let found = as_user.perform(Task::Inspect, limit).await?;
        let mut found: Inspection = serde_json::from_value(found)
            .map_err(|_| Failure::new(Reason::Malformed, "the child answered no inspection"))?;
        match &mut found.level {
            Ok(level) => level.name = plain(&level.name),
            Err(failure) => failure.detail = plain(&failure.detail),
        }
        Ok(found)
    }

    /// Everybody who can be; who is in the map without account or instance is not missed.
    async fn inspect_all(&self, roster: &Roster<'_>) -> Inspections {
        let admitted = roster.users().filter_map(|user| roster.admit(user.as_str()).ok());
        stream::iter(admitted)
            .map(|admitted| async move {
                (admitted.user.to_string(), self.inspect(&admitted, ONE_OF_MANY).await)
            })
            .buffer_unordered(CONCURRENT_INSPECTIONS)
            .collect()
            .await
    }
}

enum Act<'a> {
    Mint(&'a str),
    Revoke(&'a str),
    Labelled(&'a str, Duration),
}

fn value(answer: &impl serde::Serialize) -> Result<Value, NotDone> {
    serde_json::to_value(answer).map_err(|error| Failure::new(Reason::Malformed, error.to_string()).into())
}

/// A word that ends up behind a flag of t3's command, or in its answers: letters and digits first of all.
fn checked<'a>(text: &'a str, longest: usize, punctuation: &str, what: &str) -> Result<&'a str, Refused> {
    let fits = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && text.len() <= longest && text.chars().all(fits) {
        Ok(text)
    } else {
        Err(Refused(format!("that is no {what}")))
    }
}

/// A name in a request may be anything at all.
fn name_in_log(name: &str) -> String {
    plain(name).chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_looks_like_a_flag_or_holds_anything_odd_is_refused() {
        let long = "a".repeat(65);
        for bad in ["", "--role", "-x", " x", "a\nb", "a;b", "a\"b", "ä", &long] {
            assert!(checked(bad, 64, " _.-", "label").is_err(), "{bad}");
        }
        assert!(checked("t3-prober keeper", 64, " _.-", "label").is_ok());
    }
}
