//! A pairing credential becomes a session: a cookie, or a bearer token (CONTRACT §3).

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::Call;
use super::reply::{Refusal, Reply, refusal};
use crate::sim::clock::{DAY, Millis};
use crate::sim::fault::Fault;
use crate::sim::instance::Instance;
use crate::sim::release::{Generation, Grant};
use crate::sim::store::{Link, PAIRED, Session, StoreError};
use crate::sim::token::{self, SessionClaims};

const LIFETIME_DAYS: u32 = 30;
const BODY_LIMIT: usize = 1024 * 1024;

/// The exchange for a browser: the answer sets the session cookie.
pub async fn browser(instance: &Instance, call: &Call, body: Incoming) -> io::Result<Reply> {
    let release = &instance.release;
    if instance.faults.on(Fault::Exchange404) {
        return Ok(Reply::empty(StatusCode::NOT_FOUND));
    }
    if instance.faults.on(Fault::ExchangeHang) {
        std::future::pending::<()>().await;
    }
    let credential = match credential(instance, call, &read(body).await?) {
        Ok(credential) => credential,
        Err(reply) => return Ok(reply),
    };
    let session = match paired(instance, call, &credential, "browser-session-cookie") {
        Ok(session) => session,
        Err(reply) => return Ok(reply),
    };
    let reply = Reply::json(StatusCode::OK, &Paired::new(&session, None)).cors().not_stored(release);
    if instance.faults.on(Fault::NoCookie) {
        return Ok(reply);
    }
    let renamed = instance.faults.on(Fault::CookieRenamed);
    let name = if renamed { "t3_other_session".to_owned() } else { instance.cookie_name() };
    let http_only = if instance.faults.on(Fault::CookieWithoutHttpOnly) { "" } else { " HttpOnly;" };
    let token = instance.key.sign(&SessionClaims::of(&session));
    let expires = Millis::from_iso(&session.expires_at).unwrap_or(Millis(0)).http_date();
    Ok(reply
        .header("set-cookie", format!("{name}={token}; Path=/; Expires={expires};{http_only} SameSite=Lax")))
}

/// `POST /api/auth/bootstrap/bearer` of generation A.
pub async fn bearer(instance: &Instance, call: &Call, body: Incoming) -> io::Result<Reply> {
    let credential = match credential(instance, call, &read(body).await?) {
        Ok(credential) => credential,
        Err(reply) => return Ok(reply),
    };
    Ok(match paired(instance, call, &credential, instance.release.bearer_method()) {
        Ok(session) => {
            let token = instance.key.sign(&SessionClaims::of(&session));
            Reply::json(StatusCode::OK, &Paired::new(&session, Some(token))).cors()
        }
        Err(reply) => reply,
    })
}

/// `POST /oauth/token` of generation B.
pub async fn oauth(instance: &Instance, call: &Call, body: Incoming) -> io::Result<Reply> {
    const WANTED: [(&str, &str); 3] = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token_type", "urn:t3:params:oauth:token-type:environment-bootstrap"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
    ];
    let form = read(body).await?;
    let form = String::from_utf8_lossy(&form);
    let field =
        |name: &str| form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(decoded);
    let complete = WANTED.iter().all(|(name, value)| field(name).as_deref() == Some(value));
    let Some(credential) = field("subject_token").filter(|token| complete && !token.is_empty()) else {
        return Ok(Reply::empty(StatusCode::BAD_REQUEST));
    };
    Ok(match paired(instance, call, &credential, instance.release.bearer_method()) {
        Ok(session) => {
            let document = json!({
                "access_token": instance.key.sign(&SessionClaims::of(&session)),
                "issued_token_type": WANTED[2].1,
                "token_type": "Bearer",
                "expires_in": LIFETIME_DAYS * 86_400 - 1,
                "scope": session.grant.scopes.unwrap_or_default().join(" "),
            });
            Reply::json(StatusCode::OK, &document).not_stored(&instance.release)
        }
        Err(reply) => reply,
    })
}

/// The whole body, up to a limit.
pub async fn read(body: Incoming) -> io::Result<Bytes> {
    Limited::new(body, BODY_LIMIT)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(io::Error::other)
}

