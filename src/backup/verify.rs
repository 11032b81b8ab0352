//! Whether a snapshot would bring the data back: from the whole file to its single rows, each kind of damage under its
//! own word. The structure is looked at before the checksum, which only says that something is different.
//!
//! Bytes are for us to look at; what they mean to SQLite is read by whoever the data belongs to.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Snapshot;
use super::hands::{Hands, blocking};
use super::manifest::{Content, HEADER, Manifest};
use super::reading::{Found, Reading};
use crate::outcome::{Failure, Flaw};

/// The first thing that is wrong with a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail} [{flaw}]")]
pub struct Defect {
    pub flaw: Flaw,
    pub detail: String,
}

impl Defect {
    pub fn new(flaw: Flaw, detail: impl Into<String>) -> Self {
        Self { flaw, detail: detail.into() }
    }
}

/// What a snapshot is byte for byte, which is for us to see.
struct Bytes<'a> {
    content: Content,
    manifest: &'a Manifest,
}

/// Looks at everything. The failure is that it could not be looked at.
pub async fn verify(snapshot: &Snapshot, hands: &impl Hands) -> Result<Result<(), Defect>, Failure> {
    let of = snapshot.clone();
    let looked = blocking(move || Ok(Bytes::of(&of.file, of.manifest.as_ref()).map(|bytes| bytes.content)));
    let (content, manifest) = match (looked.await?, &snapshot.manifest) {
        (Ok(content), Some(manifest)) => (content, manifest),
        (Err(defect), _) => return Ok(Err(defect)),
        (Ok(_), None) => return Ok(Err(without_manifest())),
    };
    let found = match hands.account() {
        None => hands.read(Reading { file: snapshot.file.clone() }).await?,
        Some(_) => {
            let of = snapshot.clone();
            let lent = blocking(move || of.tree().lend(&of.file)).await?;
            hands.read(Reading { file: lent.path().to_owned() }).await?
        }
    };
    Ok(found.and_then(|found| Bytes { content, manifest }.hold(&found)))
}

/// Whether a snapshot that was verified is still the same; blocks while it is read.
pub fn unchanged(snapshot: &Snapshot) -> Result<(), Defect> {
    Bytes::of(&snapshot.file, snapshot.manifest.as_ref())?.are_as_written()
}

impl<'a> Bytes<'a> {
    fn of(file: &Path, manifest: Option<&'a Manifest>) -> Result<Self, Defect> {
        let metadata = fs::symlink_metadata(file).map_err(|error| unreadable(file, &error))?;
        if metadata.len() == 0 {
            return Err(Defect::new(Flaw::Empty, format!("{} has no content", file.display())));
        }
        ownership(&metadata)?;
        let manifest = manifest.ok_or_else(without_manifest)?;
        let content =
            Content::read(file, Some(&manifest.header)).map_err(|error| unreadable(file, &error))?;
        whole(file, &content, manifest)?;
        if content.header != manifest.header && content.sha256_with_header.as_ref() == Some(&manifest.sha256)
        {
            return Err(Defect::new(Flaw::Header, "the first hundred bytes differ from what was written"));
        }
        Ok(Self { content, manifest })
    }

    /// Whether what was found in them is what was written.
    fn hold(&self, found: &Found) -> Result<(), Defect> {
        let (level, claimed) = (&found.level, &self.manifest.level);
        if level != claimed {
            return Err(Defect::new(
                Flaw::LevelDiffers,
                format!(
                    "it is at level {} ({}), the manifest says {} ({})",
                    level.level, level.name, claimed.level, claimed.name
                ),
            ));
        }
        let lost = found.fingerprint.lost_since(&self.manifest.fingerprint);
        if !lost.is_empty() {
            return Err(Defect::new(
                Flaw::HistoryMissing,
                format!("less than the manifest claims: {}", lost.join("; ")),
            ));
        }
        self.are_as_written()
    }

    fn are_as_written(&self) -> Result<(), Defect> {
        if self.content.sha256 == self.manifest.sha256 {
            return Ok(());
        }
        Err(Defect::new(Flaw::Altered, "the checksum is not that of what was written"))
    }
}

fn without_manifest() -> Defect {
    Defect::new(Flaw::Manifest, "the manifest is missing or cannot be understood; nothing says what this was")
}

fn ownership(metadata: &fs::Metadata) -> Result<(), Defect> {
    let us = nix::unistd::geteuid().as_raw();
    let trusted = metadata.uid() == us || metadata.uid() == 0;
    if metadata.is_file() && trusted && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let what = if metadata.is_file() { "file" } else { "something that is no file" };
    Err(Defect::new(
        Flaw::WrongOwner,
        format!("a {what} of uid {uid} with mode {mode:04o}; expected one of uid {us}"),
    ))
}

/// As long as its own header says.
fn whole(file: &Path, content: &Content, manifest: &Manifest) -> Result<(), Defect> {
    let claimed = claimed_length(file);
    let is_short = claimed.is_none_or(|claimed| content.bytes < claimed);
    // With the length that was written it is the header that is wrong.
    if is_short && content.bytes != manifest.bytes {
        let claimed = claimed.unwrap_or(HEADER as u64);
        return Err(Defect::new(
            Flaw::Truncated,
            format!("{} bytes are left of {}", content.bytes, claimed.max(manifest.bytes)),
        ));
    }
    Ok(())
}

/// Page size times page count; `None` where there is no whole header.
fn claimed_length(file: &Path) -> Option<u64> {
    let mut header = [0; HEADER];
    File::open(file).ok()?.read_exact(&mut header).ok()?;
    let size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size => u64::from(size),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    Some(size * u64::from(pages))
}

fn unreadable(file: &Path, error: &std::io::Error) -> Defect {
    Defect::new(Flaw::Unreadable, format!("cannot read {}: {error}", file.display()))
}
