//! The docket: which builds are to be judged, and what was found of those that were. A verdict is asked for by version
//! and by nothing else, and counts only while it is about the present situation.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::gate::candidate::Located;
use crate::gate::evidence::{Build, Evidence, Trouble};
use crate::gate::hands::{Served, Whose};
use crate::gate::{self, Request, Setting, Wanted};
use crate::helper::Crew;
use crate::inventory;
use crate::outcome::{Elsewhere, Grounds, Verdict};
use crate::probe::instance_of;
use crate::t3::Instance;
use crate::t3::access::Access;
use crate::t3::state;
use crate::t3::version::Version;
use crate::verdict::{self, Binding, Covered, Document, Policy, Present};

pub mod aside;
pub mod due;
mod line;
pub mod live;
pub mod tray;

pub use line::Line;

/// How long the helper may take to look at one database.
const LOOK: Duration = Duration::from_secs(10);

/// A build that is to be judged, and on whose data.
#[derive(Clone, Debug)]
pub struct Asked {
    pub candidate: Wanted,
    /// A version or a path; absent, what the configuration says.
    pub control: Option<String>,
    /// Whose data; empty means everybody's.
    pub users: Vec<String>,
    /// A database to rehearse on instead of the users'.
    pub seed: Option<PathBuf>,
}

impl Asked {
    /// As an enforcer asks: on everybody's data, beside the known-good build.
    pub fn about(candidate: Wanted) -> Self {
        Self { candidate, control: None, users: Vec::new(), seed: None }
    }
}

/// A build that was judged, and why the verdict is not about the present situation, where it is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub document: Arc<Document>,
    pub elsewhere: Option<(Elsewhere, String)>,
}

impl Candidate {
    /// Why it does not count at this moment: it may have ended since it was measured.
    pub fn elsewhere_at(&self, now: SystemTime) -> Option<(Elsewhere, String)> {
        self.elsewhere.clone().or_else(|| self.document.expired(now))
    }
}

/// What installed builds were found to be, so that their files are read again only where they were replaced.
#[derive(Debug, Default)]
pub struct Measured(HashMap<String, (Stamp, Option<String>)>);

/// Inode and time of the program and of its package.
type Stamp = Vec<Option<(u64, i64, i64)>>;

/// How the verdict about a version stands at this moment.
#[derive(Debug)]
pub enum Standing {
    /// It is about the present situation.
    Holds(Box<Document>),
    /// It is about another one.
    Elsewhere { document: Box<Document>, why: Elsewhere, detail: String },
    /// There is none that can be read; the sentence says why.
    Missing(String),
}

impl Standing {
    /// What counts: `None` where no verdict is about the present situation.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Holds(document) => Some(document.verdict),
            Self::Elsewhere { .. } | Self::Missing(_) => None,
        }
    }

    /// Whether it cannot be told what it is about; asking the gate again would not tell, either.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Elsewhere { why: Elsewhere::CannotTell, .. })
    }

    pub fn document(&self) -> Option<&Document> {
        match self {
            Self::Holds(document) | Self::Elsewhere { document, .. } => Some(document),
            Self::Missing(_) => None,
        }
    }
}

