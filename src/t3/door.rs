//! The way to an instance through the dispatch proxy, as a browser behind the edge goes it: the probe's requests with a
//! user's identity, a key that says whose they are, and what the edge shows to be believed.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::http::{Answer, Client, Proof};
use super::pairing::SessionCookie;
use crate::outcome::{Failure, Reason, Refusal};

/// Whom the edge has signed in.
pub const IDENTITY: &str = "x-authentik-username";
/// Carries the shared secret of a trusted edge.
pub const SECRET: &str = "x-t3-dispatch-secret";
/// Marks the prober's own requests, which are never counted as a user's.
pub const PROBE_KEY: &str = "x-t3-prober-key";
/// In the dispatch's own answers: the word that says why it, and not the instance, answers.
pub const WORD: &str = "x-t3-dispatch";
/// The cookie that the dispatch sets beside a fresh session for a short while: a browser that shows it without the
/// session drops cookies.
pub const MARKER: &str = "t3_dispatch_paired";

/// A listener of the dispatch, and what opens it. Its `Debug` shows no secret.
pub struct Door {
    address: SocketAddr,
    uids: Vec<u32>,
    key: HeaderValue,
    secret: Option<HeaderValue>,
}

/// The door, for one user.
#[derive(Clone)]
pub struct Passage<'a> {
    door: &'a Door,
    identity: HeaderValue,
}

impl Door {
    /// `uids`: who may have the listener, or nothing is sent to it. `None` where the key or the secret holds what no
    /// header may hold.
    pub fn new(address: SocketAddr, uids: Vec<u32>, key: &[u8], secret: Option<&[u8]>) -> Option<Self> {
        let hidden = |bytes: &[u8]| {
            let mut value = HeaderValue::from_bytes(bytes).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        let secret = match secret {
            Some(secret) => Some(hidden(secret)?),
            None => None,
        };
        Some(Self { address, uids, key: hidden(key)?, secret })
    }

    /// The way of the user whom the edge calls so.
    pub fn passage(&self, identity: &str) -> Result<Passage<'_>, Failure> {
        let identity = HeaderValue::try_from(identity).map_err(|_| {
            Failure::new(Reason::Malformed, "the identity holds characters that no header may hold")
        })?;
        Ok(Passage { door: self, identity })
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Door({}, ***)", self.address)
    }
}

impl Passage<'_> {
    pub fn address(&self) -> SocketAddr {
        self.door.address
    }

    pub fn owners(&self) -> &[u32] {
        &self.door.uids
    }

    pub fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static(IDENTITY), self.identity.clone());
        headers.insert(HeaderName::from_static(PROBE_KEY), self.door.key.clone());
        if let Some(secret) = &self.door.secret {
            headers.insert(HeaderName::from_static(SECRET), secret.clone());
        }
    }
}

/// A first visit: sent back to where it asked to go, with a session.
pub async fn first_visit(
    client: &mut Client<'_>,
    target: &str,
    limit: Duration,
) -> Result<SessionCookie, Failure> {
    let answer = client.navigate(target, Proof::Nobody, limit).await?;
    if answer.status != StatusCode::FOUND {
        return Err(Failure::new(
            Reason::NotPaired,
            format!("the dispatch answered a first visit with {} and not with a session", answer.status),
        ));
    }
    let cookie = SessionCookie::from_answer(&answer)
        .map_err(|failure| Failure::new(Reason::NotPaired, failure.detail))?;
    let kept = answer.headers.get(header::LOCATION).is_some_and(|location| location == target);
    if !kept {
        return Err(Failure::new(
            Reason::Redirected,
            "the dispatch sent a first visit to another page than it asked for",
        ));
    }
    Ok(cookie)
}

/// A visit with a session: the page itself, at once.
pub async fn page(
    client: &mut Client<'_>,
    target: &str,
    proof: Proof<'_>,
    limit: Duration,
) -> Result<(), Failure> {
    let answer = client.navigate(target, proof, limit).await?;
    match answer.status.as_u16() {
        200 if answer.is_html() => Ok(()),
        300..=399 if sets_a_session(&answer) => {
            Err(Failure::new(Reason::PairedAgain, "the dispatch logged a visitor in who had shown a session"))
        }
        200 => Err(Failure::new(Reason::Malformed, "what came through the dispatch is not the app's page")),
        _ => Err(answer.unexpected("a page through the dispatch")),
    }
}

fn sets_a_session(answer: &Answer) -> bool {
    SessionCookie::from_answer(answer).is_ok()
}

/// The failure that an answer of the dispatch's own names; `None` where the instance answered.
pub fn own_answer(status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
    let word = headers.get(WORD)?.to_str().unwrap_or_default();
    let reason = word.parse().unwrap_or_else(|_| word.parse().map_or(Reason::Status, reason_of));
    Some(Failure::new(reason, format!("the dispatch answered {status} by itself: {word}")))
}

fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::UntrustedPeer | Refusal::TokenInvalid => Reason::UntrustedPeer,
        Refusal::NoIdentity
        | Refusal::IdentityDuplicate
        | Refusal::IdentitySpelling
        | Refusal::IdentityMalformed
        | Refusal::UnknownIdentity
        | Refusal::IdentityAmbiguous => Reason::UnknownIdentity,
        Refusal::Withheld => Reason::Withheld,
        Refusal::TooManyConnections => Reason::TooManyConnections,
        Refusal::Malformed | Refusal::Framing | Refusal::HeadTooLarge | Refusal::HeadTimeout => {
            Reason::Malformed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_dispatch_becomes_a_reason() {
        let named = |word: &'static str| {
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static(WORD), HeaderValue::from_static(word))]);
            own_answer(StatusCode::SERVICE_UNAVAILABLE, &headers).map(|failure| failure.reason)
        };
        assert_eq!(named("unknown_identity"), Some(Reason::UnknownIdentity));
        assert_eq!(named("token_invalid"), Some(Reason::UntrustedPeer));
        assert_eq!(named("too_many_connections"), Some(Reason::TooManyConnections));
        assert_eq!(named("auth_store"), Some(Reason::AuthStore));
        assert_eq!(named("of another version"), Some(Reason::Status));
        assert_eq!(own_answer(StatusCode::OK, &HeaderMap::new()), None);
    }

    #[test]
    fn a_door_shows_neither_its_key_nor_its_secret() {
        let address = ([127, 0, 0, 1], 9080).into();
        let door = Door::new(address, vec![0], b"the key", Some(b"the secret")).expect("a door");
        assert_eq!(format!("{door:?}"), "Door(127.0.0.1:9080, ***)");
        assert!(Door::new(address, vec![0], b"two\nlines", None).is_none());
    }
}
