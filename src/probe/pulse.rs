//! The pulse: every few seconds, two requests, no process started, nothing consumed, no trace left.
//! On the day of the outage `GET /` stayed 200; this asks what a login would ask, and sees it at once.

use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::ages::Ages;
use super::{Section, Steps, tables};
use crate::outcome::{Endpoint, Failure, Kind, NotDone, Reason, Run, Skip, Step, Trigger};
use crate::t3::access::Access;
use crate::t3::descriptor;
use crate::t3::http::{Client, Proof};
use crate::t3::owner;
use crate::t3::pairing;
use crate::t3::session;
use crate::t3::trace::TraceContext;
use crate::t3::version::{Generation, Version};
use crate::t3::{self, Instance};

/// A 500 is believed when it survives this pause: a database locked for a moment answers the same (CONTRACT §3).
const SECOND_LOOK: Duration = Duration::from_millis(250);
/// How long the first try may wait before the next one opens a new connection: one accepted while t3 starts is never
/// answered (CONTRACT §9). The next one has all the time that is left: an instance that is only slow is not down.
const FIRST_TRY: Duration = Duration::from_millis(250);

/// What earlier pulses of this user learned.
#[derive(Debug, Default)]
pub struct Memory {
    pub version: Option<Version>,
    pub cookie: Option<String>,
    pub endpoint: Option<Endpoint>,
    version_read: Option<Instant>,
    listener: Option<Listening>,
}

/// The instance's listening socket.
#[derive(Debug)]
struct Listening {
    inode: u32,
    first_seen: Instant,
    /// When its process started, once that was looked up.
    started: Option<Instant>,
}

/// What all pulses share.
pub struct Context<'a> {
    pub section: &'a Section,
    pub t3: &'a t3::Section,
    /// Who may look at the database.
    pub access: &'a Access,
    pub ages: &'a Ages,
}

/// Pulses one instance.
pub async fn run(instance: &Instance, memory: &mut Memory, context: &Context<'_>, trigger: Trigger) -> Run {
    let span = tracing::info_span!("pulse", user = instance.name);
    let trace = TraceContext::of(&span);
    let mut steps = Steps::begin(Kind::Pulse, trigger, instance, &[Step::Reach, Step::Contract]);
    let deadline = Instant::now() + context.section.pulse_limit();
    let mut client = Client::new(instance, &trace);

    // Where it stopped is in the steps.
    let _ = ask(&mut client, &mut steps, memory, context, deadline).instrument(span).await;

    steps.facts.version = memory.version.as_ref().map(ToString::to_string);
    steps.facts.cookie.clone_from(&memory.cookie);
    steps.facts.endpoint = memory.endpoint;
    steps.end(&trace)
}

async fn ask(
    client: &mut Client<'_>,
    steps: &mut Steps<'_>,
    memory: &mut Memory,
    context: &Context<'_>,
    deadline: Instant,
) -> Option<()> {
    let cookie = steps.take(Step::Reach, reach(client, memory, context, deadline)).await?;
    memory.cookie = Some(cookie);
    if memory.version_due(context.section.version_interval) {
        let version = async { Ok(descriptor::read(client, left(deadline)).await?.version) };
        memory.version = Some(steps.take(Step::Version, version).await?);
        memory.version_read = Some(Instant::now());
    }
    let generation = memory.version.as_ref().map_or(Generation::B, Version::generation);
    let refused = contract(client, generation, memory.version.as_ref(), context.access, deadline);
    memory.endpoint = Some(steps.take(Step::Contract, refused).await?);
    Some(())
}

impl Memory {
    /// Notes the listening socket as it is now. Another socket is another start, perhaps of another version.
    fn see(&mut self, inode: Option<u32>) {
        let known = self.listener.as_ref().map(|listener| listener.inode);
        if known == inode {
            return;
        }
        if inode.is_some() {
            self.version_read = None;
        }
        self.listener = inode.map(|inode| Listening { inode, first_seen: Instant::now(), started: None });
    }

    /// How old the listening socket is: as old as its process, or, where that may not be looked at, as old as our
    /// knowledge of it.
    async fn listener_age(&mut self, ages: &Ages) -> Option<Duration> {
        let listener = self.listener.as_mut()?;
        if listener.started.is_none() {
            listener.started = Some(ages.started(listener.inode).await.unwrap_or(listener.first_seen));
        }
        listener.started.map(|started| started.elapsed())
    }

