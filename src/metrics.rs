//! Every metric, in one place: a group a file, the doc comment of a field is its HELP. Values are given to it; it knows
//! nothing of probes, config or inventory, and nothing here is global.

mod backup;
mod book;
mod credential;
mod dispatch;
mod enforcer;
mod exposition;
mod instance;
mod inventory;
mod labels;
mod probe;
mod prober;
mod process;
mod reference;
mod rollout;
mod series;
mod state;
#[cfg(test)]
mod tests;
mod verdict;
mod version;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

pub use self::backup::Snapshots;
use self::book::Book;
pub use self::credential::Stands;
pub use self::dispatch::DispatchUser;
pub use self::exposition::Format;
pub use self::verdict::{Judged, Refused};
use crate::outcome::Run;

/// All metrics of this process; shared in an `Arc`. Recording never waits for a whole scrape, at most for one family of
/// it, and that only where it makes a new series.
#[derive(Debug)]
pub struct Metrics {
    book: Book,
    users: Mutex<BTreeSet<Arc<str>>>,
    probe: probe::Probe,
    pub instance: instance::Instance,
    pub inventory: inventory::Inventory,
    pub dispatch: dispatch::Dispatch,
    state: state::State,
    pub backup: backup::Backup,
    pub version: version::Version,
    pub credential: credential::Credential,
    pub verdicts: verdict::Verdicts,
    pub enforcer: enforcer::Enforcer,
    pub rollout: rollout::Rollout,
    pub prober: prober::Prober,
    process: process::Process,
}

/// One user of the inventory.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    pub user: &'a str,
    pub identity: &'a str,
    pub port: u16,
}

/// What this program is.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    pub version: &'static str,
    pub revision: Option<&'static str>,
}

impl Build {
    /// The running program. The revision is what `T3_PROBER_REVISION` was when it was compiled.
    pub const THIS: Self =
        Self { version: env!("CARGO_PKG_VERSION"), revision: option_env!("T3_PROBER_REVISION") };
}

impl Metrics {
    /// Of a program that probes, and may let users in itself.
    pub fn new(build: Build) -> Self {
        let mut book = Book::default();
        let metrics = Self {
            users: Mutex::default(),
            instance: instance::Instance::register(&mut book),
            probe: probe::Probe::register(&mut book),
            inventory: inventory::Inventory::register(&mut book),
            dispatch: dispatch::Dispatch::register(&mut book),
            state: state::State::register(&mut book),
            backup: backup::Backup::register(&mut book),
            version: version::Version::register(&mut book),
            credential: credential::Credential::register(&mut book),
            verdicts: verdict::Verdicts::register(&mut book),
            enforcer: enforcer::Enforcer::register(&mut book),
            rollout: rollout::Rollout::register(&mut book),
            prober: prober::Prober::register(&mut book),
            process: process::Process::register(&mut book),
            book,
        };
        metrics.probe.start();
        metrics.prober.start(build);
        metrics.verdicts.start();
        metrics.enforcer.start();
        metrics
    }

    /// Of a dispatch in a process of its own: what it counts, and what any process shows. The probes' counters would
    /// stand at zero there, and be taken for a prober that does nothing.
    pub fn of_dispatch(build: Build) -> Self {
        let mut metrics = Self::new(build);
        let mut book = Book::default();
        metrics.dispatch = dispatch::Dispatch::register(&mut book);
        metrics.prober = prober::Prober::register(&mut book);
        metrics.process = process::Process::register(&mut book);
        metrics.prober.start(build);
        metrics.book = book;
        metrics
    }

    /// Says who is served from now on: a new user's series begin at zero, every series of a user who is gone vanishes,
    /// and what is recorded later for somebody who is not served is dropped.
    pub fn set_users(&self, served: &[Served<'_>]) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|user| {
            let stays = served.iter().any(|served| served.user == &**user);
            if !stays {
                self.book.forget(user);
            }
            stays
        });
        for user in served {
            if !users.contains(user.user) {
                let name = Arc::from(user.user);
                self.book.admit(&name);
                users.insert(name);
            }
            self.instance.begin(user);
            self.probe.begin(user.user);
            self.backup.begin(user.user);
        }
    }

    /// Records a probe: its outcome, its steps, and what it learned on its way.
    pub fn record(&self, run: &Run) {
        self.probe.record(run);
        self.instance.learn(&run.user, &run.facts);
        self.prober.learn(&run.user, &run.facts);
        if let Some(facts) = &run.facts.state {
            self.state.learn(&run.user, facts);
        }
    }

    /// Everything as one document, the process's own figures read now. In pieces, to be sent one
    /// after the other.
    pub fn render(&self, format: Format) -> Vec<String> {
        self.process.refresh();
        exposition::render(&self.book.registry, format)
    }
}

/// METRICS.md.
pub fn reference() -> String {
    reference::markdown(&Metrics::new(Build::THIS).book.entries)
}
