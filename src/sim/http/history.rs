//! What the app loads at its start (CONTRACT §3): generation A lets owners only, and is rude to strangers.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::Call;
use super::access::{Denied, allowed, session};
use super::reply::Reply;
use crate::sim::fault::Fault;
use crate::sim::instance::Instance;
use crate::sim::release::Generation;
use crate::sim::store::{Store, StoreError};

const SCOPE: &str = "orchestration:read";

/// `GET /api/orchestration/snapshot`
pub fn snapshot(instance: &Instance, call: &Call) -> Reply {
    match instance.release.generation() {
        Generation::A => match session(instance, call) {
            Err(_) => Reply::empty(StatusCode::INTERNAL_SERVER_ERROR),
            Ok(caller) if !caller.grant.allows(SCOPE) => {
                let document = json!({ "error": "Only owner sessions can manage projects." });
                Reply::json(StatusCode::BAD_REQUEST, &document)
            }
            Ok(_) => load(instance, call, Store::snapshot),
        },
        Generation::B => scoped(instance, call, Store::snapshot),
    }
}

/// `GET /api/orchestration/shell`, from 0.0.29.
pub fn shell(instance: &Instance, call: &Call) -> Reply {
    scoped(instance, call, Store::shell)
}

fn scoped(instance: &Instance, call: &Call, read: fn(&Store) -> Result<Value, StoreError>) -> Reply {
    match allowed(instance, call, SCOPE, "") {
        Ok(_) => load(instance, call, read),
        Err(denied) => denied.reply(&instance.release, call),
    }
}

fn load(instance: &Instance, call: &Call, read: fn(&Store) -> Result<Value, StoreError>) -> Reply {
    if instance.faults.on(Fault::HistoryUnloadable) {
        return Denied::Internal.reply(&instance.release, call);
    }
    match instance.with_store(|store| read(store)) {
        Ok(document) => Reply::json(StatusCode::OK, &document),
        Err(error) => {
            instance.log("ERROR", &format!("history not loaded: {error}"));
            Denied::Internal.reply(&instance.release, call)
        }
    }
}
