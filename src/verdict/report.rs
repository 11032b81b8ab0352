//! The verdict for people: what, why, how to go back, what differs, and how each user's data fared.

use std::fmt::{self, Write};

use super::Document;
use crate::gate::evidence::{Rehearsed, SeedEvidence};
use crate::outcome::Verdict;

impl Document {
    /// The whole report, ending with a line break.
    pub fn report(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "{} [{}]: {}", self.verdict, self.grounds, self.summary)?;
        if self.verdict == Verdict::Pass {
            if let (Some(rollback), Some(rolling)) = (self.rollback, self.rolling_restart) {
                writeln!(text, "  going back       {rollback}: {}", rollback.meaning())?;
                let rolling = if rolling {
                    "safe: instances that still run the control stay well meanwhile"
                } else {
                    "not safe: instances that still run the control lose logins meanwhile"
                };
                writeln!(text, "  rolling restart  {rolling}")?;
            }
            let soak = humantime::format_duration(self.soak);
            writeln!(text, "  risk             {}, watch it for {soak}", self.risk)?;
            writeln!(text, "  valid until      {}", humantime::format_rfc3339_seconds(self.expires_at))?;
        }
        for (index, difference) in self.differences.iter().enumerate() {
            let head = if index == 0 { "differs" } else { "" };
            writeln!(text, "  {head:<15}  {difference}")?;
        }
        for trouble in self.trouble.iter().skip(1) {
            writeln!(text, "  also             {} [{}]", trouble.detail, trouble.grounds)?;
        }
        if !self.boxed {
            writeln!(text, "  without a box    the candidate saw this machine and its network")?;
        }
        for seed in &self.seeds {
            write_seed(text, seed)?;
        }
        Ok(())
    }
}

fn write_seed(text: &mut String, seed: &SeedEvidence) -> fmt::Result {
    let level = seed.seed.level.map_or_else(|| "no database".to_owned(), |level| format!("level {level}"));
    let backup = if seed.seed.is_backup { ", a verified backup" } else { "" };
    writeln!(text, "  {} ({level}{backup})", seed.seed.name)?;
    for rehearsed in &seed.rehearsals {
        write_rehearsed(text, rehearsed)?;
    }
    Ok(())
}

fn write_rehearsed(text: &mut String, rehearsed: &Rehearsed) -> fmt::Result {
    let seconds = rehearsed.duration.as_secs_f64();
    let name = rehearsed.rehearsal;
    let Some(at) = rehearsed.stopped_at() else {
        let migration = rehearsed.facts.migration_seconds.filter(|seconds| *seconds >= 0.05);
        let migration =
            migration.map(|seconds| format!(", of it {seconds:.1} s migrating")).unwrap_or_default();
        return writeln!(
            text,
            "    {name:<10} ok, {} steps in {seconds:.1} s{migration}",
            rehearsed.steps.len()
        );
    };
    let detail = at.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
    writeln!(text, "    {name:<10} {} {} after {seconds:.1} s{detail}", at.step, at.outcome)
}
