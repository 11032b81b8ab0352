//! A drill: the snapshot is restored to a copy, the right t3 started on it, somebody logs in and loads the history.
//! It measures what a user would wait for (RTO) and lose (RPO), and never goes near the live instance.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tokio_rusqlite::rusqlite::Connection;

use super::manifest::{DrillFailure, Drilled, Manifest};
use super::{Section, Snapshot, Tree, prove};
use crate::outcome::{Failure, NotDone, Reason, RestoreStep};
use crate::t3::cli::Cli;
use crate::t3::guard::Guard;
use crate::t3::http::{Client, Proof};
use crate::t3::install::Installs;
use crate::t3::keeper::{Keepers, Limits};
use crate::t3::launch::Scratch;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::{count, has_table, reader};
use crate::t3::trace::TraceContext;
use crate::t3::version::Version;
use crate::t3::{self, Instance, Mint, descriptor, pairing, session};

/// What the drill's session is called in the copy.
const LABEL: &str = "t3-prober drill";
/// A history of 269 MB took 4 s to load (CONTRACT §11).
const LIMITS: Limits = Limits { request: Duration::from_secs(60), command: Duration::from_secs(30) };
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Where it went wrong.
struct Broken(RestoreStep, Failure);

/// How long the parts took that a user would wait for.
#[derive(Default)]
struct Clock {
    total: Duration,
    /// Of these, t3 itself: its start, and its command.
    t3: Duration,
}

/// Drills and remembers the outcome beside the snapshot. `owner` is whose data it is: t3 never runs as anybody else.
pub async fn drill(
    section: &Section,
    t3: &t3::Section,
    owner: u32,
    snapshot: &mut Snapshot,
    now: SystemTime,
) -> Result<Drilled, Failure> {
    let mut drilled = Drilled {
        at: now,
        version: None,
        restore: Duration::ZERO,
        overhead: Duration::ZERO,
        rpo: snapshot
            .taken_at()
            .map_or(Duration::ZERO, |taken| now.duration_since(taken).unwrap_or_default()),
        // The box comes with the gate's rehearsals.
        boxed: false,
        failure: None,
    };
    match run(section, t3, owner, snapshot, now, &mut drilled.version).await {
        Ok(clock) => {
            drilled.restore = clock.total;
            drilled.overhead = clock.total.saturating_sub(clock.t3);
        }
        Err(Broken(step, failure)) => {
            drilled.failure = Some(DrillFailure { step, reason: failure.reason, detail: failure.detail });
        }
    }
    snapshot.record(|proof| proof.drilled = Some(drilled.clone()))?;
    Ok(drilled)
}

async fn run(
    section: &Section,
    t3: &t3::Section,
    owner: u32,
    snapshot: &mut Snapshot,
    now: SystemTime,
    version: &mut Option<Version>,
) -> Result<Clock, Broken> {
    let at = |step| move |failure| Broken(step, failure);
    let answer = prove(snapshot, now).map_err(at(RestoreStep::Verify))?;
    let manifest = answer
        .map_err(|defect| Failure::new(Reason::Corrupt, defect.to_string()))
        .and_then(|()| snapshot.manifest.clone().ok_or_else(|| Failure::new(Reason::Corrupt, "no manifest")))
        .map_err(at(RestoreStep::Verify))?;
    let us = nix::unistd::geteuid().as_raw();
    if owner != us {
        let detail = format!("t3 runs only as the owner of the data, uid {owner}, and this is uid {us}");
        return Err(Broken(RestoreStep::Check, Failure::new(Reason::WrongOwner, detail)));
    }
    let (program, running) = program_for(&manifest, t3).await.map_err(at(RestoreStep::Check))?;
    *version = Some(running.clone());

    let tree = Tree::new(section, &manifest.user);
    // A take would sweep the copy away.
    let _turn = tree.prepare().map_err(at(RestoreStep::Copy))?;
    let begin = Instant::now();
    let scratch = restore_copy(&tree, snapshot, &manifest.user, now).map_err(at(RestoreStep::Copy))?;
    let visible = Visible::of(&scratch.instance).map_err(at(RestoreStep::Copy))?;
    let started = Instant::now();
    let mut trial = scratch.start(&program, "127.0.0.1").map_err(at(RestoreStep::Start))?;
    trial.ready(&scratch.instance, section.start_timeout).await.map_err(at(RestoreStep::Start))?;
    let mut t3_itself = started.elapsed();
    let guard = Guard::new(&t3::Section { command: program, ..t3.clone() });
    let keepers = Keepers::new(scratch.path("keepers"), Mint::Keeper, guard);
    let loaded = log_in(&scratch.instance, &keepers, &manifest, &visible, &mut t3_itself).await;
    loaded.map_err(|why| Broken(RestoreStep::Prove, failure_of(why)))?;
    let clock = Clock { total: begin.elapsed(), t3: t3_itself };
    trial.stop(section.stop_timeout).await.map_err(at(RestoreStep::Stop))?;
    nothing_lost(&scratch.instance, &manifest).map_err(at(RestoreStep::Prove))?;
    Ok(clock)
}

