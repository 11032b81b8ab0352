//! One rehearsal, from inside: starts a build on a copy of a database, does what users do, and says what happened. It
//! runs beside the build in its box, reads its orders from stdin and prints its evidence; nothing else leaves the box.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::evidence::{Facts, Rehearsed, StepEvidence};
use crate::outcome::{Failure, NotDone, Outcome, Reason, Rehearsal, RehearsalStep, Skip};
use crate::probe::handshake::check_session;
use crate::t3::boxed::Boxes;
use crate::t3::cli::Cli;
use crate::t3::guard::Guard;
use crate::t3::http::Client;
use crate::t3::install::Installs;
use crate::t3::keeper::{Keepers, Limits};
use crate::t3::launch::{Scratch, Trial};
use crate::t3::pairing::{self, Credential, Exchanged, SessionCookie};
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::{self, reader};
use crate::t3::trace::TraceContext;
use crate::t3::version::{Generation, Version};
use crate::t3::{self, Mint, descriptor, session, socket};

mod skew;
mod writing;

/// What the rehearsals' sessions are called.
const LABEL: &str = "t3-prober gate";
/// The documented exit status after SIGTERM (CONTRACT §9).
const INTERRUPTED: i32 = 130;
/// A server that fails in the hold because it is about to end has ended by then.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// What is to be rehearsed, and how patiently.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    pub rehearsal: Rehearsal,
    /// Whose copy; a name that is safe as a file name.
    pub name: String,
    /// The rehearsal's own directory, with the copy at its place below `base`.
    pub dir: PathBuf,
    /// The address that the server is bound to.
    pub host: String,
    /// The command of the build, as program and leading arguments.
    pub program: Vec<String>,
    /// The candidate's command, where it works on the control's database.
    pub intruder: Vec<String>,
    pub patience: Patience,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Patience {
    #[serde(with = "humantime_serde")]
    pub ready: Duration,
    #[serde(with = "humantime_serde")]
    pub request: Duration,
    #[serde(with = "humantime_serde")]
    pub command: Duration,
    #[serde(with = "humantime_serde")]
    pub stop: Duration,
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
}

/// A command in its inner box, or as it is where there is none.
pub fn command(
    boxes: Option<&Boxes>,
    dir: &std::path::Path,
    prefix: &std::path::Path,
    program: &str,
) -> Vec<String> {
    let mut words = boxes.map(|boxes| boxes.inner(dir, prefix)).unwrap_or_default();
    words.push(program.to_owned());
    words
}

/// Does what the orders say. An error is about the rehearsal's own directory, never about the build.
pub async fn run(orders: Orders) -> std::io::Result<Rehearsed> {
    let clock = Instant::now();
    for program in [&orders.program, &orders.intruder].into_iter().filter_map(|words| words.last()) {
        may_be_run(program)?;
    }
    let scratch = Scratch::within(&orders.dir, &orders.name)?;
    let build = t3::Section {
        command: orders.program.clone(),
        // Nothing lies there: the command is the build, whatever version it is.
        installs: orders.dir.join("no-installs"),
        ..t3::Section::default()
    };
    // Each rehearsal begins without a kept session, also on the database that another one has left.
    let kept = scratch.path(&format!("keepers-{}", orders.rehearsal));
    let keepers = Keepers::new(kept.clone(), Mint::Keeper, Guard::new(&build));
    let by_command = Keepers::new(kept, Mint::Cli, Guard::new(&build));
    let trace = TraceContext::unsampled();
    let mut work = Work {
        limits: Limits { request: orders.patience.request, command: orders.patience.command },
        scratch: &scratch,
        keepers,
        by_command,
        guard: Guard::new(&build),
        installs: Installs::new(&build),
        trace: &trace,
        steps: Vec::new(),
        facts: Facts::default(),
        orders: &orders,
    };
    // Where it stopped is in the steps.
    let _ = match orders.rehearsal {
        Rehearsal::Control | Rehearsal::Candidate | Rehearsal::WayBack => work.whole().await,
        Rehearsal::Skew => work.skew().await,
    };
    Ok(work.end(clock.elapsed()))
}

