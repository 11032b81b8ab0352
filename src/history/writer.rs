//! The one writer. It gathers what comes in, writes it in one transaction, and when the file cannot be used keeps what
//! there is, tries again at growing intervals, and says so once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fold::Fold;
use super::store::{Batch, Bounds, Store, StoreError};
use super::{Entry, Shared, Standing, Trouble, aside, query};

/// How long outcomes are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(200);

/// How often rows that only grow are written; a kill -9 loses so much of a count, and of nothing else.
const GROWTH: Duration = Duration::from_secs(60);

const HOUSEKEEPING: Duration = Duration::from_secs(3600);

/// Between two attempts on a file that cannot be used: doubling from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Rows kept while nothing can be written.
const PENDING: usize = 4096;

pub struct Writer {
    shared: Arc<Shared>,
    bounds: Bounds,
    fold: Fold,
    pending: Batch,
    file: Option<File>,
    /// Whether the whole file is to be read for damage when it is next opened.
    check: bool,
    retry_after: Duration,
    retry_at: Instant,
    lost_before: u64,
}

/// An open history, on a thread of its own.
struct File {
    store: Arc<Store>,
    connection: tokio_rusqlite::Connection,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, bounds: Bounds) -> Self {
        Self {
            shared,
            bounds,
            fold: Fold::default(),
            pending: Batch::default(),
            file: None,
            check: true,
            retry_after: RETRY.0,
            retry_at: Instant::now(),
            lost_before: 0,
        }
    }

    /// Runs until `stop`, then writes what is left. `tried` is told when the file was first tried.
    pub async fn run(
        mut self,
        mut entries: mpsc::Receiver<Entry>,
        stop: CancellationToken,
        tried: oneshot::Sender<()>,
    ) {
        self.reopen().await;
        self.housekeep().await;
        let _ = tried.send(());
        let mut growth = every(GROWTH);
        let mut housekeeping = every(HOUSEKEEPING);
        let mut gathered: Option<Instant> = None;
        let shared = Arc::clone(&self.shared);
        loop {
            let due = gathered.map(|at| if self.file.is_some() { at } else { at.max(self.retry_at) });
            tokio::select! {
                entry = entries.recv() => match entry {
                    Some(entry) => {
                        self.take(entry);
                        gathered = gathered.or(Some(Instant::now() + GATHER));
                    }
                    None => break,
                },
                () = at(due) => {
                    self.flush().await;
                    gathered = (!self.pending.is_empty()).then_some(self.retry_at);
                }
                _ = growth.tick() => {
                    self.grow();
                    gathered = gathered.or(Some(Instant::now()));
                }
                _ = housekeeping.tick() => self.housekeep().await,
                () = shared.damage.notified() => {
                    self.close().await;
                    self.check = true;
                    self.reopen().await;
                    gathered = gathered.or(Some(Instant::now()));
                }
                () = stop.cancelled() => break,
            }
        }
        self.finish(entries).await;
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Run(run) => {
                let mut rows = Vec::new();
                self.fold.take(*run, SystemTime::now(), &mut rows);
                self.keep(rows);
            }
            Entry::Event(event) if self.pending.len() < PENDING => {
                let id = self.fold.next_id(SystemTime::now());
                self.pending.events.insert(id, event);
            }
            Entry::Event(_) => self.shared.lose(1),
        }
    }

    fn grow(&mut self) {
        let mut rows = Vec::new();
        self.fold.grown(SystemTime::now(), &mut rows);
        self.keep(rows);
    }

    fn keep(&mut self, rows: Vec<super::Recorded>) {
        for row in rows {
            if let Some(standing) = self.fold.standing(&row.run.user, row.run.kind) {
                self.pending.standings.insert((row.run.user.clone(), row.run.kind), standing.clone());
            }
            if self.pending.len() < PENDING || self.pending.rows.contains_key(&row.id) {
                self.pending.rows.insert(row.id, row);
            } else {
                self.shared.lose(1);
            }
        }
    }

    async fn finish(mut self, mut entries: mpsc::Receiver<Entry>) {
        entries.close();
        while let Some(entry) = entries.recv().await {
            self.take(entry);
        }
        self.grow();
        self.flush().await;
        self.shared.lose(self.pending.len() as u64);
        self.close().await;
    }

    /// Writes what is pending; what cannot be written stays pending.
    async fn flush(&mut self) {
        if self.file.is_none() {
            self.reopen().await;
        }
        let Some(file) = &self.file else { return };
        if self.pending.is_empty() {
            self.well();
            return;
        }
        let batch = Arc::new(std::mem::take(&mut self.pending));
        let (store, work) = (Arc::clone(&file.store), Arc::clone(&batch));
        match ended(file.connection.call(move |db| store.write(db, &work)).await) {
            Ok(bytes) => {
                self.shared.written.fetch_add(batch.len() as u64, Ordering::Relaxed);
                self.shared.bytes.store(bytes, Ordering::Relaxed);
                self.well();
            }
            Err(error) => {
                self.pending.put_back(Arc::unwrap_or_clone(batch));
                self.fail(error).await;
            }
        }
    }

    async fn housekeep(&mut self) {
        let Some(file) = &self.file else { return };
        let store = Arc::clone(&file.store);
        if let Err(error) = ended(file.connection.call(move |db| store.prune(db, SystemTime::now())).await) {
            self.fail(error).await;
        }
    }

    async fn reopen(&mut self) {
        if let Err(error) = self.attempt().await {
            self.fail(error).await;
        }
    }

    /// Waits for the end: a connection that closes late would remove the log of the file opened after it.
    async fn close(&mut self) {
        if let Some(file) = self.file.take() {
            let _ = file.connection.close().await;
        }
    }

    async fn attempt(&mut self) -> Result<(), StoreError> {
        let (path, bounds, check) = (self.shared.path.clone(), self.bounds, self.check);
        let opening = tokio::task::spawn_blocking(move || {
            let (store, db) = Store::open(&path, bounds, check)?;
            let standings = query::standings(&db)?;
            Ok((store, db, standings))
        });
        let (store, db, standings) = opening.await.unwrap_or_else(|panicked| {
            Err(StoreError::Open(self.shared.path.clone(), std::io::Error::other(panicked)))
        })?;
        for standing in standings {
            self.fold.remember(standing);
        }
        // All of them: the file may be a new one.
        let standings: Vec<Standing> = self.fold.standings().cloned().collect();
        self.pending.standings.extend(standings.into_iter().map(|s| ((s.user.clone(), s.kind), s)));
        self.file = Some(File { store: Arc::new(store), connection: db.into() });
        self.check = false;
        self.shared.generation.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A damaged file is put aside at once; everything else is tried again later, with the file opened anew.
    async fn fail(&mut self, error: StoreError) {
        self.shared.errors.fetch_add(1, Ordering::Relaxed);
        self.close().await;
        self.retry_at = Instant::now() + self.retry_after;
        self.retry_after = (self.retry_after * 2).min(RETRY.1);
        let StoreError::Corrupt(_, what) = &error else {
            self.ill(&error);
            return;
        };
        match aside::put_aside(&self.shared.path, SystemTime::now()) {
            Ok(aside) => {
                self.shared.put_aside.fetch_add(1, Ordering::Relaxed);
                tracing::error!(file = %aside.display(), damage = what, "the history was damaged; it is put aside and a new one begun");
                if let Err(error) = self.attempt().await {
                    self.ill(&error);
                }
            }
            Err(cause) => {
                tracing::error!(error = %cause, "the damaged history cannot be put aside");
                self.ill(&error);
            }
        }
    }

    fn ill(&mut self, error: &StoreError) {
        let detail = match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        let lost = self.shared.lost.load(Ordering::Relaxed);
        let (mut began, mut changed) = (false, false);
        self.shared.trouble.send_modify(|trouble| {
            began = trouble.is_none();
            changed = trouble.as_ref().is_none_or(|known| known.detail != detail);
            let since = trouble.as_ref().map_or_else(SystemTime::now, |known| known.since);
            *trouble = Some(Trouble { since, detail: detail.clone() });
        });
        if began {
            self.lost_before = lost;
        }
        if changed {
            tracing::warn!(
                error = detail,
                "the history cannot be written; probes go on, outcomes are kept in memory"
            );
        }
    }

    fn well(&mut self) {
        self.retry_after = RETRY.0;
        if self.shared.trouble.send_replace(None).is_some() {
            let lost = self.shared.lost.load(Ordering::Relaxed) - self.lost_before;
            tracing::info!(lost, "the history is written again");
        }
    }
}

/// The writer's connection is closed by nobody else; a thread that died is met by opening anew.
fn ended<T>(result: Result<T, tokio_rusqlite::Error<StoreError>>) -> Result<T, StoreError> {
    result.map_err(|error| match error {
        tokio_rusqlite::Error::Error(error) => error,
        gone => StoreError::Gone(gone.to_string()),
    })
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
