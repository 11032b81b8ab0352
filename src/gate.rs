//! The gate: a candidate build beside the known-good one, each on copies of every user's data, in boxes. It finds
//! evidence and judges nothing; whatever keeps it from finding any is said as its own trouble, never as the build's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::backup;
use crate::outcome::{Grounds, Rehearsal};
use crate::t3::version::Version;
use crate::t3::{self, Instance};

pub mod candidate;
pub mod evidence;
mod place;
pub mod rehearsal;
mod seed;
pub mod track;

use crate::t3::boxed::{self, Boxes, Boxing, Limits};
use candidate::Found;
use evidence::{Build, Evidence, Rehearsed, SeedEvidence, Trouble};
use place::Place;
use rehearsal::{Orders, Patience};
use seed::Source;

/// Beside the database a rehearsal holds its WAL and what t3 writes of its own.
const ROOM_BESIDES: u64 = 64 << 20;
/// Copies of one seed that exist at once: control, candidate and skew.
const COPIES: u64 = 3;

/// `[gate]`: how a candidate build is rehearsed before anybody gets it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The known-good build that a candidate is compared with: a version installed below `[t3] installs`, or the path
    /// of its program. No default; absent, it is `[t3] command`.
    pub control: Option<String>,
    /// The command that installs `{version}` below `{prefix}`, so that `{prefix}/bin/t3` is its program. Default: npm.
    pub install_command: Vec<String>,
    /// How long an install may take. Default 10m.
    #[serde(with = "humantime_serde")]
    pub install_timeout: Duration,
    /// The address that builds are bound to in their box, as production binds them: the cookie's name depends on it.
    /// Default `0.0.0.0`; without a box it is 127.0.0.1 in any case.
    pub host: String,
    /// Rehearsals at once. Default 2; each needs about 400 MB of memory.
    pub parallelism: usize,
    /// How long a build may take from its start to its first answer. Default 30s; a long migration is part of it.
    #[serde(with = "humantime_serde")]
    pub ready_timeout: Duration,
    /// How long one request may take. Default 30s: t3 needs 4 s to load a history of 269 MB.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long one run of t3's command may take. Default 30s.
    #[serde(with = "humantime_serde")]
    pub command_timeout: Duration,
    /// How long a build may take to end after SIGTERM. Default 60s.
    #[serde(with = "humantime_serde")]
    pub stop_timeout: Duration,
    /// How long a build has to stay well on a fresh database; on the others it is looked at once. Default 30s.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
    /// How long one rehearsal may take in all before the gate gives up on it. Default 10m.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// The memory of one rehearsal in MiB, beside four times the size of its database. Default 1536.
    pub memory_mib: u64,
    /// What has to stay free on the file system of `state_dir` beside the copies, in MiB. Default 512.
    pub keep_free_mib: u64,
    /// The bubblewrap program. Default `bwrap`.
    pub bwrap: String,
    /// Directories that builds may read besides the system's own and theirs, such as where node is installed. Default
    /// none.
    pub expose: Vec<PathBuf>,
    /// Whether only evidence from a box may pass. Default true.
    pub require_box: bool,
    /// How long a verdict is valid. Default 7d.
    #[serde(with = "humantime_serde")]
    pub valid_for: Duration,
    /// How old the backups may be where going back from a build needs a restore. Default 1d.
    #[serde(with = "humantime_serde")]
    pub backup_age: Duration,
    /// Following a dist-tag. Default: none is followed.
    pub track: track::Section,
}

impl Default for Section {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let npm =
            ["npm", "install", "--global", "--no-audit", "--no-fund", "--prefix", "{prefix}", "t3@{version}"];
        Self {
            control: None,
            install_command: npm.map(str::to_owned).to_vec(),
            install_timeout: candidate::INSTALL_TIMEOUT,
            host: "0.0.0.0".to_owned(),
            parallelism: 2,
            ready_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            command_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(60),
            hold: Duration::from_secs(30),
            deadline: Duration::from_secs(600),
            memory_mib: 1536,
            keep_free_mib: 512,
            bwrap: "bwrap".to_owned(),
            expose: Vec::new(),
            require_box: true,
            valid_for: 7 * DAY,
            backup_age: DAY,
            track: track::Section::default(),
        }
    }
}

