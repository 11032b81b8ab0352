//! A request's head, parsed strictly: what two HTTP implementations could read differently is refused, never repaired.
//! `httparse` splits it; everything it tolerates and we do not is caught here.

use std::mem::MaybeUninit;

use super::framing::{Body, BodyError, body_of_request};
use super::names::{self, Known, known};
use crate::outcome::Refusal;

/// More headers than any browser sends through any edge; Node itself stops at 2,000.
pub const MAX_HEADERS: usize = 128;

/// The longest head that is read. Node refuses anything past 16 KiB by itself; this leaves room for the edge's headers.
pub const MAX_HEAD: usize = 64 * 1024;

/// Room for the headers of one head, on the stack and not cleared: a request is parsed for every one that is sent.
pub type Slots<'a> = [MaybeUninit<httparse::Header<'a>>; MAX_HEADERS];

pub const fn slots<'a>() -> Slots<'a> {
    [const { MaybeUninit::uninit() }; MAX_HEADERS]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// A request head and what its headers say, borrowed from the connection's buffer.
#[derive(Debug)]
pub struct Head<'s, 'b> {
    pub method: &'b str,
    /// Origin form (`/path?query`), or `*` for OPTIONS.
    pub target: &'b str,
    pub version: Version,
    pub headers: &'s [httparse::Header<'b>],
    /// Which of the headers mean something to us, in the same order.
    pub known: [Known; MAX_HEADERS],
    /// Bytes of the head, the empty line included.
    pub len: usize,
    pub body: Body,
    pub seen: Seen<'b>,
}

/// The values that decisions are made from.
#[derive(Debug, Default)]
pub struct Seen<'b> {
    pub host: Option<&'b [u8]>,
    pub identity: Option<&'b [u8]>,
    pub token: Option<&'b [u8]>,
    pub secret: Option<&'b [u8]>,
    pub probe_key: Option<&'b [u8]>,
    pub traceparent: Option<&'b [u8]>,
    pub forwarded_for: Option<&'b [u8]>,
    pub forwarded_proto: Option<&'b [u8]>,
    pub forwarded_host: Option<&'b [u8]>,
    pub user_agent: Option<&'b [u8]>,
    pub cookie: bool,
    pub authorization: bool,
    pub accepts_html: bool,
    pub fetch_metadata: bool,
    pub fetch_navigates: bool,
    pub expects_continue: bool,
    /// The client closes after this request, or cannot do otherwise (HTTP/1.0).
    pub close: bool,
    /// `Connection: upgrade` with `Upgrade: websocket` on a GET: the only upgrade that is passed on (an `h2c` upgrade
    /// would be a way around every rule here).
    pub websocket: bool,
    /// `Connection` names a header besides the usual words: those are dropped too.
    pub nominates: bool,
}

/// Parses the head at the start of `bytes`; `None` while it is incomplete.
pub fn parse<'s, 'b>(bytes: &'b [u8], slots: &'s mut Slots<'b>) -> Result<Option<Head<'s, 'b>>, Refusal> {
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, slots) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => return Err(Refusal::HeadTooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
        Err(_) => return Err(Refusal::Malformed),
    };
    if len > MAX_HEAD {
        return Err(Refusal::HeadTooLarge);
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Refusal::Malformed);
    };
    let raw = bytes.get(..len).ok_or(Refusal::Malformed)?;
    if !lines_end_in_crlf(raw) || raw.first().is_some_and(u8::is_ascii_whitespace) {
        return Err(Refusal::Malformed);
    }
    if !target_is_plain(method, target) {
        return Err(Refusal::Malformed);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let headers: &'s [httparse::Header<'b>] = request.headers;
    let mut head = Head {
        method,
        target,
        version,
        headers,
        known: [Known::Other; MAX_HEADERS],
        len,
        body: Body::Empty,
        seen: Seen { close: version == Version::Http10, ..Seen::default() },
    };
    head.read(raw)?;
    Ok(Some(head))
}

