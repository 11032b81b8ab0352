//! A WebSocket after its 101: bytes pass unchanged both ways, frames are only watched, so that its end can be
//! explained: who closed it, how, and how long it lived.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::buffers::{Buffers, Inbox};
use super::connection::Client;
use super::frames::{Frames, close_frame};
use super::instance::Instance;
use super::plan::Request;
use super::route::Route;
use super::stream::Stream;
use super::worker::Worker;
use crate::outcome::{Asker, CloseCause, Initiator};

/// After one side has closed, the other gets this long to finish what it is saying.
const FAREWELL: Duration = Duration::from_secs(10);

/// While draining, both sides get this long to answer the close frame.
const DRAIN_FAREWELL: Duration = Duration::from_secs(1);

/// 1001: a server is going down.
const GOING_AWAY: u16 = 1001;

/// One direction of the tunnel.
#[derive(Debug, Default)]
struct Way {
    frames: Frames,
    ended: Option<End>,
    /// A close frame of ours is due at the next frame's beginning.
    farewell: Vec<u8>,
    said: usize,
}

/// How one side's bytes came to their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Eof,
    Broken(io::ErrorKind),
    /// The other side takes nothing any more.
    Unwanted(io::ErrorKind),
}

pub async fn run(worker: &Worker, client: &mut Client, mut instance: Instance, request: &Request) {
    let (route, is_users) = (&request.route, request.asker == Asker::User);
    // Hours may pass: what the request's heads needed is given back.
    (client.out, client.back) = (Vec::new(), Vec::new());
    let start = Instant::now();
    if is_users {
        route.metrics.websocket_opened();
    }
    let mut tunnel =
        Tunnel { worker, client, instance: &mut instance, up: Way::default(), down: Way::default() };
    let (initiator, cause) = tunnel.until_end(route).await;
    let lived = start.elapsed();
    request.trace.closed(initiator, cause);
    if is_users {
        route.metrics.websocket_closed(initiator, cause, lived, request.trace.id());
        tracing::info!(user = route.user(), %initiator, %cause, ?lived, "a websocket ended");
    }
    tunnel.part(initiator == Initiator::Dispatch).await;
    for inbox in [&mut client.inbox, &mut instance.inbox] {
        inbox.consume(usize::MAX / 2);
        inbox.settle(&worker.buffers);
    }
}

struct Tunnel<'a> {
    worker: &'a Worker,
    client: &'a mut Client,
    instance: &'a mut Instance,
    up: Way,
    down: Way,
}

impl Tunnel<'_> {
    /// Passes bytes until it is known who ends it, and how.
    async fn until_end(&mut self, route: &Route) -> (Initiator, CloseCause) {
        poll_fn(|cx| {
            // Either direction's end is in what it tells of its sender.
            let _ = self.poll(cx);
            let ended = attribute(&self.up, Initiator::Client)
                .or_else(|| attribute(&self.down, Initiator::Instance))
                .or_else(|| route.is_gone().then_some((Initiator::Dispatch, CloseCause::UserRemoved)))
                .or_else(|| {
                    self.worker.front.is_draining().then_some((Initiator::Dispatch, CloseCause::Drain))
                });
            ended.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Lets both sides finish what they are saying, the answer to a close frame among it.
    async fn part(&mut self, by_us: bool) {
        let limit = if by_us { DRAIN_FAREWELL } else { FAREWELL };
        if by_us {
            self.up.farewell = close_frame(GOING_AWAY, Some(rand::random()));
            self.down.farewell = close_frame(GOING_AWAY, None);
        }
        // Who does not finish in time is cut off.
        let _ = timeout(limit, poll_fn(|cx| self.poll(cx))).await;
        if by_us {
            // The client's answer is waited for: closed with that unread, our own frame could be lost in a reset.
            let _ = timeout(limit, poll_fn(|cx| self.poll_silence(cx))).await;
        }
    }

    /// Ready when both directions have ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { worker, client, instance, up, down } = self;
        let up = up.poll(cx, &mut client.stream, &mut client.inbox, &mut instance.stream, &worker.buffers);
        let down =
            down.poll(cx, &mut instance.stream, &mut instance.inbox, &mut client.stream, &worker.buffers);
        if up.is_ready() && down.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when the client says nothing more.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { worker, client, .. } = self;
        loop {
            client.inbox.consume(usize::MAX / 2);
            match ready!(client.inbox.poll_fill(cx, &mut client.stream, &worker.buffers)) {
                Ok(1..) => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Way {
    /// Passes bytes on until this direction has ended and its end is passed on too.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        inbox: &mut Inbox,
        to: &mut Stream,
        buffers: &Buffers,
    ) -> Poll<()> {
        loop {
            // Our own frame goes between two of theirs, and is the last.
            if !self.farewell.is_empty() && self.frames.is_between() {
                while let Some(rest) = self.farewell.get(self.said..).filter(|rest| !rest.is_empty()) {
                    match ready!(to.poll_write(cx, rest)) {
                        Ok(count) => self.said += count,
                        Err(error) => return self.end(End::Unwanted(error.kind())),
                    }
                }
                let _ = ready!(to.poll_shutdown(cx));
                self.ended.get_or_insert(End::Eof);
                return Poll::Ready(());
            }
            if !inbox.is_empty() {
                let bytes = self.next_bytes(inbox);
                match ready!(to.poll_write(cx, bytes)) {
                    Ok(count) => {
                        self.frames.pass(bytes.get(..count).unwrap_or_default());
                        inbox.consume(count);
                    }
                    Err(error) => return self.end(End::Unwanted(error.kind())),
                }
                continue;
            }
            if self.ended.is_some() {
                let _ = ready!(to.poll_shutdown(cx));
                return Poll::Ready(());
            }
            match ready!(inbox.poll_fill(cx, from, buffers)) {
                Ok(0) => self.ended = Some(End::Eof),
                Ok(_) => {}
                Err(error) => self.ended = Some(End::Broken(error.kind())),
            }
        }
    }

    /// With a farewell to say, no more than the rest of the frame that is under way.
    fn next_bytes<'i>(&self, inbox: &'i Inbox) -> &'i [u8] {
        let bytes = inbox.bytes();
        if self.farewell.is_empty() {
            bytes
        } else {
            bytes.get(..self.frames.rest_of_frame(bytes)).unwrap_or(bytes)
        }
    }

    fn end(&mut self, end: End) -> Poll<()> {
        self.ended = Some(end);
        Poll::Ready(())
    }
}

/// What this direction tells of its sender's end, if it has come.
fn attribute(way: &Way, sender: Initiator) -> Option<(Initiator, CloseCause)> {
    if let Some(code) = way.frames.closed_with() {
        let cause = match code {
            None | Some(1000) => CloseCause::Normal,
            Some(1001) => CloseCause::GoingAway,
            Some(_) => CloseCause::ErrorCode,
        };
        return Some((sender, cause));
    }
    let receiver = match sender {
        Initiator::Client => Initiator::Instance,
        Initiator::Instance | Initiator::Dispatch => Initiator::Client,
    };
    match way.ended? {
        End::Eof => Some((sender, CloseCause::Dropped)),
        End::Broken(kind) => Some((sender, cause_of(kind))),
        End::Unwanted(kind) => Some((receiver, cause_of(kind))),
    }
}

fn cause_of(kind: io::ErrorKind) -> CloseCause {
    match kind {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            CloseCause::PeerDead
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseCause::Reset,
        _ => CloseCause::Dropped,
    }
}
