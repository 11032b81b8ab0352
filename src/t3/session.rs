//! The session document: does the instance know this session, and which cookie name does it use (CONTRACT §4, §5).

use std::time::Duration;

use serde::Deserialize;

use super::http::{Client, Proof};
use crate::outcome::{Failure, Reason};

/// Twice what the longest known name has (CONTRACT §4).
const LONGEST_NAME: usize = 64;

/// `GET /api/auth/session`.
#[derive(Debug, Deserialize)]
pub struct SessionDocument {
    pub authenticated: bool,
    auth: Auth,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Auth {
    session_cookie_name: String,
}

impl SessionDocument {
    /// The cookie's name as the instance announces it: it differs by version, bind and port, so it is never computed
    /// (a gate that computed it refused every good build for 17 days).
    pub fn cookie_name(&self) -> &str {
        &self.auth.session_cookie_name
    }

    /// The name becomes a label and stands on pages, and the instance is its user's: only what a cookie may be called.
    fn with_a_name(self) -> Result<Self, Failure> {
        let name = self.cookie_name();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.len() <= LONGEST_NAME && name.bytes().all(letter) {
            Ok(self)
        } else {
            let detail = "the session document announces a cookie whose name no t3 uses";
            Err(Failure::new(Reason::Malformed, detail))
        }
    }
}

/// Asks for the session document. 500 means that the authentication tables are unusable (CONTRACT §5).
pub async fn read(
    client: &mut Client<'_>,
    proof: Proof<'_>,
    limit: Duration,
) -> Result<SessionDocument, Failure> {
    let answer = client.get("/api/auth/session", proof, limit).await?;
    match answer.status.as_u16() {
        200 => answer.json().and_then(SessionDocument::with_a_name),
        _ => Err(answer.unexpected("GET /api/auth/session")),
    }
}