impl<'b> Head<'_, 'b> {
    /// The path without its query.
    pub fn path(&self) -> &'b str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    pub fn query(&self) -> &'b str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    pub fn is_get_or_head(&self) -> bool {
        matches!(self.method, "GET" | "HEAD")
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Every cookie of the request, over all `Cookie` headers.
    pub fn cookies(&self) -> impl Iterator<Item = &'b [u8]> {
        self.headers
            .iter()
            .zip(&self.known)
            .filter(|(_, known)| **known == Known::Cookie)
            .flat_map(|(header, _)| super::cookies::pairs(header.value))
    }

    fn read(&mut self, raw: &'b [u8]) -> Result<(), Refusal> {
        let mut lengths = None;
        let mut codings = None;
        let (mut upgrade_asked, mut upgrade_to_websocket) = (false, false);
        for (index, header) in self.headers.iter().enumerate() {
            let which = known(header.name);
            if let Some(slot) = self.known.get_mut(index) {
                *slot = which;
            }
            let value = header.value;
            let seen = &mut self.seen;
            match which {
                Known::Host => once(&mut seen.host, value, Refusal::Malformed)?,
                Known::ContentLength => once(&mut lengths, value, Refusal::Framing)?,
                Known::TransferEncoding => once(&mut codings, value, Refusal::Framing)?,
                Known::Disguised => return Err(Refusal::Framing),
                Known::Identity => {
                    once(&mut seen.identity, value, Refusal::IdentityDuplicate)?;
                    if padded(raw, value) {
                        return Err(Refusal::IdentityMalformed);
                    }
                }
                Known::IdentityMisspelt => return Err(Refusal::IdentitySpelling),
                Known::Token => once(&mut seen.token, value, Refusal::TokenInvalid)?,
                Known::Secret => once(&mut seen.secret, value, Refusal::UntrustedPeer)?,
                Known::ProbeKey => seen.probe_key = Some(value),
                Known::Connection => {
                    for word in words(value) {
                        if word.eq_ignore_ascii_case(b"close") {
                            seen.close = true;
                        } else if word.eq_ignore_ascii_case(b"upgrade") {
                            upgrade_asked = true;
                        } else if !word.eq_ignore_ascii_case(b"keep-alive") {
                            if names::is_needed_for_framing(word) {
                                return Err(Refusal::Framing);
                            }
                            seen.nominates = true;
                        }
                    }
                }
                Known::Upgrade => upgrade_to_websocket = value.eq_ignore_ascii_case(b"websocket"),
                Known::Expect => {
                    seen.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
                    if !seen.expects_continue {
                        return Err(Refusal::Malformed);
                    }
                }
                Known::Cookie => seen.cookie = true,
                Known::Authorization => seen.authorization = true,
                Known::Accept => seen.accepts_html |= names::contains_ignoring_case(value, b"text/html"),
                Known::FetchDest => {
                    seen.fetch_metadata = true;
                    seen.fetch_navigates |= value == b"document";
                }
                Known::FetchMode => {
                    seen.fetch_metadata = true;
                    seen.fetch_navigates |= value == b"navigate";
                }
                Known::FetchOther => seen.fetch_metadata = true,
                Known::UserAgent => seen.user_agent = Some(value),
                Known::Traceparent => seen.traceparent = Some(value),
                Known::ForwardedFor => seen.forwarded_for = Some(value),
                Known::ForwardedProto => seen.forwarded_proto = Some(value),
                Known::ForwardedHost => seen.forwarded_host = Some(value),
                Known::Authentik
                | Known::ForwardedOther
                | Known::HopByHop
                | Known::SetCookie
                | Known::ContentType
                | Known::Other => {}
            }
        }
        match (self.version, self.seen.host) {
            (Version::Http11, None) => return Err(Refusal::Malformed),
            (_, Some(host)) if !host_is_plain(host) => return Err(Refusal::Malformed),
            _ => {}
        }
        self.body = body_of_request(self.version, lengths, codings).map_err(|BodyError| Refusal::Framing)?;
        self.seen.websocket = upgrade_asked
            && upgrade_to_websocket
            && self.method == "GET"
            && self.version == Version::Http11
            && self.body == Body::Empty;
        Ok(())
    }
}

/// The members of a comma-separated header, without surrounding whitespace and empty ones.
pub fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|word| !word.is_empty())
}

fn once<'b>(place: &mut Option<&'b [u8]>, value: &'b [u8], refusal: Refusal) -> Result<(), Refusal> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(refusal),
    }
}

/// `httparse` takes a lone LF for a line's end; others take it for a part of a value. NUL and lone CR it refuses.
pub fn lines_end_in_crlf(raw: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', raw)
        .all(|at| at.checked_sub(1).and_then(|before| raw.get(before)) == Some(&b'\r'))
}

