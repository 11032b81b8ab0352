//! The inventory, live: read again within a second of a change, and the last good one kept while a source is bad.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::account::Accounts;
use super::source_file::Stamp;
use super::sources::{self, SourceError, env_path};
use super::{Inventory, Section, census};

/// How often the sources' stamps are looked at.
const POLL: Duration = Duration::from_millis(500);

/// How often everything is read again all the same: accounts and the modes of databases change without a trace in any
/// source, and a file rewritten within one tick of the clock keeps its stamp.
const RENEW: Duration = Duration::from_secs(30);

/// What is served now, and whether the sources still say so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub inventory: Arc<Inventory>,
    pub status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Why the sources cannot be read now; the inventory is then the last good one (empty if there never was one).
    pub error: Option<String>,
    /// When the inventory in use was last confirmed by its sources; `None` if never.
    pub loaded_at: Option<SystemTime>,
    /// Counts the inventories that differed from the one before; 0 until the first good one.
    pub generation: u64,
}

impl Status {
    pub fn is_ok(&self) -> bool {
        self.error.is_none()
    }
}

/// Keeps the inventory. Reading happens on the blocking pool: a network file system may take its time.
#[derive(Clone, Debug)]
pub struct Watch {
    reader: Arc<Mutex<Reader>>,
    snapshot: watch::Sender<Snapshot>,
}

#[derive(Debug)]
struct Reader {
    section: Section,
    accounts: Accounts,
    sources: HashMap<PathBuf, Option<Stamp>>,
    read_at: Option<Instant>,
}

/// Reads the inventory once, for a command that does not stay.
pub fn read_once(section: &Section) -> Result<Inventory, SourceError> {
    Ok(census::take(section, sources::read(section, &mut Accounts::default())?))
}

impl Watch {
    /// Reads the sources for the first time. A bad one is no reason not to start: the inventory is then empty, and
    /// the status says why.
    pub async fn start(section: Section) -> Self {
        let reader =
            Reader { section, accounts: Accounts::default(), sources: HashMap::new(), read_at: None };
        let watch =
            Self { reader: Arc::new(Mutex::new(reader)), snapshot: watch::Sender::new(Snapshot::default()) };
        watch.reload_now().await;
        watch
    }

    /// Follows the inventory: the receiver sees every change of it or of its status, the present state at once.
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Reads everything again, changed or not.
    pub async fn reload_now(&self) -> Status {
        self.read(|_| true).await
    }

    /// Takes a new section into use. If its sources are bad, the last good inventory stays.
    pub async fn reconfigure(&self, section: Section) -> Status {
        self.read(move |reader| {
            reader.section = section;
            true
        })
        .await
    }

    /// Looks for changes until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.read(|reader| reader.is_due()).await;
        }
    }

    async fn read(&self, wanted: impl FnOnce(&mut Reader) -> bool + Send + 'static) -> Status {
        let watch = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // Published under the lock, so that of two readings the later one is the last to be seen.
            let mut reader = watch.reader.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted(&mut reader) {
                let result = reader.read();
                watch.publish(result);
            }
        });
        if let Err(error) = reading.await {
            tracing::error!(%error, "reading the inventory broke; the last good one stays in use");
        }
        self.snapshot.borrow().status.clone()
    }

    fn publish(&self, result: Result<Inventory, SourceError>) {
        self.snapshot.send_if_modified(|now| match result {
            Ok(inventory) => {
                let is_new = now.status.generation == 0 || *now.inventory != inventory;
                let recovered = now.status.error.take().is_some();
                now.status.loaded_at = Some(SystemTime::now());
                if is_new {
                    now.status.generation += 1;
                    log_changes(&now.inventory, &inventory, now.status.generation);
                    now.inventory = Arc::new(inventory);
                } else if recovered {
                    tracing::info!("the inventory can be read again and is unchanged");
                }
                is_new || recovered
            }
            Err(error) => {
                let error = error.to_string();
                let is_new = now.status.error.as_ref() != Some(&error);
                if is_new {
                    tracing::error!(
                        users = now.inventory.targets().len(),
                        "the inventory cannot be read, the last good one stays in use: {error}"
                    );
                }
                now.status.error = Some(error);
                is_new
            }
        });
    }
}

