//! WebSocket frames by hand, because permessage-deflate is negotiated by t3 from 0.0.30 on and by no library here:
//! what is offered must also be spoken (RFC 6455, RFC 7692).

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const LARGEST: usize = 100 * 1024 * 1024;
/// Shorter messages are not worth compressing.
const WORTHWHILE: usize = 1024;
/// How a flushed block of deflate ends; left out on the wire.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const NORMAL_CLOSURE: u16 = 1000;

/// The server's end of an open WebSocket.
pub struct Frames<S> {
    stream: S,
    received: BytesMut,
    message: Vec<u8>,
    compressed: bool,
    deflate: Option<Deflate>,
}

struct Deflate {
    inflater: Decompress,
    deflater: Compress,
}

struct Frame {
    first: u8,
    payload: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub fn new(stream: S, deflate: bool) -> Self {
        let deflate = deflate.then(|| Deflate {
            inflater: Decompress::new(false),
            deflater: Compress::new(Compression::fast(), false),
        });
        Self { stream, received: BytesMut::new(), message: Vec::new(), compressed: false, deflate }
    }

    /// The next whole text message; `None` when the client said goodbye. May be dropped while it waits.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let frame = self.frame().await?;
            match frame.first & 0x0f {
                CLOSE => {
                    self.write(FIN | CLOSE, &frame.payload).await?;
                    return Ok(None);
                }
                PING => self.write(FIN | PONG, &frame.payload).await?,
                PONG => {}
                kind => {
                    if kind != CONTINUATION {
                        self.message.clear();
                        self.compressed = frame.first & COMPRESSED != 0;
                    }
                    self.message.extend(frame.payload);
                    too_large(self.message.len())?;
                    if frame.first & FIN != 0 {
                        let message = std::mem::take(&mut self.message);
                        let plain = if self.compressed { self.inflated(message)? } else { message };
                        return String::from_utf8(plain).map(Some).map_err(io::Error::other);
                    }
                }
            }
        }
    }

    pub async fn send(&mut self, text: &str) -> io::Result<()> {
        match &mut self.deflate {
            Some(deflate) if text.len() >= WORTHWHILE => {
                let squeezed = deflate.deflated(text.as_bytes())?;
                self.write(FIN | COMPRESSED | TEXT, &squeezed).await
            }
            _ => self.write(FIN | TEXT, text.as_bytes()).await,
        }
    }

    pub async fn close(&mut self) -> io::Result<()> {
        self.write(FIN | CLOSE, &NORMAL_CLOSURE.to_be_bytes()).await
    }

    async fn frame(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = Frame::take(&mut self.received)? {
                return Ok(frame);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn write(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = BytesMut::with_capacity(payload.len() + 10);
        frame.put_u8(first);
        match payload.len() {
            length @ 0..=125 => frame.put_u8(length as u8),
            length @ 126..=0xffff => {
                frame.put_u8(126);
                frame.put_u16(length as u16);
            }
            length => {
                frame.put_u8(127);
                frame.put_u64(length as u64);
            }
        }
        frame.put_slice(payload);
        self.stream.write_all(&frame).await
    }

    fn inflated(&mut self, mut message: Vec<u8>) -> io::Result<Vec<u8>> {
        let Some(deflate) = &mut self.deflate else {
            return Err(io::Error::other("a compressed message, which was not negotiated"));
        };
        message.extend(TAIL);
        deflate.inflated(&message)
    }
}

impl Deflate {
    fn inflated(&mut self, mut squeezed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(squeezed.len() * 4);
        loop {
            let before = (self.inflater.total_in(), plain.len());
            let status = self.inflater.decompress_vec(squeezed, &mut plain, FlushDecompress::Sync);
            let status = status.map_err(io::Error::other)?;
            squeezed.advance((self.inflater.total_in() - before.0) as usize);
            too_large(plain.len())?;
            let full = plain.len() == plain.capacity();
            if status == Status::StreamEnd || (squeezed.is_empty() && !full) {
                return Ok(plain);
            }
            plain.reserve(plain.len().max(1024));
        }
    }

    fn deflated(&mut self, mut plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut squeezed = Vec::with_capacity(plain.len() + 64);
        loop {
            let before = self.deflater.total_in();
            self.deflater
                .compress_vec(plain, &mut squeezed, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            plain.advance((self.deflater.total_in() - before) as usize);
            if plain.is_empty() && squeezed.len() < squeezed.capacity() {
                squeezed.truncate(squeezed.len() - TAIL.len());
                return Ok(squeezed);
            }
            squeezed.reserve(squeezed.len().max(1024));
        }
    }
}

impl Frame {
    /// Takes a whole frame off the front, if one is there.
    fn take(received: &mut BytesMut) -> io::Result<Option<Self>> {
        let mut head = &received[..];
        if head.len() < 2 {
            return Ok(None);
        }
        let (first, second) = (head.get_u8(), head.get_u8());
        if second & MASKED == 0 {
            return Err(io::Error::other("a frame of a client that is not masked"));
        }
        let (extra, short) = match second & !MASKED {
            126 => (2, 0),
            127 => (8, 0),
            short => (0, usize::from(short)),
        };
        if head.len() < extra + 4 {
            return Ok(None);
        }
        let length =
            if extra == 0 { short } else { usize::try_from(head.get_uint(extra)).unwrap_or(usize::MAX) };
        too_large(length)?;
        let mask = head.get_u32().to_be_bytes();
        if head.len() < length {
            return Ok(None);
        }
        received.advance(2 + extra + 4);
        let payload = received.split_to(length);
        let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        Ok(Some(Self { first, payload }))
    }
}

fn too_large(length: usize) -> io::Result<()> {
    if length > LARGEST { Err(io::Error::other("a message beyond 100 MiB")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first, MASKED | 126];
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn deflate() -> Deflate {
        Deflate { inflater: Decompress::new(false), deflater: Compress::new(Compression::fast(), false) }
    }

    #[tokio::test]
    async fn a_message_in_pieces_with_a_ping_between_is_one_message() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut frames = Frames::new(server, false);
        for frame in [masked(TEXT, b"one "), masked(FIN | PING, b"hi"), masked(FIN | CONTINUATION, b"whole")]
        {
            client.write_all(&frame).await.expect("sent");
        }
        assert_eq!(frames.next().await.expect("a message").as_deref(), Some("one whole"));
        let mut pong = [0; 4];
        client.read_exact(&mut pong).await.expect("a frame");
        assert_eq!(pong, [FIN | PONG, 2, b'h', b'i']);
    }

    #[tokio::test]
    async fn a_goodbye_is_returned() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut frames = Frames::new(server, false);
        client.write_all(&masked(FIN | CLOSE, &NORMAL_CLOSURE.to_be_bytes())).await.expect("sent");
        assert!(frames.next().await.expect("no error").is_none());
    }

    #[tokio::test]
    async fn compressed_messages_keep_their_common_window() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut frames = Frames::new(server, true);
        let mut peer = deflate();
        let text = "what is said twice is shorter the second time ".repeat(100);
        let mut sizes = Vec::new();
        for _ in 0..2 {
            let squeezed = peer.deflated(text.as_bytes()).expect("compressed");
            sizes.push(squeezed.len());
            client.write_all(&masked(FIN | COMPRESSED | TEXT, &squeezed)).await.expect("sent");
            assert_eq!(frames.next().await.expect("a message").as_deref(), Some(text.as_str()));
        }
        assert!(sizes[1] < sizes[0], "{sizes:?}");

        frames.send(&text).await.expect("sent");
        let mut head = [0; 2];
        client.read_exact(&mut head).await.expect("a frame");
        assert_eq!(head[0], FIN | COMPRESSED | TEXT);
        let length =
            if head[1] == 126 { client.read_u16().await.expect("a length") } else { u16::from(head[1]) };
        let mut squeezed = vec![0; usize::from(length)];
        client.read_exact(&mut squeezed).await.expect("a payload");
        squeezed.extend(TAIL);
        assert_eq!(peer.inflated(&squeezed).expect("plain"), text.as_bytes());
    }

    #[tokio::test]
    async fn a_compressed_message_that_was_not_negotiated_is_an_error() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut frames = Frames::new(server, false);
        client.write_all(&masked(FIN | COMPRESSED | TEXT, b"x")).await.expect("sent");
        assert!(frames.next().await.is_err());
    }
}