/// Whitespace around the value beyond the one blank after the colon. The parser trims it, so without this check an
/// account called "ann " at the edge would be `ann` here.
fn padded(raw: &[u8], value: &[u8]) -> bool {
    let start = (value.as_ptr() as usize).wrapping_sub(raw.as_ptr() as usize);
    let Some(before) = raw.get(..start) else { return true };
    let Some(after) = raw.get(start + value.len()..) else { return true };
    let lead_is_plain = before.ends_with(b":") || before.ends_with(b": ");
    !(lead_is_plain && after.starts_with(b"\r\n"))
}

fn target_is_plain(method: &str, target: &str) -> bool {
    let shape =
        if target == "*" { method == "OPTIONS" } else { target.starts_with('/') && method != "CONNECT" };
    shape && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn host_is_plain(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]%".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(raw: &str) -> Option<Refusal> {
        parse(raw.as_bytes(), &mut slots()).err()
    }

    #[test]
    fn a_plain_head_is_read_to_its_empty_line() {
        let raw =
            b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: a=1; b=2\r\n\r\nrest";
        let mut slots = slots();
        let head = parse(raw, &mut slots).expect("well formed").expect("complete");
        assert_eq!((head.method, head.path(), head.query()), ("GET", "/a", "b=c"));
        assert_eq!(head.len, raw.len() - 4);
        assert_eq!(head.seen.identity, Some(&b"ann"[..]));
        assert_eq!(head.cookies().collect::<Vec<_>>(), [&b"a=1"[..], b"b=2"]);
        assert_eq!(head.body, Body::Empty);
    }

    #[test]
    fn an_incomplete_head_is_waited_for_until_it_is_too_large() {
        assert!(matches!(parse(b"GET / HTTP/1.1\r\nHost: x\r\n", &mut slots()), Ok(None)));
        let bomb = format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {}", "a".repeat(MAX_HEAD));
        assert_eq!(refusal(&bomb), Some(Refusal::HeadTooLarge));
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS));
        assert_eq!(refusal(&many), Some(Refusal::HeadTooLarge));
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        use Refusal::{Framing, Malformed};
        let table = [
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                Framing,
            ),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", Framing),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Framing,
            ),
            ("POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer_Encoding: chunked\r\n\r\n", Framing),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent_Length: 3\r\n\r\n", Framing),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\n",
                Framing,
            ),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\nHost: x\n\n", Malformed),
            ("GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", Malformed),
            ("GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
            ("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
            ("GET * HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
            ("GET /#f HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
            ("GET /\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
            ("\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", Malformed),
            ("GET / HTTP/1.2\r\nHost: x\r\n\r\n", Malformed),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", Malformed),
            ("GET /\r\n\r\n", Malformed),
            (": x\r\nGET / HTTP/1.1\r\n\r\n", Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nExpect: teapot\r\n\r\n", Malformed),
        ];
        for (raw, expected) in table {
            assert_eq!(refusal(raw), Some(expected), "{raw:?}");
        }
    }

    #[test]
    fn an_identity_in_any_but_its_own_spelling_is_refused() {
        use Refusal::{IdentityDuplicate, IdentityMalformed, IdentitySpelling};
        let table = [
            ("X_authentik_username: ann", IdentitySpelling),
            ("X_Authentik-Username: ann", IdentitySpelling),
            ("X-authentik_username: ann", IdentitySpelling),
            ("X.authentik.username: ann", IdentitySpelling),
            ("XAuthentikUsername: ann", IdentitySpelling),
            ("X--authentik-username: ann", IdentitySpelling),
            ("X-authentik-username-: ann", IdentitySpelling),
            ("X-authentik-username: ann\r\nx-AUTHENTIK-username: ann", IdentityDuplicate),
            ("X-authentik-username: ann ", IdentityMalformed),
            ("X-authentik-username: ann\t", IdentityMalformed),
            ("X-authentik-username:  ann", IdentityMalformed),
            ("X-authentik-username:\tann", IdentityMalformed),
        ];
        for (line, expected) in table {
            let raw = format!("GET / HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n");
            assert_eq!(refusal(&raw), Some(expected), "{line:?}");
        }
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        let of = |upgrade: &str| {
            let raw =
                format!("GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n");
            parse(raw.as_bytes(), &mut slots()).expect("well formed").expect("complete").seen.websocket
        };
        assert!(of("websocket") && of("WebSocket"));
        assert!(!of("h2c") && !of("websocket, h2c"));
    }
}
