//! Where a message's body ends, and nothing else: the bytes pass unchanged, trailers and chunk sizes included.
//! Anything that another reader could cut at another place is an error.

use super::head::Version;

/// The longest chunk-size line, and the most bytes of trailers: no server we know sends a tenth of it.
const MAX_CHUNK_LINE: u32 = 256;
const MAX_TRAILERS: u32 = 16 * 1024;

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Empty,
    /// This many bytes.
    Length(u64),
    Chunked(Chunks),
    /// Until the sender closes.
    UntilClose,
}

/// The framing headers contradict each other or themselves.
#[derive(Debug, PartialEq, Eq)]
pub struct BodyError;

/// Reads the chunked coding byte by byte where it must, chunk by chunk where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Bytes left of the chunk.
    left: u64,
    /// Bytes of the line, or of all trailers, so far.
    line: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    SizeDigits,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

impl Body {
    pub fn is_done(&self) -> bool {
        match self {
            Self::Empty | Self::Length(0) => true,
            Self::Chunked(chunks) => chunks.state == State::Done,
            Self::Length(_) | Self::UntilClose => false,
        }
    }

    /// How many of `bytes` belong to the body; the rest is the next message.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        match self {
            Self::Empty => Ok(0),
            Self::UntilClose => Ok(bytes.len()),
            Self::Length(left) => {
                let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(*left);
                *left -= here;
                Ok(usize::try_from(here).unwrap_or(bytes.len()))
            }
            Self::Chunked(chunks) => chunks.take(bytes),
        }
    }
}

impl Chunks {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            if self.state == State::Done {
                break;
            }
            if self.state == State::Data {
                let room = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX).min(self.left);
                self.left -= room;
                at += usize::try_from(room).unwrap_or(0);
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.step(byte)?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<(), BodyError> {
        self.state = match (self.state, byte) {
            (State::Size, _) => {
                (self.left, self.line) = (digit(byte)?, 1);
                State::SizeDigits
            }
            (State::SizeDigits, b'\r') | (State::Extension, b'\r') => State::SizeLf,
            (State::SizeDigits, b';') => State::Extension,
            (State::SizeDigits, _) => {
                // Fifteen digits is a petabyte; one more and the sum could wrap.
                if self.line >= 15 {
                    return Err(BodyError);
                }
                self.left = self.left * 16 + digit(byte)?;
                self.line += 1;
                State::SizeDigits
            }
            (State::Extension, _) => self.more(byte, MAX_CHUNK_LINE, State::Extension)?,
            (State::SizeLf, b'\n') if self.left == 0 => {
                self.line = 0;
                State::TrailerStart
            }
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, b' ' | b'\t' | b':') => return Err(BodyError),
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, _) => self.more(byte, MAX_TRAILERS, State::Trailer)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (
                State::SizeLf
                | State::DataCr
                | State::DataLf
                | State::TrailerLf
                | State::EndLf
                | State::Data
                | State::Done,
                _,
            ) => return Err(BodyError),
        };
        Ok(())
    }

    /// One more byte of a line that is passed on unread.
    fn more(&mut self, byte: u8, most: u32, state: State) -> Result<State, BodyError> {
        self.line += 1;
        let is_text = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        if is_text && self.line <= most { Ok(state) } else { Err(BodyError) }
    }
}

fn digit(byte: u8) -> Result<u64, BodyError> {
    char::from(byte).to_digit(16).map(u64::from).ok_or(BodyError)
}

/// A request's body: without framing headers there is none.
pub fn body_of_request(
    version: Version,
    length: Option<&[u8]>,
    codings: Option<&[u8]>,
) -> Result<Body, BodyError> {
    match (length, codings) {
        (None, None) => Ok(Body::Empty),
        (Some(length), None) => content_length(length),
        (None, Some(codings)) if version == Version::Http11 => chunked(codings),
        (_, Some(_)) => Err(BodyError),
    }
}

