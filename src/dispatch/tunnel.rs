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
use super::route::Route;
use super::stream::Stream;
use super::worker::Worker;
use crate::outcome::{CloseCause, Initiator};

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

pub async fn run(worker: &Worker, client: &mut Client, mut instance: Instance, route: &Route) {
    // Hours may pass: what the request's heads needed is given back.
    (client.out, client.back) = (Vec::new(), Vec::new());
    let start = Instant::now();
    route.metrics.websocket_opened();
    let (initiator, cause) = pump(worker, client, &mut instance, route).await;
    let lived = start.elapsed();
    route.metrics.websocket_closed(initiator, cause, lived);
    tracing::info!(user = route.user(), %initiator, %cause, ?lived, "a websocket ended");
    client.inbox.consume(usize::MAX / 2);
    client.inbox.settle(&worker.buffers);
    instance.inbox.consume(usize::MAX / 2);
    instance.inbox.settle(&worker.buffers);
}

async fn pump(
    worker: &Worker,
    client: &mut Client,
    instance: &mut Instance,
    route: &Route,
) -> (Initiator, CloseCause) {
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut first = None;
    let both = poll_fn(|cx| {
        let up_done = up
            .poll(cx, &mut client.stream, &mut client.inbox, &mut instance.stream, &worker.buffers)
            .is_ready();
        let down_done = down
            .poll(cx, &mut instance.stream, &mut instance.inbox, &mut client.stream, &worker.buffers)
            .is_ready();
        first = first
            .or_else(|| attribute(&up, Initiator::Client))
            .or_else(|| attribute(&down, Initiator::Instance));
        if up_done || down_done {
            return Poll::Ready(());
        }
        if first.is_none() && (worker.front.is_draining() || route.is_gone()) {
            let cause = if route.is_gone() { CloseCause::UserRemoved } else { CloseCause::Drain };
            first = Some((Initiator::Dispatch, cause));
            return Poll::Ready(());
        }
        Poll::Pending
    });
    both.await;
    let mut limit = FAREWELL;
    if let Some((Initiator::Dispatch, _)) = first {
        limit = DRAIN_FAREWELL;
        up.farewell = close_frame(GOING_AWAY, Some(rand::random()));
        down.farewell = close_frame(GOING_AWAY, None);
    }
    // The rest of the other direction, the answer to a close frame among it.
    let _ = timeout(
        limit,
        poll_fn(|cx| {
            let up_done = up
                .poll(cx, &mut client.stream, &mut client.inbox, &mut instance.stream, &worker.buffers)
                .is_ready();
            let down_done = down
                .poll(cx, &mut instance.stream, &mut instance.inbox, &mut client.stream, &worker.buffers)
                .is_ready();
            if up_done && down_done { Poll::Ready(()) } else { Poll::Pending }
        }),
    )
    .await;
    let (initiator, cause) = first.unwrap_or((Initiator::Client, CloseCause::Dropped));
    if initiator == Initiator::Dispatch {
        // The client's answer is waited for: closed with that unread, our own frame could be lost in a reset.
        let _ = timeout(
            limit,
            poll_fn(|cx| {
                loop {
                    client.inbox.consume(usize::MAX / 2);
                    if !matches!(
                        ready!(client.inbox.poll_fill(cx, &mut client.stream, &worker.buffers)),
                        Ok(1..)
                    ) {
                        return Poll::Ready(());
                    }
                }
            }),
        )
        .await;
    }
    (initiator, cause)
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
