//! The bad nightly at 4 a.m., played by the program itself: the very command that the guide prints, told line by line with
//! the time that it would be.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{NIGHTLY, World};

/// How long the fleet may take until everybody has logged in once.
const WELL_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// 04:00, in seconds of the day.
const BEGINS: u64 = 4 * 3600;

/// What plays it.
pub struct Nightly {
    pub program: PathBuf,
    pub config: PathBuf,
    pub freeze: PathBuf,
    pub page: String,
}

impl World {
    pub(super) fn nightly(&self, config: &Path, page: String) -> Nightly {
        Nightly { program: self.program.clone(), config: config.to_owned(), freeze: self.freeze_file(), page }
    }

    pub(super) fn freeze_file(&self) -> PathBuf {
        self.dir.join("state/enforce/freeze")
    }
}

impl Nightly {
    /// Plays it once, unless it is stopped before.
    pub async fn play(self, stop: CancellationToken) {
        match stop.run_until_cancelled(self.told()).await {
            None | Some(Ok(())) => {}
            Some(Err(error)) => println!("the bad nightly could not be played: {error:#}"),
        }
    }

    async fn told(&self) -> anyhow::Result<()> {
        self.everybody_is_well().await?;
        println!(
            "\n04:00:00  everybody is asleep; a timer starts the enforcer, and 'nightly' stands for {NIGHTLY}"
        );
        let began = Instant::now();
        let say = |line: &str| println!("{}  {line}", clock(began.elapsed()));
        let mut enforcer = self.command(&["enforce"]);
        let mut enforcer = enforcer.stdout(Stdio::piped()).spawn().context("cannot start the enforcer")?;
        if let Some(stdout) = enforcer.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            while let Some(line) = lines.next_line().await? {
                say(&line);
            }
        }
        let ended = enforcer.wait().await?;
        say(&format!("the enforcer ends with exit code {}", ended.code().unwrap_or(-1)));
        if let Ok(text) = std::fs::read_to_string(&self.freeze) {
            say(&format!("{} says: {}", self.freeze.display(), text.trim_end()));
        }
        println!(
            "\nThe page tells of it, and so do the history and the metrics:\n  {page}\n  {page}history/events?kind=upgrade\n  {page}metrics",
            page = self.page
        );
        Ok(())
    }

    /// Whoever cannot log in is moved by nobody: the play begins when all can.
    async fn everybody_is_well(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + WELL_WITHIN;
        loop {
            let probed = self.command(&["probe"]).stdout(Stdio::null()).status().await;
            if probed.context("cannot probe the fleet")?.success() {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "not everybody can log in; mend that first");
            sleep(LOOK_AGAIN).await;
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = std::process::Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is for the demo.
        command.process_group(0);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }
}

/// The time of the play.
fn clock(elapsed: Duration) -> String {
    let seconds = BEGINS + elapsed.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_four_in_the_morning() {
        assert_eq!(clock(Duration::from_millis(67_900)), "04:01:07");
    }
}
