//! t3-prober: can each user log in to their own t3 right now, can their data be brought back, and is this new t3
//! build safe to give them?

use std::process::ExitCode;

mod backup;
mod board;
mod check;
mod cli;
mod config;
mod credential;
mod demo;
mod dispatch;
mod docket;
mod enforce;
mod gate;
mod helper;
mod history;
mod inventory;
mod metrics;
mod operator;
mod outcome;
mod pause;
mod pins;
mod probe;
mod rollout;
mod serve;
mod sim;
mod spool;
mod t3;
mod telemetry;
mod verdict;

#[cfg(test)]
#[path = "../tests/support/fixtures.rs"]
mod fixtures;
#[cfg(test)]
#[path = "../tests/support/writer.rs"]
mod writer;

fn main() -> ExitCode {
    cli::run()
}
