//! `/history/events`: what happened beside probes, above all who really came in and who could not. HTML for people, JSON
//! for programs.

use std::time::SystemTime;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::page::{ago, page};
use super::{Surfaces, wants_html};
use crate::history::{Event, EventFilter, Page};

/// What is looked for; every part may be left out or empty.
#[derive(Debug, Default, Deserialize)]
pub struct Search {
    #[serde(default)]
    user: String,
    #[serde(default)]
    kind: String,
    /// The id that the page before ended with.
    before: Option<i64>,
}

pub async fn events(
    State(surfaces): State<Surfaces>,
    Query(search): Query<Search>,
    headers: HeaderMap,
) -> Response {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let kind = match given(&search.kind).map(|kind| kind.parse()).transpose() {
        Ok(kind) => kind,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let filter = EventFilter {
        user: given(&search.user),
        kind,
        before: search.before,
        limit: 100,
        ..EventFilter::default()
    };
    match surfaces.history.reader().events(filter).await {
        Ok(found) if wants_html(&headers) => {
            page("Logins and other events", &list(&search, &found, SystemTime::now()))
        }
        Ok(found) => Json(found).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

fn list(search: &Search, found: &Page<Event>, now: SystemTime) -> Markup {
    html! {
        p { "Real logins as the dispatch proxy reports them, and whatever else is no probe." }
        form method="get" action="/history/events" {
            label { "User" input name="user" value=(search.user); }
            button type="submit" { "Show" }
        }
        @if found.rows.is_empty() { p { "Nothing of the kind is kept." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Events" {
                table {
                    thead { tr { @for head in ["When", "User", "Kind", "About", "Outcome", "What else"] { th scope="col" { (head) } } } }
                    tbody { @for event in &found.rows { (line(event, now)) } }
                }
            }
        }
        @if let Some(next) = found.next {
            p { a href=(format!("/history/events?user={}&kind={}&before={next}", search.user, search.kind)) { "Older" } }
        }
    }
}

fn line(event: &Event, now: SystemTime) -> Markup {
    html! {
        tr {
            td.figure { (ago(event.at, now)) }
            td { @if let Some(user) = &event.user { (user) } }
            td title=(event.kind.meaning()) { (event.kind) }
            td { (event.subject) }
            td.(event.outcome) { (event.outcome) }
            td { @if let Some(detail) = event.detail.as_object() {
                @for (name, value) in detail {
                    (name) " " @match value.as_str() { Some(text) => { (text) } None => { (value) } } " "
                }
            } }
        }
    }
}