struct Work<'a> {
    orders: &'a Orders,
    scratch: &'a Scratch,
    keepers: Keepers<Guard>,
    by_command: Keepers<Guard>,
    guard: Guard,
    installs: Installs,
    trace: &'a TraceContext,
    limits: Limits,
    steps: Vec<StepEvidence>,
    facts: Facts,
}

/// A login that worked.
struct Login {
    cookie: SessionCookie,
    generation: Generation,
}

impl<'a> Work<'a> {
    /// Everything that a build has to do; `None` as soon as one step does not succeed.
    async fn whole(&mut self) -> Option<()> {
        let scratch = self.scratch;
        let database = scratch.instance.database();
        let before = database.exists().then(|| self.precious()).transpose();
        let before = before.ok()?.unwrap_or_default();

        let (mut trial, first_start) = self.start(RehearsalStep::Start, &self.orders.host.clone()).await?;
        let login = self.log_in().await?;
        let there = self.step(RehearsalStep::History, writing::unchanged(&before, &database)).await;
        // The steps are in their order in the evidence, whatever order they were done in.
        let there = there?;
        let Login { cookie, generation } = login;
        let mut client = self.client();
        let (request, limits) = (self.limits.request, self.limits);
        let ticket = async { Ok(socket::ticket(&mut client, generation, cookie.proof(), request).await?) };
        let ticket = self.step(RehearsalStep::App, ticket).await?;
        self.facts.ticket = Some(socket::ticket_path(generation).to_owned());
        let client = self.client();
        let round_trip = async { Ok(socket::round_trip(&client, generation, &ticket, request).await?) };
        self.step(RehearsalStep::Socket, round_trip).await?;

        let command = self.log_in_by_command(generation);
        let outcome = timed(command).await;
        self.record(RehearsalStep::Command, outcome)?;
        let load = writing::load(&self.keepers, self.client(), &there, limits);
        let outcome = timed(load).await;
        self.record(RehearsalStep::Load, outcome)?;
        let write = writing::add_project(&self.guard, self.client(), self.scratch, &there, limits);
        let outcome = timed(write).await;
        let written = self.record(RehearsalStep::Write, outcome)?;
        let hold = self.hold(&mut trial, generation);
        let outcome = timed(hold).await;
        self.record(RehearsalStep::Hold, outcome)?;
        self.stop(RehearsalStep::Stop, trial).await?;

        // On loopback: what that does to the cookie's name is part of the contract (CONTRACT §4).
        let level = self.facts.level;
        let again = self.again(level, &written);
        let outcome = timed(again).await;
        let (cookie, second_start) = self.record(RehearsalStep::Restart, outcome)?;
        self.facts.cookie_on_loopback = Some(self.without_its_numbers(&cookie));
        self.facts.migration_seconds = Some(first_start.saturating_sub(second_start).as_secs_f64());
        self.step(RehearsalStep::Integrity, writing::is_whole(&database)).await
    }

    async fn start(&mut self, step: RehearsalStep, host: &str) -> Option<(Trial, Duration)> {
        let (scratch, program, ready) = (self.scratch, &self.orders.program, self.orders.patience.ready);
        let clock = Instant::now();
        let started = async {
            let mut trial = scratch.start(program, host)?;
            trial.ready(&scratch.instance, ready).await?;
            Ok(trial)
        };
        let trial = self.step(step, started).await?;
        Some((trial, clock.elapsed()))
    }

