//! What has to hold before the first user is touched: a pass about exactly these bytes, everybody's backup, and room for the
//! way back.

use std::time::Duration;

use super::plan::Plan;
use super::run::{Run, SOAK};
use super::{Stop, candidate};
use crate::inventory::Target;
use crate::outcome::{Failure, Hold, Reason, Rollback, Verdict};
use crate::probe::instance_of;
use crate::t3::state::stamp::Sizes;
use crate::t3::version::Version;
use crate::verdict;

impl Run<'_> {
    /// The verdict; answers for how long the build is watched.
    pub async fn accept(&self, plan: &Plan, known_good: &Version) -> Result<Duration, Stop> {
        let section = &self.config.enforce;
        candidate::judge(self.config, self.config_file, &plan.target, known_good, self.say).await?;
        let document = self.document(&plan.target);
        if let Some(document) = &document
            && document.rollback == Some(Rollback::Unsafe)
            && !self.request.forward_fix
        {
            let detail = format!(
                "{}; there would be no way back, so it is installed with --forward-fix only",
                document.summary
            );
            return Err(Stop::Held(Hold::NoWayBack, detail));
        }
        let soak = section.soak.or(document.map(|document| document.soak));
        Ok(soak.unwrap_or(SOAK))
    }

    /// The verdict's document; a gate of somebody else's need not write one.
    pub fn document(&self, version: &Version) -> Option<verdict::Document> {
        let document = verdict::load(&self.config.state_dir, &version.to_string()).ok()?;
        (document.verdict == Verdict::Pass).then_some(document)
    }

    /// A verdict is about certain bytes and no others.
    pub async fn is_the_one_that_passed(&self, version: &Version, proven: bool) -> Result<(), Stop> {
        let Some(document) = self.document(version).filter(|_| !proven) else { return Ok(()) };
        let program = self.moves.links.build(version).join("bin/t3");
        let unreadable = |error: std::io::Error| {
            Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", program.display()))
        };
        let located = crate::gate::candidate::Located::at(&program).map_err(unreadable)?;
        let integrity = located.integrity().await.map_err(unreadable)?;
        if document.candidate.integrity.is_empty() || integrity == document.candidate.integrity {
            return Ok(());
        }
        let detail = format!(
            "the installed t3 {version} is {}, the gate let {} pass; run the gate again",
            integrity, document.candidate.integrity
        );
        Err(Stop::Held(Hold::OtherBuild, detail))
    }

    /// Everybody's state, before anything is touched, and the room that going back would need.
    pub async fn back_up(&self, plan: &Plan) -> Result<(), Stop> {
        let moved = |target: &&Target| {
            plan.queue.iter().chain(&plan.stopped).any(|(user, _)| user == target.user.as_str())
        };
        for target in self.targets.iter().filter(moved) {
            has_room(target)?;
        }
        for target in &self.targets {
            let instance = instance_of(target);
            if !instance.database().exists() {
                continue;
            }
            let version = self.moves.links.of(target.user.as_str());
            let snapshot = self.moves.copy(target, version.as_ref()).await.map_err(|failure| {
                let detail = format!("nothing was changed: no backup of {}: {}", target.user, failure.detail);
                Failure::new(failure.reason, detail)
            })?;
            (self.say)(&format!("{}: backed up as {}", target.user, snapshot.name()));
        }
        Ok(())
    }
}

/// Going back needs room for a copy beside the database: better found out before than then.
fn has_room(target: &Target) -> Result<(), Failure> {
    let database = instance_of(target).database();
    let Some(dir) = database.parent().filter(|dir| dir.is_dir()) else { return Ok(()) };
    let Ok(system) = nix::sys::statvfs::statvfs(dir) else { return Ok(()) };
    let (free, needed) =
        (system.blocks_available() * system.fragment_size(), 2 * Sizes::of(&database).total());
    if free >= needed {
        return Ok(());
    }
    let detail = format!(
        "nothing was changed: {} has {free} bytes free, bringing {} back would need {needed}",
        dir.display(),
        target.user
    );
    Err(Failure::new(Reason::NoSpace, detail))
}