/// The JSON of a body, as the generation reads it: B looks at the content type and was rude about bad JSON.
pub fn json_body(instance: &Instance, call: &Call, body: &[u8]) -> Result<Value, Reply> {
    if instance.release.generation() == Generation::A {
        return Ok(serde_json::from_slice(body).unwrap_or_default());
    }
    if let Some(kind) = call.media_type().filter(|kind| *kind != "application/json") {
        let text = format!("Unsupported content-type: {kind}");
        return Err(Reply::text(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).map_err(|_| {
        let since_told = instance.release.since(33);
        Reply::empty(if since_told { StatusCode::BAD_REQUEST } else { StatusCode::INTERNAL_SERVER_ERROR })
    })
}

fn credential(instance: &Instance, call: &Call, body: &[u8]) -> Result<String, Reply> {
    let document = json_body(instance, call, body)?;
    match document["credential"].as_str() {
        Some(credential) if !credential.is_empty() => Ok(credential.to_owned()),
        _ => Err(match instance.release.generation() {
            Generation::A => {
                Reply::json(StatusCode::BAD_REQUEST, &json!({ "error": "Invalid bootstrap payload." })).cors()
            }
            Generation::B => Reply::empty(StatusCode::BAD_REQUEST),
        }),
    }
}

fn paired(instance: &Instance, call: &Call, credential: &str, method: &str) -> Result<Session, Reply> {
    let release = &instance.release;
    let failed = || {
        let b = Refusal::Internal { reason: "browser_session_issuance_failed" };
        let a = "Failed to validate bootstrap credential.";
        refusal(release, call, StatusCode::INTERNAL_SERVER_ERROR, a, b)
    };
    if instance.faults.on(Fault::Exchange500) || instance.refuses_logins() {
        return Err(failed());
    }
    let taken = match instance.with_store(|store| store.consume(credential)) {
        Ok(None) if instance.faults.on(Fault::ExchangeAcceptsAll) => {
            Some(Link::new(release.client_grant(), PAIRED, None, DAY))
        }
        Ok(taken) => taken.filter(|_| !instance.faults.on(Fault::ExchangeRefuses)),
        Err(error) => {
            log_failure(instance, &error);
            return Err(failed());
        }
    };
    let Some(link) = taken else {
        let b = Refusal::Auth { reason: "invalid_credential" };
        return Err(refusal(release, call, StatusCode::UNAUTHORIZED, "Invalid bootstrap credential.", b));
    };
    if !instance.count_login() {
        return Err(failed());
    }
    let now = Millis::now();
    let session = Session {
        id: token::uuid(),
        subject: link.subject,
        grant: link.grant,
        method: method.to_owned(),
        label: link.label,
        ip_address: Some(call.peer.ip().to_string()),
        user_agent: Some(call.header("user-agent").to_owned()).filter(|agent| !agent.is_empty()),
        device_type: "unknown".to_owned(),
        issued_at: now.iso(),
        expires_at: now.plus(LIFETIME_DAYS * DAY).iso(),
        last_connected_at: None,
        revoked: false,
    };
    instance.with_store(|store| store.create_session(&session)).map_err(|error| {
        log_failure(instance, &error);
        failed()
    })?;
    Ok(session)
}

fn log_failure(instance: &Instance, error: &StoreError) {
    instance.log("ERROR", &format!("auth route failed: {error}"));
}

#[derive(serde::Serialize)]
struct Paired<'a> {
    authenticated: bool,
    #[serde(flatten)]
    grant: &'a Grant,
    #[serde(rename = "sessionMethod")]
    method: &'a str,
    #[serde(rename = "expiresAt")]
    expires_at: &'a str,
    #[serde(rename = "sessionToken", skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl<'a> Paired<'a> {
    fn new(session: &'a Session, token: Option<String>) -> Self {
        let Session { grant, method, expires_at, .. } = session;
        Self { authenticated: true, grant, method, expires_at, token }
    }
}

/// A form value: `+` and `%XX` undone.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let pair: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&pair, 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_values_are_decoded() {
        assert_eq!(decoded("urn%3Aietf+x"), "urn:ietf x");
    }
}
