//! Pairing: a one-time credential becomes a session cookie (CONTRACT §3, §4). The probe and the dispatch use the same
//! functions, so what a probe measures is what a first visit does.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cookie::{Cookie, SameSite};
use hyper::header;
use serde::Deserialize;
use serde_json::json;

use super::door::MARKER;
use super::http::{Answer, Client, Proof};
use super::version::Generation;
use crate::outcome::{Endpoint, Failure, Reason};

/// A credential that cannot exist: 0 and O are not in t3's alphabet (CONTRACT §2.2, §3).
const IMPOSSIBLE: &str = "PROBE0000000";

/// A one-time pairing credential. Its `Debug` shows nothing.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Credential(String);

impl Credential {
    /// What was printed, where that is one credential of t3's alphabet and nothing else (CONTRACT §2.2).
    pub fn alone(printed: &str) -> Option<Self> {
        let text = printed.trim();
        let is_one = text.len() == 12
            && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
            && !text.contains(['0', '1', 'I', 'O']);
        is_one.then(|| Self(text.to_owned()))
    }

    /// The text itself, for the one line in which the helper hands it to its caller.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A session cookie as the instance set it. Its `Debug` shows the name only.
#[derive(Clone)]
pub struct SessionCookie {
    pub name: String,
    value: String,
    /// `Path=/`, `HttpOnly` and `SameSite=Lax`, as every t3 sets them (CONTRACT §4).
    protected: bool,
    /// The `Set-Cookie` value, to be passed on to a browser.
    header: String,
}

impl fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=***", self.name)
    }
}

/// A successful exchange.
#[derive(Debug)]
pub struct Exchanged {
    pub cookie: SessionCookie,
    pub endpoint: Endpoint,
}

impl Endpoint {
    pub fn path(self) -> &'static str {
        match self {
            Self::Bootstrap => "/api/auth/bootstrap",
            Self::BrowserSession => "/api/auth/browser-session",
        }
    }

    /// Where this generation has it.
    pub fn preferred(generation: Generation) -> Self {
        match generation {
            Generation::A => Self::Bootstrap,
            Generation::B => Self::BrowserSession,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Bootstrap => Self::BrowserSession,
            Self::BrowserSession => Self::Bootstrap,
        }
    }
}

/// Offers a credential that cannot exist: 401 proves the endpoint and the authentication tables, consumes nothing and
/// leaves nothing behind. Answers which endpoint refused it.
pub async fn refuses_the_impossible(
    client: &mut Client<'_>,
    generation: Generation,
    limit: Duration,
) -> Result<Endpoint, Failure> {
    let (answer, endpoint) = offer(client, generation, IMPOSSIBLE, limit).await?;
    match answer.status.as_u16() {
        401 => Ok(endpoint),
        200 => Err(Failure::new(Reason::Status, "the instance accepted a credential that cannot exist")),
        _ => Err(answer.unexpected(&format!("POST {}", endpoint.path()))),
    }
}

/// Exchanges a credential. Never repeated after an answer: a used credential stays used (CONTRACT §14.11).
pub async fn exchange(
    client: &mut Client<'_>,
    generation: Generation,
    credential: &Credential,
    limit: Duration,
) -> Result<Exchanged, Failure> {
    let (answer, endpoint) = offer(client, generation, &credential.0, limit).await?;
    if answer.status.as_u16() != 200 {
        return Err(answer.unexpected(&format!("POST {}", endpoint.path())));
    }
    let cookie = SessionCookie::from_answer(&answer)?;
    Ok(Exchanged { cookie, endpoint })
}

/// Posts to the generation's endpoint and, only on 404, to the other one: the wrong one consumes nothing.
async fn offer(
    client: &mut Client<'_>,
    generation: Generation,
    credential: &str,
    limit: Duration,
) -> Result<(Answer, Endpoint), Failure> {
    let preferred = Endpoint::preferred(generation);
    let body = json!({ "credential": credential });
    // The credential is a secret unless it is the impossible one.
    let answer = client.offer(preferred.path(), &body, credential != IMPOSSIBLE, limit).await?;
    if answer.status.as_u16() != 404 {
        return Ok((answer, preferred));
    }
    let other = preferred.other();
    let answer = client.offer(other.path(), &body, credential != IMPOSSIBLE, limit).await?;
    if answer.status.as_u16() == 404 {
        let detail = format!("POST {} and POST {} both answered 404", preferred.path(), other.path());
        return Err(Failure::new(Reason::NotFound, detail));
    }
    Ok((answer, other))
}

