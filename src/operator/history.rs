//! `/history` and `/history/<id>`: what happened, for people as HTML and for programs as JSON. A trace id stands for an
//! id too, so an exemplar leads straight to its story.

use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::page::{ago, class, meaning, page, took};
use super::{Surfaces, story, wants_html};
use crate::history::{Filter, Page, Recorded};
use crate::outcome::{Ended, Kind};

/// What is looked for; every part may be left out or empty.
#[derive(Debug, Default, Deserialize)]
pub struct Search {
    #[serde(default)]
    user: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    outcome: String,
    /// The id that the page before ended with.
    before: Option<i64>,
}

pub async fn history(
    State(surfaces): State<Surfaces>,
    Query(search): Query<Search>,
    headers: HeaderMap,
) -> Response {
    let filter = match search.filter() {
        Ok(filter) => filter,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let reader = surfaces.history.reader();
    match reader.runs(filter).await {
        Ok(found) if wants_html(&headers) => {
            let of_user = |row: &Recorded| search.is_only_of(&row.run.user);
            let mut failures = reader.last_failures().await.unwrap_or_default();
            failures.retain(of_user);
            page("History", &list(&search, &found, &failures, SystemTime::now()))
        }
        Ok(found) => Json(found).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

pub async fn entry(State(surfaces): State<Surfaces>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let reader = surfaces.history.reader();
    let is_trace = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let found = match id.parse() {
        _ if is_trace => reader.by_trace(&id).await,
        Ok(id) => reader.get(id).await,
        Err(_) => {
            return (StatusCode::BAD_REQUEST, "expected a number or a trace id of 32 hex digits\n")
                .into_response();
        }
    };
    match found {
        Ok(Some(found)) if wants_html(&headers) => {
            let now = SystemTime::now();
            let body = html! {
                @if found.count > 1 {
                    p { "The first of " (found.count) " probes in a row that ended alike; the last was " (ago(found.last, now)) ", the slowest took " (took(found.slowest)) "." }
                }
                (story::story(&found.run, now))
            };
            page(&format!("{} of {}", found.run.kind, found.run.user), &body)
        }
        Ok(Some(found)) => Json(found).into_response(),
        // A user's own request has an exemplar only where traces are collected, and its story is there.
        Ok(None) if is_trace => (
            StatusCode::NOT_FOUND,
            "no probe of that trace is kept; if it was a user's request, look where traces are collected\n",
        )
            .into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, "nothing of that id is kept\n").into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

impl Search {
    /// Whether the first page of everything about this user is wanted.
    fn is_only_of(&self, user: &str) -> bool {
        self.user == user && self.kind.is_empty() && self.outcome.is_empty() && self.before.is_none()
    }

    fn filter(&self) -> Result<Filter, crate::outcome::UnknownWord> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Filter {
            user: given(&self.user),
            kind: given(&self.kind).map(|kind| kind.parse()).transpose()?,
            outcome: given(&self.outcome).map(|outcome| outcome.parse()).transpose()?,
            before: self.before,
            limit: 100,
            ..Filter::default()
        })
    }
}

fn list(search: &Search, found: &Page<Recorded>, failures: &[Recorded], now: SystemTime) -> Markup {
    html! {
        form method="get" action="/history" {
            label { "User" input name="user" value=(search.user); }
            label { "Kind" (choice("kind", &search.kind, Kind::ALL.iter().map(|kind| kind.as_str()))) }
            label { "Outcome" (choice("outcome", &search.outcome, Ended::ALL.iter().map(|ended| ended.as_str()))) }
            button type="submit" { "Show" }
        }
        p { a href=(format!("/history/events?user={}", search.user)) { "Logins and other events" } }
        @if !failures.is_empty() {
            h2 { "The last failures, which are kept for ever" }
            (table("Last failures", failures, now))
            h2 { "Everything" }
        }
        @if found.rows.is_empty() { p { "Nothing of the kind is kept." } }
        @else { (table("Probes", &found.rows, now)) }
        @if let Some(next) = found.next {
            p { a href=(format!("/history?user={}&kind={}&outcome={}&before={next}", search.user, search.kind, search.outcome)) { "Older" } }
        }
    }
}

fn table(label: &str, rows: &[Recorded], now: SystemTime) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr { @for head in ["When", "User", "Kind", "Outcome", "Step", "In a row", "Took", "What happened"] { th scope="col" { (head) } } } }
                tbody { @for row in rows { (line(row, now)) } }
            }
        }
    }
}

fn line(row: &Recorded, now: SystemTime) -> Markup {
    let outcome = row.run.outcome();
    let step = row.run.decided_by();
    html! {
        tr {
            td.figure { a href=(format!("/history/{}", row.id)) { (ago(row.last, now)) } }
            td { (row.run.user) }
            td { (row.run.kind) }
            td.(class(outcome)) title=(meaning(outcome)) { (outcome) }
            td { @if let Some(step) = step { (step.step) } }
            td.figure { (row.count) }
            td.figure { (took(row.run.duration)) }
            td { @if let Some(detail) = step.and_then(|step| step.detail.as_deref()) { (detail) } }
        }
    }
}

fn choice<'a>(name: &str, chosen: &str, words: impl Iterator<Item = &'a str>) -> Markup {
    html! {
        select name=(name) {
            option value="" { "any" }
            @for word in words { option value=(word) selected[word == chosen] { (word) } }
        }
    }
}