/// A response's body: `bodiless` for the answer to HEAD, 1xx, 204 and 304.
///
/// As strict as for requests: clients of several users share the edge's connections, so an instance that could make
/// the edge cut a response at another place than we do could answer somebody else's request.
pub fn body_of_response(
    version: Version,
    bodiless: bool,
    length: Option<&[u8]>,
    codings: Option<&[u8]>,
) -> Result<Body, BodyError> {
    let body = match (length, codings) {
        (None, None) => Body::UntilClose,
        (Some(length), None) => content_length(length)?,
        (None, Some(codings)) if version == Version::Http11 => chunked(codings)?,
        (_, Some(_)) => return Err(BodyError),
    };
    Ok(if bodiless { Body::Empty } else { body })
}

fn content_length(value: &[u8]) -> Result<Body, BodyError> {
    let plain = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    if !plain {
        return Err(BodyError);
    }
    let length = value.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Ok(if length == 0 { Body::Empty } else { Body::Length(length) })
}

fn chunked(codings: &[u8]) -> Result<Body, BodyError> {
    if codings.eq_ignore_ascii_case(b"chunked") {
        Ok(Body::Chunked(Chunks::default()))
    } else {
        Err(BodyError)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<(usize, bool), BodyError> {
        let mut body = Body::Chunked(Chunks::default());
        let taken = body.take(bytes)?;
        Ok((taken, body.is_done()))
    }

    #[test]
    fn a_chunked_body_ends_after_its_trailers() {
        for raw in ["0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "a;x=y\r\n0123456789\r\n00\r\nT: v\r\nU: w\r\n\r\n"]
        {
            assert_eq!(read(format!("{raw}NEXT").as_bytes()), Ok((raw.len(), true)), "{raw:?}");
        }
    }

    #[test]
    fn a_chunk_that_could_be_cut_elsewhere_is_an_error() {
        for raw in [
            "\r\n",
            "g\r\n",
            " 3\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "3\nabc\n",
            "3\r\nabcd\r\n",
            "3\r\nabc0\r\n",
            "-1\r\n",
            "+3\r\n",
            "0x3\r\n",
            "3\rabc",
            "0000000000000003\r\n",
            "ffffffffffffffff\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\n\n",
            "0\r\nT: a\nb\r\n\r\n",
            "3;a\nb\r\nabc\r\n",
            "3;\0\r\n",
        ] {
            assert_eq!(read(raw.as_bytes()), Err(BodyError), "{raw:?}");
        }
        assert_eq!(read(format!("3;{}\r\nabc", "x".repeat(300)).as_bytes()), Err(BodyError));
    }

    #[test]
    fn a_response_that_names_two_ends_is_refused() {
        assert_eq!(body_of_response(Version::Http11, false, Some(b"3"), Some(b"chunked")), Err(BodyError));
        assert_eq!(body_of_response(Version::Http10, false, None, Some(b"chunked")), Err(BodyError));
        assert_eq!(body_of_response(Version::Http11, true, Some(b"3"), None), Ok(Body::Empty));
        assert_eq!(body_of_response(Version::Http11, false, None, None), Ok(Body::UntilClose));
    }

    proptest! {
        #[test]
        fn a_body_is_found_whole_however_it_arrives(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            trailer in prop::option::of("[a-z]{1,8}: [a-z]{0,8}"),
            cuts in prop::collection::vec(1_usize..17, 0..60),
        ) {
            let mut raw = Vec::new();
            for chunk in &chunks {
                raw.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                raw.extend_from_slice(chunk);
                raw.extend_from_slice(b"\r\n");
            }
            raw.extend_from_slice(b"0\r\n");
            if let Some(trailer) = trailer {
                raw.extend_from_slice(format!("{trailer}\r\n").as_bytes());
            }
            raw.extend_from_slice(b"\r\n");
            let end = raw.len();
            raw.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let mut body = Body::Chunked(Chunks::default());
            let mut at = 0;
            for cut in cuts.into_iter().chain(std::iter::repeat(1000)) {
                let piece = &raw[at..raw.len().min(at + cut)];
                let taken = body.take(piece).expect("well formed");
                at += taken;
                if taken < piece.len() || at == raw.len() { break; }
            }
            prop_assert!(body.is_done());
            prop_assert_eq!(at, end);
        }
    }
}
