//! The mint guard: the last thing before any verb of t3's command is executed.
//!
//! Every verb migrates the database with its own binary's idea of the schema, under a running server of whatever
//! version (CONTRACT §2.2, §10: that was the outage). So the running version is read now, only a command of exactly
//! that version may run, and the level is compared before and after.

use std::time::Duration;

use super::cli::{Cli, Verb};
use super::descriptor;
use super::http::Client;
use super::install::Installs;
use super::state;
use super::version::Version;
use super::{Mint, Section};
use crate::outcome::{Failure, NotDone, Reason, Skip};

/// Whoever can run a verb of t3's command against an instance, under the guard.
pub trait Commands {
    /// Runs a verb with the command of the running version, or says why none may run. Answers what it printed.
    async fn run(
        &self,
        client: &mut Client<'_>,
        verb: Verb,
        flags: &[&str],
        limit: Duration,
    ) -> Result<String, NotDone>;

    /// CPU time of every call since this was last asked.
    fn take_cpu(&self) -> Vec<(Verb, Duration)>;
}

/// Commands of t3, guarded. Nothing else in the program starts one on a live base directory.
pub struct Guard {
    cli: Cli,
    installs: Installs,
    wrapper: Option<Box<Wrapper>>,
}

/// An existing command that mints, and the t3 that it runs.
struct Wrapper {
    command: Vec<String>,
    t3: Installs,
}

impl Guard {
    pub fn new(section: &Section) -> Self {
        let t3 = section.mint_command_t3.as_ref().filter(|_| section.mint == Mint::Command);
        let wrapper = t3.map(|t3| {
            let command = vec![t3.to_string_lossy().into_owned()];
            let t3 = Installs::new(&Section { command, ..section.clone() });
            Box::new(Wrapper { command: section.mint_command.clone(), t3 })
        });
        Self { cli: Cli::default(), installs: Installs::new(section), wrapper }
    }
}

impl Wrapper {
    /// The command for this user, where the t3 that it runs is of the wanted version and no other.
    async fn of_version(&self, wanted: &Version, user: &str, cli: &Cli) -> Result<Vec<String>, Failure> {
        let found = self.t3.installed(cli).await?;
        if found != *wanted {
            let detail = format!("the instance runs {wanted}, `[t3] mint_command` runs {found}");
            return Err(Failure::new(Reason::CliMissing, detail));
        }
        Ok(self.command.iter().map(|word| word.replace("{user}", user)).collect())
    }
}

impl Commands for Guard {
    async fn run(
        &self,
        client: &mut Client<'_>,
        verb: Verb,
        flags: &[&str],
        limit: Duration,
    ) -> Result<String, NotDone> {
        let wrapper = self.wrapper.as_deref().filter(|_| verb == Verb::PairingCreate);
        let (version, program) = self.permit(client, wrapper, limit).await?;
        let database = client.instance.database();
        let before = state::level(&database).await.ok();
        let printed = match wrapper {
            None => self.cli.run(&program, verb, client.instance, flags, limit).await,
            Some(_) => self.cli.run_wrapper(&program, verb, client.instance.port, limit).await,
        };
        let after = state::level(&database).await.ok();
        match (before, after) {
            (Some(before), Some(after)) if before.level != after.level => Err(NotDone::Failed(Failure::new(
                Reason::MigratedByUs,
                format!(
                    "the schema level moved from {} to {} while our own t3 {version} ran; stop every t3 command on this host and see whether the instance still logs users in",
                    before.level, after.level
                ),
            ))),
            _ => Ok(printed?),
        }
    }

    fn take_cpu(&self) -> Vec<(Verb, Duration)> {
        self.cli.take_cpu()
    }
}

impl Guard {
    /// Which command may run now: one of the version that the instance runs at this moment, or the wrapper around one.
    async fn permit(
        &self,
        client: &mut Client<'_>,
        wrapper: Option<&Wrapper>,
        limit: Duration,
    ) -> Result<(Version, Vec<String>), NotDone> {
        client.reconnect();
        let running = descriptor::read(client, limit.min(Duration::from_secs(2))).await.map_err(
            |failure| match failure.reason {
                Reason::WrongInstance | Reason::WrongOwner => NotDone::Failed(failure),
                _ => NotDone::skipped(
                    Skip::VersionUnknown,
                    format!(
                        "the running version cannot be read, so no t3 command may run: {}",
                        failure.detail
                    ),
                ),
            },
        )?;
        let version = running.version;
        let found = match wrapper {
            None => self.installs.of_version(&version, &self.cli).await,
            Some(wrapper) => wrapper.of_version(&version, &client.instance.name, &self.cli).await,
        };
        match found {
            Ok(program) => Ok((version, program)),
            Err(failure) => Err(NotDone::skipped(
                Skip::VersionSkew,
                format!("no t3 command of the running version {version} can be used: {}", failure.detail),
            )),
        }
    }
}