fn log_changes(old: &Inventory, new: &Inventory, generation: u64) {
    tracing::info!(
        generation,
        users = new.targets().len(),
        findings = new.findings().len(),
        "the inventory was read"
    );
    for found in new.findings().iter().filter(|found| !old.findings().contains(found)) {
        tracing::warn!(finding = %found.finding, user = found.user, identity = found.identity, "{found}");
    }
}

impl Reader {
    fn is_due(&self) -> bool {
        self.read_at.is_none_or(|read_at| read_at.elapsed() >= RENEW)
            || self.sources.iter().any(|(path, stamp)| Stamp::of(path) != *stamp)
    }

    /// The stamps are taken before the content is read: what changes in between is read again at the next look.
    fn read(&mut self) -> Result<Inventory, SourceError> {
        self.read_at = Some(Instant::now());
        let Section { dispatch_table, user_map, env_dir, .. } = &self.section;
        let fixed: Vec<_> = [Some(dispatch_table), user_map.as_ref(), env_dir.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let stamped = |path: PathBuf| {
            let stamp = Stamp::of(&path);
            (path, stamp)
        };
        let mut stamps: HashMap<_, _> =
            self.sources.keys().cloned().chain(fixed.clone()).map(stamped).collect();
        let result = sources::read(&self.section, &mut self.accounts);
        if let Ok(sources) = &result {
            let env_files = sources.users.keys().filter_map(|user| Some(env_path(env_dir.as_deref()?, user)));
            let paths = fixed.into_iter().chain(env_files);
            stamps = paths.map(|path| stamps.remove_entry(&path).unwrap_or_else(|| stamped(path))).collect();
        }
        self.sources = stamps;
        Ok(census::take(&self.section, result?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tokio_util::task::TaskTracker;

    use super::*;

    /// A dispatch table in a directory of its own, watched.
    struct Scene {
        dir: tempfile::TempDir,
        watch: Watch,
        seen: watch::Receiver<Snapshot>,
        tasks: TaskTracker,
        stop: CancellationToken,
    }

    const ANN: &str = r#"{"ann": {"os_user": "ann", "port": 4001}}"#;
    const ANN_AND_BOB: &str =
        r#"{"ann": {"os_user": "ann", "port": 4001}, "bob": {"os_user": "bob", "port": 4002}}"#;

    impl Scene {
        async fn with(table: Option<&str>) -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            if let Some(table) = table {
                fs::write(dir.path().join("dispatch.json"), table).expect("written");
            }
            let watch = Watch::start(section(dir.path())).await;
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            let seen = watch.subscribe();
            tasks.spawn(watch.clone().run(stop.clone()));
            Self { dir, watch, seen, tasks, stop }
        }

        /// As a provisioner does: written aside, renamed into place.
        fn replace(&self, table: &str) {
            let aside = self.dir.path().join("new");
            fs::write(&aside, table).expect("written");
            fs::rename(aside, self.dir.path().join("dispatch.json")).expect("renamed");
        }

        async fn until(&mut self, what: &str, holds: impl FnMut(&Snapshot) -> bool) -> Snapshot {
            let seen = tokio::time::timeout(Duration::from_secs(20), self.seen.wait_for(holds)).await;
            seen.unwrap_or_else(|_| panic!("not within 20 s: {what}")).expect("the watch lives").clone()
        }

        async fn end(self) {
            self.stop.cancel();
            self.tasks.close();
            self.tasks.wait().await;
        }
    }

    fn section(dir: &Path) -> Section {
        Section { dispatch_table: dir.join("dispatch.json"), accounts: false, ..Section::default() }
    }

    fn users(snapshot: &Snapshot) -> Vec<&str> {
        snapshot.inventory.targets().iter().map(|target| target.user.as_str()).collect()
    }

    #[tokio::test]
    async fn a_replaced_table_is_taken_in_by_itself_and_a_removed_user_is_gone() {
        let mut scene = Scene::with(Some(ANN_AND_BOB)).await;
        assert_eq!(users(&scene.watch.snapshot()), ["ann", "bob"]);
        scene.replace(ANN);
        let snapshot = scene.until("bob is gone", |seen| seen.status.generation == 2).await;
        assert_eq!(users(&snapshot), ["ann"]);
        assert!(snapshot.status.is_ok());
        scene.end().await;
    }

    #[tokio::test]
    async fn a_half_written_table_keeps_the_last_good_inventory_and_says_so_until_it_is_whole() {
        let mut scene = Scene::with(Some(ANN)).await;
        scene.replace(&ANN_AND_BOB[..30]);
        let snapshot = scene.until("the error is reported", |seen| !seen.status.is_ok()).await;
        assert_eq!(users(&snapshot), ["ann"]);
        assert_eq!(snapshot.status.generation, 1);
        let error = snapshot.status.error.expect("an error");
        assert!(error.contains("dispatch.json:1:"), "{error}");
        scene.replace(ANN_AND_BOB);
        let snapshot = scene.until("the whole table is read", |seen| seen.status.is_ok()).await;
        assert_eq!(users(&snapshot), ["ann", "bob"]);
        scene.end().await;
    }

    #[tokio::test]
    async fn without_a_table_it_starts_empty_and_takes_the_table_in_when_it_comes() {
        let mut scene = Scene::with(None).await;
        let start = scene.watch.snapshot();
        assert_eq!(
            (start.inventory.targets().len(), start.status.loaded_at, start.status.generation),
            (0, None, 0)
        );
        assert!(start.status.error.is_some_and(|error| error.contains("No such file")));
        scene.replace(ANN);
        let snapshot = scene.until("ann is served", |seen| seen.status.is_ok()).await;
        assert_eq!(users(&snapshot), ["ann"]);
        scene.end().await;
    }

    #[tokio::test]
    async fn a_vanished_table_takes_nobodys_service_away() {
        let mut scene = Scene::with(Some(ANN)).await;
        fs::remove_file(scene.dir.path().join("dispatch.json")).expect("removed");
        let snapshot = scene.until("the error is reported", |seen| !seen.status.is_ok()).await;
        assert_eq!(users(&snapshot), ["ann"]);
        scene.end().await;
    }

    #[tokio::test]
    async fn an_env_file_that_changes_is_compared_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("dispatch.json"), ANN).expect("written");
        fs::write(dir.path().join("ann.env"), "T3_PORT=4001\n").expect("written");
        let section = Section { env_dir: Some(dir.path().to_owned()), ..section(dir.path()) };
        let watch = Watch::start(section).await;
        let (mut seen, tasks, stop) = (watch.subscribe(), TaskTracker::new(), CancellationToken::new());
        assert_eq!(watch.snapshot().inventory.findings(), []);
        tasks.spawn(watch.clone().run(stop.clone()));
        fs::write(dir.path().join("ann.env"), "T3_PORT=40011\n").expect("written");
        let finding = seen.wait_for(|seen| !seen.inventory.findings().is_empty());
        let finding = tokio::time::timeout(Duration::from_secs(20), finding).await.expect("within 20 s");
        assert_eq!(finding.expect("alive").inventory.findings()[0].finding.as_str(), "port_differs");
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_section_whose_files_are_missing_leaves_the_last_good_inventory_in_use() {
        let scene = Scene::with(Some(ANN)).await;
        let elsewhere = scene.dir.path().join("elsewhere");
        let status = scene.watch.reconfigure(section(&elsewhere)).await;
        assert!(!status.is_ok());
        assert_eq!(users(&scene.watch.snapshot()), ["ann"]);
        let status = scene.watch.reconfigure(section(scene.dir.path())).await;
        assert!(status.is_ok());
        scene.end().await;
    }

    #[tokio::test]
    async fn reloading_an_unchanged_inventory_wakes_nobody() {
        let mut scene = Scene::with(Some(ANN)).await;
        scene.seen.mark_unchanged();
        let status = scene.watch.reload_now().await;
        assert_eq!((status.is_ok(), status.generation), (true, 1));
        assert!(!scene.seen.has_changed().expect("the watch lives"));
        scene.end().await;
    }

    #[test]
    fn everything_is_read_again_after_a_while_even_where_no_file_has_changed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("dispatch.json"), ANN).expect("written");
        let mut reader = Reader {
            section: section(dir.path()),
            accounts: Accounts::default(),
            sources: HashMap::new(),
            read_at: None,
        };
        assert!(reader.is_due());
        reader.read().expect("an inventory");
        assert!(!reader.is_due());
        reader.read_at = Instant::now().checked_sub(RENEW);
        assert!(reader.is_due());
    }
}
