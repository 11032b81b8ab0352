//! A user's request on its way to their instance: logged in first where it must be, sent, answered, counted.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use super::connection::{Client, Gone, Next};
use super::errand::Errand;
use super::front::LoginNews;
use super::instance::{Instance, await_start};
use super::pages::Page;
use super::pairing::{NoSession, Session};
use super::patience::Patience;
use super::plan::{Request, Visit, rewritten};
use super::transfer::{Answered, Asked, Broken, Transfer};
use super::tunnel;
use super::worker::Worker;
use crate::outcome::{Asker, Failure, Reason, Refusal};
use crate::t3::door::MARKER;

/// How soon a browser should come back to an instance that did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How long a connection is waited for that an instance may have accepted while it was starting.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

pub async fn serve(
    worker: &Worker,
    client: &mut Client,
    patience: &mut Patience,
    mut request: Request,
) -> Next {
    let start = Instant::now();
    let mut passing = None;
    if let Some(visit) = request.visit.take() {
        // Seldom, and large: kept off the path of every other request.
        let admitted =
            Box::pin(admit(worker, &request, *visit)).instrument(request.trace.span().clone()).await;
        match admitted {
            Admission::Pass => {}
            Admission::With(session) => {
                client.out.clear();
                let mut out = std::mem::take(&mut client.out);
                let door = client.door();
                rewritten(
                    client.inbox.bytes(),
                    &door,
                    &worker.front,
                    &request.trace,
                    &session.pair,
                    &mut out,
                );
                client.out = out;
                passing = Some(session);
            }
            Admission::Answer(page) => {
                client.inbox.consume(request.len);
                return answer(worker, client, &request, &page, start, false).await;
            }
        }
    }
    client.inbox.consume(request.len);
    // While the instance thinks, others may use the buffer.
    client.inbox.settle(&worker.buffers);
    let set_cookies: Vec<String> =
        passing.iter().map(|session| set_cookie(session, request.secure)).collect();
    let session_name = if request.secure { request.route.session() } else { None };
    let asked = Asked {
        is_head: request.is_head,
        is_http10: request.is_http10,
        websocket: request.websocket,
        is_asset: request.is_asset,
        close: request.close || worker.front.is_draining(),
        set_cookies: &set_cookies,
        secure_session: session_name.as_deref(),
    };
    let mut instance = match obtain(worker, &request).await {
        Ok(instance) => instance,
        Err(failure) => return unavailable(worker, client, &request, &failure, start).await,
    };
    loop {
        let now = Instant::now();
        let hasty = request.repeatable && !instance.reused && request.route.is_unsettled(now);
        let limit = worker.front.section.answer_timeout;
        patience.begin(now, if hasty { limit.min(FIRST_ANSWER) } else { limit });
        match exchange(worker, client, &mut instance, patience, &request, &asked).await {
            Ok(Exchanged::Tunnel) => {
                answered(&request, 101, None);
                tunnel::run(worker, client, instance, &request).await;
                return Next::Abandon;
            }
            Ok(Exchanged::StaleAsset) => {
                return answer(worker, client, &request, &Page::stale_asset(), start, false).await;
            }
            Ok(Exchanged::Whole { answered: answer, sent }) => {
                let now = Instant::now();
                instance.inbox.settle(&worker.buffers);
                answered(&request, answer.status, Some(now - start));
                if sent && answer.keeps_alive {
                    instance.keep(&request.route, worker.index, now);
                }
                return if answer.close || !sent { Next::Close } else { Next::KeepAlive };
            }
            // The instance closed an idle connection at the moment we used it: that is no answer, so ask again.
            // And what it accepted while it was starting it never answers; on another connection it may.
            Err(Ended { before_answer: true, broken })
                if request.repeatable
                    && match broken {
                        Some(Broken::Instance(_)) => instance.reused,
                        None => hasty,
                        Some(_) => false,
                    } =>
            {
                instance = match Instance::open(&request.route, worker.front.section.connect_timeout).await {
                    Ok(instance) => instance,
                    Err(failure) => return unavailable(worker, client, &request, &failure, start).await,
                };
            }
            Err(ended) => return broken(worker, client, &request, &ended, start).await,
        }
    }
}

