//! What a request is, for pairing: a navigation may be redirected, a bare fetch of curl's too, nothing else ever is.

use super::cookies;
use super::head::Head;

/// What is to be done with a request before it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Pass it on as it is.
    Forward,
    /// Log the user in and send the browser back to where it asked to go.
    PairAndRedirect,
    /// Log the user in, pass the request on with the fresh session, and give it to the browser with the answer.
    PairInPassing,
    /// Ask the instance whether the session is alive before the page is shown.
    Verify,
}

/// Where credentials are exchanged: whoever calls them brings their own.
const CREDENTIAL_PATHS: [&str; 4] =
    ["/api/auth/bootstrap", "/api/auth/bootstrap/bearer", "/api/auth/browser-session", "/oauth/token"];

/// The names a WebSocket ticket has in the query, one per generation (CONTRACT §6).
const TICKETS: [&str; 2] = ["wsTicket", "wsToken"];

/// `session`: the name of the instance's session cookie, once it has said it.
pub fn errand(head: &Head<'_, '_>, session: Option<&str>) -> Errand {
    let seen = &head.seen;
    if seen.authorization || has_ticket(head.query()) || CREDENTIAL_PATHS.contains(&head.path()) {
        return Errand::Forward;
    }
    let page = head.is_get_or_head() && !seen.websocket;
    let navigation = page && if seen.fetch_metadata { seen.fetch_navigates } else { seen.accepts_html };
    let has_session = seen.cookie && head.cookies().any(|pair| cookies::is_session(pair, session));
    match (has_session, navigation) {
        (true, true) => Errand::Verify,
        (true, false) => Errand::Forward,
        (false, true) => Errand::PairAndRedirect,
        (false, false) if page && !seen.fetch_metadata => Errand::PairAndRedirect,
        (false, false) => Errand::PairInPassing,
    }
}

/// A JSON answer suits whoever asked better than a page.
pub fn wants_json(head: &Head<'_, '_>) -> bool {
    !(head.is_get_or_head() && (head.seen.fetch_navigates || head.seen.accepts_html))
}

/// A file of the app's build: HTML in its place is the app's catch-all answering for a file that is gone.
pub fn is_asset(head: &Head<'_, '_>) -> bool {
    let path = head.path();
    head.is_get_or_head() && path.starts_with("/assets/") && !path.ends_with(".html") && !path.ends_with('/')
}

fn has_ticket(query: &str) -> bool {
    query.split('&').any(|pair| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        TICKETS.contains(&name)
    })
}

#[cfg(test)]
mod tests {
    use super::super::head;
    use super::*;

    fn of(line: &str, headers: &str) -> Errand {
        let raw = format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let mut slots = head::slots();
        let head = head::parse(raw.as_bytes(), &mut slots).expect("well formed").expect("complete");
        errand(&head, Some("t3_session"))
    }

    const SESSION: &str = "Cookie: a=b; t3_session=v\r\n";
    const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

    #[test]
    fn without_a_session_a_page_is_redirected_and_everything_else_paired_in_passing() {
        for (line, headers, expected) in [
            ("GET /a", "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n", Errand::PairAndRedirect),
            ("GET /a", "Accept: text/html,*/*\r\n", Errand::PairAndRedirect),
            ("HEAD /a", "", Errand::PairAndRedirect),
            ("GET /a", "Accept: */*\r\nCookie: t3_session_77=x\r\n", Errand::PairAndRedirect),
            ("GET /a", "Sec-Fetch-Mode: cors\r\nAccept: text/html\r\n", Errand::PairInPassing),
            ("GET /a", "Sec-Fetch-Dest: script\r\n", Errand::PairInPassing),
            ("POST /a", "Content-Length: 0\r\n", Errand::PairInPassing),
            ("GET /ws", UPGRADE, Errand::PairInPassing),
        ] {
            assert_eq!(of(line, headers), expected, "{line} {headers}");
        }
    }

    #[test]
    fn with_a_session_only_a_navigation_is_verified() {
        assert_eq!(of("GET /a", &format!("Sec-Fetch-Mode: navigate\r\n{SESSION}")), Errand::Verify);
        assert_eq!(of("GET /a", &format!("Accept: text/html\r\n{SESSION}")), Errand::Verify);
        assert_eq!(of("GET /a", SESSION), Errand::Forward);
        assert_eq!(of("POST /a", SESSION), Errand::Forward);
        assert_eq!(of("GET /ws", &format!("{UPGRADE}{SESSION}Accept: text/html\r\n")), Errand::Forward);
    }

    #[test]
    fn whoever_brings_a_credential_is_never_paired() {
        for (line, headers) in [
            ("GET /a", "Authorization: Bearer x\r\nAccept: text/html\r\n"),
            ("GET /ws?wsTicket=x", UPGRADE),
            ("GET /ws?a=b&wsToken=x", UPGRADE),
            ("POST /api/auth/browser-session", ""),
            ("POST /api/auth/bootstrap", ""),
            ("POST /oauth/token", ""),
        ] {
            assert_eq!(of(line, headers), Errand::Forward, "{line}");
        }
    }
}
