//! Calls for administrative sessions: who is signed in, which credentials are out, mint and revoke (CONTRACT §3).

use std::io;

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::{Value, json};

use super::Call;
use super::access::{Denied, allowed};
use super::exchange::{json_body, read};
use super::reply::Reply;
use crate::sim::clock::MINUTE;
use crate::sim::fault::Fault;
use crate::sim::instance::Instance;
use crate::sim::release::{Generation, Grant};
use crate::sim::store::{Link, PAIRED};
use crate::sim::tool::listing::client;

const MANAGE: &str = "Only owner sessions can manage network access.";
const CREATE: &str = "Only owner sessions can create pairing credentials.";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientEntry {
    session_id: String,
    subject: String,
    #[serde(flatten)]
    grant: Grant,
    method: String,
    client: Value,
    issued_at: String,
    expires_at: String,
    last_connected_at: Option<String>,
    connected: bool,
    current: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LinkEntry {
    id: String,
    credential: String,
    #[serde(flatten)]
    grant: Grant,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    created_at: String,
    expires_at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Minted {
    id: String,
    credential: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    expires_at: String,
}

/// `GET /api/auth/clients`
pub fn clients(instance: &Instance, call: &Call) -> Reply {
    let listed = allowed(instance, call, "access:read", MANAGE).and_then(|caller| {
        let sessions = instance.with_store(|store| store.sessions()).map_err(|_| Denied::Internal)?;
        let entries = sessions.into_iter().map(|session| ClientEntry {
            client: client(&session),
            connected: instance.is_connected(&session.id),
            current: session.id == caller.id,
            session_id: session.id,
            subject: session.subject,
            grant: session.grant,
            method: session.method,
            issued_at: session.issued_at,
            expires_at: session.expires_at,
            last_connected_at: session.last_connected_at,
        });
        Ok(Reply::json(StatusCode::OK, &entries.collect::<Vec<_>>()))
    });
    listed.unwrap_or_else(|denied| denied.reply(&instance.release, call))
}

/// `GET /api/auth/pairing-links`: the credentials are in it.
pub fn links(instance: &Instance, call: &Call) -> Reply {
    let listed = allowed(instance, call, "access:read", MANAGE).and_then(|_| {
        let links = instance.with_store(|store| store.links()).map_err(|_| Denied::Internal)?;
        let entries = links.into_iter().map(|link| LinkEntry {
            id: link.id,
            credential: link.credential,
            grant: link.grant,
            subject: link.subject,
            label: link.label,
            created_at: link.created_at,
            expires_at: link.expires_at,
        });
        Ok(Reply::json(StatusCode::OK, &entries.collect::<Vec<_>>()))
    });
    listed.unwrap_or_else(|denied| denied.reply(&instance.release, call))
}

/// `POST /api/auth/pairing-token`: a client credential, as from the command line.
pub async fn mint(instance: &Instance, call: &Call, body: Incoming) -> io::Result<Reply> {
    let body = read(body).await?;
    let minted = allowed(instance, call, "access:write", CREATE).and_then(|_| {
        if instance.faults.on(Fault::Mint500) {
            return Err(Denied::Internal);
        }
        let label = match json_body(instance, call, &body) {
            Ok(document) => document["label"].as_str().map(str::to_owned),
            Err(reply) => return Ok(reply),
        };
        let link = Link::new(instance.release.client_grant(), PAIRED, label, 5 * MINUTE);
        if !instance.faults.on(Fault::MintForeign) {
            instance.with_store(|store| store.create_link(&link)).map_err(|_| Denied::Internal)?;
        }
        let Link { id, credential, label, expires_at, .. } = link;
        Ok(Reply::json(StatusCode::OK, &Minted { id, credential, label, expires_at }))
    });
    Ok(minted.unwrap_or_else(|denied| denied.reply(&instance.release, call)))
}

/// `POST /api/auth/clients/revoke`
pub async fn revoke(instance: &Instance, call: &Call, body: Incoming) -> io::Result<Reply> {
    let body = read(body).await?;
    let revoked = allowed(instance, call, "access:write", MANAGE).and_then(|_| {
        if instance.faults.on(Fault::RevokeFails) {
            return Err(Denied::Internal);
        }
        let document = match json_body(instance, call, &body) {
            Ok(document) => document,
            Err(reply) => return Ok(reply),
        };
        let Some(id) = document["sessionId"].as_str() else {
            return Ok(match instance.release.generation() {
                Generation::A => {
                    Reply::json(StatusCode::BAD_REQUEST, &json!({ "error": "Invalid revoke payload." }))
                        .cors()
                }
                Generation::B => Reply::empty(StatusCode::BAD_REQUEST),
            });
        };
        let revoked = instance.with_store(|store| store.revoke_session(id)).map_err(|_| Denied::Internal)?;
        Ok(Reply::json(StatusCode::OK, &json!({ "revoked": revoked })))
    });
    Ok(revoked.unwrap_or_else(|denied| denied.reply(&instance.release, call)))
}
