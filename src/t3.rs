//! What t3 does, and nothing else: every fact about t3 that this program relies on is below this module, with the
//! section of CONTRACT.md (beside these files) that it comes from. It knows nothing of users, schedules or metrics.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod access;
pub mod boxed;
pub mod cli;
pub mod descriptor;
pub mod door;
pub mod guard;
pub mod history;
pub mod http;
pub mod install;
pub mod job;
pub mod keeper;
pub mod launch;
pub mod leash;
pub mod owner;
pub mod pairing;
pub mod schema;
pub mod session;
mod small_file;
pub mod socket;
pub mod sockets;
pub mod state;
pub mod trace;
pub mod version;

/// `[t3]`: where t3's command is found and how credentials are minted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// The t3 command that the host has on its path, as program and leading arguments. Default `["t3"]`. It is run
    /// only while an instance runs the very version that the command is.
    pub command: Vec<String>,
    /// Builds installed side by side, one directory per version with `bin/t3` below it. Default `/opt/t3`; a
    /// directory that does not exist means that only `command` can be used.
    pub installs: PathBuf,
    /// How the probe and the dispatch obtain a pairing credential. Default `keeper`.
    pub mint: Mint,
    /// The command of `mint = "command"`: `{user}` is replaced, and it prints the credential alone, or t3's JSON. Default
    /// none.
    pub mint_command: Vec<String>,
    /// The t3 that `mint_command` runs. No default; required with it, because that t3 migrates the database: the command
    /// is run only while an instance runs the very version that this is.
    pub mint_command_t3: Option<PathBuf>,
    /// A command that says whether an instance was stopped on purpose: `{user}` is replaced, the word `inactive` on
    /// its first line means yes (`systemctl is-active` prints that). Default none: a refused port is always a failure.
    pub status_command: Vec<String>,
}

/// `[t3] mint`: how a pairing credential is obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mint {
    /// Through the running server with a kept administrative session: no process is started.
    Keeper,
    /// With `t3 auth pairing create`: a whole Node start for each.
    Cli,
    /// With `mint_command`, an existing wrapper.
    Command,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            command: vec!["t3".to_owned()],
            installs: PathBuf::from("/opt/t3"),
            mint: Mint::Keeper,
            mint_command: Vec::new(),
            mint_command_t3: None,
            status_command: Vec::new(),
        }
    }
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let mut complaints = Vec::new();
        if self.command.first().is_none_or(String::is_empty) {
            complaints
                .push(("command", "it names no program; write [\"t3\"], or leave the key out".to_owned()));
        }
        let is_wrapped = !self.mint_command.is_empty() && self.mint_command_t3.is_some();
        if self.mint == Mint::Command && !is_wrapped {
            let sentence =
                "it needs the command, and the t3 that it runs; write mint_command and mint_command_t3";
            complaints.push(("mint", sentence.to_owned()));
        }
        if let Some(t3) = self.mint_command_t3.as_ref().filter(|t3| t3.is_relative()) {
            let t3 = t3.display();
            complaints.push(("mint_command_t3", format!("'{t3}' is not an absolute path; begin it with /")));
        }
        if self.installs.is_relative() {
            let installs = self.installs.display();
            complaints.push(("installs", format!("'{installs}' is not an absolute path; begin it with /")));
        }
        complaints
    }
}

/// One running (or stopped) t3 server: where it is reached, where its data lies and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Whose instance this is; a name that is safe as a file name.
    pub name: String,
    pub port: u16,
    /// t3's `--base-dir`.
    pub base_dir: PathBuf,
    /// The uid that the listening process must have before any secret is sent to it.
    pub uid: u32,
}

impl Instance {
    /// `userdata/state.sqlite` (CONTRACT §7).
    pub fn database(&self) -> PathBuf {
        self.base_dir.join("userdata/state.sqlite")
    }
}
