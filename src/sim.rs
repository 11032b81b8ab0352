//! The stand-in t3: behaves as the real program does, per version, so that everything here can be tried without one.
//! It takes nothing from the rest of the program but the migrations' names: a mistake there must not be mirrored here.
//!
//! Held by no recording, and only as the contract or plain sense has it: every version but 0.0.24, 0.0.26 and 0.0.33;
//! lists without `--json`; the `project` commands' words; projects, threads and messages inside a snapshot; refusals of
//! `/oauth/token` and of bad administrative calls; gzip; what `server.getConfig` answers beyond its first members.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

mod clock;
mod command;
mod failure;
mod fault;
mod fleet;
mod history;
mod home;
mod http;
mod install;
mod instance;
mod mutation;
mod release;
mod schema;
mod serve;
mod socket;
mod store;
mod switch;
mod timing;
mod token;
mod tool;
mod write;

use fault::Fault;
use mutation::{Chosen, Mutations};
use release::Release;
use timing::Timing;
use tool::Build;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Be t3: everything after `--` is t3's own command line
    #[command(after_long_help = mutation::listing())]
    T3 {
        #[command(flatten)]
        build: BuildArgs,
        /// t3's own arguments
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Write DIR/bin/t3 and what a package manager would leave beside it
    #[command(after_long_help = mutation::listing())]
    Install {
        dir: PathBuf,
        version: Release,
        #[command(flatten)]
        manner: Manner,
    },
    /// Switch a fault of one base directory on or off; without a name, list what is on
    Fault {
        /// The base directory of the instance
        base_dir: PathBuf,
        /// The fault
        name: Option<Fault>,
        /// On unless told otherwise
        #[arg(requires = "name")]
        state: Option<OnOff>,
        /// How many times, or what the fault's line says
        #[arg(long)]
        value: Option<String>,
    },
    /// Write a history into a base directory, so that there is something to lose; may be repeated
    Write {
        /// The base directory of the instance
        base_dir: PathBuf,
        /// The version that the instance runs
        #[arg(long = "as", value_name = "VERSION")]
        version: Release,
        /// How many projects there are to be at least
        #[arg(long, default_value_t = 1)]
        projects: usize,
        /// How many threads there are to be at least
        #[arg(long, default_value_t = 1)]
        threads: usize,
        /// How many messages the user writes
        #[arg(long)]
        messages: usize,
    },
    /// Serve many instances from one process: ROOT/0000, ROOT/0001, … on consecutive ports
    Fleet {
        /// How many
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// The port of the first
        #[arg(long)]
        base_port: u16,
        /// Where the base directories are made
        #[arg(long)]
        root: PathBuf,
        #[command(flatten)]
        build: BuildArgs,
    },
}

#[derive(clap::Args)]
struct BuildArgs {
    /// The version to be
    #[arg(long = "as", value_name = "VERSION")]
    version: Release,
    #[command(flatten)]
    manner: Manner,
}

/// How a build differs from the real one of its version.
#[derive(clap::Args)]
struct Manner {
    /// Be a broken build, NAME or NAME=VALUE (may be repeated)
    #[arg(long = "mutation", value_name = "NAME")]
    mutations: Vec<Chosen>,
    #[command(flatten)]
    timing: Timing,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnOff {
    On,
    Off,
}

impl BuildArgs {
    fn build(self) -> Build {
        let delays = self.manner.timing.delays(&self.version);
        Build { release: self.version, mutations: Mutations::new(&self.manner.mutations), delays }
    }
}

pub fn run(args: Args) -> ExitCode {
    match args.what {
        What::T3 { build, arguments } => runtime(false, tool::run(&build.build(), &arguments)),
        What::Install { dir, version, manner } => told(install::install(&dir, &version, &manner)),
        What::Fault { base_dir, name: None, .. } => told(switch::list(&base_dir)),
        What::Fault { base_dir, name: Some(fault), state, value } => {
            told(switch::set(&base_dir, fault, !matches!(state, Some(OnOff::Off)), value))
        }
        What::Write { base_dir, version, projects, threads, messages } => {
            told(write::write(&base_dir, &version, &write::Wanted { projects, threads, messages }))
        }
        What::Fleet { count, base_port, root, build } => {
            runtime(true, async { told(fleet::serve(count, base_port, &root, &build.build()).await) })
        }
    }
}

/// One server is as single-threaded as Node; a fleet may use every core.
fn runtime(fleet: bool, work: impl Future<Output = ExitCode>) -> ExitCode {
    use tokio::runtime::Builder;
    let mut builder = if fleet { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => told(Err(anyhow::Error::new(error).context("starting the runtime"))),
    }
}

fn told(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}
