//! The command line: options parsed once into what they mean, handed over, an exit code back.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::config::{Config, Source};

mod backup;
mod boxed;
mod dispatch;
mod enforce;
mod gate;
mod pause;
mod probe;
mod rollout;

/// Exit codes, the same for every command (the gate and the enforcer add theirs).
pub mod exit {
    /// The answer is no, or something failed.
    pub const FAILED: u8 = 1;
    /// Nothing failed, and it could not be told whether all is well.
    pub const UNKNOWN: u8 = 4;
    /// Usage error (sysexits EX_USAGE).
    pub const USAGE: u8 = 64;
    /// The configuration is refused (sysexits EX_CONFIG).
    pub const CONFIG: u8 = 78;
}

/// Health prober, upgrade gate and front door for per-user t3 servers.
#[derive(Parser)]
#[command(name = "t3-prober", version, about, max_term_width = 110)]
struct Cli {
    /// Configuration file; must exist [default: /etc/t3-prober/config.toml, which need not]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Probe everybody on schedule; serve metrics, pages and history
    Serve,
    /// One probe now, every step with its time
    ///
    /// Exit 0: all is well; 1: a step failed; 4: nothing failed, and something could not be told.
    Probe(probe::Args),
    /// Snapshots of users' state, and proof that they restore
    ///
    /// Exit 0: done, and all is well; 1: something failed or does not restore; 4: there is nothing to tell from.
    #[command(subcommand)]
    Backup(backup::Command),
    /// May this build be given to these users, and can we go back
    ///
    /// Exit 0: pass; 1: fail; 3: inconclusive; 4: the gate could not run.
    Gate(gate::Args),
    /// The stored verdict and why
    ///
    /// Exit 0: pass; 1: fail; 3: inconclusive; 4: error; 5: none, or one that does not hold any more.
    Verdict(gate::VerdictArgs),
    /// Bring a new build to everybody, watch it, and bring everybody back if it breaks
    ///
    /// Exit 0: done, or nothing to do; 1: rolled back; 3: held, somebody has to decide, or waiting for who is busy;
    /// 4: error, or told to stop; 6: the rollback failed.
    Enforce(enforce::Args),
    /// Planned absence: still probed and shown, no alert; always ends by itself
    Pause(pause::PauseArgs),
    /// End a planned absence now
    Resume(pause::ResumeArgs),
    /// The whole thing on this machine with no t3: a simulated fleet, faults to switch on, all surfaces live
    Demo(crate::demo::Args),
    /// Say now what would fail later: configuration, inventory, permissions, addresses
    ///
    /// One line per finding. Exit 0: nothing worse than a warning; 1: an error; 78: the configuration is refused.
    Check,
    /// The users' front door: each identity to their own instance, logged in
    Dispatch,
    /// Act with privilege for listed callers, on behalf of mapped users
    #[command(hide = true)]
    Helper(crate::helper::Args),
    /// How does a build that users have got: promote it, hold, or roll it back
    ///
    /// Exit 0: promote; 1: roll back; 3: hold; 4: could not tell.
    Rollout(rollout::Args),
    /// One rehearsal, from inside its box
    #[command(hide = true)]
    GateDriver,
    /// One drill, from inside its box
    #[command(hide = true)]
    DrillDriver,
    /// A look into a snapshot, as whoever its data belongs to
    #[command(hide = true)]
    SnapshotReader,
    /// Another command, for as long as stdin is open
    #[command(hide = true)]
    Leashed {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// The JSON Schema of a verdict's document
    #[command(hide = true)]
    VerdictSchema,
    /// The stand-in t3
    #[command(hide = true)]
    Sim(crate::sim::Args),
    /// Print METRICS.md
    #[command(hide = true)]
    MetricsReference,
}

/// Parses the arguments, runs the command and turns its end into an exit code.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let source = Source::new(cli.config);
    match cli.command {
        Command::Serve => with_config(source, |config, source| {
            with_runtime(&config, async |config| {
                crate::serve::run(source, config, crate::serve::Signals::listen()?, |_| ()).await?;
                Ok(ExitCode::SUCCESS)
            })
        }),
        Command::Probe(args) => with_config(source, |config, _| {
            with_runtime(&config, async |config| probe::run(args, &config).await)
        }),
        Command::Backup(command) => with_config(source, |config, _| {
            with_runtime(&config, async |config| backup::run(command, &config).await)
        }),
        Command::Enforce(args) => enforce::start(args, source),
        Command::Pause(args) => with_config(source, |config, _| answer(pause::pause(&args, &config))),
        Command::Resume(args) => with_config(source, |config, _| answer(pause::resume(&args, &config))),
        Command::Gate(args) => with_config(source, |config, source| {
            with_runtime(&config, async |config| Ok(gate::run(args, &config, source.path()).await))
        }),
        Command::Verdict(args) => with_config(source, |config, _| {
            with_runtime(&config, async |config| Ok(gate::verdict(args, &config).await))
        }),
        Command::Rollout(args) => with_config(source, |config, _| {
            with_runtime(&config, async |config| Ok(rollout::run(args, &config).await))
        }),
        Command::GateDriver => answer(boxed::rehearsal()),
        Command::DrillDriver => answer(boxed::drill()),
        Command::SnapshotReader => answer(boxed::reading()),
        Command::Leashed { command } => answer(boxed::command(&command)),
        Command::VerdictSchema => {
            print!("{}", crate::verdict::SCHEMA);
            ExitCode::SUCCESS
        }
        Command::Demo(args) => with_runtime(&Config::default(), async |_| {
            Box::pin(crate::demo::run(args)).await?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Check => with_config(source, |config, source| crate::check::run(&config, &source)),
        Command::Dispatch => with_config(source, |config, _| with_runtime(&config, dispatch::run)),
        Command::Helper(args) => crate::helper::run(args, source),
        Command::Sim(args) => crate::sim::run(args),
        Command::MetricsReference => {
            print!("{}", crate::metrics::reference());
            ExitCode::SUCCESS
        }
    }
}

/// Hands the checked configuration over, or says why there is none.
fn with_config(mut source: Source, command: impl FnOnce(Config, Source) -> ExitCode) -> ExitCode {
    match Config::load(&mut source) {
        Ok(config) => command(config, source),
        Err(refused) => {
            eprintln!("{refused}");
            ExitCode::from(exit::CONFIG)
        }
    }
}

/// Starts the log and a runtime, and runs a command to its end.
fn with_runtime(config: &Config, command: impl AsyncFnOnce(Config) -> anyhow::Result<ExitCode>) -> ExitCode {
    answer(within_runtime(config, command))
}

fn within_runtime(
    config: &Config,
    command: impl AsyncFnOnce(Config) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let telemetry = crate::telemetry::start(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let code = runtime.block_on(command(config.clone()));
    drop(runtime);
    drop(telemetry);
    code
}

/// The exit code, or the error with all its causes on one line.
fn answer(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("t3-prober: {error:#}");
        ExitCode::from(exit::FAILED)
    })
}
