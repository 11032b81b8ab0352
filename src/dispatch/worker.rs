//! A worker: one thread, one runtime, the connections it was given. Nothing of a request crosses threads.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::buffers::Buffers;
use super::connection;
use super::front::Front;
use super::instance;
use super::stream::Stream;
use super::trust::Peer;

/// How often idle connections to instances are looked over.
const SWEEP: Duration = Duration::from_secs(1);

pub struct Worker {
    pub index: usize,
    pub front: Arc<Front>,
    pub buffers: Buffers,
    /// How to wake each connection when something happens that is not on its sockets.
    wakers: Mutex<HashMap<u64, Waker>>,
}

/// What the acceptor hands over.
pub enum Order {
    Serve(Box<Accepted>),
    /// Every connection looks again: the program drains, or a route is gone.
    Wake,
}

pub struct Accepted {
    pub stream: AcceptedStream,
    pub peer: Peer,
}

/// A stream on no runtime yet.
pub enum AcceptedStream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// A running worker, seen from outside.
pub struct Handle {
    pub orders: mpsc::UnboundedSender<Order>,
    /// Connections it has now.
    pub load: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Handle {
    pub fn start(index: usize, front: Arc<Front>) -> io::Result<Self> {
        let (orders, incoming) = mpsc::unbounded_channel();
        let load = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = Arc::new(Worker { index, front, buffers: Buffers::default(), wakers: Mutex::default() });
        let counted = Arc::clone(&load);
        let thread = std::thread::Builder::new()
            .name(format!("dispatch-{index}"))
            .spawn(move || runtime.block_on(run(worker, incoming, counted)))?;
        Ok(Self { orders, load, thread })
    }

    /// Waits until its last connection has ended; it takes no new ones.
    pub fn join(self) {
        drop(self.orders);
        if self.thread.join().is_err() {
            tracing::error!("a dispatch worker panicked");
        }
    }
}

impl Worker {
    pub fn watch(&self, connection: u64, waker: &Waker) {
        self.wakers().insert(connection, waker.clone());
    }

    pub fn unwatch(&self, connection: u64) {
        self.wakers().remove(&connection);
    }

    fn wakers(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(worker: Arc<Worker>, mut orders: mpsc::UnboundedReceiver<Order>, load: Arc<AtomicUsize>) {
    let tasks = TaskTracker::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next = 0_u64;
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Serve(accepted)) => {
                    next += 1;
                    let (id, worker, guard) = (next, Arc::clone(&worker), Counted::new(&load, &worker));
                    let Accepted { stream, peer } = *accepted;
                    match stream.register() {
                        Ok(stream) => {
                            tasks.spawn(async move {
                                connection::serve(&worker, id, stream, &peer).await;
                                worker.unwatch(id);
                                drop(guard);
                            });
                        }
                        Err(error) => tracing::debug!(%error, "a connection ended before it began"),
                    }
                }
                Some(Order::Wake) => worker.wakers().values().for_each(Waker::wake_by_ref),
                None => break,
            },
            _ = sweep.tick() => {
                for route in worker.front.table().entries() {
                    instance::sweep(route, worker.index);
                }
            }
        }
    }
    tasks.close();
    let limit = worker.front.section.drain_timeout;
    if tokio::time::timeout(limit, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), ?limit, "the drain's time is up; what is left is cut off");
    }
}

/// Counts a connection for as long as it lives.
struct Counted {
    load: Arc<AtomicUsize>,
    front: Arc<Front>,
}

impl Counted {
    fn new(load: &Arc<AtomicUsize>, worker: &Worker) -> Self {
        Self { load: Arc::clone(load), front: Arc::clone(&worker.front) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.front.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AcceptedStream {
    fn register(self) -> io::Result<Stream> {
        match self {
            Self::Tcp(stream) => Stream::tcp(tokio::net::TcpStream::from_std(stream)?),
            Self::Unix(stream) => Ok(Stream::Unix(tokio::net::UnixStream::from_std(stream)?)),
        }
    }
}