    /// Whether the version is that of the process which listens, however it answers just now.
    pub fn is_of_who_listens(&self) -> bool {
        self.listener.is_some() && self.version_read.is_some()
    }

    fn version_due(&self, interval: Duration) -> bool {
        self.version_read.is_none_or(|read| read.elapsed() >= interval)
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The session call without a cookie: JSON, not HTML. Answers the cookie's name.
async fn reach(
    client: &mut Client<'_>,
    memory: &mut Memory,
    context: &Context<'_>,
    deadline: Instant,
) -> Result<String, NotDone> {
    let instance = client.instance;
    let listener = owner::listener(instance.port).ok().flatten();
    memory.see(listener.map(|listener| listener.inode));
    if let Some(listener) = listener
        && listener.uid != instance.uid
    {
        let detail =
            format!("port {} belongs to uid {}, not to uid {}", instance.port, listener.uid, instance.uid);
        return Err(Failure::new(Reason::WrongOwner, detail).into());
    }
    let failure = match ask_session(client, deadline).await {
        Ok(cookie) => return Ok(cookie),
        Err(failure) => failure,
    };
    if matches!(failure.reason, Reason::Refused | Reason::Timeout) {
        memory.see(owner::listener(instance.port).ok().flatten().map(|listener| listener.inode));
        if memory.listener_age(context.ages).await.is_some_and(|age| age < context.section.start_grace) {
            let grace = humantime::format_duration(context.section.start_grace);
            return Err(NotDone::skipped(
                Skip::Starting,
                format!("{}; its listener is younger than {grace}", failure.detail),
            ));
        }
    }
    if failure.reason == Reason::Refused
        && stopped_on_purpose(&instance.name, &context.t3.status_command).await
    {
        return Err(NotDone::skipped(Skip::NotRunning, "stopped on purpose, the supervisor says"));
    }
    Err(failure.into())
}

async fn ask_session(client: &mut Client<'_>, deadline: Instant) -> Result<String, Failure> {
    let all = left(deadline).as_secs_f64();
    let mut limit = FIRST_TRY.min(left(deadline));
    let mut tries = 0;
    loop {
        tries += 1;
        let asked = session::read(client, Proof::Nobody, limit)
            .await
            .map(|document| document.cookie_name().to_owned());
        let failure = match asked {
            // A port refuses for a moment while the server behind it is replaced; a silent one may be starting.
            Err(failure) if matches!(failure.reason, Reason::Timeout | Reason::Refused | Reason::Closed) => {
                failure
            }
            result => return result,
        };
        let pause = if failure.reason == Reason::Timeout { Duration::ZERO } else { SECOND_LOOK };
        if left(deadline) <= pause {
            let detail = format!("{} ({tries} connections within {all:.1} s)", failure.detail);
            return Err(Failure::new(failure.reason, detail));
        }
        sleep(pause).await;
        client.reconnect();
        limit = left(deadline);
    }
}

/// A credential that cannot exist must be refused with 401.
async fn contract(
    client: &mut Client<'_>,
    generation: Generation,
    version: Option<&Version>,
    access: &Access,
    deadline: Instant,
) -> Result<Endpoint, NotDone> {
    let first = pairing::refuses_the_impossible(client, generation, left(deadline)).await;
    let failure = match first {
        Ok(endpoint) => return Ok(endpoint),
        Err(failure) => failure,
    };
    if failure.reason != Reason::AuthStore || left(deadline) <= SECOND_LOOK {
        return Err(failure.into());
    }
    sleep(SECOND_LOOK).await;
    match pairing::refuses_the_impossible(client, generation, left(deadline)).await {
        Ok(endpoint) => Ok(endpoint),
        Err(failure) if failure.reason == Reason::AuthStore => {
            Err(tables::refine(access, client.instance, version, failure).await.into())
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Asks the configured supervisor; without one nobody can know, and a refused port is a failure.
async fn stopped_on_purpose(user: &str, command: &[String]) -> bool {
    let Some((program, args)) = command.split_first() else { return false };
    let args = args.iter().map(|arg| arg.replace("{user}", user));
    let asked = Command::new(program).args(args).kill_on_drop(true).output();
    match timeout(Duration::from_secs(1), asked).await {
        Ok(Ok(output)) => output.stdout.split(|byte| *byte == b'\n').next() == Some(b"inactive"),
        _ => false,
    }
}
