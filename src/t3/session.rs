//! The session document: does the instance know this session, and which cookie name does it use (CONTRACT §4, §5).

use std::time::Duration;

use serde::Deserialize;

use super::http::{Client, Proof};
use crate::outcome::Failure;

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
}

/// Asks for the session document. 500 means that the authentication tables are unusable (CONTRACT §5).
pub async fn read(
    client: &mut Client<'_>,
    proof: Proof<'_>,
    limit: Duration,
) -> Result<SessionDocument, Failure> {
    let answer = client.get("/api/auth/session", proof, limit).await?;
    match answer.status.as_u16() {
        200 => answer.json(),
        _ => Err(answer.unexpected("GET /api/auth/session")),
    }
}
