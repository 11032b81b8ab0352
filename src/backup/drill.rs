//! A drill: the snapshot is restored to a copy, the right t3 started on it, somebody logs in and loads the history.
//! It measures what a user would wait for (RTO) and lose (RPO), and never goes near the live instance.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use tokio_rusqlite::rusqlite::Connection;

use super::disk;
use super::hands::{Hands, blocking};
use super::manifest::{DrillFailure, Drilled, Manifest};
use super::tree::unwritable;
use super::{Section, Snapshot, Tree, prove};
use crate::outcome::{Failure, Grounds, NotDone, Reason, RestoreStep};
use crate::t3::boxed::{self, Boxes, Boxing};
use crate::t3::cli::Cli;
use crate::t3::guard::Guard;
use crate::t3::http::{Client, Proof};
use crate::t3::install::Installs;
use crate::t3::job::{self, Job};
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
/// Of a boxed trial, beside four times the size of its database.
const MEMORY: u64 = 1536 << 20;
/// The hidden command that a box around a trial runs: a `Trial` on stdin, what was `Tried` on stdout.
const DRIVER: &str = "drill-driver";

/// A trial of a restored copy, as whoever the data belongs to carries it out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trying {
    /// The trial's own directory, with the copy in it under the name of [`COPY`].
    pub dir: PathBuf,
    /// Whose data it is: t3 never runs as anybody else.
    pub owner: u32,
    pub manifest: Manifest,
    pub t3: t3::Section,
    pub start_timeout: Duration,
    pub stop_timeout: Duration,
}

/// What a trial came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tried {
    /// The version that it was tried with.
    pub version: Option<Version>,
    /// From the copy to the loaded history.
    pub total: Duration,
    /// Of these, t3 itself: its start, and its command.
    pub t3: Duration,
    /// Whether t3 ran in a box.
    pub boxed: bool,
    pub failure: Option<DrillFailure>,
}

/// A trial whose program is known; where there is a box, this is what goes into it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Trial {
    dir: PathBuf,
    manifest: Manifest,
    /// Where builds are and which command mints: in a box it is the build alone.
    t3: t3::Section,
    start_timeout: Duration,
    stop_timeout: Duration,
}

/// What the copy is called until it lies where t3 looks for it.
const COPY: &str = "copy.sqlite";

/// Where it went wrong.
struct Broken(RestoreStep, Failure);

/// Drills and remembers the outcome beside the snapshot.
pub async fn drill(
    section: &Section,
    t3: &t3::Section,
    owner: u32,
    hands: &impl Hands,
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
        boxed: false,
        failure: None,
    };
    match run(section, t3, owner, hands, snapshot, now).await {
        Ok((copying, tried)) => {
            drilled.version = tried.version;
            drilled.boxed = tried.boxed;
            drilled.failure = tried.failure;
            if drilled.failure.is_none() {
                drilled.restore = copying + tried.total;
                drilled.overhead = drilled.restore.saturating_sub(tried.t3);
            }
        }
        Err(Broken(step, failure)) => drilled.failure = Some(failed(step, failure)),
    }
    snapshot.record(|proof| proof.drilled = Some(drilled.clone()))?;
    Ok(drilled)
}

fn failed(step: RestoreStep, Failure { reason, detail }: Failure) -> DrillFailure {
    DrillFailure { step, reason, detail }
}

