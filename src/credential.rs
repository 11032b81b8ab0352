//! Long-lived tokens that users' instances depend on: when each ends, and how that is known. A token itself is never
//! read; what cannot be read any more keeps its last known end, and says so.

mod date;
pub mod memory;
mod sidecar;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use self::date::Date;
use crate::outcome::{CredentialState, Evidence};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// For how long a look that fails is taken for a passing trouble.
const STALE_AFTER: Duration = Duration::from_secs(3600);

/// All `[[credential]]` of the configuration. Default none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<Written>")]
pub struct Section {
    credentials: Vec<Credential>,
    complaints: Vec<Complaint>,
}

/// Which block, counted from 0, the key it is best put right at, and a sentence with the remedy.
pub type Complaint = (usize, &'static str, String);

/// One credential: what it is called, whose it is, and where its end is learned from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub name: String,
    /// Whose instance depends on it; `None` where it is nobody's in particular.
    pub user: Option<String>,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// The configuration says it.
    Stated(Expiry),
    /// A file that whoever mints writes beside the credential.
    Sidecar { path: PathBuf, lifetime: Option<Duration> },
    /// The credential's own file, of which only the modification time is looked at.
    File { path: PathBuf, lifetime: Duration },
}

/// `[[credential]]` as the operator writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// What it is called in alerts and on the status page.
    name: String,
    /// Whose instance depends on it. No default; absent, it is nobody's in particular.
    user: Option<String>,
    /// When it ends. Exactly one of `expires`, `minted`, `sidecar` and `file` is there.
    expires: Option<Date>,
    /// When it was made; with `lifetime`.
    minted: Option<Date>,
    /// How long it lives from then on. No default.
    #[serde(default, with = "humantime_serde")]
    lifetime: Option<Duration>,
    /// A JSON file with `expires`, or with `minted` and, unless it stands here, `lifetime`.
    sidecar: Option<PathBuf>,
    /// The credential's own file; with `lifetime`.
    file: Option<PathBuf>,
}

/// When a credential ends, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub at: SystemTime,
    pub evidence: Evidence,
}

/// A credential, and what was learned of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub credential: Credential,
    pub known: Option<Known>,
    /// Why the last look learned nothing.
    pub trouble: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub expiry: Expiry,
    /// When it was last confirmed.
    pub seen: SystemTime,
}

/// All credentials that are watched.
#[derive(Debug, Default)]
pub struct Watch(Vec<Watched>);

impl Section {
    /// What the operator must put right: a configuration with a complaint is never used.
    pub fn complaints(&self) -> &[Complaint] {
        &self.complaints
    }

    pub fn iter(&self) -> impl Iterator<Item = &Credential> {
        self.credentials.iter()
    }
}

impl From<Vec<Written>> for Section {
    fn from(blocks: Vec<Written>) -> Self {
        let mut section = Self::default();
        for (index, written) in blocks.into_iter().enumerate() {
            match Credential::try_from(written) {
                Ok(credential) if section.credentials.iter().any(|other| other.is_same(&credential)) => {
                    let twice = format!("{credential} is here for the second time; remove one of the two");
                    section.complaints.push((index, "name", twice));
                }
                Ok(credential) => section.credentials.push(credential),
                Err((key, sentence)) => section.complaints.push((index, key, sentence)),
            }
        }
        section
    }
}

impl TryFrom<Written> for Credential {
    type Error = (&'static str, String);

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written { name, user, expires, minted, lifetime, sidecar, file } = written;
        for (key, text) in [("name", Some(&name)), ("user", user.as_ref())] {
            if text.is_some_and(|text| text.is_empty() || text.len() > 64 || text.contains(char::is_control))
            {
                return Err((key, "it is not a name; write 1 to 64 characters of one line".to_owned()));
            }
        }
        for (key, path) in [("sidecar", &sidecar), ("file", &file)] {
            if let Some(path) = path.as_ref().filter(|path| path.is_relative()) {
                return Err((key, format!("'{}' is not an absolute path; begin it with /", path.display())));
            }
        }
        if lifetime.is_some_and(|lifetime| lifetime.is_zero()) {
            return Err(("lifetime", "it would end before it begins; write it as in \"365d\"".to_owned()));
        }
        let needs = |key| (key, "it needs a lifetime; add lifetime = \"365d\", or what it is".to_owned());
        let source = match (expires, minted, sidecar, file) {
            (Some(_), None, None, None) if lifetime.is_some() => {
                return Err(("lifetime", "expires is the end itself; remove one of the two".to_owned()));
            }
            (Some(Date(at)), None, None, None) => Source::Stated(Expiry { at, evidence: Evidence::Expiry }),
            (None, Some(Date(minted)), None, None) => {
                let lifetime = lifetime.ok_or_else(|| needs("minted"))?;
                let at = after(minted, lifetime).map_err(|sentence| ("lifetime", sentence))?;
                Source::Stated(Expiry { at, evidence: Evidence::Minted })
            }
            (None, None, Some(path), None) => Source::Sidecar { path, lifetime },
            (None, None, None, Some(path)) => {
                Source::File { path, lifetime: lifetime.ok_or_else(|| needs("file"))? }
            }
            _ => {
                let sentence =
                    "it says its end in no way or in several; keep one of expires, minted, sidecar and file";
                return Err(("name", sentence.to_owned()));
            }
        };
        Ok(Self { name, user, source })
    }
}

