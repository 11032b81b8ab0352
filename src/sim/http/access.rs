//! Who is calling: cookie first, then bearer; and the calls that only need to know that (CONTRACT §3–6).

use hyper::StatusCode;
use serde_json::json;

use super::Call;
use super::reply::{Refusal, Reply, refusal};
use crate::sim::clock::{MINUTE, Millis};
use crate::sim::fault::Fault;
use crate::sim::instance::Instance;
use crate::sim::release::{Generation, Release};
use crate::sim::store::Session;
use crate::sim::token::{Rejected, SessionClaims, TicketClaims};

/// Why somebody is not let in.
#[derive(Clone, Copy)]
pub enum Denied {
    Missing,
    Invalid,
    /// Generation B says so when its tables are unusable; A takes it for an invalid credential.
    Internal,
    /// Signed in, but not allowed this: the scope that B names and the sentence that A says.
    Scope {
        required: &'static str,
        sentence: &'static str,
    },
}

/// The session that cookie or bearer token stand for.
pub fn session(instance: &Instance, call: &Call) -> Result<Session, Denied> {
    let token = cookie(instance, call).or_else(|| bearer(call)).ok_or(Denied::Missing)?;
    let claims = instance.key.open::<SessionClaims>(token).and_then(SessionClaims::check);
    let claims = claims.map_err(|rejected| reject(instance, &rejected.to_string()))?;
    let session = stored(instance, &claims.sid)?;
    if instance.faults.on(Fault::KeeperRefused) && session.grant.allows("access:write") {
        return Err(reject(instance, &Rejected::Revoked.to_string()));
    }
    Ok(session)
}

/// The session behind a WebSocket: a ticket in the query wins, for good and ill.
pub fn socket_session(instance: &Instance, call: &Call) -> Result<Session, Denied> {
    let name = match instance.release.generation() {
        Generation::A => "wsToken",
        Generation::B => "wsTicket",
    };
    let Some(ticket) = call.query_value(name) else { return session(instance, call) };
    let claims = instance.key.open::<TicketClaims>(ticket).and_then(TicketClaims::check);
    let claims = claims.map_err(|rejected| reject(instance, &rejected.to_string()))?;
    stored(instance, &claims.sid)
}

/// A session that may do what `scope` names.
pub fn allowed(
    instance: &Instance,
    call: &Call,
    scope: &'static str,
    sentence: &'static str,
) -> Result<Session, Denied> {
    let session = session(instance, call)?;
    if session.grant.allows(scope) { Ok(session) } else { Err(Denied::Scope { required: scope, sentence }) }
}

/// `GET /api/auth/session`
pub fn session_document(instance: &Instance, call: &Call) -> Reply {
    if instance.faults.on(Fault::BadJson) {
        return Reply::json(StatusCode::OK, &json!({ "status": "up" })).cors();
    }
    let mut document = json!({ "authenticated": false, "auth": instance.auth() });
    match session(instance, call) {
        Ok(session) if !instance.faults.on(Fault::SessionFalse) => {
            document["authenticated"] = json!(true);
            match &session.grant.role {
                Some(role) => document["role"] = json!(role),
                None => document["scopes"] = json!(session.grant.scopes),
            }
            document["sessionMethod"] = json!(session.method);
            document["expiresAt"] = json!(session.expires_at);
        }
        Err(Denied::Internal) => return Denied::Internal.reply(&instance.release, call),
        _ => {}
    }
    Reply::json(StatusCode::OK, &document).cors()
}

/// The ticket call: `ws-token` in A, `websocket-ticket` in B.
pub fn ticket(instance: &Instance, call: &Call) -> Reply {
    let release = &instance.release;
    if instance.faults.on(Fault::Ticket500) {
        return Denied::Internal.reply(release, call);
    }
    let session = match session(instance, call) {
        Ok(session) => session,
        Err(denied) => return denied.reply(release, call),
    };
    let now = Millis::now();
    let until = now.plus(5 * MINUTE);
    let claims =
        TicketClaims { v: 1, kind: "websocket".to_owned(), sid: session.id, iat: now.0, exp: until.0 };
    let name = match release.generation() {
        Generation::A => "token",
        Generation::B => "ticket",
    };
    let document = json!({ name: instance.key.sign(&claims), "expiresAt": until.iso() });
    Reply::json(StatusCode::OK, &document).cors().not_stored(release)
}

/// `GET /ws` without an upgrade.
pub fn plain_socket(instance: &Instance, call: &Call) -> Reply {
    match socket_session(instance, call) {
        Ok(_) => Reply::empty(StatusCode::BAD_REQUEST),
        Err(denied) => denied.reply(&instance.release, call),
    }
}

impl Denied {
    pub fn reply(self, release: &Release, call: &Call) -> Reply {
        let say = |status, a, b| refusal(release, call, status, a, b);
        match self {
            Self::Missing => {
                let b = Refusal::Auth { reason: "missing_credential" };
                say(StatusCode::UNAUTHORIZED, "Authentication required.", b)
            }
            Self::Invalid => {
                let b = Refusal::Auth { reason: "invalid_credential" };
                say(StatusCode::UNAUTHORIZED, "Unauthorized request.", b)
            }
            Self::Internal => {
                let b = Refusal::Internal { reason: "internal_error" };
                say(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error.", b)
            }
            Self::Scope { required, sentence } => {
                say(StatusCode::FORBIDDEN, sentence, Refusal::Scope { required })
            }
        }
    }
}

fn stored(instance: &Instance, id: &str) -> Result<Session, Denied> {
    match instance.with_store(|store| store.session(id)) {
        Ok(Some(session)) if session.revoked => Err(reject(instance, &Rejected::Revoked.to_string())),
        Ok(Some(session)) if session.expires_at <= Millis::now().iso() => {
            Err(reject(instance, &Rejected::Expired.to_string()))
        }
        Ok(Some(session)) => Ok(session),
        Ok(None) => Err(reject(instance, "Unknown session token.")),
        Err(error) => match instance.release.generation() {
            Generation::A => Err(reject(instance, "Failed to verify session credential.")),
            Generation::B => {
                instance.log("ERROR", &format!("environment api operation failed: {error}"));
                Err(Denied::Internal)
            }
        },
    }
}

fn reject(instance: &Instance, reason: &str) -> Denied {
    instance.log("WARN", &format!("Rejected authenticated session credential.\n  reason: {reason}"));
    Denied::Invalid
}

fn cookie<'a>(instance: &Instance, call: &'a Call) -> Option<&'a str> {
    let names = instance.cookie_names();
    let cookies = || call.headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    names.iter().find_map(|name| {
        cookies()
            .flat_map(|line| line.split(';'))
            .find_map(|pair| pair.trim().strip_prefix(name.as_str())?.strip_prefix('='))
    })
}

fn bearer(call: &Call) -> Option<&str> {
    call.header("authorization").strip_prefix("Bearer ").map(str::trim)
}