impl Section {
    /// What it takes to make boxes.
    pub fn boxing(&self) -> Boxing {
        Boxing { bwrap: self.bwrap.clone(), expose: self.expose.clone() }
    }

    /// What no single key shows, as (key, sentence).
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        let limits = [
            ("install_timeout", self.install_timeout),
            ("ready_timeout", self.ready_timeout),
            ("request_timeout", self.request_timeout),
            ("command_timeout", self.command_timeout),
            ("stop_timeout", self.stop_timeout),
            ("deadline", self.deadline),
            ("valid_for", self.valid_for),
        ];
        let none = limits.iter().filter(|(_, limit)| limit.is_zero());
        complaints.extend(
            none.map(|(key, _)| (*key, "nothing can be done in no time; write 1s or more".to_owned())),
        );
        if self.parallelism == 0 {
            complaints
                .push(("parallelism", "with 0 nothing would ever be rehearsed; write 1 or more".to_owned()));
        }
        if !self.deadline.is_zero() && self.deadline <= self.hold {
            complaints.push((
                "deadline",
                "no rehearsal could end, because it is not longer than hold; write more than that".to_owned(),
            ));
        }
        let names = |word: &str| self.install_command.iter().any(|argument| argument.contains(word));
        if !names("{version}") || !names("{prefix}") {
            let sentence =
                "it installs nothing in particular; it needs {version} and {prefix} in it".to_owned();
            complaints.push(("install_command", sentence));
        }
        complaints.extend(self.track.complaint().map(|sentence| ("track", sentence)));
        if let Some(path) = self.expose.iter().find(|path| path.is_relative()) {
            let sentence = format!("'{}' is not an absolute path; begin it with /", path.display());
            complaints.push(("expose", sentence));
        }
        complaints
    }
}

/// What is asked for as a candidate.
#[derive(Clone, Debug)]
pub enum Wanted {
    Version(Version),
    Program(PathBuf),
}

/// One run of the gate.
pub struct Request {
    pub candidate: Wanted,
    /// A version or a path; absent, what the configuration says.
    pub control: Option<String>,
    pub users: Vec<Instance>,
    /// A database to rehearse on besides.
    pub seed: Option<PathBuf>,
}

/// What the gate reads of the configuration.
pub struct Setting<'a> {
    pub gate: &'a Section,
    pub t3: &'a t3::Section,
    pub backup: &'a backup::Section,
    pub state_dir: &'a Path,
}

/// Rehearses. `progress` is told a line for a person whenever something has been done.
pub async fn run(request: &Request, setting: &Setting<'_>, progress: &(dyn Fn(&str) + Sync)) -> Evidence {
    let mut evidence = Evidence {
        candidate: Build { name: request.candidate.to_string(), ..Build::default() },
        control: Build::default(),
        boxed: false,
        seeds: Vec::new(),
        trouble: Vec::new(),
    };
    if let Wanted::Version(version) = &request.candidate {
        evidence.candidate.version = version.to_string();
    }
    if let Err((grounds, detail)) = rehearse_all(request, setting, progress, &mut evidence).await {
        evidence.trouble.push(Trouble { grounds, seed: None, rehearsal: None, detail });
    }
    evidence
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(version) => version.fmt(f),
            Self::Program(path) => path.display().fmt(f),
        }
    }
}

