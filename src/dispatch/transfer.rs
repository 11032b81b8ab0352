//! One request and its answer, both at once: the request's body goes up while the answer may already come down, each
//! byte from the buffer it was read into.

use std::io;
use std::task::{Context, Poll, ready};

use super::buffers::Buffers;
use super::connection::Client;
use super::framing::Body;
use super::head;
use super::headers::{self, Back};
use super::instance::Instance;
use super::patience::Patience;
use super::response;

/// More interim answers than this are no conversation.
const MAX_INTERIM: u32 = 16;

/// Bodies up to this size are copied behind their head.
const SMALL: usize = 2048;

/// Where a transfer broke.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the client went away: {0}")]
    Client(io::Error),
    #[error("the client's request is not well-formed http")]
    Request,
    #[error("the instance broke off: {0}")]
    Instance(io::Error),
    #[error(transparent)]
    Answer(#[from] response::BadAnswer),
}

/// What is asked of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub is_head: bool,
    pub is_http10: bool,
    pub websocket: bool,
    /// HTML in answer to this is a file that is gone.
    pub is_asset: bool,
    pub close: bool,
    pub set_cookies: &'a [String],
    pub secure_session: Option<&'a str>,
}

/// The final answer's head, already rewritten into the client's `back`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    pub status: u16,
    pub keeps_alive: bool,
    pub close: bool,
    pub stale_asset: bool,
}

#[derive(Debug)]
pub struct Transfer<'a> {
    pub client: &'a mut Client,
    pub instance: &'a mut Instance,
    buffers: &'a Buffers,
    up: Flow,
    down: Flow,
    /// The instance takes no more of the request; its answer may still come.
    refused_upload: bool,
    interim: u32,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    body: Body,
    /// Bytes of the head that are sent.
    sent: usize,
    /// Bytes at the front of the inbox that belong to the body and are not sent.
    approved: usize,
    done: bool,
}

impl Flow {
    fn new(body: Body) -> Self {
        Self { body, sent: 0, approved: 0, done: false }
    }
}

impl<'a> Transfer<'a> {
    /// `client.out` holds the request's head, `client.inbox` begins with its body.
    pub fn new(
        client: &'a mut Client,
        instance: &'a mut Instance,
        buffers: &'a Buffers,
        body: Body,
    ) -> Result<Self, Broken> {
        let mut up = Flow::new(body);
        up.approved = up.body.take(client.inbox.bytes()).map_err(|_| Broken::Request)?;
        client.back.clear();
        let down = Flow::new(Body::Empty);
        Ok(Self { client, instance, buffers, up, down, refused_upload: false, interim: 0 })
    }

    pub fn is_sent(&self) -> bool {
        self.up.done
    }