/// Rehearses, judges and keeps the verdict; takes as long as the rehearsals do. Whatever keeps the gate from running is
/// in the verdict; an error is about keeping it. `progress` is told a line for a person whenever something was done.
pub async fn judge(
    asked: &Asked,
    config: &Config,
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Document> {
    let users = if asked.seed.is_some() { Ok(Vec::new()) } else { covered(&asked.users, config) };
    let evidence = match users {
        Ok(users) => rehearsed(asked, users, config, progress).await,
        Err(error) => Err(error),
    };
    let evidence = evidence.unwrap_or_else(|error| nobody(&asked.candidate, &error));
    let section = &config.gate;
    let policy =
        Policy { boxed: section.require_box, backup_age: section.backup_age, valid_for: section.valid_for };
    let bound_to = Binding {
        program: program(),
        config: digest(config),
        users: evidence.seeds.iter().filter_map(|seed| Covered::of(&seed.seed)).collect(),
    };
    let document = verdict::judge(evidence, &policy, bound_to, SystemTime::now());
    // Without a version there is nothing that it could be asked for by.
    if !document.candidate.version.is_empty() {
        verdict::store(&config.state_dir, &document).context("cannot keep the verdict")?;
    }
    Ok(document)
}

/// On each user's data by whoever has the right to it.
async fn rehearsed(
    asked: &Asked,
    users: Vec<Instance>,
    config: &Config,
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Evidence> {
    let crew = Crew::new(config).map_err(anyhow::Error::msg)?;
    let is_root = nix::unistd::geteuid().is_root();
    let served = |instance: Instance| {
        let whose = match config.helper.rehearser().filter(|_| !is_root) {
            Some(helper) => Whose::Helper(helper),
            None => Whose::Here(
                crew.of(&instance)
                    .map_err(|why| anyhow::anyhow!("cannot rehearse as {}: {why}", instance.name))?,
            ),
        };
        anyhow::Ok(Served { instance, whose })
    };
    let request = Request {
        candidate: asked.candidate.clone(),
        control: asked.control.clone(),
        users: users.into_iter().map(served).collect::<Result<_, _>>()?,
        nobody: crew.nobody().map_err(anyhow::Error::msg)?,
        seed: asked.seed.clone(),
    };
    let setting =
        Setting { gate: &config.gate, t3: &config.t3, backup: &config.backup, state_dir: &config.state_dir };
    Ok(gate::run(&request, &setting, progress).await)
}

/// The kept verdict about a version, measured against users, databases, configuration and installed build as they are
/// now. Reads the whole installed build once.
pub async fn standing(config: &Config, version: &Version) -> Standing {
    let document = match verdict::load(&config.state_dir, &version.to_string()) {
        Ok(document) => Box::new(document),
        Err(not_kept) => return Standing::Missing(format!("{:#}", anyhow::Error::new(not_kept))),
    };
    match document.elsewhere(&present(config, version).await) {
        Some((why, detail)) => Standing::Elsewhere { document, why, detail },
        None => Standing::Holds(document),
    }
}

/// Evidence of nothing: it is not known who is served.
fn nobody(candidate: &Wanted, error: &anyhow::Error) -> Evidence {
    let version = match candidate {
        Wanted::Version(version) => version.to_string(),
        Wanted::Program(_) => String::new(),
    };
    let detail = format!("{error:#}");
    Evidence {
        candidate: Build { name: candidate.to_string(), version, ..Build::default() },
        control: Build::default(),
        boxed: false,
        seeds: Vec::new(),
        trouble: vec![Trouble { grounds: Grounds::NoSeed, seed: None, rehearsal: None, detail }],
    }
}

/// The users whose data counts.
fn covered(names: &[String], config: &Config) -> anyhow::Result<Vec<Instance>> {
    let inventory = inventory::read_once(&config.inventory).context(
        "cannot read the inventory, so nobody's data can be rehearsed; name a database with --seed",
    )?;
    if names.is_empty() {
        return Ok(inventory.targets().iter().map(instance_of).collect());
    }
    let find = |user: &String| {
        let target = inventory.by_user(user);
        target.map(instance_of).with_context(|| format!("no user '{user}' in the inventory"))
    };
    names.iter().map(find).collect()
}

/// The situation that a verdict about `version` is asked in.
async fn present(config: &Config, version: &Version) -> Present {
    let access = config.helper.access(&config.t3, &config.state_dir);
    let instances = match covered(&[], config) {
        Ok(instances) => instances,
        Err(error) => {
            let unknown = Err(format!("{error:#}"));
            return situation(config, &version.to_string(), unknown, &mut Measured::default()).await;
        }
    };
    let mut users = Vec::new();
    for instance in instances {
        let level = match &access {
            Access::Own(_) if access.may_read(&instance) => state::level(&instance.database()).await.ok(),
            Access::Own(_) | Access::Helper(..) => {
                access.inspect(&instance, LOOK).await.ok().and_then(|found| found.level.ok())
            }
        };
        users.push((instance.name, level.map(|level| level.level.0)));
    }
    situation(config, &version.to_string(), Ok(users), &mut Measured::default()).await
}

/// The situation with these users, and the level of their databases where it is known.
pub async fn situation(
    config: &Config,
    version: &str,
    users: Result<Vec<(String, Option<u32>)>, String>,
    measured: &mut Measured,
) -> Present {
    let installed = measured.installed(config, version).await;
    Present { now: SystemTime::now(), program: program(), config: digest(config), users, installed }
}

impl Measured {
    /// The integrity of the side-by-side install of a version, where there is one.
    async fn installed(&mut self, config: &Config, version: &str) -> Option<String> {
        let dir = config.t3.installs.join(version);
        let stamp = |name: &str| {
            let metadata = dir.join(name).metadata().ok()?;
            Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
        };
        let stamp: Stamp =
            ["bin/t3", "lib/node_modules/t3", "lib/node_modules/t3/package.json"].map(stamp).into();
        if let Some((before, integrity)) = self.0.get(version)
            && *before == stamp
        {
            return integrity.clone();
        }
        let found = match Located::at(&dir.join("bin/t3")) {
            Ok(located) => located.integrity().await.ok(),
            Err(_) => None,
        };
        self.0.insert(version.to_owned(), (stamp, found.clone()));
        found
    }
}

fn program() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Over what the gate reads; the same text under the same version of this program, which a verdict is bound to as well.
fn digest(config: &Config) -> String {
    // What is followed has no say in how a build is rehearsed.
    let gate = gate::Section { track: gate::track::Section::default(), ..config.gate.clone() };
    let read = format!("{gate:?} {:?}", config.t3);
    let hex: String = Sha256::digest(read).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