/// How an exchange ended well.
enum Exchanged {
    Whole { answered: Answered, sent: bool },
    StaleAsset,
    Tunnel,
}

/// How an exchange ended badly; `broken` is absent where the time was up.
#[derive(Debug)]
struct Ended {
    before_answer: bool,
    broken: Option<Broken>,
}

async fn exchange(
    worker: &Worker,
    client: &mut Client,
    instance: &mut Instance,
    patience: &mut Patience,
    request: &Request,
    asked: &Asked<'_>,
) -> Result<Exchanged, Ended> {
    let early = |broken| Ended { before_answer: true, broken };
    let late = |broken| Ended { before_answer: false, broken };
    let mut transfer = Transfer::new(client, instance, &worker.buffers, request.body)
        .map_err(|broken| early(Some(broken)))?;
    let answered = patience
        .wait(|cx, patience| transfer.poll_answer(cx, patience, asked))
        .await
        .map_err(|_| early(None))?
        .map_err(|broken| early(Some(broken)))?;
    if answered.stale_asset {
        return Ok(Exchanged::StaleAsset);
    }
    patience.begin(Instant::now(), worker.front.section.stall_timeout);
    if answered.status == 101 {
        return match patience.wait(|cx, _| transfer.poll_send_head(cx)).await {
            Ok(Ok(())) => Ok(Exchanged::Tunnel),
            Ok(Err(broken)) => Err(late(Some(broken))),
            Err(_) => Err(late(None)),
        };
    }
    match patience.wait(|cx, patience| transfer.poll_body(cx, patience)).await {
        Ok(Ok(())) => Ok(Exchanged::Whole { answered, sent: transfer.is_sent() }),
        Ok(Err(broken)) => Err(late(Some(broken))),
        Err(_) => Err(late(None)),
    }
}

async fn obtain(worker: &Worker, request: &Request) -> Result<Instance, Failure> {
    let (route, limit) = (&request.route, worker.front.section.connect_timeout);
    let instance = Instance::obtain(route, worker.index, request.repeatable, limit).await?;
    if request.repeatable || instance.reused || !route.is_starting(Instant::now()) {
        return Ok(instance);
    }
    // This connection may have come too early for any answer.
    drop(instance);
    await_start(route, FIRST_ANSWER).await?;
    Instance::open(route, limit).await
}

/// Whether a request goes on, and how.
enum Admission {
    Pass,
    With(Arc<Session>),
    Answer(Page),
}

async fn admit(worker: &Worker, request: &Request, visit: Visit) -> Admission {
    let front = &worker.front;
    let route = &request.route;
    if let (Errand::Verify, Some(cookie)) = (request.errand, &visit.cookie) {
        match front.login.verify(&route.target, cookie).await {
            Ok(verified) => {
                route.learn_session(&verified.cookie);
                if verified.authenticated {
                    return Admission::Pass;
                }
                route.pairing(request.asker).forget(cookie);
            }
            // Not knowing is no reason to log anybody out: the instance itself will say what it thinks.
            Err(failure) => {
                tracing::debug!(user = route.user(), reason = %failure.reason, "could not verify a session");
                return Admission::Pass;
            }
        }
    }
    let is_users = request.asker == Asker::User;
    match route.pairing(request.asker).session(&*front.login, &route.target, visit.caller).await {
        Ok((session, took)) => {
            route.learn_session(&session.name);
            if let Some(took) = took.filter(|_| is_users) {
                let (user, endpoint) = (route.user(), session.endpoint);
                route.metrics.paired(endpoint, took, request.trace.id());
                (front.on_login)(LoginNews::Done { user, endpoint, duration: took });
                tracing::info!(user, %endpoint, ?took, "logged a user in");
            }
            if request.errand == Errand::PairInPassing {
                return Admission::With(session);
            }
            let marker = format!("{MARKER}=1; Path=/; Max-Age=60; HttpOnly; SameSite=Lax");
            Admission::Answer(Page::redirect(&visit.kept, &[set_cookie(&session, request.secure), marker]))
        }
        Err(NoSession::DropsCookies) => Admission::Answer(Page::drops_cookies(request.wants_json)),
        Err(NoSession::Later { after, reason, news }) => {
            if let Some(failed) = news.filter(|_| is_users) {
                let (user, step, reason) = (route.user(), failed.step, failed.failure.reason);
                route.metrics.pairing_failed(step, reason);
                (front.on_login)(LoginNews::Failed { user, step, reason });
                tracing::warn!(user, %step, %reason, detail = failed.failure.detail,
                    "could not log a user in");
            }
            Admission::Answer(Page::waiting(reason, after, request.wants_json))
        }
    }
}