impl SessionCookie {
    /// The session that an answer sets, the dispatch's redirect after a first visit among them.
    pub(super) fn from_answer(answer: &Answer) -> Result<Self, Failure> {
        let session = |value: &header::HeaderValue| {
            let header = value.to_str().ok()?;
            let cookie = Cookie::parse(header.to_owned()).ok()?;
            let is_session = cookie.name().starts_with("t3_") && cookie.name() != MARKER;
            is_session.then(|| Self {
                name: cookie.name().to_owned(),
                value: cookie.value().to_owned(),
                protected: cookie.http_only() == Some(true)
                    && cookie.same_site() == Some(SameSite::Lax)
                    && cookie.path() == Some("/"),
                header: header.to_owned(),
            })
        };
        answer.headers.get_all(header::SET_COOKIE).iter().find_map(session).ok_or_else(|| {
            let others = answer.headers.get_all(header::SET_COOKIE).iter().count();
            Failure::new(
                Reason::NoCookie,
                format!("{} came with {others} cookies, none of them a t3 session", answer.status),
            )
        })
    }

    pub fn proof(&self) -> Proof<'_> {
        Proof::Cookie { name: &self.name, value: &self.value }
    }

    /// `name=value`, as an instance is shown it.
    pub fn pair(&self) -> String {
        format!("{}={}", self.name, self.value)
    }

    /// The `Set-Cookie` value as the instance wrote it.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// Whether the cookie is the announced one and carries what protects it.
    pub fn check(&self, announced: &str) -> Result<(), Failure> {
        if self.name != announced {
            return Err(Failure::new(
                Reason::CookieName,
                format!("the cookie is called {}, the instance announces {announced}", self.name),
            ));
        }
        if !self.protected {
            return Err(Failure::new(
                Reason::CookieAttributes,
                format!("{} lacks Path=/, HttpOnly or SameSite=Lax", self.name),
            ));
        }
        Ok(())
    }

    /// The session's id, read from the cookie's claims (CONTRACT §4); `None` where the cookie has another form.
    pub fn session_id(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Claims {
            sid: String,
        }
        let claims = self.value.split('.').next()?;
        let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
        serde_json::from_slice::<Claims>(&claims).ok().map(|claims| claims.sid)
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use hyper::header::{HeaderMap, HeaderValue, SET_COOKIE};

    use super::*;

    fn answer(cookies: &[&'static str]) -> Answer {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        Answer { status: StatusCode::OK, headers, body: bytes::Bytes::new() }
    }

    const GOOD: &str = "t3_session=eyJzaWQiOiJjMGZmZWUifQ.c2ln; Path=/; Expires=Tue, 22 Dec 2026 06:13:44 GMT; HttpOnly; SameSite=Lax";

    #[test]
    fn the_session_cookie_is_found_among_others_and_names_its_session() {
        let cookie = SessionCookie::from_answer(&answer(&["lang=en", GOOD])).expect("a cookie");
        assert_eq!(cookie.name, "t3_session");
        assert_eq!(cookie.session_id().as_deref(), Some("c0ffee"));
        cookie.check("t3_session").expect("announced and protected");
    }

    #[test]
    fn an_answer_without_a_session_cookie_is_no_login() {
        let failure = SessionCookie::from_answer(&answer(&["lang=en"])).expect_err("no cookie");
        assert_eq!(failure.reason, Reason::NoCookie);
    }

    #[test]
    fn a_cookie_under_another_name_or_without_its_protection_is_told_apart() {
        let cookie = SessionCookie::from_answer(&answer(&[GOOD])).expect("a cookie");
        assert_eq!(cookie.check("t3_session_1_abc").expect_err("renamed").reason, Reason::CookieName);
        let open =
            SessionCookie::from_answer(&answer(&["t3_session=a.b; Path=/; SameSite=Lax"])).expect("a cookie");
        assert_eq!(open.check("t3_session").expect_err("no HttpOnly").reason, Reason::CookieAttributes);
    }

    #[test]
    fn no_secret_shows_in_debug_output() {
        let cookie = SessionCookie::from_answer(&answer(&[GOOD])).expect("a cookie");
        assert_eq!(format!("{cookie:?} {:?}", Credential("ABCDEFGHJKLM".to_owned())), "t3_session=*** ***");
    }
}