    /// Sends the request and waits for the head of its final answer.
    pub fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        patience: &mut Patience,
        asked: &Asked<'_>,
    ) -> Poll<Result<Answered, Broken>> {
        self.drive_up(cx, patience)?;
        loop {
            if !self.instance.inbox.is_empty()
                && let Some(answered) = self.read_head(asked)?
            {
                return Poll::Ready(Ok(answered));
            }
            match self.instance.inbox.poll_fill(cx, &mut self.instance.stream, self.buffers) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(Broken::Instance(io::ErrorKind::UnexpectedEof.into())));
                }
                Poll::Ready(Ok(_)) => patience.note(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Instance(error))),
                Poll::Pending => {
                    // An interim answer is not held back until the final one.
                    ready!(self.poll_send_head(cx))?;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Passes the answer on, to its last byte.
    pub fn poll_body(&mut self, cx: &mut Context<'_>, patience: &mut Patience) -> Poll<Result<(), Broken>> {
        self.drive_up(cx, patience)?;
        loop {
            let head = self.client.back.get(self.down.sent..).unwrap_or_default();
            let body = self.instance.inbox.bytes().get(..self.down.approved).unwrap_or_default();
            if head.is_empty() && body.is_empty() {
                if self.down.done || self.down.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
                match ready!(self.instance.inbox.poll_fill(cx, &mut self.instance.stream, self.buffers)) {
                    Ok(0) if self.down.body == Body::UntilClose => self.down.done = true,
                    Ok(0) => return Poll::Ready(Err(Broken::Instance(io::ErrorKind::UnexpectedEof.into()))),
                    Ok(_) => self.approve_down()?,
                    Err(error) => return Poll::Ready(Err(Broken::Instance(error))),
                }
                patience.note();
                continue;
            }
            let head_left = head.len();
            let written =
                ready!(self.client.stream.poll_write_two(cx, head, body)).map_err(Broken::Client)?;
            let of_body = written.saturating_sub(head_left);
            self.down.sent += written - of_body;
            self.down.approved -= of_body;
            self.instance.inbox.consume(of_body);
            patience.note();
        }
    }

    /// Sends what has been written for the client so far.
    pub fn poll_send_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while let Some(rest) = self.client.back.get(self.down.sent..).filter(|rest| !rest.is_empty()) {
            self.down.sent += ready!(self.client.stream.poll_write(cx, rest)).map_err(Broken::Client)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Pushes the request on as far as it goes now.
    fn drive_up(&mut self, cx: &mut Context<'_>, patience: &mut Patience) -> Result<(), Broken> {
        if self.up.done || self.refused_upload {
            return Ok(());
        }
        match self.poll_up(cx, patience) {
            Poll::Ready(Ok(())) => self.up.done = true,
            // What it has to say about that may be on its way.
            Poll::Ready(Err(Broken::Instance(_))) => self.refused_upload = true,
            Poll::Ready(Err(broken)) => return Err(broken),
            Poll::Pending => {}
        }
        Ok(())
    }

    fn poll_up(&mut self, cx: &mut Context<'_>, patience: &mut Patience) -> Poll<Result<(), Broken>> {
        loop {
            let head = self.client.out.get(self.up.sent..).unwrap_or_default();
            let body = self.client.inbox.bytes().get(..self.up.approved).unwrap_or_default();
            if head.is_empty() && body.is_empty() {
                if self.up.body.is_done() {
                    return Poll::Ready(Ok(()));
                }
                match ready!(self.client.inbox.poll_fill(cx, &mut self.client.stream, self.buffers)) {
                    Ok(0) => return Poll::Ready(Err(Broken::Client(io::ErrorKind::UnexpectedEof.into()))),
                    Ok(_) => {
                        let bytes = self.client.inbox.bytes();
                        self.up.approved = self.up.body.take(bytes).map_err(|_| Broken::Request)?;
                    }
                    Err(error) => return Poll::Ready(Err(Broken::Client(error))),
                }
                patience.note();
                continue;
            }
            let head_left = head.len();
            let written =
                ready!(self.instance.stream.poll_write_two(cx, head, body)).map_err(Broken::Instance)?;
            let of_body = written.saturating_sub(head_left);
            self.up.sent += written - of_body;
            self.up.approved -= of_body;
            self.client.inbox.consume(of_body);
            patience.note();
        }
    }

    /// Takes a whole head off the instance's inbox; `None` while none is whole, or it was an interim one.
    fn read_head(&mut self, asked: &Asked<'_>) -> Result<Option<Answered>, Broken> {
        loop {
            let mut slots = head::slots();
            let Some(head) = response::parse(self.instance.inbox.bytes(), &mut slots, asked.is_head)? else {
                return Ok(None);
            };
            let (len, status) = (head.len, head.status);
            if head.is_interim() {
                self.interim += 1;
                if self.interim > MAX_INTERIM {
                    return Err(response::BadAnswer.into());
                }
                if !asked.is_http10 {
                    headers::response(&head, &Back::default(), &mut self.client.back);
                }
                self.instance.inbox.consume(len);
                if self.instance.inbox.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            if status == 101 && !(asked.websocket && head.upgrades_to_websocket) {
                return Err(response::BadAnswer.into());
            }
            let close = asked.close || head.body == Body::UntilClose;
            let stale_asset = asked.is_asset && head.html && status == 200;
            let answered = Answered { status, keeps_alive: head.keeps_alive, close, stale_asset };
            if !stale_asset {
                let back =
                    Back { set_cookies: asked.set_cookies, secure_session: asked.secure_session, close };
                headers::response(&head, &back, &mut self.client.back);
            }
            self.down.body = head.body;
            self.instance.inbox.consume(len);
            if status != 101 {
                self.approve_down()?;
                self.join_small_body();
            }
            return Ok(Some(answered));
        }
    }

    /// A body of a few bytes goes out with its head in one plain write, which costs the kernel less than two parts.
    fn join_small_body(&mut self) {
        if let Some(body) =
            self.instance.inbox.bytes().get(..self.down.approved).filter(|body| body.len() <= SMALL)
        {
            self.client.back.extend_from_slice(body);
            self.instance.inbox.consume(self.down.approved);
            self.down.approved = 0;
        }
    }

    fn approve_down(&mut self) -> Result<(), Broken> {
        let bytes = self.instance.inbox.bytes();
        self.down.approved = self.down.body.take(bytes).map_err(|_| response::BadAnswer)?;
        Ok(())
    }
}
