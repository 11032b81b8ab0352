//! What the dispatch itself answers: short pages that say what happened and what to do, JSON for programs. Nothing of
//! the request is ever in them.

use std::time::Duration;

use crate::outcome::{Reason, Refusal};
use crate::t3::door::WORD;

/// An answer of our own.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    phrase: &'static str,
    content_type: &'static str,
    /// Says to programs why it, and not the instance, answers.
    word: Option<&'static str>,
    /// Whole lines, each with its end.
    headers: String,
    body: String,
}

impl Page {
    pub fn healthy() -> Self {
        Self::text(200, "OK", "ok\n")
    }

    /// To where the browser asked to go, with what it needs to get there.
    pub fn redirect(to: &str, cookies: &[String]) -> Self {
        let mut page = Self::text(302, "Found", "");
        page.headers = format!("Location: {to}\r\n");
        for cookie in cookies {
            page.headers.push_str("Set-Cookie: ");
            page.headers.push_str(cookie);
            page.headers.push_str("\r\n");
        }
        page
    }

    pub fn refused(why: Refusal) -> Self {
        let (status, phrase) = match why {
            Refusal::Malformed
            | Refusal::Framing
            | Refusal::IdentityDuplicate
            | Refusal::IdentitySpelling
            | Refusal::IdentityMalformed => (400, "Bad Request"),
            Refusal::UntrustedPeer
            | Refusal::NoIdentity
            | Refusal::UnknownIdentity
            | Refusal::IdentityAmbiguous
            | Refusal::TokenInvalid
            | Refusal::Withheld => (403, "Forbidden"),
            Refusal::HeadTimeout => (408, "Request Timeout"),
            Refusal::HeadTooLarge => (431, "Request Header Fields Too Large"),
            Refusal::TooManyConnections => (503, "Service Unavailable"),
        };
        let remedy = match why {
            Refusal::HeadTooLarge => "Delete the cookies of this site and try again.",
            Refusal::UnknownIdentity => {
                "You are signed in, but no t3 is set up for this account. Ask the operator."
            }
            Refusal::UntrustedPeer => "Come in through the sign-in page of this site.",
            _ => "If you followed a link on this site, tell the operator the word in brackets.",
        };
        let page = Self::text(status, phrase, &format!("{} [{why}]\n{remedy}\n", why.meaning()));
        Self { word: Some(why.as_str()), ..page }
    }

    /// The instance cannot be reached, or nobody can be logged in now: come back by yourself.
    pub fn waiting(reason: Reason, after: Duration, json: bool) -> Self {
        let seconds = after.as_secs().max(1);
        let mut page = if json {
            let body =
                serde_json::json!({ "error": "unavailable", "reason": reason, "retryAfterSeconds": seconds });
            Self::new(503, "Service Unavailable", "application/json", format!("{body}\n"))
        } else {
            let sentence = match reason {
                Reason::Refused | Reason::Timeout => {
                    "Your t3 is not answering yet. It may be starting; this takes a few seconds."
                }
                Reason::WrongOwner => {
                    "Another program holds the port of your t3. Nothing was sent to it. Restart your t3."
                }
                _ => "Your t3 cannot log you in at this moment. The operator can see why.",
            };
            Self::html(503, "Service Unavailable", "One moment", sentence, Some(seconds), reason.as_str())
        };
        page.word = Some(reason.as_str());
        page.headers = format!("Retry-After: {seconds}\r\n");
        page
    }

    /// The browser comes back again and again without the session it was given.
    pub fn drops_cookies(json: bool) -> Self {
        if json {
            return Self::new(
                403,
                "Forbidden",
                "application/json",
                "{\"error\":\"session cookie was not kept\"}\n".to_owned(),
            );
        }
        Self::html(
            403,
            "Forbidden",
            "Your browser did not keep the session",
            "You were logged in, but the browser came back without the session cookie. Allow cookies for this site, then load it again in a minute.",
            None,
            "cookies_dropped",
        )
    }

    /// A file of an older build that is not there any more.
    pub fn stale_asset() -> Self {
        Self::text(404, "Not Found", "this file belongs to an older build; load the page again\n")
    }

    pub fn bad_gateway(json: bool) -> Self {
        let mut page = Self::waiting(Reason::Closed, Duration::from_secs(1), json);
        (page.status, page.phrase) = (502, "Bad Gateway");
        page
    }

    /// The whole answer. Without a body it answers HEAD.
    pub fn write(&self, out: &mut Vec<u8>, without_body: bool, close: bool) {
        let connection = if close { "Connection: close\r\n" } else { "" };
        let word = self.word.map(|word| format!("{WORD}: {word}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {} {}\r\n{}Content-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{word}{connection}\r\n",
            self.status,
            self.phrase,
            self.headers,
            self.content_type,
            self.body.len()
        );
        out.extend_from_slice(head.as_bytes());
        if !without_body {
            out.extend_from_slice(self.body.as_bytes());
        }
    }

    fn new(status: u16, phrase: &'static str, content_type: &'static str, body: String) -> Self {
        Self { status, phrase, content_type, word: None, headers: String::new(), body }
    }

    fn text(status: u16, phrase: &'static str, body: &str) -> Self {
        Self::new(status, phrase, "text/plain; charset=utf-8", body.to_owned())
    }

    /// `title`, `sentence` and `word` are our own text, never anybody's input.
    fn html(
        status: u16,
        phrase: &'static str,
        title: &str,
        sentence: &str,
        reload_after: Option<u64>,
        word: &str,
    ) -> Self {
        let reload = reload_after
            .map(|seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">"))
            .unwrap_or_default();
        let body = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">{reload}\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
             <style>body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:20vh auto;padding:0 1rem;\
             color-scheme:light dark}}small{{opacity:.6}}</style></head><body><h1>{title}</h1><p>{sentence}</p>\
             <small>{word}</small></body></html>\n"
        );
        Self::new(status, phrase, "text/html; charset=utf-8", body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(page: &Page, without_body: bool) -> String {
        let mut out = Vec::new();
        page.write(&mut out, without_body, true);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_waiting_page_comes_back_by_itself_and_programs_get_json() {
        let page = written(&Page::waiting(Reason::Refused, Duration::from_secs(2), false), false);
        assert!(page.starts_with("HTTP/1.1 503 ") && page.contains("\r\nRetry-After: 2\r\n"), "{page}");
        assert!(page.contains("http-equiv=\"refresh\" content=\"2\""), "{page}");
        let json = written(&Page::waiting(Reason::Refused, Duration::from_millis(1), true), false);
        assert!(
            json.ends_with("{\"error\":\"unavailable\",\"reason\":\"refused\",\"retryAfterSeconds\":1}\n"),
            "{json}"
        );
    }

    #[test]
    fn the_answer_to_head_says_its_length_and_ends() {
        let page = written(&Page::healthy(), true);
        assert!(page.contains("Content-Length: 3\r\n") && page.ends_with("\r\n\r\n"), "{page}");
    }

    #[test]
    fn every_refusal_has_a_status_and_says_its_word() {
        for &why in Refusal::ALL {
            let page = Page::refused(why);
            assert!((400..=503).contains(&page.status));
            assert!(written(&page, false).contains(why.as_str()));
        }
    }
}