async fn rehearse_all(
    request: &Request,
    setting: &Setting<'_>,
    progress: &(dyn Fn(&str) + Sync),
    evidence: &mut Evidence,
) -> Result<(), (Grounds, String)> {
    let section = setting.gate;
    let program = std::env::current_exe()
        .map_err(|error| (Grounds::NoBox, format!("cannot find our own program: {error}")))?;
    let boxes = Boxes::find(&section.bwrap, &program, &section.expose)
        .inspect_err(|why| progress(&format!("without a box: {why}")))
        .ok();
    evidence.boxed = boxes.is_some();
    let place = Place::new(setting.state_dir).map_err(|error| {
        let dir = setting.state_dir.display();
        (Grounds::NoSpace, format!("cannot work below {dir}: {error}"))
    })?;

    let control = request.control.as_deref().or(section.control.as_deref());
    let control = Found::control(control, setting.t3).await.map_err(|detail| (Grounds::NoControl, detail))?;
    evidence.control = control.build.clone();
    progress(&format!("the control is t3 {}", control.build.version));
    let candidate = Found::candidate(&request.candidate, section, setting.t3, boxes.as_ref(), &place).await?;
    evidence.candidate = candidate.build.clone();
    progress(&format!("the candidate is t3 {} ({})", candidate.build.version, candidate.build.integrity));

    let sources = sources(request, setting, &place)?;
    let free =
        place.free().map_err(|error| (Grounds::NoSpace, format!("cannot tell what is free: {error}")))?;
    let together = sources.len().min(section.parallelism) as u64;
    let largest = sources.iter().map(|source| source.seed.bytes).max().unwrap_or_default();
    let needed = together * COPIES * (2 * largest + ROOM_BESIDES) + (section.keep_free_mib << 20);
    if free < needed {
        let (free, needed, dir) = (free >> 20, needed >> 20, setting.state_dir.display());
        return Err((
            Grounds::NoSpace,
            format!(
                "{dir} has {free} MiB free, the copies need {needed} MiB; make room or set `[gate] keep_free_mib`"
            ),
        ));
    }

    let stage = Arc::new(Stage {
        section: section.clone(),
        boxes,
        program,
        place,
        candidate,
        control,
        turns: Semaphore::new(section.parallelism),
        done: AtomicUsize::new(0),
        due: sources.len() * Rehearsal::ALL.len(),
        clock: Instant::now(),
    });
    let chains = sources.iter().enumerate().map(|(index, source)| stage.chain(index, source, progress));
    for (seed, trouble) in futures_util::future::join_all(chains).await {
        evidence.seeds.push(seed);
        evidence.trouble.extend(trouble);
    }
    Ok(())
}

/// Nothing, everybody's data, and the file that was named.
fn sources(
    request: &Request,
    setting: &Setting<'_>,
    place: &Place,
) -> Result<Vec<Source>, (Grounds, String)> {
    let now = SystemTime::now();
    let mut sources = vec![Source::fresh(now)];
    for instance in &request.users {
        let source = Source::of_user(instance, setting.backup, place, now);
        sources.push(source.map_err(|failure| {
            (Grounds::NoSeed, format!("the data of {} cannot be copied: {}", instance.name, failure.detail))
        })?);
    }
    if let Some(file) = &request.seed {
        let source = Source::of_file(file, place, now);
        sources.push(source.map_err(|failure| {
            (Grounds::NoSeed, format!("{} cannot be copied: {}", file.display(), failure.detail))
        })?);
    }
    Ok(sources)
}

/// What all rehearsals of one run share.
struct Stage {
    section: Section,
    boxes: Option<Boxes>,
    program: PathBuf,
    place: Place,
    candidate: Found,
    control: Found,
    turns: Semaphore,
    done: AtomicUsize,
    due: usize,
    clock: Instant,
}

impl Stage {
    /// The rehearsals on one seed: control and candidate, and where both are well, whether there is a way back and what
    /// happens in between.
    async fn chain(
        &self,
        index: usize,
        source: &Source,
        progress: &(dyn Fn(&str) + Sync),
    ) -> (SeedEvidence, Vec<Trouble>) {
        let name = &source.seed.name;
        let hold = if source.file.is_none() { self.section.hold } else { Duration::ZERO };
        let (mut rehearsals, mut trouble) = (Vec::new(), Vec::new());
        let mut keep = |result: Result<Rehearsed, Trouble>| match result {
            Ok(rehearsed) => {
                let passed = rehearsed.passed();
                rehearsals.push(rehearsed);
                passed
            }
            Err(why) => {
                trouble.push(why);
                false
            }
        };
        let room = |which: &str| self.place.dir().join(format!("{index}-{which}"));
        let (control, candidate) = tokio::join!(
            self.rehearse(Rehearsal::Control, source, room("control"), hold, progress),
            self.rehearse(Rehearsal::Candidate, source, room("candidate"), hold, progress),
        );
        let both = [keep(control), keep(candidate)];
        if both == [true, true] {
            let (way_back, skew) = tokio::join!(
                // On what the candidate has left.
                self.rehearse(Rehearsal::WayBack, source, room("candidate"), Duration::ZERO, progress),
                self.rehearse(Rehearsal::Skew, source, room("skew"), Duration::ZERO, progress),
            );
            keep(way_back);
            keep(skew);
        } else {
            self.done.fetch_add(2, Ordering::Relaxed);
        }
        for which in ["control", "candidate", "skew"] {
            let _ = std::fs::remove_dir_all(room(which));
        }
        trouble.iter_mut().for_each(|trouble| trouble.seed = Some(name.clone()));
        (SeedEvidence { seed: source.seed.clone(), rehearsals }, trouble)
    }

