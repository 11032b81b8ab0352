//! The gate: a candidate build beside the known-good one, each on copies of every user's data, in boxes. It finds
//! evidence and judges nothing; whatever keeps it from finding any is said as its own trouble, never as the build's.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde::Deserialize;

use crate::backup;
use crate::outcome::Grounds;
use crate::t3::access::wire::Builds;
use crate::t3::boxed::Boxing;
use crate::t3::version::Version;
use crate::t3::{self, Instance};

pub mod candidate;
mod chain;
pub mod evidence;
pub mod hands;
mod place;
pub mod rehearsal;
mod seed;
pub mod track;

use candidate::{Found, Located};
use chain::Stage;
use evidence::{Build, Chained, Evidence, Trouble};
use hands::{Hands, Served, Whose, boxes, by_helper};
use place::Place;
use seed::Source;

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
    /// Rehearsals at once; each needs about 400 MB of memory. No default; absent, one a core, as far as a GB of free
    /// memory is there for each, at least 2 and at most 8.
    pub parallelism: Option<usize>,
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
    /// Where copies lie while they are rehearsed on. No default; absent, `/var/lib/t3-prober-gate` where there is one that
    /// we may write to, else `gate` in `state_dir`. Where users have accounts, every one of them must be able to pass
    /// through it: each is the owner of the copies of their own data, which nobody else can read.
    pub dir: Option<PathBuf>,
    /// The account that runs what is nobody's data, where root rehearses: installs, and builds on a fresh database.
    /// Default `nobody`.
    pub account: String,
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
            parallelism: None,
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
            dir: None,
            account: "nobody".to_owned(),
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
        if self.parallelism == Some(0) {
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
        let paths =
            self.expose.iter().map(|path| ("expose", path)).chain(self.dir.iter().map(|path| ("dir", path)));
        complaints.extend(paths.filter(|(_, path)| path.is_relative()).map(|(key, path)| {
            (key, format!("'{}' is not an absolute path; begin it with /", path.display()))
        }));
        complaints
    }

    /// Rehearsals at once on this machine as it is now.
    pub fn at_once(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let free = <procfs::Meminfo as procfs::Current>::current()
            .ok()
            .and_then(|memory| memory.mem_available)
            .unwrap_or_default();
        let fit = usize::try_from(free >> 30).unwrap_or(usize::MAX);
        self.parallelism.unwrap_or_else(|| cores.min(fit).clamp(2, 8))
    }

    /// How long the rehearsals on one user's data may take, if each of them takes as long as it may.
    pub fn longest_chain(&self) -> Duration {
        self.deadline * 4 + seed::COPY_LIMIT + self.command_timeout
    }
}

/// What is asked for as a candidate.
#[derive(Clone, Debug)]
pub enum Wanted {
    Version(Version),
    Program(PathBuf),
}

/// One run of the gate.
pub struct Request<H> {
    pub candidate: Wanted,
    /// A version or a path; absent, what the configuration says.
    pub control: Option<String>,
    pub users: Vec<Served<H>>,
    /// Whoever runs what is nobody's data.
    pub nobody: H,
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
pub async fn run<H: Hands>(
    request: &Request<H>,
    setting: &Setting<'_>,
    progress: &(dyn Fn(&str) + Sync),
) -> Evidence {
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

/// Rehearses on one user's data alone, and never without a box: what the helper does for a gate without privilege.
pub async fn on_one<H: Hands>(
    instance: &Instance,
    hands: &H,
    builds: &Builds,
    setting: &Setting<'_>,
) -> Result<Chained, Trouble> {
    let user = &instance.name;
    let trouble = |(grounds, detail)| Trouble { grounds, seed: Some(user.clone()), rehearsal: None, detail };
    let work = async {
        let (program, place) = begin(setting)?;
        let boxes = boxes(&setting.gate.boxing(), &program, hands).await;
        let boxes = boxes.map_err(|why| (Grounds::NoBox, why))?;
        let located = |path: &Path, grounds| {
            Located::at(path).map_err(|error| (grounds, format!("cannot read {}: {error}", path.display())))
        };
        let candidate = located(&builds.candidate, Grounds::NoCandidate)?;
        let control = located(&builds.control, Grounds::NoControl)?;
        let source = Source::of_user(instance, hands, setting.backup, &place, SystemTime::now()).await?;
        let stage = Stage::new(setting.gate, Some(boxes), program, place, candidate, control);
        stage.has_room_for(std::slice::from_ref(&source))?;
        Ok(stage.chain(0, &source, hands, &|_| ()).await)
    };
    work.await.map_err(trouble)
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(version) => version.fmt(f),
            Self::Program(path) => path.display().fmt(f),
        }
    }
}

