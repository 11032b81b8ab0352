//! One request head, decided: whether it is believed, whose it is, what it is, and how it goes on. Nothing is waited
//! for here, so that the common case is one pass over the head.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::cookies;
use super::errand::{self, Errand};
use super::framing::Body;
use super::front::Front;
use super::head::{self, Head, Version};
use super::headers::{self, Onward};
use super::kept::kept;
use super::pages::Page;
use super::pairing::Caller;
use super::route::Route;
use super::trace::Trace;
use crate::outcome::{Asker, Refusal};
use crate::t3::door::MARKER;

/// What is to be done with what has arrived.
#[derive(Debug)]
pub enum Plan {
    /// The head is not whole yet.
    Incomplete,
    /// We answer ourselves.
    Answer { page: Page, to_head: bool, close: bool, consume: usize },
    /// It is a user's.
    Request(Request),
}

/// A user's request, its head rewritten and ready to be sent.
#[derive(Debug)]
pub struct Request {
    pub route: Arc<Route>,
    pub trace: Trace,
    pub errand: Errand,
    /// Bytes of the head in the inbox.
    pub len: usize,
    pub body: Body,
    pub asker: Asker,
    pub is_head: bool,
    pub is_http10: bool,
    pub close: bool,
    pub websocket: bool,
    /// May be sent again over another connection: nothing happens by it, and it has no body.
    pub repeatable: bool,
    pub wants_json: bool,
    pub is_asset: bool,
    /// The browser speaks https with the edge.
    pub secure: bool,
    /// What only a login needs, made only for one.
    pub visit: Option<Box<Visit>>,
}

/// What is known of a browser that may have to log in.
#[derive(Debug)]
pub struct Visit {
    /// Where it asked to go, safe to be sent back to.
    pub kept: String,
    /// The session it shows, `name=value`.
    pub cookie: Option<String>,
    pub caller: Caller,
}

/// The other end of a client connection, as far as requests are concerned.
#[derive(Debug)]
pub struct Door<'a> {
    /// Every request on this connection is believed.
    pub believed: bool,
    /// The address it came from; absent for a unix socket.
    pub peer: Option<&'a str>,
}

/// Decides, and appends the head for the instance to `out`.
pub fn plan(bytes: &[u8], door: &Door<'_>, front: &Front, out: &mut Vec<u8>) -> Plan {
    let mut slots = head::slots();
    let head = match head::parse(bytes, &mut slots) {
        Ok(Some(head)) => head,
        Ok(None) => return Plan::Incomplete,
        Err(refusal) => return refuse(refusal, front, false, true, bytes.len()),
    };
    let close = head.seen.close || !head.body.is_done();
    if head.path() == "/healthz" && head.is_get_or_head() {
        return Plan::Answer { page: Page::healthy(), to_head: head.is_head(), close, consume: head.len };
    }
    match request(&head, door, front) {
        Ok(request) => {
            rewrite(&head, door, front, &request.trace, None, out);
            Plan::Request(request)
        }
        Err(refusal) => refuse(refusal, front, head.is_head(), close, head.len),
    }
}

/// The head for the instance once more, now with a fresh session. `bytes` begins with a head that was planned before.
pub fn rewritten(
    bytes: &[u8],
    door: &Door<'_>,
    front: &Front,
    trace: &Trace,
    session: &str,
    out: &mut Vec<u8>,
) {
    let mut slots = head::slots();
    if let Ok(Some(head)) = head::parse(bytes, &mut slots) {
        rewrite(&head, door, front, trace, Some(session), out);
    }
}

fn rewrite(
    head: &Head<'_, '_>,
    door: &Door<'_>,
    front: &Front,
    trace: &Trace,
    session: Option<&str>,
    out: &mut Vec<u8>,
) {
    let trace = trace.onward();
    let onward = Onward {
        peer: door.peer,
        trace: trace.as_deref(),
        session,
        edge_cookies: &front.section.edge_cookies,
    };
    headers::request(head, &onward, out);
}

fn request(head: &Head<'_, '_>, door: &Door<'_>, front: &Front) -> Result<Request, Refusal> {
    let seen = &head.seen;
    if !door.believed && !seen.secret.is_some_and(|shown| front.trust.knows(shown)) {
        return Err(Refusal::UntrustedPeer);
    }
    let identity = seen.identity.ok_or(Refusal::NoIdentity)?;
    let table = front.table();
    let found = table.find(identity)?;
    let route = found.entry;
    if found.by_local_part && !route.is_claimed_by(&String::from_utf8_lossy(identity)) {
        return Err(Refusal::IdentityAmbiguous);
    }
    if route.target.withheld.is_some() {
        return Err(Refusal::Withheld);
    }
    let asker = match seen.probe_key {
        Some(key) if front.probe_key.as_ref().is_some_and(|known| known.is(key)) => Asker::Probe,
        _ => Asker::User,
    };
    // The prober is not signed in at the edge; it may mint for everybody anyway.
    if let Some(tokens) = front.tokens.as_ref().filter(|_| asker == Asker::User) {
        tokens.check(seen.token, identity)?;
    }
    let session = route.session();
    let errand = errand::errand(head, session.as_deref());
    Ok(Request {
        route: Arc::clone(route),
        trace: Trace::begin(head, route.user(), asker),
        errand,
        len: head.len,
        body: head.body,
        asker,
        is_head: head.is_head(),
        is_http10: head.version == Version::Http10,
        close: seen.close,
        websocket: seen.websocket,
        repeatable: matches!(head.method, "GET" | "HEAD" | "OPTIONS") && head.body.is_done(),
        wants_json: errand::wants_json(head),
        is_asset: errand::is_asset(head),
        secure: headers::proto(head) == "https",
        visit: (errand != Errand::Forward).then(|| Box::new(visit(head, errand, session.as_deref()))),
    })
}

fn visit(head: &Head<'_, '_>, errand: Errand, session: Option<&str>) -> Visit {
    let shown = head.cookies().find(|pair| cookies::is_session(pair, session));
    let caller = if errand == Errand::PairInPassing {
        Caller::InPassing
    } else {
        let mut hasher = DefaultHasher::new();
        (head.seen.user_agent, head.seen.forwarded_for, head.target).hash(&mut hasher);
        let marked = shown.is_none() && head.cookies().any(|pair| cookies::name(pair) == MARKER.as_bytes());
        Caller::Browser { fingerprint: hasher.finish(), marked }
    };
    Visit {
        kept: kept(head.target).to_owned(),
        cookie: shown.map(|pair| String::from_utf8_lossy(pair).into_owned()),
        caller,
    }
}

fn refuse(why: Refusal, front: &Front, to_head: bool, close: bool, consume: usize) -> Plan {
    front.metrics.dispatch.refused(why);
    tracing::debug!(reason = %why, "refused a request");
    Plan::Answer { page: Page::refused(why), to_head, close, consume }
}
