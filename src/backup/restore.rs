//! Putting a snapshot back. The present state is put aside, never deleted; whatever fails on the way, the former state
//! is back in its place afterwards and the instance started again.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::manifest::Content;
use super::place::Place;
use super::service::{Service, is_our_ancestor};
use super::verify::unchanged;
use super::{Hands, Manifest, Section, Snapshot, Tree, prove};
use crate::outcome::{Failure, Reason, RestoreStep};
use crate::t3::Instance;
use crate::t3::schema::SchemaLevel;
use crate::t3::version::Version;

mod journal;
mod plan;

pub use super::service::ByHand;
pub use journal::Journal;
pub use plan::{Loss, Plan, Present};

/// A restore that is wanted.
pub struct Restore<'a> {
    pub section: &'a Section,
    pub instance: &'a Instance,
    pub snapshot: &'a Snapshot,
    /// The version that runs, and will run again; `None` where it is not known.
    pub version: Option<Version>,
    pub now: SystemTime,
    /// Who stops and starts the instance where no command is configured; absent, it is stopped and stays so.
    pub by_hand: Option<ByHand<'a>>,
}

/// A restore that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Where the former state lies now; `None` where there was none.
    pub aside: Option<PathBuf>,
}

/// A restore that failed, at which step, and what became of the former state.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {}; {former}", failure.detail)]
pub struct NotRestored {
    pub step: RestoreStep,
    pub failure: Failure,
    pub former: Former,
}

/// What became of the former state.
#[derive(Debug, thiserror::Error)]
pub enum Former {
    #[error("nothing was changed")]
    Untouched,
    #[error("the former state is back in its place{}", told(.since))]
    Back { since: Option<PathBuf> },
    /// The loudest end: somebody has to look at once.
    #[error("and the former state could not be put back: {failure}; it lies in {}", aside.display())]
    Lost { failure: Failure, aside: PathBuf },
    #[error("the former state is back in its place, and the instance could not be started: {failure}{}", told(.since))]
    BackButDown { failure: Failure, since: Option<PathBuf> },
}

/// What users may have written to the copy while it was in place.
fn told(since: &Option<PathBuf>) -> String {
    since.as_ref().map_or(String::new(), |since| format!("; what ran meanwhile lies in {}", since.display()))
}

impl Restore<'_> {
    /// Restores. `login` proves that somebody can log in to the instance afterwards.
    pub async fn run(
        self,
        hands: &impl Hands,
        login: impl AsyncFnOnce(&Instance) -> Result<(), Failure>,
    ) -> Result<Restored, NotRestored> {
        let untouched = |step| move |failure| NotRestored { step, failure, former: Former::Untouched };
        let _in_use = self.snapshot.in_use().map_err(untouched(RestoreStep::Verify))?;
        let manifest = self.verified(hands).await.map_err(untouched(RestoreStep::Verify))?;
        self.goes_on().map_err(untouched(RestoreStep::Check))?;
        let place = self.checked(&manifest).map_err(untouched(RestoreStep::Check))?;
        let tree = Tree::new(self.section, &self.instance.name);
        if let Some(journal) = Journal::read(&tree).map_err(untouched(RestoreStep::Check))? {
            let cut_off = Failure::new(
                Reason::Locked,
                format!("an earlier restore was cut off at {}: undo it first", journal.step),
            );
            return Err(untouched(RestoreStep::Check)(cut_off));
        }
        let names = Names::at(self.now);
        let journal = Journal::begin(&tree, self.snapshot.name(), names.clone(), place.is_taken(), self.now);
        let mut journal = journal.map_err(untouched(RestoreStep::Copy))?;
        if let Err(failure) = self.copy(&place, &names, &manifest) {
            let _ = place.remove(&names.copy);
            let _ = journal.end();
            return Err(untouched(RestoreStep::Copy)(failure));
        }

        let service =
            Service { section: self.section, instance: self.instance, by_hand: self.by_hand.clone() };
        match self.act(&place, &mut journal, &service, login).await {
            Ok(()) => Ok(Restored { aside: place.has(&names.aside).then(|| place.shown(&names.aside)) }),
            Err(failure) => {
                let step = journal.step;
                let by_hand = self.by_hand.as_ref().map(ByHand::anew);
                let former = undo(&mut journal, &place, &Service { by_hand, ..service }).await;
                if !matches!(former, Former::Lost { .. }) {
                    let _ = journal.end();
                }
                Err(NotRestored { step, failure, former })
            }
        }
    }

    async fn act(
        &self,
        place: &Place,
        journal: &mut Journal,
        service: &Service<'_>,
        login: impl AsyncFnOnce(&Instance) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let moved = |error: std::io::Error| moving(place, &error);
        self.goes_on()?;
        journal.reach(RestoreStep::Stop)?;
        service.stop().await?;
        self.goes_on()?;
        journal.reach(RestoreStep::PutAside)?;
        place.put_aside(&journal.names.aside).map_err(moved)?;
        journal.reach(RestoreStep::Place)?;
        place.put_in_place(&journal.names.copy).map_err(moved)?;
        journal.reach(RestoreStep::Start)?;
        service.start().await?;
        self.goes_on()?;
        journal.reach(RestoreStep::Prove)?;
        login(self.instance).await?;
        journal.end()?;
        // There was nothing to put aside.
        place.remove_aside(&journal.names.aside);
        Ok(())
    }

    /// Whether whoever wants it still does.
    fn goes_on(&self) -> Result<(), Failure> {
        self.by_hand.as_ref().map_or(Ok(()), ByHand::goes_on)
    }

    /// The snapshot, found to be whole just now. Where it was verified before it is enough that no byte has changed, and a
    /// rollback on a full disk needs no room for that.
    async fn verified(&self, hands: &impl Hands) -> Result<Manifest, Failure> {
        let mut snapshot = self.snapshot.clone();
        let answer = if snapshot.is_verified() {
            unchanged(&snapshot)
        } else {
            prove(&mut snapshot, hands, self.now).await?
        };
        if let Err(defect) = answer {
            let detail = format!("{} does not restore: {defect}", snapshot.name());
            return Err(Failure::new(Reason::Corrupt, detail));
        }
        snapshot.manifest.ok_or_else(|| Failure::new(Reason::Corrupt, "the snapshot has no manifest"))
    }

    fn checked(&self, manifest: &Manifest) -> Result<Place, Failure> {
        let place = Place::open(self.instance)?;
        if is_our_ancestor(self.instance) {
            let (user, name) = (&self.instance.name, self.snapshot.name());
            return Err(inside(&format!("t3-prober backup restore {user} --from {name} --yes")));
        }
        let expected = self.version.as_ref().and_then(SchemaLevel::expected);
        match (&self.version, expected) {
            (Some(version), Some(expected)) if manifest.level.level > expected => Err(Failure::new(
                Reason::SchemaAhead,
                format!(
                    "the snapshot is at level {}, the instance runs {version}, which expects {expected}: nobody could log in; start a newer t3 first",
                    manifest.level.level
                ),
            )),
            _ => Ok(place),
        }
    }

    /// The copy beside the present database, and the directory that this one will be put aside in.
    fn copy(&self, place: &Place, names: &Names, manifest: &Manifest) -> Result<(), Failure> {
        let shown = place.shown(&names.copy);
        let failed = |error: std::io::Error| {
            let reason = match error.kind() {
                std::io::ErrorKind::StorageFull => Reason::NoSpace,
                _ => Reason::Unreadable,
            };
            Failure::new(reason, format!("cannot copy the snapshot to {}: {error}", shown.display()))
        };
        let copy = place.bring(&self.snapshot.file, &names.copy).map_err(failed)?;
        let content = Content::of(copy, None).map_err(failed)?;
        if content.sha256 != manifest.sha256 {
            return Err(Failure::new(Reason::Corrupt, format!("{} is not what was copied", shown.display())));
        }
        place.make_aside(&names.aside).map_err(|error| moving(place, &error))
    }
}

