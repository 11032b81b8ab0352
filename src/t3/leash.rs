//! A process of ours that works for another one: what it is to do is one line, and the other end stays open for as long
//! as somebody waits. Its end is seen whatever ended the other one, kill -9 included, and also by who starts after that.

use std::io;
use std::os::fd::AsFd;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

/// The other end.
pub struct Leash<R> {
    end: BufReader<R>,
}

impl Leash<pipe::Receiver> {
    /// Whoever started us, on a pipe that is our stdin.
    pub fn on_stdin() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self::new(pipe::Receiver::from_owned_fd(stdin)?))
    }
}

impl<R: AsyncRead + Unpin> Leash<R> {
    pub fn new(end: R) -> Self {
        Self { end: BufReader::new(end) }
    }

    /// The next line with its end, cut off where it is longer than this; empty where nobody is there any more.
    pub async fn line(&mut self, longest: usize) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        (&mut self.end).take(longest as u64).read_until(b'\n', &mut line).await?;
        Ok(line)
    }

    /// Works for as long as somebody waits; `None` where they went first, and then the work is dropped.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.gone() => None,
        }
    }

    async fn gone(&mut self) {
        // One who has something more to say is there.
        if !matches!(self.end.fill_buf().await, Ok([]) | Err(_)) {
            std::future::pending::<()>().await;
        }
    }

    /// The way back, where there is one.
    pub fn get_mut(&mut self) -> &mut R {
        self.end.get_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn work_goes_on_while_somebody_waits_and_is_dropped_when_they_go() {
        let (mut theirs, ours) = tokio::io::duplex(64);
        let mut leash = Leash::new(ours);
        theirs.write_all(b"do it\nand more").await.expect("written");
        assert_eq!(leash.line(64).await.expect("a line"), b"do it\n");
        assert_eq!(leash.during(async { 7 }).await, Some(7));
        drop(theirs);
        assert_eq!(leash.line(64).await.expect("the rest"), b"and more");
        assert_eq!(leash.during(pending::<()>()).await, None);
        assert_eq!(leash.line(64).await.expect("the end"), b"");
    }

    #[tokio::test]
    async fn a_line_is_cut_off_at_the_limit() {
        let (mut theirs, ours) = tokio::io::duplex(64);
        theirs.write_all(b"0123456789\n").await.expect("written");
        assert_eq!(Leash::new(ours).line(4).await.expect("a line"), b"0123");
    }
}