/// A lifetime that a clock cannot count to is refused, not cut.
fn after(minted: SystemTime, lifetime: Duration) -> Result<SystemTime, String> {
    const LATEST: Duration = Duration::from_secs(253_402_300_799); // the end of the year 9999
    let end = minted.checked_add(lifetime);
    end.filter(|end| *end <= SystemTime::UNIX_EPOCH + LATEST)
        .ok_or_else(|| "its end lies beyond the year 9999; write a shorter lifetime".to_owned())
}

impl Credential {
    /// When it ends, as its source says now; `Err` is why that cannot be told, with file, line and remedy.
    pub fn look(&self) -> Result<Expiry, String> {
        match &self.source {
            Source::Stated(expiry) => Ok(*expiry),
            Source::Sidecar { path, lifetime } => sidecar::read(path, *lifetime),
            Source::File { path, lifetime } => {
                let said = |what: &dyn fmt::Display| {
                    format!("{}: {what}; name the file that holds the credential", path.display())
                };
                let metadata = path.metadata().map_err(|error| said(&error))?;
                if !metadata.is_file() {
                    return Err(said(&"it is not an ordinary file"));
                }
                let written = metadata.modified().map_err(|error| said(&error))?;
                Ok(Expiry { at: after(written, *lifetime)?, evidence: Evidence::Mtime })
            }
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.name, &self.user) == (&other.name, &other.user)
    }
}

impl fmt::Display for Credential {
    /// `claude of ann`, or `registry` where it is nobody's in particular.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{} of {user}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Expiry {
    /// What to say after "it ends …": a modification time is only a bound.
    pub fn qualifier(&self) -> &'static str {
        match self.evidence {
            Evidence::Expiry | Evidence::Minted => "",
            Evidence::Mtime => " at the latest, by its file's time",
        }
    }
}

impl Watched {
    pub fn state(&self, now: SystemTime) -> CredentialState {
        let Some(Known { expiry, seen }) = self.known else { return CredentialState::NeverSeen };
        let left = expiry.at.duration_since(now).unwrap_or_default();
        let is_stale = self.trouble.is_some() && now.duration_since(seen).unwrap_or_default() > STALE_AFTER;
        match () {
            () if left.is_zero() => CredentialState::Expired,
            () if left <= 7 * DAY => CredentialState::ExpiresIn7Days,
            () if is_stale => CredentialState::WatchStale,
            () if left <= 30 * DAY => CredentialState::ExpiresIn30Days,
            () => CredentialState::Valid,
        }
    }
}

impl Watch {
    /// Watches exactly these from now on. What is known of one that stays is kept until its next look.
    pub fn configure(&mut self, section: &Section) {
        let before = std::mem::take(&mut self.0);
        let keep = |credential: &Credential| {
            let known = before.iter().find(|watched| watched.credential == *credential);
            known.cloned().unwrap_or_else(|| Watched {
                credential: credential.clone(),
                known: None,
                trouble: None,
            })
        };
        self.0 = section.iter().map(keep).collect();
    }

    pub fn credentials(&self) -> Vec<Credential> {
        self.0.iter().map(|watched| watched.credential.clone()).collect()
    }

    /// Takes in a look. One that learned nothing leaves what was known; a credential that is gone is passed over.
    pub fn saw(&mut self, credential: &Credential, look: Result<Expiry, String>, now: SystemTime) {
        let Some(watched) = self.0.iter_mut().find(|watched| watched.credential == *credential) else {
            return;
        };
        match look {
            Ok(expiry) => {
                watched.known = Some(Known { expiry, seen: now });
                watched.trouble = None;
            }
            Err(trouble) => watched.trouble = Some(trouble),
        }
    }

    pub fn all(&self) -> &[Watched] {
        &self.0
    }
}

#[cfg(test)]
mod tests;
