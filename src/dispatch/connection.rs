//! One client connection: request after request until one of both has enough.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::buffers::{Buffers, Inbox};
use super::forward;
use super::pages::Page;
use super::patience::Patience;
use super::plan::{Door, Plan, plan};
use super::stream::Stream;
use super::trust::Peer;
use super::worker::Worker;
use crate::outcome::Refusal;

/// How long a closed connection is drained, so that the last answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(2);

/// While draining, an idle connection gets this long for a request that is already on its way.
const LAST_CHANCE: Duration = Duration::from_millis(500);

/// Room for heads that a connection keeps between requests.
const LARGE_HEAD: usize = 8 * 1024;

/// The client's side.
#[derive(Debug)]
pub struct Client {
    pub stream: Stream,
    pub inbox: Inbox,
    /// The head for the instance.
    pub out: Vec<u8>,
    /// The head for the client.
    pub back: Vec<u8>,
    believed: bool,
    peer: Option<String>,
}

impl Client {
    pub fn door(&self) -> Door<'_> {
        Door { believed: self.believed, peer: self.peer.as_deref() }
    }

    /// Sends a page; an error means that nobody reads it.
    pub async fn answer(
        &mut self,
        page: &Page,
        to_head: bool,
        close: bool,
        limit: Duration,
    ) -> Result<(), Gone> {
        self.back.clear();
        page.write(&mut self.back, to_head, close);
        let mut sent = 0;
        let Self { stream, back, .. } = self;
        let send = poll_fn(|cx| {
            while let Some(rest) = back.get(sent..).filter(|rest| !rest.is_empty()) {
                sent += ready!(stream.poll_write(cx, rest)).map_err(|_| Gone)?;
            }
            Poll::Ready(Ok(()))
        });
        timeout(limit, send).await.map_err(|_| Gone)?
    }

    /// Says that no more comes, and reads what the client was still sending.
    async fn close(mut self, buffers: &Buffers) {
        let Self { stream, inbox, .. } = &mut self;
        let _ = timeout(LINGER, async {
            let _ = poll_fn(|cx| stream.poll_shutdown(cx)).await;
            loop {
                inbox.consume(usize::MAX / 2);
                if !matches!(poll_fn(|cx| inbox.poll_fill(cx, stream, buffers)).await, Ok(1..)) {
                    return;
                }
            }
        })
        .await;
        self.inbox.consume(usize::MAX / 2);
        self.inbox.settle(buffers);
    }
}

/// The client is gone; there is nobody left to tell.
#[derive(Debug)]
pub struct Gone;

/// What becomes of the connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    KeepAlive,
    Close,
    /// Broken in the middle of an answer, or handed to a tunnel that has ended: nothing more can be said.
    Abandon,
}

/// Serves the connection to its end.
pub async fn serve(worker: &Worker, id: u64, stream: Stream, peer: &Peer) {
    poll_fn(|cx| {
        worker.watch(id, cx.waker());
        Poll::Ready(())
    })
    .await;
    let front = &worker.front;
    let mut client = Client {
        stream,
        inbox: Inbox::default(),
        out: Vec::new(),
        back: Vec::new(),
        believed: front.trust.believes(peer),
        peer: match peer {
            Peer::Tcp { from, .. } => Some(from.ip().to_canonical().to_string()),
            Peer::Unix { .. } => None,
        },
    };
    let mut patience = Patience::new(front.section.idle_timeout);
    loop {
        let next = match next(worker, &mut client, &mut patience).await {
            Some(Plan::Answer { page, to_head, close, consume }) => {
                client.inbox.consume(consume);
                let close = close || front.is_draining();
                match client.answer(&page, to_head, close, front.section.stall_timeout).await {
                    Ok(()) if close => Next::Close,
                    Ok(()) => Next::KeepAlive,
                    Err(Gone) => Next::Abandon,
                }
            }
            Some(Plan::Request(request)) => forward::serve(worker, &mut client, &mut patience, request).await,
            Some(Plan::Incomplete) | None => Next::Close,
        };
        match next {
            Next::KeepAlive => {}
            Next::Close => return client.close(&worker.buffers).await,
            Next::Abandon => {
                client.inbox.consume(usize::MAX / 2);
                return client.inbox.settle(&worker.buffers);
            }
        }
    }
}

/// Waits for the next request; `None` when there is none to come.
async fn next(worker: &Worker, client: &mut Client, patience: &mut Patience) -> Option<Plan> {
    let section = &worker.front.section;
    patience.begin(Instant::now(), section.idle_timeout);
    let mut begun = false;
    let mut last_chance = false;
    client.out.clear();
    client.out.shrink_to(LARGE_HEAD);
    client.back.clear();
    client.back.shrink_to(LARGE_HEAD);
    let waited = patience.wait(|cx, patience| {
        loop {
            if !client.inbox.is_empty() {
                let Client { inbox, out, believed, peer, .. } = &mut *client;
                let door = Door { believed: *believed, peer: peer.as_deref() };
                match plan(inbox.bytes(), &door, &worker.front, out) {
                    Plan::Incomplete if !begun => {
                        begun = true;
                        patience.begin(Instant::now(), section.head_timeout);
                    }
                    Plan::Incomplete => {}
                    plan => return Poll::Ready(Some(plan)),
                }
            }
            match fill(cx, client, &worker.buffers) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(None),
                Poll::Pending => {
                    if worker.front.is_draining() && !begun && !last_chance {
                        last_chance = true;
                        patience.begin(Instant::now(), LAST_CHANCE);
                    }
                    return Poll::Pending;
                }
            }
        }
    });
    match waited.await {
        Ok(plan) => plan,
        Err(_) if begun => {
            worker.front.metrics.dispatch.refused(Refusal::HeadTimeout);
            let page = Page::refused(Refusal::HeadTimeout);
            Some(Plan::Answer { page, to_head: false, close: true, consume: usize::MAX / 2 })
        }
        Err(_) => None,
    }
}

/// Whether anything arrived; false at the end.
fn fill(cx: &mut Context<'_>, client: &mut Client, buffers: &Buffers) -> Poll<bool> {
    let filled = ready!(client.inbox.poll_fill(cx, &mut client.stream, buffers));
    Poll::Ready(matches!(filled, Ok(1..)))
}
