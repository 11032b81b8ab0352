//! A connection's bytes, TCP or unix, polled directly: one task serves a client and its instance together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A peer whose machine or network vanished is found after this long without traffic, and three questions more.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_QUESTIONS: u32 = 3;

/// A peer that acknowledges nothing for this long is dead.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// A TCP connection that never waits to fill a packet and notices a dead peer.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &seconds(KEEPALIVE_IDLE))?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &seconds(KEEPALIVE_INTERVAL))?;
        setsockopt(&stream, sockopt::TcpKeepCount, &KEEPALIVE_QUESTIONS)?;
        // Keepalive asks nothing while something is unacknowledged; without this a dead peer costs a quarter of an hour.
        setsockopt(&stream, sockopt::TcpUserTimeout, &(seconds(UNACKNOWLEDGED) * 1000))?;
        Ok(Self::Tcp(stream))
    }

    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        })?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes from the first, then the second, in one call.
    pub fn poll_write_two(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        if second.is_empty() {
            return self.poll_write(cx, first);
        }
        if first.is_empty() {
            return self.poll_write(cx, second);
        }
        let both = [IoSlice::new(first), IoSlice::new(second)];
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, &both),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, &both),
        }
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Says that nothing more will be written; reading goes on.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    /// Whether an idle connection has something to say: its end, or bytes nobody asked for.
    pub fn is_disturbed(&self) -> bool {
        let mut byte = [0];
        let tried = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
        };
        !matches!(tried, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