/// The session for the browser: never sent in clear where the edge speaks https.
fn set_cookie(session: &Session, secure: bool) -> String {
    let already = session.set_cookie.split(';').any(|part| part.trim().eq_ignore_ascii_case("secure"));
    if secure && !already { format!("{}; Secure", session.set_cookie) } else { session.set_cookie.clone() }
}

async fn unavailable(
    worker: &Worker,
    client: &mut Client,
    request: &Request,
    failure: &Failure,
    start: Instant,
) -> Next {
    tracing::warn!(user = request.route.user(), reason = %failure.reason, detail = failure.detail,
        "no connection to a user's instance");
    let page = Page::waiting(failure.reason, RETRY_AFTER, request.wants_json);
    answer(worker, client, request, &page, start, false).await
}

async fn broken(
    worker: &Worker,
    client: &mut Client,
    request: &Request,
    ended: &Ended,
    start: Instant,
) -> Next {
    let user = request.route.user();
    request.trace.broken();
    match (&ended.broken, ended.before_answer) {
        (Some(Broken::Client(error)), _) => {
            tracing::debug!(user, %error, "a client went away");
            Next::Abandon
        }
        (Some(Broken::Request), true) => {
            worker.front.metrics.dispatch.refused(Refusal::Framing);
            answer(worker, client, request, &Page::refused(Refusal::Framing), start, true).await
        }
        (Some(why), true) => {
            tracing::warn!(user, error = %why, "an instance did not answer a request");
            answer(worker, client, request, &Page::bad_gateway(request.wants_json), start, true).await
        }
        (None, true) => {
            tracing::warn!(user, "an instance let a request wait for too long");
            let page = Page::waiting(Reason::Timeout, RETRY_AFTER, request.wants_json);
            answer(worker, client, request, &page, start, true).await
        }
        // Part of the answer is out: only a broken connection can say that the rest does not come.
        (why, false) => {
            let error = why.as_ref().map_or_else(|| "no progress".to_owned(), ToString::to_string);
            tracing::warn!(user, error, "an answer broke off");
            Next::Abandon
        }
    }
}

async fn answer(
    worker: &Worker,
    client: &mut Client,
    request: &Request,
    page: &Page,
    start: Instant,
    close: bool,
) -> Next {
    let close = close || request.close || !request.body.is_done() || worker.front.is_draining();
    let sent = client.answer(page, request.is_head, close, worker.front.section.stall_timeout).await;
    answered(request, page.status, Some(start.elapsed()));
    match sent {
        Ok(()) if close => Next::Close,
        Ok(()) => Next::KeepAlive,
        Err(Gone) => Next::Abandon,
    }
}

/// Counts the answer; `took` is absent for an upgrade.
fn answered(request: &Request, status: u16, took: Option<Duration>) {
    request.trace.answered(status);
    request.route.metrics.answered(status, request.asker, took, request.trace.id());
}