/// Our own program, which is the driver in the boxes, and where we work.
fn begin(setting: &Setting<'_>) -> Result<(PathBuf, Place), (Grounds, String)> {
    let program = std::env::current_exe()
        .map_err(|error| (Grounds::NoBox, format!("cannot find our own program: {error}")))?;
    let dir = place::root(setting.gate.dir.as_deref(), setting.state_dir);
    let place = Place::new(&dir)
        .map_err(|error| (Grounds::NoSpace, format!("cannot work in {}: {error}", dir.display())))?;
    Ok((program, place))
}

async fn rehearse_all<H: Hands>(
    request: &Request<H>,
    setting: &Setting<'_>,
    progress: &(dyn Fn(&str) + Sync),
    evidence: &mut Evidence,
) -> Result<(), (Grounds, String)> {
    let (section, nobody) = (setting.gate, &request.nobody);
    let (program, place) = begin(setting)?;
    let boxes = boxes(&section.boxing(), &program, nobody)
        .await
        .inspect_err(|why| progress(&format!("without a box: {why}")))
        .ok();
    evidence.boxed = boxes.is_some();

    let control = request.control.as_deref().or(section.control.as_deref());
    let control = Found::control(control, setting.t3, boxes.as_ref(), nobody).await;
    let control = control.map_err(|detail| (Grounds::NoControl, detail))?;
    evidence.control = control.build.clone();
    progress(&format!("the control is t3 {}", control.build.version));
    let candidate =
        Found::candidate(&request.candidate, section, setting.t3, boxes.as_ref(), &place, nobody).await?;
    evidence.candidate = candidate.build.clone();
    progress(&format!("the candidate is t3 {} ({})", candidate.build.version, candidate.build.integrity));

    let builds = Builds {
        candidate: PathBuf::from(&candidate.located.program),
        control: PathBuf::from(&control.located.program),
    };
    let sources = sources(request, setting, &place).await?;
    let ours: Vec<&Source> = sources.iter().filter_map(|due| due.source()).collect();
    let stage = Stage::new(section, boxes, program, place, candidate.located, control.located);
    stage.has_room_for(ours)?;
    stage.expect(sources.len());
    let chains = sources.iter().enumerate().map(|(index, due)| {
        let (stage, builds) = (&stage, &builds);
        async move {
            match due {
                Due::Here(source, hands) => Ok(stage.chain(index, source, *hands, progress).await),
                Due::Helper(user, helper) => {
                    let limit = section.longest_chain();
                    stage.elsewhere(user, by_helper(helper, user, builds.clone(), limit), progress).await
                }
            }
        }
    });
    for chained in join_all(chains).await {
        match chained {
            Ok(chained) => {
                evidence.seeds.push(chained.seed);
                evidence.trouble.extend(chained.trouble);
            }
            Err(trouble) => evidence.trouble.push(trouble),
        }
    }
    Ok(())
}

/// A database that is due, and who rehearses on it.
enum Due<'a, H> {
    Here(Source, &'a H),
    Helper(&'a str, &'a t3::access::helper::Helper),
}

impl<H> Due<'_, H> {
    fn source(&self) -> Option<&Source> {
        match self {
            Self::Here(source, _) => Some(source),
            Self::Helper(..) => None,
        }
    }
}

/// Nothing, everybody's data, and the file that was named.
async fn sources<'a, H: Hands>(
    request: &'a Request<H>,
    setting: &Setting<'_>,
    place: &Place,
) -> Result<Vec<Due<'a, H>>, (Grounds, String)> {
    let now = SystemTime::now();
    let mut sources = vec![Due::Here(Source::fresh(now), &request.nobody)];
    for Served { instance, whose } in &request.users {
        sources.push(match whose {
            Whose::Here(hands) => {
                Due::Here(Source::of_user(instance, hands, setting.backup, place, now).await?, hands)
            }
            Whose::Helper(helper) => Due::Helper(&instance.name, helper),
        });
    }
    if let Some(file) = &request.seed {
        sources.push(Due::Here(Source::of_file(file, place, now)?, &request.nobody));
    }
    Ok(sources)
}