    /// Version, contract, mint, exchange and session: a login as a browser does it.
    async fn log_in(&mut self) -> Option<Login> {
        let mut client = self.client();
        let version = says_its_version(&mut client, &self.installs, self.limits);
        let outcome = timed(version).await;
        let version = self.record(RehearsalStep::Version, outcome)?;
        self.facts.version = Some(version.to_string());
        let level = state::level(&self.scratch.instance.database()).await.ok();
        self.facts.level = level.map(|level| level.level.0);
        let generation = version.generation();
        let request = self.limits.request;
        let refused = async { Ok(pairing::refuses_the_impossible(&mut client, generation, request).await?) };
        self.step(RehearsalStep::Contract, refused).await?;
        let minted = self.keepers.mint(&mut client, LABEL, self.limits);
        let outcome = timed(minted).await;
        let credential = self.record(RehearsalStep::Mint, outcome)?;
        let exchanged = async { Ok(pairing::exchange(&mut client, generation, &credential, request).await?) };
        let Exchanged { cookie, endpoint } = self.step(RehearsalStep::Exchange, exchanged).await?;
        self.facts.exchange = Some(endpoint.path().to_owned());
        self.facts.cookie = Some(self.without_its_numbers(&cookie.name));
        let session_id = cookie.session_id();
        let known = check_session(&mut client, &cookie, session_id.as_deref(), request);
        self.step(RehearsalStep::Session, known).await?;
        Some(Login { cookie, generation })
    }

    /// With a credential that the command made, and as the dispatch passes a browser's request on.
    async fn log_in_by_command(&self, generation: Generation) -> Result<(), NotDone> {
        let credential = self.by_command.mint(&mut self.client(), LABEL, self.limits).await?;
        let mut client = self.client();
        client.through_a_proxy();
        redeem(&mut client, generation, &credential, self.limits).await.map(|_| ())
    }

    /// Looks again and again whether all is still well, and logs in once more at the end. Of a server that has ended it
    /// is not what its port says that counts.
    async fn hold(&self, trial: &mut Trial, generation: Generation) -> Result<(), NotDone> {
        let held = self.stays_well(trial, generation).await;
        let patience = if held.is_ok() { Duration::ZERO } else { ENDS_WITHIN };
        trial.ended_within(patience).await.map_or(held, |crashed| Err(crashed.into()))
    }

    async fn stays_well(&self, trial: &mut Trial, generation: Generation) -> Result<(), NotDone> {
        let hold = self.orders.patience.hold;
        let until = Instant::now() + hold;
        loop {
            if let Some(crashed) = trial.ended() {
                return Err(crashed.into());
            }
            let mut client = self.client();
            pairing::refuses_the_impossible(&mut client, generation, self.limits.request).await?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sleep(left.min(hold / 10).max(Duration::from_millis(10))).await;
        }
        pair(&self.keepers, &mut self.client(), generation, self.limits).await.map(|_| ())
    }

    /// A second start, which must find nothing to do; answers the cookie's name on loopback.
    async fn again(&self, level: Option<u32>, written: &Fingerprint) -> Result<(String, Duration), NotDone> {
        let (instance, patience) = (&self.scratch.instance, self.orders.patience);
        let clock = Instant::now();
        let mut trial = self.scratch.start(&self.orders.program, "127.0.0.1")?;
        trial.ready(instance, patience.ready).await?;
        let took = clock.elapsed();
        let mut client = self.client();
        let document = session::read(&mut client, t3::http::Proof::Nobody, self.limits.request).await?;
        let now = state::level(&instance.database()).await?.level.0;
        if level != Some(now) {
            let level = level.unwrap_or_default();
            let detail = format!("the second start took the database from level {level} to {now}");
            return Err(Failure::new(Reason::MigratedAgain, detail).into());
        }
        writing::unchanged(written, &instance.database()).await?;
        drop(client);
        ends_as_documented(trial, patience.stop).await?;
        Ok((document.cookie_name().to_owned(), took))
    }

    async fn stop(&mut self, step: RehearsalStep, trial: Trial) -> Option<()> {
        let limit = self.orders.patience.stop;
        self.step(step, ends_as_documented(trial, limit)).await
    }

