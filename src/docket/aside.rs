//! A build judged in a process of its own, so that it comes after everything else: users' work, and the probes. Never
//! beside an upgrade or a restore: these move the ground that the gate stands on.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::enforce;
use crate::t3::boxed::on_path;
use crate::t3::job::first_line;
use crate::t3::version::Version;

/// How often the lock of upgrades and restores is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the gate, and waits before it and gives it up where something else changes the host; `false`: once more. Dropped,
/// it is given up as well.
pub async fn judge(config: &Config, source: &Path, version: &Version) -> bool {
    while enforce::lock::is_busy(&config.state_dir) {
        sleep(LOOK).await;
    }
    let mut gate = match start(source, version) {
        Ok(gate) => gate,
        Err(error) => {
            tracing::error!(%error, %version, "the gate cannot be started");
            return true;
        }
    };
    loop {
        match timeout(LOOK, gate.wait()).await {
            Ok(Ok(status)) => {
                tracing::info!(%version, code = status.code(), "the gate has ended");
                return true;
            }
            Ok(Err(error)) => {
                tracing::error!(%error, %version, "the gate cannot be waited for");
                return true;
            }
            Err(_) if enforce::lock::is_busy(&config.state_dir) => {
                tracing::info!(%version, "an upgrade or a restore begins; the gate is given up and comes again");
                // Its boxes die with it.
                let _ = gate.kill().await;
                return false;
            }
            Err(_) => {}
        }
    }
}

fn start(source: &Path, version: &Version) -> std::io::Result<Child> {
    let mut words: Vec<String> = Vec::new();
    let last = [&["nice", "-n", "19"][..], &["ionice", "-c", "3"]];
    for wrapper in last.into_iter().filter(|wrapper| on_path(wrapper[0]).is_some()) {
        words.extend(wrapper.iter().map(|word| (*word).to_owned()));
    }
    words.push(std::env::current_exe()?.to_string_lossy().into_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    if source.exists() {
        command.arg("--config").arg(source);
    }
    command.args(["gate", "--json"]).arg(version.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn()
}

/// Runs the configured command and reads the version that a tag stands for.
pub async fn resolve(config: &Config, tag: &str) -> Result<Version, String> {
    let section = &config.gate.track;
    let words: Vec<_> = section.command.iter().map(|word| word.replace("{tag}", tag)).collect();
    let (program, arguments) = words.split_first().ok_or("no command is configured")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    // It has the network, so it gets nothing else; npm wants a place for its cache.
    command.args(arguments).env_clear().env("PATH", path).env("HOME", config.state_dir.join("gate"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(section.timeout, command.output()).await;
    let limit = humantime::format_duration(section.timeout);
    let output = output.map_err(|_| format!("{program} did not end within {limit}"))?;
    let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} ended with {}: {}", output.status, first_line(&output.stderr)));
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    last.parse().map_err(|error| format!("{program} prints no version: {error}"))
}
