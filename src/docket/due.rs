//! Everything that is due to be judged, for a unit that may make boxes: first what the service was asked for, then what a
//! followed tag stands for now.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;

use super::{aside, standing, tray};
use crate::config::Config;
use crate::gate::track::Pace;
use crate::outcome::Verdict;
use crate::t3::version::Version;

/// Judges until nothing is due; `source` is the file that the configuration was read from.
pub async fn judge(config: &Config, source: &Path) -> anyhow::Result<()> {
    let unreadable = "cannot read what is asked for below `state_dir`";
    while let Some(version) = tray::waiting(&config.state_dir).context(unreadable)?.into_iter().next() {
        judge_one(config, source, &version).await;
        tray::done(&config.state_dir, &version).context("cannot say that it is done")?;
    }
    match &config.gate.track.tag {
        Some(tag) => follow(config, source, tag).await,
        None => Ok(()),
    }
}

async fn follow(config: &Config, source: &Path, tag: &str) -> anyhow::Result<()> {
    let section = &config.gate.track;
    let version = aside::resolve(config, tag)
        .await
        .map_err(|why| anyhow::anyhow!("what the followed tag '{tag}' stands for cannot be told: {why}"))?;
    let pace = tray::remembered(&config.state_dir).map_or_else(Pace::default, |known| known.pace);
    let mut tracked = tray::Tracked { tag: tag.to_owned(), version: version.clone(), pace };
    let now = SystemTime::now();
    let is_due = !is_judged(config, &version).await && tracked.pace.allows(section, &version, now);
    if is_due {
        tracked.pace.began(now);
    }
    let unwritable = "cannot remember what the followed tag stands for";
    tray::remember(&config.state_dir, &tracked).context(unwritable)?;
    if is_due {
        tracing::info!(tag, %version, "the followed tag has brought a build; it is rehearsed");
        judge_one(config, source, &version).await;
        let verdict = standing(config, &version).await.verdict();
        tracked.pace.ended(section, &version, verdict, SystemTime::now());
        tray::remember(&config.state_dir, &tracked).context(unwritable)?;
    }
    Ok(())
}

async fn judge_one(config: &Config, source: &Path, version: &Version) {
    while !aside::judge(config, source, version).await {}
}

async fn is_judged(config: &Config, version: &Version) -> bool {
    matches!(standing(config, version).await.verdict(), Some(Verdict::Pass | Verdict::Fail))
}