    async fn rehearse(
        &self,
        rehearsal: Rehearsal,
        source: &Source,
        room: PathBuf,
        hold: Duration,
        progress: &(dyn Fn(&str) + Sync),
    ) -> Result<Rehearsed, Trouble> {
        let Ok(_turn) = self.turns.acquire().await else {
            return Err(trouble(rehearsal, Grounds::Deadline, "the run was ended".to_owned()));
        };
        let name = &source.seed.name;
        if rehearsal != Rehearsal::WayBack {
            place::furnish(&room).and_then(|()| source.place_in(&room)).map_err(|error| {
                let grounds = match error.kind() {
                    std::io::ErrorKind::StorageFull => Grounds::NoSpace,
                    _ => Grounds::NoSeed,
                };
                trouble(rehearsal, grounds, format!("cannot copy the data of {name}: {error}"))
            })?;
        }
        let result = self.drive(rehearsal, source, &room, hold).await;
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let left = self.due.saturating_sub(done);
        let still = self.clock.elapsed().mul_f64(left as f64 / done as f64).as_secs();
        let told = match &result {
            Ok(rehearsed) => rehearsed
                .stopped_at()
                .map_or_else(|| "ok".to_owned(), |at| format!("{} {}", at.step, at.outcome)),
            Err(why) => format!("{}: {}", why.grounds, why.detail),
        };
        progress(&format!("{done}/{} {name}: {rehearsal} {told}; about {still} s left", self.due));
        result
    }

    /// Runs the driver, in its box where there is one, and reads its evidence.
    async fn drive(
        &self,
        rehearsal: Rehearsal,
        source: &Source,
        room: &Path,
        hold: Duration,
    ) -> Result<Rehearsed, Trouble> {
        let section = &self.section;
        let found = if rehearsal == Rehearsal::Candidate { &self.candidate } else { &self.control };
        let boxes = self.boxes.as_ref();
        let command = |found: &Found| rehearsal::command(boxes, room, &found.prefix, &found.program);
        let orders = Orders {
            rehearsal,
            name: "rehearsal".to_owned(),
            dir: room.to_path_buf(),
            // Whoever is not in a box must not be reached from outside.
            host: if boxes.is_some() { section.host.clone() } else { "127.0.0.1".to_owned() },
            program: command(found),
            intruder: command(&self.candidate),
            patience: Patience {
                ready: section.ready_timeout,
                request: section.request_timeout,
                command: section.command_timeout,
                stop: section.stop_timeout,
                hold,
            },
        };
        let fail = |grounds, detail| trouble(rehearsal, grounds, detail);
        let input = serde_json::to_vec(&orders).map_err(|error| fail(Grounds::NoBox, error.to_string()))?;
        let mut driver = match boxes {
            Some(boxes) => {
                boxes.around_driver(room, &[self.candidate.prefix.clone(), self.control.prefix.clone()])
            }
            None => {
                let mut driver = std::process::Command::new(&self.program);
                let path = format!("{}:/usr/bin:/bin", room.join("bin").display());
                driver.env_clear().env("PATH", path).env("HOME", room.join("home"));
                driver
            }
        };
        driver.arg("gate-driver");
        let limits =
            Limits { memory: (section.memory_mib << 20) + 4 * source.seed.bytes, deadline: section.deadline };
        let output = boxed::run(driver, &input, limits, Grounds::NoBox).await;
        let output = output.map_err(|stopped| fail(stopped.grounds, stopped.detail))?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = boxed::first_line(&output.stderr);
            fail(Grounds::NoBox, format!("the rehearsal's box ended with {}: {said}", output.status))
        })
    }
}

fn trouble(rehearsal: Rehearsal, grounds: Grounds, detail: String) -> Trouble {
    Trouble { grounds, seed: None, rehearsal: Some(rehearsal), detail }
}
