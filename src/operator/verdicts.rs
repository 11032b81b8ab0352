//! `/api/v1/verdicts`: what is known of builds, and a way to have one judged. 200 is said of a pass that counts now and of
//! nothing else, so `curl -f` is a gate; a version is all that can be asked for, never a path and never a command.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::Surfaces;
use crate::docket::Candidate;
use crate::outcome::{Elsewhere, Verdict, utc};
use crate::t3::version::Version;

/// A client that wants to wait longer asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How soon to ask again about a build that is being judged.
const ASK_AGAIN: &str = "15";

/// `GET /api/v1/verdicts`: one line a verdict, the newest first, and what is being judged.
pub async fn list(State(surfaces): State<Surfaces>) -> Response {
    #[derive(serde::Serialize)]
    struct Short<'a> {
        version: &'a str,
        verdict: Verdict,
        grounds: crate::outcome::Grounds,
        summary: &'a str,
        #[serde(with = "utc")]
        made_at: SystemTime,
        #[serde(with = "utc")]
        expires_at: SystemTime,
        /// Why it does not count any more.
        elsewhere: Option<Elsewhere>,
    }
    let candidates = surfaces.candidates.borrow().clone();
    let short = |candidate: &'_ Candidate| {
        let document = &candidate.document;
        serde_json::to_value(Short {
            version: &document.candidate.version,
            verdict: document.verdict,
            grounds: document.grounds,
            summary: &document.summary,
            made_at: document.made_at,
            expires_at: document.expires_at,
            elsewhere: candidate.elsewhere_at(SystemTime::now()).map(|(why, _)| why),
        })
    };
    let verdicts: Vec<_> = candidates.iter().filter_map(|candidate| short(candidate).ok()).collect();
    let line = surfaces.line.now();
    let waiting: Vec<_> = line.waiting.iter().map(ToString::to_string).collect();
    let running = line.running.map(|version| version.to_string());
    Json(json!({ "verdicts": verdicts, "running": running, "waiting": waiting })).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patience {
    #[serde(default, with = "humantime_serde")]
    wait: Duration,
}

/// `GET /api/v1/verdicts/VERSION[?wait=60s]`: 200 with the verdict where it is a pass that counts; 409 with it where it is
/// anything else; 404 where there is none. With `wait` it answers as soon as there is one that counts.
pub async fn one(
    State(surfaces): State<Surfaces>,
    Path(version): Path<String>,
    patience: Result<Query<Patience>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let version: Version = match version.parse() {
        Ok(version) => version,
        Err(error) => return refused(&error),
    };
    let wait = match patience {
        Ok(Query(Patience { wait })) if wait <= LONGEST_WAIT => wait,
        Ok(_) => return refused(&"wait is longer than 5m; ask again instead"),
        Err(_) => return refused(&"wait is a duration, as in ?wait=60s; there is no other parameter"),
    };
    let deadline = Instant::now() + wait;
    let (mut known, mut line) = (surfaces.candidates.clone(), surfaces.line.subscribe());
    loop {
        let candidates = known.borrow_and_update().clone();
        let found = find(&candidates, &version);
        if is_settled(&surfaces, &version, found, wait) {
            return answer(&surfaces, &version, found);
        }
        let change = async {
            tokio::select! {
                change = known.changed() => change,
                change = line.changed() => change,
            }
        };
        // The end of the wait, or of the service.
        if !matches!(timeout_at(deadline, change).await, Ok(Ok(()))) {
            return answer(&surfaces, &version, found);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    version: Version,
}

/// `POST /api/v1/verdicts {"version": "0.0.26"}`: has a build judged, unless that has been done or is being done. A pass or
/// a fail that counts is answered as by `GET`, 202 says that it is in line.
pub async fn ask(State(surfaces): State<Surfaces>, body: Bytes) -> Response {
    let wanted: Wanted = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => {
            return refused(&format!("the body is not {{\"version\": \"0.0.26\"}}: {error}"));
        }
    };
    let version = wanted.version;
    let candidates = surfaces.candidates.borrow().clone();
    let found = find(&candidates, &version);
    let settled = found.filter(|found| found.elsewhere_at(SystemTime::now()).is_none());
    if settled.is_some_and(|found| matches!(found.document.verdict, Verdict::Pass | Verdict::Fail)) {
        return answer(&surfaces, &version, found);
    }
    match surfaces.line.ask(&version) {
        Ok(_) => {
            let body = json!({ "version": version.to_string(), "standing": "judging" });
            (StatusCode::ACCEPTED, [(header::RETRY_AFTER, ASK_AGAIN)], Json(body)).into_response()
        }
        Err(full) => {
            let retry = [(header::RETRY_AFTER, "300")];
            (StatusCode::TOO_MANY_REQUESTS, retry, format!("{full}\n")).into_response()
        }
    }
}

fn find<'a>(candidates: &'a [Candidate], version: &Version) -> Option<&'a Candidate> {
    let version = version.to_string();
    candidates.iter().find(|candidate| candidate.document.candidate.version == version)
}

/// Whether there is nothing to wait for: a pass or a fail that counts, or whatever was found a moment ago and is not being
/// tried again. Where the gate could not run there is nothing that its verdict could be about.
fn is_settled(surfaces: &Surfaces, version: &Version, found: Option<&Candidate>, moment: Duration) -> bool {
    let now = SystemTime::now();
    found.is_some_and(|found| {
        let is_definite = matches!(found.document.verdict, Verdict::Pass | Verdict::Fail);
        let is_young = now.duration_since(found.document.made_at).is_ok_and(|age| age <= moment);
        let counts = found.elsewhere_at(now).is_none();
        is_definite && counts || (is_young || counts) && !surfaces.line.has(version)
    })
}

fn answer(surfaces: &Surfaces, version: &Version, found: Option<&Candidate>) -> Response {
    let judging = surfaces.line.has(version);
    let (status, standing, detail, document) = match found {
        None => {
            let detail = format!("there is no verdict about t3 {version}; have it judged with POST");
            (StatusCode::NOT_FOUND, "none".to_owned(), detail, Value::Null)
        }
        Some(candidate) => {
            let document = serde_json::to_value(&*candidate.document).unwrap_or_default();
            match candidate.elsewhere_at(SystemTime::now()) {
                Some((why, detail)) => (StatusCode::CONFLICT, why.to_string(), detail, document),
                None => {
                    let verdict = candidate.document.verdict;
                    let status = if verdict == Verdict::Pass { StatusCode::OK } else { StatusCode::CONFLICT };
                    (status, verdict.to_string(), candidate.document.summary.clone(), document)
                }
            }
        }
    };
    let body = json!({
        "version": version.to_string(), "standing": standing, "detail": detail, "judging": judging, "document": document,
    });
    let mut response = (status, Json(body)).into_response();
    if judging {
        response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static(ASK_AGAIN));
    }
    response
}

fn refused(why: &dyn std::fmt::Display) -> Response {
    (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response()
}
