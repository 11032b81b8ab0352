//! A response's head, parsed as strictly as a request's: an instance may misbehave, and the edge's connections to us are
//! shared by all users.

use super::framing::{Body, BodyError, body_of_response};
use super::head::{MAX_HEAD, MAX_HEADERS, Slots, Version, lines_end_in_crlf, words};
use super::names::{self, Known, known};

/// A response head, borrowed from the instance's connection.
#[derive(Debug)]
pub struct ResponseHead<'s, 'b> {
    pub status: u16,
    pub phrase: &'b str,
    pub headers: &'s [httparse::Header<'b>],
    pub known: [Known; MAX_HEADERS],
    pub len: usize,
    pub body: Body,
    /// The instance keeps the connection open after this response.
    pub keeps_alive: bool,
    pub nominates: bool,
    pub html: bool,
    pub upgrades_to_websocket: bool,
    digits: [u8; 3],
}

/// The instance's answer is not HTTP that everybody reads alike.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the instance's answer is not well-formed http")]
pub struct BadAnswer;

impl From<BodyError> for BadAnswer {
    fn from(BodyError: BodyError) -> Self {
        Self
    }
}

/// Parses the head at the start of `bytes`; `None` while it is incomplete. `to_head`: it answers a HEAD request.
pub fn parse<'s, 'b>(
    bytes: &'b [u8],
    slots: &'s mut Slots<'b>,
    to_head: bool,
) -> Result<Option<ResponseHead<'s, 'b>>, BadAnswer> {
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let len = match config.parse_response_with_uninit_headers(&mut response, bytes, slots) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => return Err(BadAnswer),
    };
    let raw = bytes.get(..len).ok_or(BadAnswer)?;
    let (Some(status), Some(minor)) = (response.code, response.version) else { return Err(BadAnswer) };
    if !(100..=599).contains(&status) || !lines_end_in_crlf(raw) || !raw.starts_with(b"HTTP/1.") {
        return Err(BadAnswer);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let headers: &'s [httparse::Header<'b>] = response.headers;
    let digits = raw.get(9..12).and_then(|digits| digits.try_into().ok()).ok_or(BadAnswer)?;
    let mut head = ResponseHead {
        status,
        phrase: response.reason.unwrap_or_default(),
        headers,
        known: [Known::Other; MAX_HEADERS],
        len,
        body: Body::Empty,
        keeps_alive: version == Version::Http11,
        nominates: false,
        html: false,
        upgrades_to_websocket: false,
        digits,
    };
    let (mut lengths, mut codings) = (None, None);
    for (index, header) in headers.iter().enumerate() {
        let which = known(header.name);
        if let Some(slot) = head.known.get_mut(index) {
            *slot = which;
        }
        match which {
            Known::ContentLength if lengths.replace(header.value).is_some() => return Err(BadAnswer),
            Known::TransferEncoding if codings.replace(header.value).is_some() => return Err(BadAnswer),
            Known::Disguised => return Err(BadAnswer),
            Known::ContentType => head.html = names::contains_ignoring_case(header.value, b"text/html"),
            Known::Upgrade => head.upgrades_to_websocket = header.value.eq_ignore_ascii_case(b"websocket"),
            Known::Connection => {
                for word in words(header.value) {
                    if word.eq_ignore_ascii_case(b"close") {
                        head.keeps_alive = false;
                    } else if !word.eq_ignore_ascii_case(b"keep-alive")
                        && !word.eq_ignore_ascii_case(b"upgrade")
                    {
                        if names::is_needed_for_framing(word) {
                            return Err(BadAnswer);
                        }
                        head.nominates = true;
                    }
                }
            }
            _ => {}
        }
    }
    let bodiless = to_head || status < 200 || status == 204 || status == 304;
    head.body = body_of_response(version, bodiless, lengths, codings)?;
    Ok(Some(head))
}

impl ResponseHead<'_, '_> {
    /// An interim answer: another head follows.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    pub fn status_digits(&self) -> &[u8] {
        &self.digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::head::slots;

    #[test]
    fn an_answer_that_the_edge_could_cut_elsewhere_is_refused() {
        for raw in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 3\n\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\n",
            "HTTP/1.1 999 OK\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "hello\r\n\r\n",
        ] {
            assert_eq!(parse(raw.as_bytes(), &mut slots(), false).err(), Some(BadAnswer), "{raw:?}");
        }
    }

    #[test]
    fn the_answer_to_head_has_no_body_whatever_it_says() {
        let raw = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        let mut slots = slots();
        let head = parse(raw, &mut slots, true).expect("well formed").expect("complete");
        assert_eq!((head.body, head.keeps_alive, head.status_digits()), (Body::Empty, true, &b"200"[..]));
    }
}
