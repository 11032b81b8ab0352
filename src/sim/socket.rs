//! `/ws`: text frames of JSON, pings and calls; an open socket outlives the session it was opened with (CONTRACT §6).

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::fault::Fault;
use super::http::Call;
use super::http::access::socket_session;
use super::http::reply::{Body, Reply};
use super::instance::{Instance, OpenSocket};

mod frames;

use frames::Frames;

const DEFLATE: &str = "permessage-deflate";

type Socket = Frames<TokioIo<Upgraded>>;

/// Answers the upgrade and serves the socket.
pub fn upgrade(instance: &Arc<Instance>, call: &Call, request: &mut Request<Incoming>) -> Response<Body> {
    let finish = |reply: Reply| reply.finish(&instance.release, call);
    if instance.faults.on(Fault::Socket200) {
        return finish(Reply::page(instance));
    }
    if instance.faults.on(Fault::Socket403) {
        return finish(Reply::empty(StatusCode::FORBIDDEN));
    }
    let session = match socket_session(instance, call) {
        Ok(session) => session,
        Err(denied) => return finish(denied.reply(&instance.release, call)),
    };
    // A locked database does not keep anybody out: only the time of the visit is lost.
    let _ = instance.with_store(|store| store.touch_session(&session.id));
    let open = instance.socket_opened(&session.id);
    let accept = derive_accept_key(call.header("sec-websocket-key").as_bytes());
    let mut offers = call.header("sec-websocket-extensions").split(',');
    let is_offered = offers.any(|offer| offer.split(';').next().unwrap_or_default().trim() == DEFLATE);
    let deflate = instance.release.since(30) && is_offered;
    instance.tasks.spawn(serve(instance.clone(), hyper::upgrade::on(request), deflate, open));
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("upgrade", "websocket")
        .header("connection", "Upgrade")
        .header("sec-websocket-accept", accept);
    if deflate {
        response = response.header("sec-websocket-extensions", DEFLATE);
    }
    response.body(Body::default()).unwrap_or_default()
}

async fn serve(instance: Arc<Instance>, upgrade: OnUpgrade, deflate: bool, _open: OpenSocket) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = Socket::new(TokioIo::new(upgraded), deflate);
    if instance.faults.on(Fault::SocketCloses) {
        let _ = socket.close().await;
        return;
    }
    loop {
        let received = tokio::select! {
            () = instance.stopping.cancelled() => return farewell(&instance, socket).await,
            received = socket.next() => received,
        };
        let Ok(Some(text)) = received else { return };
        let answer = serde_json::from_str(&text).ok().and_then(|frame| answer(&instance, &frame));
        if let Some(answer) = answer
            && socket.send(&answer.to_string()).await.is_err()
        {
            return;
        }
    }
}

/// Says goodbye and waits for the answer as long as the release does.
async fn farewell(instance: &Instance, mut socket: Socket) {
    let asked = Instant::now();
    let _ = socket.close().await;
    let answered = async { while let Ok(Some(_)) = socket.next().await {} };
    let patience = instance.delays.stop_silent.max(instance.delays.stop_open);
    if tokio::time::timeout_at(asked + patience, answered).await.is_ok() {
        tokio::time::sleep_until(asked + instance.delays.stop_open).await;
    }
}

fn answer(instance: &Instance, frame: &Value) -> Option<Value> {
    if instance.faults.on(Fault::SocketSilent) {
        return None;
    }
    match frame["_tag"].as_str()? {
        "Ping" => Some(json!({ "_tag": "Pong" })),
        "Request" if instance.faults.on(Fault::RpcSilent) => None,
        "Request" => Some(called(instance, &frame["id"], frame["tag"].as_str().unwrap_or_default())),
        _ => None,
    }
}

fn called(instance: &Instance, id: &Value, tag: &str) -> Value {
    let success = |value: Value| json!({ "_tag": "Exit", "requestId": id, "exit": { "_tag": "Success", "value": value } });
    if instance.faults.on(Fault::RpcError) {
        let cause = json!([{ "_tag": "Fail", "error": { "_tag": "StandInError" } }]);
        return json!({ "_tag": "Exit", "requestId": id, "exit": { "_tag": "Failure", "cause": cause } });
    }
    match tag {
        "server.getConfig" => success(config(instance)),
        "server.probe" if instance.release.since(29) => success(json!({})),
        _ => {
            let defect = format!("Unknown request tag: {tag}");
            if instance.release.since(33) {
                let cause = json!([{ "_tag": "Die", "defect": defect }]);
                json!({ "_tag": "Exit", "requestId": id, "exit": { "_tag": "Failure", "cause": cause } })
            } else {
                json!({ "_tag": "Defect", "defect": defect })
            }
        }
    }
}

/// As large as the real one, so that it comes compressed where that was negotiated.
fn config(instance: &Instance) -> Value {
    let bindings = (b'a'..=b'z').flat_map(|key| {
        let key = char::from(key);
        let shortcut = |shift: bool| {
            json!({
                "key": key, "metaKey": false, "ctrlKey": false, "shiftKey": shift, "altKey": false, "modKey": true,
            })
        };
        let when = json!({ "type": "identifier", "name": "terminalFocus" });
        [
            json!({ "command": format!("standIn.{key}"), "shortcut": shortcut(false) }),
            json!({ "command": format!("standIn.shift.{key}"), "shortcut": shortcut(true), "whenAst": when }),
        ]
    });
    json!({
        "environment": instance.descriptor(),
        "auth": instance.auth(),
        "cwd": std::env::current_dir().unwrap_or_default(),
        "keybindingsConfigPath": instance.home.userdata().join("keybindings.json"),
        "keybindings": bindings.collect::<Vec<_>>(),
        "issues": [],
        "providers": [],
    })
}