/// Clears up after a restore that was begun at this time and killed: either its copy is in place as a whole, or what it
/// had put aside is back. The instance must be stopped.
pub fn clear_up(section: &Section, instance: &Instance, begun: SystemTime) -> Result<(), Failure> {
    let place = Place::open(instance)?;
    let names = Names::at(begun);
    if !(place.is_taken() && place.lies_aside(&names.aside)) {
        let since = format!("{}-undone", names.aside);
        place.bring_back(&names.aside, &since).map_err(|error| moving(&place, &error))?;
    }
    place.remove_aside(&names.aside);
    place.remove(&names.copy).map_err(|error| moving(&place, &error))?;
    Journal::forget(&Tree::new(section, &instance.name))
}

/// An agent of the user would stop the instance below which it runs, and itself half-way.
fn inside(command: &str) -> Failure {
    let detail = format!(
        "this runs inside the instance that it would stop; run it from outside: systemd-run --pipe {command}"
    );
    Failure::new(Reason::Inside, detail)
}

/// Names in the user's directory that t3 does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Names {
    copy: String,
    aside: String,
}

impl Names {
    fn at(now: SystemTime) -> Self {
        let time = super::tree::compact(now);
        Self { copy: format!("state.sqlite.restore-{time}.tmp"), aside: format!("aside-{time}") }
    }
}

/// Undoes what was done up to and including the step that failed.
async fn undo(journal: &mut Journal, place: &Place, service: &Service<'_>) -> Former {
    let (step, since) = (journal.step, format!("{}-undone", journal.names.aside));
    let put_back = async {
        if step >= RestoreStep::Start {
            service.stop().await?;
        } else if step == RestoreStep::Place && (!journal.had || place.lies_aside(&journal.names.aside)) {
            // Nobody has used the copy.
            place.clear().map_err(|error| moving(place, &error))?;
        }
        journal.put_back(place, &since)
    };
    if let Err(failure) = put_back.await {
        return Former::Lost { failure, aside: place.shown(&journal.names.aside) };
    }
    if step < RestoreStep::Stop || (step == RestoreStep::Stop && service.is_up().await) {
        return Former::Untouched;
    }
    let since = place.has(&since).then(|| place.shown(&since));
    match service.start_again().await {
        Ok(()) => Former::Back { since },
        Err(failure) => Former::BackButDown { failure, since },
    }
}

fn moving(place: &Place, error: &std::io::Error) -> Failure {
    Failure::new(Reason::Unreadable, format!("cannot move files in {}: {error}", place.shown("").display()))
}

#[cfg(test)]
mod tests;
