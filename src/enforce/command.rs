//! The configured commands: an argument vector with placeholders, run without a shell, with a time limit, and killed
//! with everything it started when that is over.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::outcome::{Failure, Reason};
use crate::t3::cli::Group;

/// Bytes of what a command says on its standard error that are shown.
const SHOWN: usize = 300;

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    /// The last line of its standard error.
    pub complaint: String,
}

/// Runs a command; what it says on its standard output is handed back.
pub async fn run(
    what: &str,
    argv: &[String],
    values: &[(&str, &str)],
    limit: Duration,
) -> Result<Ended, Failure> {
    let failed = |detail: String| Failure::new(Reason::CliFailed, format!("cannot {what}: {detail}"));
    let argv: Vec<String> = argv.iter().map(|argument| filled(argument, values)).collect();
    let Some((program, arguments)) = argv.split_first() else {
        return Err(failed("no command is configured".to_owned()));
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    let mut command = Command::from(command);
    let child = command.kill_on_drop(true).spawn();
    let child = child.map_err(|error| failed(format!("`{program}` could not be started: {error}")))?;
    let mut group = Group::of(&child);
    match timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) => {
            group.reaped();
            let complaint = String::from_utf8_lossy(&output.stderr);
            let complaint = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            Ok(Ended {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                complaint: complaint.chars().filter(|c| !c.is_control()).take(SHOWN).collect(),
            })
        }
        Ok(Err(error)) => Err(failed(format!("`{}`: {error}", argv.join(" ")))),
        Err(_) => {
            let limit = humantime::format_duration(limit);
            Err(failed(format!("`{}` did not end within {limit}", argv.join(" "))))
        }
    }
}

/// One argument with its placeholders filled in.
fn filled(argument: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(argument.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn placeholders_are_filled_and_both_outputs_are_kept() {
        let argv = sh("echo got {version} for {user}; echo one >&2; echo two >&2; exit 3");
        let ended = run("try it", &argv, &[("version", "0.0.33"), ("user", "ann")], SOON).await.expect("ran");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), "got 0.0.33 for ann\n"));
        assert_eq!(ended.complaint, "two");
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_killed_and_named() {
        let failure =
            run("wait", &sh("sleep 600"), &[], Duration::from_millis(50)).await.expect_err("too long");
        assert_eq!(failure.detail, "cannot wait: `sh -c sleep 600` did not end within 50ms");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let argv = ["/no/such/program".to_owned()];
        let failure = run("install it", &argv, &[], SOON).await.expect_err("missing");
        assert!(failure.detail.starts_with("cannot install it: `/no/such/program` could not"), "{failure}");
    }
}