    fn client(&self) -> Client<'a> {
        Client::new(&self.scratch.instance, self.trace)
    }

    fn precious(&self) -> Result<Fingerprint, Failure> {
        reader::ask(&self.scratch.instance.database(), Fingerprint::of)
    }

    /// The cookie's name with its port and its hash as words: they differ from box to box.
    fn without_its_numbers(&self, cookie: &str) -> String {
        let port = self.scratch.instance.port.to_string();
        let word = |part: &str| {
            let is_hash = part.len() >= 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            match part {
                _ if part == port => "<port>".to_owned(),
                _ if is_hash => "<hash>".to_owned(),
                part => part.to_owned(),
            }
        };
        cookie.split('_').map(word).collect::<Vec<_>>().join("_")
    }

    async fn step<T>(
        &mut self,
        step: RehearsalStep,
        work: impl Future<Output = Result<T, NotDone>>,
    ) -> Option<T> {
        let outcome = timed(work).await;
        self.record(step, outcome)
    }

    /// Remembers how a step went. Apart from `step` where the work itself borrows from here.
    fn record<T>(
        &mut self,
        step: RehearsalStep,
        (result, duration): (Result<T, NotDone>, Duration),
    ) -> Option<T> {
        let (outcome, detail) = match &result {
            Ok(_) => (Outcome::Ok, None),
            // On a live instance that would be our own doing; here the build migrates what is migrated already.
            Err(why) if why.outcome() == Outcome::Failed(Reason::MigratedByUs) => {
                let detail = "the build's command took the database to another level while its server ran";
                (Outcome::Failed(Reason::MigratedAgain), Some(detail.to_owned()))
            }
            Err(why) => (why.outcome(), Some(why.detail().to_owned())),
        };
        self.steps.push(StepEvidence { step, outcome, duration, detail });
        result.ok()
    }

    fn end(mut self, duration: Duration) -> Rehearsed {
        let plan = self.orders.rehearsal.steps();
        for step in plan {
            if !self.steps.iter().any(|evidence| evidence.step == *step) {
                let outcome = Outcome::Skipped(Skip::EarlierStep);
                self.steps.push(StepEvidence {
                    step: *step,
                    outcome,
                    duration: Duration::ZERO,
                    detail: None,
                });
            }
        }
        self.steps.sort_by_key(|evidence| plan.iter().position(|step| *step == evidence.step));
        Rehearsed { rehearsal: self.orders.rehearsal, duration, steps: self.steps, facts: self.facts }
    }
}

/// A build that its runner may not even read has not failed.
fn may_be_run(program: &str) -> std::io::Result<()> {
    let allowed = nix::unistd::access(program, AccessFlags::R_OK | AccessFlags::X_OK);
    allowed.map_err(|errno| {
        let us = nix::unistd::geteuid();
        std::io::Error::other(format!(
            "uid {us} may not run {program} ({errno}); put it where everybody may read it"
        ))
    })
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let clock = Instant::now();
    let result = work.await;
    (result, clock.elapsed())
}

/// The server and its command agree; a build whose two halves differ migrates under itself.
async fn says_its_version(
    client: &mut Client<'_>,
    installs: &Installs,
    limits: Limits,
) -> Result<Version, NotDone> {
    let version = descriptor::read(client, limits.request).await?.version;
    let command = installs.installed(&Cli::default()).await?;
    if command == version {
        return Ok(version);
    }
    let detail = format!("the server says it is {version}, its command that it is {command}");
    Err(Failure::new(Reason::CliGarbage, detail).into())
}

/// Mint, exchange, session.
async fn pair(
    keepers: &Keepers<Guard>,
    client: &mut Client<'_>,
    generation: Generation,
    limits: Limits,
) -> Result<SessionCookie, NotDone> {
    let credential = keepers.mint(client, LABEL, limits).await?;
    redeem(client, generation, &credential, limits).await
}

/// Exchange, session.
async fn redeem(
    client: &mut Client<'_>,
    generation: Generation,
    credential: &Credential,
    limits: Limits,
) -> Result<SessionCookie, NotDone> {
    let cookie = pairing::exchange(client, generation, credential, limits.request).await?.cookie;
    check_session(client, &cookie, cookie.session_id().as_deref(), limits.request).await?;
    Ok(cookie)
}

async fn ends_as_documented(trial: Trial, limit: Duration) -> Result<(), NotDone> {
    match trial.stop(limit).await? {
        Some(INTERRUPTED) => Ok(()),
        status => {
            let status = status.map_or_else(|| "a signal".to_owned(), |code| format!("exit {code}"));
            let detail = format!("SIGTERM ended the server with {status} instead of exit {INTERRUPTED}");
            Err(Failure::new(Reason::ExitStatus, detail).into())
        }
    }
}
