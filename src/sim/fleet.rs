//! Many instances in one process, for load: each with a base directory and a port, its database opened at first use.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::home::{Home, Runtime};
use super::instance::{Address, Instance, Setup};
use super::tool::Build;
use super::{http, serve};

/// Serves until SIGTERM or SIGINT.
pub async fn serve(count: u16, base_port: u16, root: &Path, build: &Build) -> anyhow::Result<()> {
    let last = base_port.checked_add(count.saturating_sub(1));
    let last = last.with_context(|| format!("{count} ports from {base_port} on end beyond 65535"))?;
    let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
    // Each instance holds a listener, three database files and its connections.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")?;
    let mut instances = Vec::with_capacity(usize::from(count));
    for (number, port) in (base_port..=last).enumerate() {
        let instance = start(&root.join(format!("{number:04}")), port, build).await;
        instances.push(instance.with_context(|| format!("starting instance {number} on port {port}"))?);
    }
    println!("fleet of {count} ready on ports {base_port} to {last}");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    for instance in &instances {
        instance.stopping.cancel();
        instance.tasks.close();
    }
    for instance in &instances {
        instance.tasks.wait().await;
        instance.close();
        std::fs::remove_file(instance.home.runtime()).context("removing a runtime file")?;
    }
    Ok(())
}

async fn start(folder: &Path, port: u16, build: &Build) -> anyhow::Result<Arc<Instance>> {
    let address = Address { host: "127.0.0.1".to_owned(), port };
    let listener = serve::bind(&address).await.context("binding")?;
    let setup = Setup {
        release: build.release.clone(),
        home: Home::new(folder)?,
        address,
        mutations: build.mutations.clone(),
        delays: build.delays,
        quiet: true,
    };
    let instance = Arc::new(Instance::new(setup).context("making the base directory")?);
    instance.home.write_runtime(&Runtime { host: "127.0.0.1", port })?;
    instance.tasks.spawn(http::accept(instance.clone(), listener));
    Ok(instance)
}
