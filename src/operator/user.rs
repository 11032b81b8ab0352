//! `/users/<user>`: one user: whether they can log in, what the last probes did step by step, and where to look next.

use std::sync::PoisonError;
use std::time::SystemTime;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use super::Surfaces;
use super::page::{Headline, ago, lasted, live_page};
use super::status::failure;
use super::story::story;
use crate::board::{Last, Standing};
use crate::inventory::Target;
use crate::outcome::{Kind, Outcome};

pub async fn user(State(surfaces): State<Surfaces>, Path(user): Path<String>) -> Response {
    let now = SystemTime::now();
    let snapshot = surfaces.inventory.snapshot();
    let pauses = surfaces.pauses.lock().unwrap_or_else(PoisonError::into_inner).pauses().clone();
    let board = surfaces.board();
    let Some((_, standing)) = board.users().find(|(name, _)| *name == user) else {
        return (StatusCode::NOT_FOUND, "nobody of that name is served; / lists who is\n").into_response();
    };
    let pause = pauses.of(&user, now);
    let (sentence, headline) = headline(&user, standing, now);
    let rest = html! {
        @if let Some(pause) = pause {
            p.skipped { "Paused, ends " (ago(pause.until, now)) ": " (pause.reason) ". Probes go on; nobody is woken." }
        }
        p {
            a href=(format!("/probe?user={user}")) { "Probe now" } " · "
            a href=(format!("/history?user={user}")) { "History" } " · "
            a href=(format!("/history/events?user={user}")) { "Logins and other events" }
        }
        @if let Some(target) = snapshot.inventory.by_user(&user) { (instance(target, standing)) }
        @for last in standing.lasts() { (last_run(last, now)) }
    };
    live_page(&sentence, &user, &headline, &rest)
}

fn headline(user: &str, standing: &Standing, now: SystemTime) -> (String, Headline) {
    let (class, sentence) = if standing.failing().is_some() {
        ("failed", format!("{user} cannot log in"))
    } else {
        match standing.last(Kind::Pulse).map(|last| last.run.outcome()) {
            None => ("skipped", format!("{user} has not been probed yet")),
            Some(Outcome::Skipped(skip)) => ("skipped", format!("{user} cannot log in now: {skip}")),
            Some(_) => ("ok", format!("{user} can log in")),
        }
    };
    let said = html! { (sentence) "." (failure(user, standing, now)) };
    (sentence, Headline { class, said })
}

fn instance(target: &Target, standing: &Standing) -> Markup {
    html! {
        h2 { "Instance" }
        dl {
            dt { "Port" } dd { (target.port) }
            dt { "Runs" } dd { (standing.fact(|run| run.facts.version.clone()).unwrap_or_else(|| "not known yet".to_owned())) }
            dt { "Base directory" } dd { code { (target.base_dir.display()) } }
            @if let Some(finding) = target.withheld {
                dt { "Withheld" } dd.failed { (finding.meaning()) }
            }
        }
    }
}

fn last_run(last: &Last, now: SystemTime) -> Markup {
    html! {
        (story(&last.run, now))
        p.quiet { "It has been so for " (lasted(last.since, now)) "." }
    }
}
