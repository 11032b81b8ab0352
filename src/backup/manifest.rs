//! What is known of a snapshot beside its content: the manifest is written once, with the copy; the proof is written
//! anew whenever the copy was verified or drilled. Times are in here, never taken from the file system.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::snapshot::Copied;
use crate::outcome::{Failure, Flaw, Reason, RestoreStep, seconds, utc};
use crate::t3::schema::SchemaLevel;
use crate::t3::state::Level;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::version::Version;

/// An SQLite file begins with a header of this many bytes.
pub const HEADER: usize = 100;

/// What a snapshot claims to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub user: String,
    #[serde(with = "utc")]
    pub taken_at: SystemTime,
    /// How long the copy took.
    #[serde(rename = "took_seconds", with = "seconds")]
    pub took: Duration,
    /// The version that ran when the copy was made, where it was known.
    pub version: Option<Version>,
    pub level: Level,
    pub fingerprint: Fingerprint,
    pub bytes: u64,
    /// Of the whole file, in hex.
    pub sha256: String,
    /// The first hundred bytes, in hex: damage to them is told apart from damage to the content.
    pub header: String,
}

/// What was found out about a snapshot since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proof {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drilled: Option<Drilled>,
}

/// The last verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    #[serde(with = "utc")]
    pub at: SystemTime,
    /// Absent where nothing was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flaw: Option<Flaw>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The last drill: the snapshot restored to a copy, started, logged in to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    #[serde(with = "utc")]
    pub at: SystemTime,
    /// The version that it was drilled with.
    pub version: Option<Version>,
    /// From the beginning of the restore to the loaded history: how long a user would have waited (RTO).
    #[serde(rename = "restore_seconds", with = "seconds")]
    pub restore: Duration,
    /// Of these, what was not t3 starting.
    #[serde(rename = "overhead_seconds", with = "seconds")]
    pub overhead: Duration,
    /// How old the data was at the beginning of the drill: what a user would have lost (RPO).
    #[serde(rename = "rpo_seconds", with = "seconds")]
    pub rpo: Duration,
    /// Whether t3 ran in a box without a network.
    pub boxed: bool,
    /// Absent where somebody could log in and load the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<DrillFailure>,
}

/// Where a drill ended, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillFailure {
    pub step: RestoreStep,
    pub reason: Reason,
    pub detail: String,
}

impl Manifest {
    /// The version that ran when the copy was made, where it could use this database. After the outage it could not: a
    /// repair keeps the database as it was then.
    pub fn usable_by(&self) -> Option<&Version> {
        let usable = |version: &&Version| {
            SchemaLevel::expected(version).is_none_or(|expected| self.level.level <= expected)
        };
        self.version.as_ref().filter(usable)
    }

    pub fn of(
        user: &str,
        version: Option<&Version>,
        copied: Copied,
        file: &Path,
        taken_at: SystemTime,
        took: Duration,
    ) -> Result<Self, Failure> {
        let unreadable =
            |error| Failure::new(Reason::Unreadable, format!("cannot read {} back: {error}", file.display()));
        let content = Content::read(file, None).map_err(unreadable)?;
        Ok(Self {
            user: user.to_owned(),
            // As it is written: what is read back is equal.
            taken_at: in_milliseconds(taken_at),
            took,
            version: version.cloned(),
            level: copied.level,
            fingerprint: copied.fingerprint,
            bytes: content.bytes,
            sha256: content.sha256,
            header: content.header,
        })
    }
}

/// A file's content, boiled down.
pub struct Content {
    pub bytes: u64,
    pub sha256: String,
    pub header: String,
    /// The checksum as it would be with the header given.
    pub sha256_with_header: Option<String>,
}

impl Content {
    /// Reads the whole file once.
    pub fn read(path: &Path, with_header: Option<&str>) -> std::io::Result<Self> {
        Self::of(File::open(path)?, with_header)
    }

    /// Reads what is left of a file.
    pub fn of(mut file: File, with_header: Option<&str>) -> std::io::Result<Self> {
        let mut header = Vec::with_capacity(HEADER);
        (&mut file).take(HEADER as u64).read_to_end(&mut header)?;
        let mut sum = Sha256::new_with_prefix(&header);
        let mut other = with_header.and_then(unhex).map(Sha256::new_with_prefix);
        let mut bytes = header.len() as u64;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            bytes += read as u64;
            sum.update(&buffer[..read]);
            other.iter_mut().for_each(|other| other.update(&buffer[..read]));
        }
        let finish = |sum: Sha256| hex(&sum.finalize());
        Ok(Self { bytes, sha256: finish(sum), header: hex(&header), sha256_with_header: other.map(finish) })
    }
}

fn in_milliseconds(time: SystemTime) -> SystemTime {
    let nanoseconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.subsec_nanos());
    time - Duration::from_nanos(u64::from(nanoseconds % 1_000_000))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}
