//! `/probe?user=U[&debug=true]`: a probe now, with its whole story. One per user per 30 seconds.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::html;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::page::page;
use super::{Surfaces, story, wants_html};
use crate::outcome::{Ended, Run};
use crate::probe::prober::Order;

const ONE_PER: Duration = Duration::from_secs(30);

/// When each user's last probe on demand was.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<String, Instant>>);

impl Turns {
    /// Takes the user's turn, or says how long it is until the next one.
    fn take(&self, user: &str, now: Instant) -> Result<(), Duration> {
        let mut turns = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        turns.retain(|_, last| now.duration_since(*last) < ONE_PER);
        match turns.get(user) {
            Some(last) => Err(ONE_PER - now.duration_since(*last)),
            None => {
                turns.insert(user.to_owned(), now);
                Ok(())
            }
        }
    }
}

#[derive(Deserialize)]
pub struct Wanted {
    user: String,
    #[serde(default)]
    debug: bool,
}

/// JSON `{"runs": […]}`; HTML for a browser; plain text with `debug=true`. 200 when all is well, 503 when something
/// failed or could not be told, so that `curl -f` is a check.
pub async fn probe(
    State(surfaces): State<Surfaces>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Response {
    let user = &wanted.user;
    let Some(orders) = surfaces.orders(user) else {
        return (StatusCode::NOT_FOUND, "no such user in the inventory\n").into_response();
    };
    if let Err(wait) = surfaces.turns.take(user, Instant::now()) {
        let seconds = wait.as_secs() + 1;
        let text = format!(
            "{user} was probed on demand a moment ago; ask again in {seconds} s, or look at /history?user={user}\n"
        );
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())], text)
            .into_response();
    }
    let (answer, done) = oneshot::channel();
    let asked = orders.send(Order::Probe(answer)).await.is_ok();
    let Ok(runs) = done.await else {
        let text = if asked {
            "the probe was given up: t3-prober is stopping, or the user is gone\n"
        } else {
            "t3-prober is stopping\n"
        };
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let well = runs.iter().all(|run| run.outcome().ended() == Ended::Ok);
    let code = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = if wanted.debug {
        runs.iter().map(text).collect::<String>().into_response()
    } else if wants_html(&headers) {
        let now = SystemTime::now();
        page(&format!("Probe of {user}"), &html! { @for run in &runs { (story::story(run, now)) } })
    } else {
        Json(serde_json::json!({ "runs": runs })).into_response()
    };
    *response.status_mut() = code;
    response
}

/// The story as lines for a terminal.
pub fn text(run: &Run) -> String {
    let mut text = String::new();
    let started = humantime::format_rfc3339_millis(run.started);
    let seconds = run.duration.as_secs_f64();
    let _ = writeln!(
        text,
        "{} {} {} in {seconds:.3} s ({started}, trace {})",
        run.user,
        run.kind,
        run.outcome(),
        run.trace_id
    );
    for step in &run.steps {
        let detail = step.detail.as_deref().unwrap_or("");
        let line = format!(
            "  {:<9} {:>9.1} ms  {:<24} {detail}",
            step.step,
            step.duration.as_secs_f64() * 1000.0,
            step.outcome
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if let Some(next) = run.decided_by().and_then(|step| step.next(&run.user)) {
        let _ = writeln!(text, "  next: {next}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_one_turn_in_thirty_seconds_and_others_are_not_held_up() {
        let turns = Turns::default();
        let start = Instant::now();
        assert_eq!(turns.take("ann", start), Ok(()));
        assert_eq!(turns.take("ann", start + Duration::from_secs(10)), Err(Duration::from_secs(20)));
        assert_eq!(turns.take("bob", start + Duration::from_secs(10)), Ok(()));
        assert_eq!(turns.take("ann", start + Duration::from_secs(30)), Ok(()));
    }
}
