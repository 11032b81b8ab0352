//! The `Cookie` header: which of its cookies are the instance's business, and whether a session is among them.

use crate::t3::door::MARKER;

/// How every session cookie of t3 begins, for as long as the instance has not said its name (CONTRACT §4).
const SESSION_PREFIX: &[u8] = b"t3_session";

/// The `name=value` pairs of one header.
pub fn pairs(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

pub fn name(pair: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
    pair.get(..end).unwrap_or(pair).trim_ascii()
}

/// Whether the cookie is the instance's session, by the name the instance gave it.
pub fn is_session(pair: &[u8], session: Option<&str>) -> bool {
    let name = name(pair);
    match session {
        Some(known) => name == known.as_bytes(),
        None => name.starts_with(SESSION_PREFIX),
    }
}

/// Whether the cookie is the edge's or ours, and must not reach an instance.
pub fn is_private(pair: &[u8], edge: &[String]) -> bool {
    let name = name(pair);
    name == MARKER.as_bytes()
        || edge.iter().any(|prefix| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_the_name_the_instance_gave_it() {
        assert!(is_session(b"t3_session_4000_ab=x", None));
        assert!(is_session(b"t3_session_4000_ab=x", Some("t3_session_4000_ab")));
        assert!(!is_session(b"t3_session=x", Some("t3_session_4000_ab")));
        assert!(is_session(b"t9=x", Some("t9")));
    }

    #[test]
    fn the_edges_cookies_and_our_marker_are_private() {
        let edge = ["authentik_".to_owned()];
        assert!(is_private(b"authentik_proxy_1a=x", &edge));
        assert!(is_private(b"Authentik_session=x", &edge));
        assert!(is_private(b"t3_dispatch_paired=1", &edge));
        assert!(!is_private(b"theme=dark", &edge));
        assert_eq!(pairs(b" a=1;; b=\"2\" ;c").collect::<Vec<_>>(), [&b"a=1"[..], b"b=\"2\"", b"c"]);
    }
}