/// How long the copy took, and what the trial came to.
async fn run(
    section: &Section,
    t3: &t3::Section,
    owner: u32,
    hands: &impl Hands,
    snapshot: &mut Snapshot,
    now: SystemTime,
) -> Result<(Duration, Tried), Broken> {
    let at = |step| move |failure| Broken(step, failure);
    let answer = prove(snapshot, hands, now).await.map_err(at(RestoreStep::Verify))?;
    let manifest = answer
        .map_err(|defect| Failure::new(Reason::Corrupt, defect.to_string()))
        .and_then(|()| snapshot.manifest.clone().ok_or_else(|| Failure::new(Reason::Corrupt, "no manifest")))
        .map_err(at(RestoreStep::Verify))?;
    let tree = Tree::new(section, &manifest.user);
    // A take would sweep the copy away.
    let _turn = tree.prepare().map_err(at(RestoreStep::Copy))?;
    let begin = Instant::now();
    let room = Room::new(&tree, hands, now).map_err(at(RestoreStep::Copy))?;
    let (of, account) = (snapshot.file.clone(), hands.account());
    let room = blocking(move || room.bring(&of, account)).await.map_err(at(RestoreStep::Copy))?;
    let copying = begin.elapsed();
    let order = Trying {
        dir: room.dir.clone(),
        owner,
        manifest,
        t3: t3.clone(),
        start_timeout: section.start_timeout,
        stop_timeout: section.stop_timeout,
    };
    let tried = hands.try_out(order).await;
    let emptied = move || {
        drop(room);
        Ok(())
    };
    blocking(emptied).await.map_err(at(RestoreStep::Check))?;
    Ok((copying, tried.map_err(at(RestoreStep::Check))?))
}

/// The directory of a trial, gone when this is dropped.
struct Room {
    dir: PathBuf,
    /// The database that was brought there.
    copy: Option<File>,
}

impl Room {
    fn new(tree: &Tree, hands: &impl Hands, now: SystemTime) -> Result<Self, Failure> {
        if let Some(account) = hands.account() {
            return tree.stage_dir(account).map(|dir| Self { dir, copy: None });
        }
        let dir = tree.new_file(now);
        std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|error| unwritable(&dir, &error))?;
        Ok(Self { dir, copy: None })
    }

    /// The restore itself: nothing but the database, no keys, no settings of the user (CONTRACT §11).
    fn bring(mut self, snapshot: &Path, account: Option<(u32, u32)>) -> Result<Self, Failure> {
        let to = self.dir.join(COPY);
        let mut copy = || {
            let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to)?;
            let file = self.copy.insert(file);
            disk::copy(&File::open(snapshot)?, file)?;
            match account {
                Some((uid, gid)) => std::os::unix::fs::fchown(file, Some(uid), Some(gid)),
                None => Ok(()),
            }
        };
        copy().map_err(|error: std::io::Error| unwritable(&to, &error))?;
        Ok(self)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Not by its path, which its owner could have changed.
        self.copy.iter().for_each(disk::cut);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Trying {
    /// As the owner of the data; in a box where one can be made.
    pub async fn carry_out(self, boxing: &Boxing) -> Tried {
        let (program, version) = match program_for(&self.manifest, &self.t3).await {
            Ok(found) => found,
            Err(failure) => return Tried::failed(RestoreStep::Check, failure),
        };
        let trial = Trial {
            t3: t3::Section { command: program, ..self.t3 },
            dir: self.dir,
            manifest: self.manifest,
            start_timeout: self.start_timeout,
            stop_timeout: self.stop_timeout,
        };
        let tried = match trial.in_box(boxing).await {
            Ok(tried) => Tried { boxed: true, ..tried },
            Err(why) => {
                tracing::info!(why, "a drill is not boxed");
                trial.carry_out().await
            }
        };
        Tried { version: Some(version), ..tried }
    }
}

impl Tried {
    fn failed(step: RestoreStep, failure: Failure) -> Self {
        Self { failure: Some(failed(step, failure)), ..Self::default() }
    }
}

