//! Which header names mean something to the dispatch, in whatever spelling they come.

use crate::t3::door::{IDENTITY, PROBE_KEY, SECRET};

/// What a header is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Other,
    Host,
    Cookie,
    SetCookie,
    Connection,
    ContentLength,
    ContentType,
    TransferEncoding,
    /// A framing header spelt so that only some parsers take it for one (`Transfer_Encoding`).
    Disguised,
    Upgrade,
    Expect,
    /// Meant for the next hop only.
    HopByHop,
    /// `X-authentik-username`, spelt with hyphens.
    Identity,
    /// A name that a lax parser would take for the identity header.
    IdentityMisspelt,
    /// `X-authentik-jwt`.
    Token,
    /// Everything else the edge says of the user: not the instance's business.
    Authentik,
    Secret,
    ProbeKey,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedOther,
    Traceparent,
    Accept,
    Authorization,
    UserAgent,
    FetchDest,
    FetchMode,
    FetchOther,
}

pub const TOKEN: &str = "x-authentik-jwt";

/// Where a name stands. The length picks the few candidates, so most names cost one comparison of a number.
pub fn known(name: &str) -> Known {
    let bytes = name.as_bytes();
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let found = match bytes.len() {
        2 if is("te") => Known::HopByHop,
        4 if is("host") => Known::Host,
        6 if is("cookie") => Known::Cookie,
        6 if is("expect") => Known::Expect,
        6 if is("accept") => Known::Accept,
        7 if is("upgrade") => Known::Upgrade,
        9 if is("forwarded") => Known::ForwardedOther,
        10 if is("connection") => Known::Connection,
        10 if is("keep-alive") => Known::HopByHop,
        10 if is("set-cookie") => Known::SetCookie,
        10 if is("user-agent") => Known::UserAgent,
        11 if is("traceparent") => Known::Traceparent,
        12 if is("content-type") => Known::ContentType,
        13 if is("authorization") => Known::Authorization,
        14 if is("content-length") => Known::ContentLength,
        14 if is("sec-fetch-dest") => Known::FetchDest,
        14 if is("sec-fetch-mode") => Known::FetchMode,
        14 if is("sec-fetch-site") || is("sec-fetch-user") => Known::FetchOther,
        16 if is("proxy-connection") => Known::HopByHop,
        17 if is("transfer-encoding") => Known::TransferEncoding,
        18 if is("proxy-authenticate") => Known::HopByHop,
        19 if is("proxy-authorization") => Known::HopByHop,
        _ => Known::Other,
    };
    if found != Known::Other {
        return found;
    }
    let first = bytes.first().copied().unwrap_or_default();
    if matches!(first, b'x' | b'X') || !first.is_ascii_alphanumeric() {
        return extension(name);
    }
    if memchr::memchr(b'_', bytes).is_some() && is_needed_for_framing(&hyphened(bytes)) {
        return Known::Disguised;
    }
    Known::Other
}

/// Names that begin with X, or with a sign that some gateways turn into one.
fn extension(name: &str) -> Known {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    if is(IDENTITY) {
        return Known::Identity;
    }
    if is(TOKEN) {
        return Known::Token;
    }
    if is(SECRET) {
        return Known::Secret;
    }
    if is(PROBE_KEY) {
        return Known::ProbeKey;
    }
    // Gateways between the edge and a program have turned '_', '.' and others into '-': compare letters only.
    let letters = squashed(name.as_bytes());
    if letters == b"xauthentikusername" {
        Known::IdentityMisspelt
    } else if letters.starts_with(b"xauthentik") || letters.starts_with(b"xt3") {
        Known::Authentik
    } else if letters.starts_with(b"xforwarded") || letters == b"xrealip" {
        match letters.get(b"xforwarded".len()..) {
            Some(b"for") if is("x-forwarded-for") => Known::ForwardedFor,
            Some(b"proto") if is("x-forwarded-proto") => Known::ForwardedProto,
            Some(b"host") if is("x-forwarded-host") => Known::ForwardedHost,
            _ => Known::ForwardedOther,
        }
    } else {
        Known::Other
    }
}

/// The letters and digits of a name, lower case.
fn squashed(name: &[u8]) -> Vec<u8> {
    name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect()
}

fn hyphened(name: &[u8]) -> Vec<u8> {
    name.iter().map(|byte| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }).collect()
}

/// A message whose reader lost one of these would be cut at another place.
pub fn is_needed_for_framing(name: &[u8]) -> bool {
    ["content-length", "transfer-encoding", "host"]
        .iter()
        .any(|needed| name.eq_ignore_ascii_case(needed.as_bytes()))
}

pub fn contains_ignoring_case(value: &[u8], wanted: &[u8]) -> bool {
    value.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_the_edge_says_of_a_user_is_known_in_every_spelling() {
        for name in [
            "X-authentik-email",
            "x_authentik_groups",
            "X-AUTHENTIK-meta-app",
            "X.Authentik.Uid",
            "-x-authentik-uid",
        ] {
            assert_eq!(known(name), Known::Authentik, "{name}");
        }
        assert_eq!(known("X-Authentic"), Known::Other);
    }

    #[test]
    fn a_forwarded_header_in_another_spelling_is_not_the_real_one() {
        assert_eq!(known("X-Forwarded-For"), Known::ForwardedFor);
        assert_eq!(known("X_Forwarded_For"), Known::ForwardedOther);
        assert_eq!(known("X-Real-IP"), Known::ForwardedOther);
    }
}
