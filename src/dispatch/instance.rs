//! A connection to a user's instance, opened only to a listener of the user's own uid and reused while it is fresh.

use std::future::poll_fn;
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
use crate::t3::trace::TraceContext;

/// Node closes an idle connection after five seconds; one that is older than this is not used again.
const FRESH: Duration = Duration::from_secs(4);

/// A request that cannot be repeated takes only a connection that was in use a moment ago.
const VERY_FRESH: Duration = Duration::from_secs(1);

/// Idle connections kept per user and worker.
const KEPT: usize = 64;

/// How long a starting instance is given for one answer, and how often it is asked.
const TRY: Duration = Duration::from_millis(250);

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
            Ok(connected) => connected.inspect_err(|failure| {
                if failure.reason == Reason::Refused {
                    route.saw_listener(None, Instant::now());
                }
            })?,
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

    /// Whether a question that leaves no trace is answered.
    async fn answers(&mut self, route: &Route) -> bool {
        let Route { address, .. } = route;
        let trace = TraceContext::unsampled().traceparent();
        let question = format!(
            "GET /api/auth/session HTTP/1.1\r\nHost: {address}\r\ntraceparent: {trace}\r\nConnection: close\r\n\r\n"
        );
        let (stream, mut byte) = (&mut self.stream, [0]);
        let sent = poll_fn(|cx| stream.poll_write(cx, question.as_bytes())).await;
        let is_sent = sent.is_ok_and(|sent| sent == question.len());
        is_sent && poll_fn(|cx| stream.poll_read(cx, &mut byte)).await.is_ok_and(|read| read > 0)
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

/// Makes sure that an instance whose start was seen answers at all, over connections of their own: what it accepts too
/// early it never answers (CONTRACT §9), and not every request can be sent twice.
pub async fn await_start(route: &Route, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    while route.is_starting(Instant::now()) {
        let next = Instant::now() + TRY;
        let mut instance = Instance::open(route, limit).await?;
        if tokio::time::timeout_at(next, instance.answers(route)).await == Ok(true) {
            route.has_started();
        } else if next >= deadline {
            return Err(Failure::new(
                Reason::Timeout,
                format!("port {} accepts and does not answer: the instance is starting", route.target.port),
            ));
        } else {
            // One that hangs up at once is not asked any faster.
            tokio::time::sleep_until(next).await;
        }
    }
    Ok(())
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
        route.saw_listener(Some(confirm(address, uid)?), start);
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
