//! Heads rewritten for the next hop: hop-by-hop headers, the edge's secrets and its cookies stay here; who asked, over
//! what and in which trace goes on. Pure: bytes in, bytes out.

use super::cookies;
use super::head::{Head, Version, words};
use super::names::Known;
use super::response::ResponseHead;

/// What a request gets on its way to the instance.
pub struct Onward<'a> {
    /// The address the connection came from; absent for a unix socket.
    pub peer: Option<&'a str>,
    /// The trace context of our own span, where it is recorded; else the request keeps the one it came with.
    pub trace: Option<&'a str>,
    /// A fresh session, `name=value`.
    pub session: Option<&'a str>,
    /// Prefixes of the edge's cookies.
    pub edge_cookies: &'a [String],
}

/// What a response gets on its way to the client.
#[derive(Default)]
pub struct Back<'a> {
    /// Whole `Set-Cookie` values of a login made in passing.
    pub set_cookies: &'a [String],
    /// The session cookie's name, where the browser speaks https with the edge: it gets `Secure`.
    pub secure_session: Option<&'a str>,
    /// Say that the connection ends with this response.
    pub close: bool,
}

/// Appends the head for the instance.
pub fn request(head: &Head<'_, '_>, onward: &Onward<'_>, out: &mut Vec<u8>) {
    let version = match head.version {
        Version::Http11 => " HTTP/1.1\r\n",
        // An instance answers an old client in its own words, so no coding has to be undone on the way back.
        Version::Http10 => " HTTP/1.0\r\n",
    };
    for part in [head.method, " ", head.target, version] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut forwarded_for = Vec::new();
    let mut cookie = Vec::new();
    for (header, known) in head.headers.iter().zip(&head.known) {
        match known {
            Known::Connection
            | Known::Upgrade
            | Known::HopByHop
            | Known::Identity
            | Known::IdentityMisspelt
            | Known::Disguised
            | Known::Token
            | Known::Authentik
            | Known::Secret
            | Known::ProbeKey
            | Known::ForwardedProto
            | Known::ForwardedHost
            | Known::ForwardedOther
            | Known::Traceparent => continue,
            Known::ForwardedFor => {
                list(&mut forwarded_for, b", ", header.value);
                continue;
            }
            Known::Cookie => {
                for pair in cookies::pairs(header.value) {
                    if !cookies::is_private(pair, onward.edge_cookies) {
                        list(&mut cookie, b"; ", pair);
                    }
                }
                continue;
            }
            // An interim answer would break a client that does not know of them.
            Known::Expect if head.version == Version::Http10 => continue,
            Known::Expect
            | Known::Host
            | Known::ContentLength
            | Known::ContentType
            | Known::TransferEncoding
            | Known::SetCookie
            | Known::Accept
            | Known::Authorization
            | Known::UserAgent
            | Known::FetchDest
            | Known::FetchMode
            | Known::FetchOther
            | Known::Other => {}
        }
        if head.seen.nominates && is_nominated(head, header.name) {
            continue;
        }
        line(out, header.name.as_bytes(), header.value);
    }
    if let Some(session) = onward.session {
        list(&mut cookie, b"; ", session.as_bytes());
    }
    if !cookie.is_empty() {
        line(out, b"Cookie", &cookie);
    }
    if let Some(peer) = onward.peer {
        list(&mut forwarded_for, b", ", peer.as_bytes());
    }
    if !forwarded_for.is_empty() {
        line(out, b"X-Forwarded-For", &forwarded_for);
    }
    line(out, b"X-Forwarded-Proto", proto(head).as_bytes());
    if let Some(host) = head.seen.forwarded_host.or(head.seen.host) {
        line(out, b"X-Forwarded-Host", host);
    }
    if let Some(trace) = onward.trace.map(str::as_bytes).or_else(|| trace(head)) {
        line(out, b"traceparent", trace);
    }
    if head.seen.websocket {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the head for the client.
pub fn response(head: &ResponseHead<'_, '_>, back: &Back<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status_digits());
    out.extend_from_slice(b" ");
    out.extend_from_slice(head.phrase.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (header, known) in head.headers.iter().zip(&head.known) {
        match known {
            Known::Connection | Known::HopByHop | Known::Upgrade => continue,
            Known::SetCookie if needs_secure(header.value, back) => {
                out.extend_from_slice(b"Set-Cookie: ");
                out.extend_from_slice(header.value);
                out.extend_from_slice(b"; Secure\r\n");
                continue;
            }
            // A 204 with a length, and what comes after it, is read differently by different clients.
            Known::ContentLength | Known::TransferEncoding if head.status == 204 || head.status < 200 => {
                continue;
            }
            _ => {}
        }
        if head.nominates && is_nominated_by(head.headers.iter().zip(&head.known), header.name) {
            continue;
        }
        line(out, header.name.as_bytes(), header.value);
    }
    for cookie in back.set_cookies {
        line(out, b"Set-Cookie", cookie.as_bytes());
    }
    if head.status == 101 {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    } else if back.close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The request's own trace context, where it is one.
pub fn trace<'b>(head: &Head<'_, 'b>) -> Option<&'b [u8]> {
    head.seen.traceparent.filter(|value| is_traceparent(value))
}

/// What the browser speaks with the edge. Only a believed peer gets this far, so its word is taken.
pub fn proto(head: &Head<'_, '_>) -> &'static str {
    match head.seen.forwarded_proto {
        Some(value) if value.eq_ignore_ascii_case(b"https") || value.eq_ignore_ascii_case(b"wss") => "https",
        _ => "http",
    }
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn list(out: &mut Vec<u8>, between: &[u8], item: &[u8]) {
    if !out.is_empty() {
        out.extend_from_slice(between);
    }
    out.extend_from_slice(item);
}

fn is_nominated(head: &Head<'_, '_>, name: &str) -> bool {
    is_nominated_by(head.headers.iter().zip(&head.known), name)
}

fn is_nominated_by<'x, 'h: 'x>(
    headers: impl Iterator<Item = (&'x httparse::Header<'h>, &'x Known)>,
    name: &str,
) -> bool {
    headers
        .filter(|(_, known)| **known == Known::Connection)
        .any(|(header, _)| words(header.value).any(|word| word.eq_ignore_ascii_case(name.as_bytes())))
}

fn needs_secure(set_cookie: &[u8], back: &Back<'_>) -> bool {
    let Some(session) = back.secure_session else { return false };
    let mut parts = cookies::pairs(set_cookie);
    parts.next().is_some_and(|pair| cookies::name(pair) == session.as_bytes())
        && !parts.any(|attribute| attribute.eq_ignore_ascii_case(b"secure"))
}

fn is_traceparent(value: &[u8]) -> bool {
    let mut parts = value.split(|byte| *byte == b'-');
    let mut part = |len: usize| {
        let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        parts.next().filter(|part| part.len() == len && part.iter().all(hex))
    };
    let nonzero = |part: Option<&[u8]>| part.is_some_and(|part| part.iter().any(|byte| *byte != b'0'));
    part(2) == Some(b"00")
        && nonzero(part(32))
        && nonzero(part(16))
        && part(2).is_some()
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{head, response};
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn onward(raw: &str, session: Option<&str>) -> String {
        traced(raw, session, None)
    }

    fn traced(raw: &str, session: Option<&str>, trace: Option<&str>) -> String {
        let mut slots = head::slots();
        let head = head::parse(raw.as_bytes(), &mut slots).expect("well formed").expect("complete");
        let edge = ["authentik_".to_owned()];
        let mut out = Vec::new();
        let onward = Onward { peer: Some("10.0.0.9"), trace, session, edge_cookies: &edge };
        request(&head, &onward, &mut out);
        String::from_utf8(out).expect("text")
    }

    fn back(raw: &str, back: &Back<'_>) -> String {
        let mut slots = head::slots();
        let head =
            response::parse(raw.as_bytes(), &mut slots, false).expect("well formed").expect("complete");
        let mut out = Vec::new();
        response(&head, back, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn an_instance_sees_who_asked_and_nothing_of_the_edge() {
        let raw = "GET /a?b HTTP/1.1\r\nHost: t3.example\r\nX-authentik-username: ann\r\nX_authentik_groups: admins\r\n\
            X-T3-Dispatch-Secret: s\r\nX-T3-Prober-Key: k\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n\
            X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX_Forwarded_Proto: gopher\r\nX-Real-Ip: 6.6.6.6\r\n\
            Cookie: authentik_proxy_9=s; t3_session=v; t3_dispatch_paired=1\r\nAccept: */*\r\n\r\n";
        assert_eq!(
            onward(raw, None),
            "GET /a?b HTTP/1.1\r\nHost: t3.example\r\nAccept: */*\r\nCookie: t3_session=v\r\n\
                 X-Forwarded-For: 1.2.3.4, 10.0.0.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: t3.example\r\n\r\n"
        );
    }

    #[test]
    fn a_session_made_in_passing_goes_to_the_instance_with_the_other_cookies() {
        let raw = "GET /a HTTP/1.1\r\nHost: x\r\nCookie: theme=dark\r\n\r\n";
        assert!(onward(raw, Some("t3_session=n")).contains("\r\nCookie: theme=dark; t3_session=n\r\n"));
    }

    #[test]
    fn a_valid_trace_goes_on_and_none_is_made_up() {
        let with = |value: &str, ours: Option<&str>| {
            traced(&format!("GET / HTTP/1.1\r\nHost: x\r\ntraceparent: {value}\r\n\r\n"), None, ours)
        };
        let theirs = "00-11111111111111111111111111111111-2222222222222222-00";
        assert!(with(theirs, None).contains(theirs));
        assert!(with(theirs, Some(TRACE)).contains(TRACE) && !with(theirs, Some(TRACE)).contains(theirs));
        for bad in ["00-0-0-0", "00-00000000000000000000000000000000-2222222222222222-00", "x"] {
            assert!(!with(bad, None).contains("traceparent"), "{bad}");
        }
    }

    #[test]
    fn a_response_loses_what_was_meant_for_us_and_keeps_the_rest() {
        let raw = "HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nTrailer: T\r\n\
            Transfer-Encoding: chunked\r\nSet-Cookie: t3_session=v; Path=/\r\nSet-Cookie: other=v\r\n\r\n";
        let set = ["fresh=1".to_owned()];
        let asked = Back { set_cookies: &set, secure_session: Some("t3_session"), close: true };
        assert_eq!(
            back(raw, &asked),
            "HTTP/1.1 200 Fine\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\nSet-Cookie: t3_session=v; Path=/; Secure\r\n\
             Set-Cookie: other=v\r\nSet-Cookie: fresh=1\r\nConnection: close\r\n\r\n"
        );
    }

    proptest! {
        #[test]
        fn no_spelling_of_the_edges_headers_reaches_an_instance(
            name in "[xX][-_.]{0,2}[aA]uth[eE]nti[kK][-_.!~]{0,2}[a-zA-Z]{0,10}",
            value in "[!-~]{0,20}",
        ) {
            let raw = format!("GET / HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n\r\n");
            let mut slots = head::slots();
            if let Ok(Some(_)) = head::parse(raw.as_bytes(), &mut slots) {
                prop_assert!(!onward(&raw, None).to_ascii_lowercase().contains("uthenti"));
            }
        }

        #[test]
        fn a_rewritten_head_is_one_head_and_reads_back(
            headers in prop::collection::vec(("[A-Za-z][A-Za-z0-9-]{0,12}", "[ -~]{0,30}"), 0..20),
            path in "/[!-~&&[^#]]{0,30}",
        ) {
            let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let raw = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
            let mut slots = head::slots();
            if let Ok(Some(first)) = head::parse(raw.as_bytes(), &mut slots) {
                let body = first.body;
                let out = onward(&raw, None);
                let mut slots = head::slots();
                let again = head::parse(out.as_bytes(), &mut slots).expect("well formed").expect("complete");
                prop_assert_eq!(again.len, out.len());
                prop_assert_eq!(again.body, body);
                prop_assert_eq!(again.target, path.as_str());
                prop_assert!(again.seen.identity.is_none());
            }
        }
    }
}
