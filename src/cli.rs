//! The command line: options parsed once into what they mean, handed over, an exit code back.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Source};

/// Exit codes, the same for every command (the gate and the enforcer add theirs).
pub mod exit {
    /// The answer is no, or something failed.
    pub const FAILED: u8 = 1;
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
    /// Say now what would fail later: configuration, inventory, permissions, addresses
    ///
    /// One line per finding. Exit 0: nothing worse than a warning; 1: an error; 78: the configuration is refused.
    Check,
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
        Command::Check => with_config(source, |config, source| crate::check::run(&config, &source)),
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
