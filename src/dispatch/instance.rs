//! A connection to a user's instance, opened only to a listener of the user's own uid and reused while it is fresh.

use std::io;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::buffers::Inbox;
use super::route::Route;
use super::stream::Stream;
use crate::outcome::{Failure, Reason};
use crate::t3::sockets;

/// Node closes an idle connection after five seconds; one that is older than this is not used again.
const FRESH: Duration = Duration::from_secs(4);

/// A request that cannot be repeated takes only a connection that was in use a moment ago.
const VERY_FRESH: Duration = Duration::from_secs(1);

/// Idle connections kept per user and worker.
const KEPT: usize = 64;

/// The two looks at the listener must lie this close together: a restart of t3 takes ten times as long, so nobody
/// else's listener fits between them.
const LOOKS_APART: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Instance {
    pub stream: Stream,
    pub inbox: Inbox,
    /// It has served a request before: it may have been closed since.
    pub reused: bool,
}

#[derive(Debug)]
pub struct Idle {
    stream: Stream,
    since: Instant,
}

impl Instance {
    /// An idle connection, or a new one.
    pub async fn obtain(
        route: &Route,
        worker: usize,
        repeatable: bool,
        limit: Duration,
    ) -> Result<Self, Failure> {
        match Self::reuse(route, worker, if repeatable { FRESH } else { VERY_FRESH }) {
            Some(stream) => Ok(Self { stream, inbox: Inbox::default(), reused: true }),
            None => Self::open(route, limit).await,
        }
    }

    pub async fn open(route: &Route, limit: Duration) -> Result<Self, Failure> {
        let stream = match tokio::time::timeout(limit, connect(route)).await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(Failure::new(
                    Reason::Timeout,
                    format!(
                        "no connection to port {} within {}",
                        route.target.port,
                        humantime::format_duration(limit)
                    ),
                ));
            }
        };
        Ok(Self { stream, inbox: Inbox::default(), reused: false })
    }

    /// Puts the connection aside for the next request.
    pub fn keep(self, route: &Route, worker: usize, now: Instant) {
        if !self.inbox.is_empty() || route.is_gone() {
            return;
        }
        if let Some(idle) = route.idle.get(worker) {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < KEPT {
                idle.push(Idle { stream: self.stream, since: now });
            }
        }
    }

    fn reuse(route: &Route, worker: usize, fresh: Duration) -> Option<Stream> {
        let mut idle = route.idle.get(worker)?.lock().unwrap_or_else(PoisonError::into_inner);
        // The last one in is the freshest; once it is too old, all are.
        while let Some(last) = idle.pop() {
            if last.since.elapsed() > fresh {
                idle.push(last);
                return None;
            }
            if !last.stream.is_disturbed() {
                return Some(last.stream);
            }
        }
        None
    }
}

/// Closes what has been idle for too long.
pub fn sweep(route: &Route, worker: usize) {
    if let Some(idle) = route.idle.get(worker) {
        idle.lock().unwrap_or_else(PoisonError::into_inner).retain(|idle| idle.since.elapsed() <= FRESH);
    }
}

/// Connects, and makes sure that the listener before and after is the user's: whoever binds a free port first receives
/// what is sent there.
async fn connect(route: &Route) -> Result<Stream, Failure> {
    let Route { address, uid, .. } = *route;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            Failure::new(Reason::Refused, format!("nothing listens on port {}", address.port()))
        }
        _ => Failure::new(Reason::Closed, format!("cannot connect to port {}: {error}", address.port())),
    };
    loop {
        let start = Instant::now();
        confirm(address, uid)?;
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        route.saw_listener(confirm(address, uid)?, start);
        if start.elapsed() <= LOOKS_APART {
            return Stream::tcp(stream).map_err(failed);
        }
        // The machine was too busy to be sure; the caller's limit ends this.
        tokio::task::yield_now().await;
    }
}

/// The inode of the listener, where it is the user's: another one is another start of the instance.
fn confirm(address: SocketAddr, uid: u32) -> Result<u32, Failure> {
    match sockets::listener(address) {
        Ok(Some(listener)) if listener.uid == uid => Ok(listener.inode),
        Ok(Some(listener)) => Err(Failure::new(
            Reason::WrongOwner,
            format!(
                "port {} belongs to uid {}, not to uid {uid}; nothing was sent to it",
                address.port(),
                listener.uid
            ),
        )),
        Ok(None) => Err(Failure::new(Reason::Refused, format!("nothing listens on port {}", address.port()))),
        Err(error) => Err(Failure::new(
            Reason::Unreadable,
            format!("cannot ask the kernel whose port {} is: {error}", address.port()),
        )),
    }
}
