//! The command line: options parsed once into what they mean, handed over, an exit code back.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit codes, the same for every command (the gate and the enforcer add theirs).
pub mod exit {
    /// Usage error (sysexits EX_USAGE).
    pub const USAGE: u8 = 64;
}

/// Health prober, upgrade gate and front door for per-user t3 servers.
#[derive(Parser)]
#[command(name = "t3-prober", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
    match cli.command {
        Command::Sim(args) => crate::sim::run(args),
        Command::MetricsReference => {
            print!("{}", crate::metrics::reference());
            ExitCode::SUCCESS
        }
    }
}