/// The command of the version that ran when the snapshot was made; else of one that opens its level as it is.
async fn program_for(manifest: &Manifest, t3: &t3::Section) -> Result<(Vec<String>, Version), Failure> {
    let (installs, cli) = (Installs::new(t3), Cli::default());
    let mut candidates: Vec<Version> = manifest.version.clone().into_iter().collect();
    candidates.extend(manifest.level.level.versions().into_iter().rev());
    let mut reasons = Vec::new();
    for version in candidates {
        match installs.of_version(&version, &cli).await {
            Ok(program) => return Ok((program, version)),
            Err(failure) => reasons.push(failure.detail),
        }
    }
    reasons.dedup();
    Err(Failure::new(
        Reason::CliMissing,
        format!("no t3 for level {} is installed: {}", manifest.level.level, reasons.join("; ")),
    ))
}

/// A base directory with nothing but the database in it: no keys, no settings of the user (CONTRACT §11).
fn restore_copy(tree: &Tree, snapshot: &Snapshot, user: &str, now: SystemTime) -> Result<Scratch, Failure> {
    let dir = tree.new_file(now);
    let unwritable = |error: std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::StorageFull => Reason::NoSpace,
            _ => Reason::Unreadable,
        };
        Failure::new(reason, format!("cannot restore a copy to {}: {error}", dir.display()))
    };
    let scratch = Scratch::new(&dir, user).map_err(unwritable)?;
    copy(&snapshot.file, &scratch.instance.database()).map_err(unwritable)?;
    Ok(scratch)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut copy = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    std::io::copy(&mut std::fs::File::open(from)?, &mut copy)?;
    Ok(())
}

/// Somebody logs in with a credential of their own, and the app loads the history.
async fn log_in(
    instance: &Instance,
    keepers: &Keepers<Guard>,
    manifest: &Manifest,
    visible: &Visible,
    t3_itself: &mut Duration,
) -> Result<(), NotDone> {
    let trace = TraceContext::unsampled();
    let mut client = Client::new(instance, &trace);
    let generation = descriptor::read(&mut client, FIRST_LOOK).await?.version.generation();
    let minting = Instant::now();
    // The first mint starts t3's command once; on a live instance that session is there already.
    let credential = keepers.mint(&mut client, LABEL, LIMITS).await?;
    *t3_itself += minting.elapsed();
    let cookie = pairing::exchange(&mut client, generation, &credential, FIRST_LOOK).await?.cookie;
    let document = session::read(&mut client, cookie.proof(), FIRST_LOOK).await?;
    if !document.authenticated || session::read(&mut client, Proof::Nobody, FIRST_LOOK).await?.authenticated {
        return Err(
            Failure::new(Reason::NotAuthenticated, "the copy does not recognise its own session").into()
        );
    }
    client.allow(usize::try_from(manifest.bytes).unwrap_or(usize::MAX).saturating_mul(2).max(1 << 24));
    let history = keepers.history(&mut client, LIMITS).await?;
    let claimed = manifest.fingerprint.last_sequence;
    let fewer = |what: &str, found: u64, wanted: u64| {
        (found < wanted).then(|| format!("{what} {found} instead of {wanted}"))
    };
    let missing = [
        fewer("event", history.snapshot_sequence, claimed),
        fewer("projects:", history.projects.len() as u64, visible.projects),
        fewer("threads:", history.threads.len() as u64, visible.threads),
    ];
    let missing: Vec<_> = missing.into_iter().flatten().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Reason::HistoryShrank, format!("the app loads {}", missing.join(", "))).into())
}

/// What the app shows of the history at least.
struct Visible {
    projects: u64,
    threads: u64,
}

impl Visible {
    fn of(instance: &Instance) -> Result<Self, Failure> {
        let rows = |connection: &Connection, table: &str| {
            let sql = format!("SELECT count(*) FROM {table} WHERE deleted_at IS NULL");
            if has_table(connection, table)? {
                connection.query_row(&sql, [], |row| count(row, 0))
            } else {
                Ok(0)
            }
        };
        reader::ask(&instance.database(), |connection| {
            let (projects, threads) =
                (rows(connection, "projection_projects")?, rows(connection, "projection_threads")?);
            Ok(Self { projects, threads })
        })
    }
}

/// What t3 made of the copy still holds everything that the snapshot did.
fn nothing_lost(instance: &Instance, manifest: &Manifest) -> Result<(), Failure> {
    let found = reader::ask(&instance.database(), Fingerprint::of)?;
    let lost = found.lost_since(&manifest.fingerprint);
    if lost.is_empty() { Ok(()) } else { Err(Failure::new(Reason::HistoryShrank, lost.join("; "))) }
}

fn failure_of(why: NotDone) -> Failure {
    match why {
        NotDone::Failed(failure) => failure,
        NotDone::Skipped { detail, .. } => Failure::new(Reason::CliMissing, detail),
    }
}