impl Trial {
    /// The trial, from inside a box that has no network and none of the user's files but the copy. The error is why there
    /// is no such box, and then nothing was tried.
    async fn in_box(&self, boxing: &Boxing) -> Result<Tried, String> {
        let [command] = self.t3.command.as_slice() else {
            return Err("t3's command is more than a program".to_owned());
        };
        let program = boxed::on_path(command).and_then(|program| std::path::absolute(program).ok());
        let program = program.ok_or_else(|| format!("no command '{command}' on the path"))?;
        let ours = std::env::current_exe().map_err(|error| error.to_string())?;
        let boxes = Boxes::find(boxing, &ours).await?;
        let (dir, prefix) = (&self.dir, boxed::prefix_of(&program));
        ["base", "home", "work", "driver"]
            .iter()
            .try_for_each(|inner| std::fs::create_dir_all(dir.join(inner)))
            .and_then(|()| boxed::furnish(dir, (geteuid().as_raw(), getegid().as_raw())))
            .map_err(|error| format!("cannot furnish {}: {error}", dir.display()))?;
        let mut command = boxes.inner(dir, &prefix);
        command.push(program.to_string_lossy().into_owned());
        // No installs lie there: the command is the build, whatever version it is.
        let t3 = t3::Section { command, installs: dir.join("no-installs"), ..self.t3.clone() };
        let trial = serde_json::to_string(&Self { t3, ..self.clone() }).map_err(|error| error.to_string())?;
        let limits = job::Limits {
            memory: MEMORY + 4 * self.manifest.bytes,
            deadline: self.start_timeout + self.stop_timeout + 2 * LIMITS.request + 2 * LIMITS.command,
        };
        let mut driver = boxes.around_driver(dir, &[&prefix]);
        driver.push(DRIVER.to_owned());
        let job = Job { input: trial, ..Job::new(driver, limits, Grounds::NoBox) };
        let broken = |detail: String| {
            Ok(Tried::failed(RestoreStep::Start, Failure::new(Reason::Crashed, format!("the box {detail}"))))
        };
        match job.carry_out().await {
            Ok(ran) => serde_json::from_str(&ran.stdout)
                .unwrap_or_else(|_| broken(format!("ended with {}: {}", ran.status(), ran.complaint))),
            Err(stopped) => broken(format!("was stopped: {}", stopped.detail)),
        }
    }

    /// In a box of ours; the error is why t3 does not run in it at all.
    pub async fn carry_out_in_box(&self) -> Result<Tried, String> {
        let version = Cli::default().version(&self.t3.command, LIMITS.command).await;
        version
            .map_err(|failure| format!("t3 does not run there: {}; see `[gate] expose`", failure.detail))?;
        Ok(self.carry_out().await)
    }

    /// Here and now.
    async fn carry_out(&self) -> Tried {
        let mut tried = Tried::default();
        if let Err(Broken(step, failure)) = self.run(&mut tried).await {
            tried.failure = Some(failed(step, failure));
        }
        tried
    }

    async fn run(&self, tried: &mut Tried) -> Result<(), Broken> {
        let at = |step| move |failure| Broken(step, failure);
        let manifest = &self.manifest;
        let begin = Instant::now();
        let scratch = Scratch::within(&self.dir, &manifest.user).and_then(|scratch| {
            std::fs::rename(self.dir.join(COPY), scratch.instance.database())?;
            Ok(scratch)
        });
        let scratch = scratch.map_err(|error| Broken(RestoreStep::Copy, unwritable(&self.dir, &error)))?;
        let visible = Visible::of(&scratch.instance).map_err(at(RestoreStep::Copy))?;
        let started = Instant::now();
        let mut trial = scratch.start(&self.t3.command, "127.0.0.1").map_err(at(RestoreStep::Start))?;
        trial.ready(&scratch.instance, self.start_timeout).await.map_err(at(RestoreStep::Start))?;
        tried.t3 = started.elapsed();
        let keepers = Keepers::new(scratch.path("keepers"), Mint::Keeper, Guard::new(&self.t3));
        let loaded = log_in(&scratch.instance, &keepers, manifest, &visible, &mut tried.t3).await;
        loaded.map_err(|why| Broken(RestoreStep::Prove, failure_of(why)))?;
        tried.total = begin.elapsed();
        trial.stop(self.stop_timeout).await.map_err(at(RestoreStep::Stop))?;
        nothing_lost(&scratch.instance, manifest).map_err(at(RestoreStep::Prove))
    }
}

/// The command of the version that ran when the snapshot was made and could use it; else of one that opens its level as
/// it is.
async fn program_for(manifest: &Manifest, t3: &t3::Section) -> Result<(Vec<String>, Version), Failure> {
    let (installs, cli) = (Installs::new(t3), Cli::default());
    let mut candidates: Vec<Version> = manifest.usable_by().cloned().into_iter().collect();
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
