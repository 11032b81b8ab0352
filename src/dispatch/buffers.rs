//! Buffers of one worker. A connection holds one only while it has bytes that are not passed on yet: a thousand idle
//! WebSockets hold none.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use super::stream::Stream;

/// What is read at once. Larger is no faster (the copies leave the cache), smaller costs calls on large bodies; it must
/// hold the largest head.
const SIZE: usize = 128 * 1024;

/// Buffers kept for the next one who needs one; more are given back to the system.
const KEPT: usize = 32;

/// Less than this is moved to a buffer of its own size while a connection waits for the rest of a head.
const SMALL: usize = 4 * 1024;

#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Box<[u8]>>>);

impl Buffers {
    fn take(&self) -> Box<[u8]> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.len() == SIZE && kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

/// What arrived on a connection and is not consumed yet.
#[derive(Debug, Default)]
pub struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Reads what has arrived behind the bytes that are there; 0 is the end. Without news, no buffer is held for it.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        buffers: &Buffers,
    ) -> Poll<io::Result<usize>> {
        self.make_room(buffers);
        let Some(room) = self.buffer.get_mut(self.end..).filter(|room| !room.is_empty()) else {
            return Poll::Ready(Err(io::Error::other("more arrived than one buffer holds")));
        };
        let read = stream.poll_read(cx, room);
        if read.is_pending() {
            self.settle(buffers);
        }
        let count = ready!(read)?;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Gives the buffer back, or keeps the few bytes in it in a smaller one.
    pub fn settle(&mut self, buffers: &Buffers) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if !self.buffer.is_empty() {
                buffers.give(std::mem::take(&mut self.buffer));
            }
        } else if self.buffer.len() == SIZE && self.bytes().len() <= SMALL {
            let few: Box<[u8]> = self.bytes().into();
            (self.start, self.end) = (0, few.len());
            buffers.give(std::mem::replace(&mut self.buffer, few));
        }
    }

    fn make_room(&mut self, buffers: &Buffers) {
        if self.buffer.len() != SIZE {
            let mut whole = buffers.take();
            let count = self.bytes().len();
            if let (Some(room), bytes) = (whole.get_mut(..count), self.bytes()) {
                room.copy_from_slice(bytes);
            }
            (self.buffer, self.start, self.end) = (whole, 0, count);
        } else if self.is_empty() {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}
