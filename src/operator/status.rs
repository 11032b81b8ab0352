//! `/`: users by steps at a glance; what is failing, since when, and where to look next.

use std::sync::PoisonError;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::Surfaces;
use super::page::{ago, class, meaning, page, took};
use crate::board::{Board, Standing};
use crate::inventory::Snapshot;
use crate::outcome::{Kind, Outcome, Run, Step, StepResult};
use crate::pause::Pauses;

/// The columns of the table: what the probes do, in the order they do it.
const STEPS: &[Step] = &[
    Step::Reach,
    Step::Contract,
    Step::Version,
    Step::Mint,
    Step::Exchange,
    Step::Session,
    Step::App,
    Step::Socket,
    Step::Revoke,
];

pub async fn status(State(surfaces): State<Surfaces>) -> Response {
    let now = SystemTime::now();
    let snapshot = surfaces.inventory.snapshot();
    let pauses = surfaces.pauses.lock().unwrap_or_else(PoisonError::into_inner).pauses().clone();
    let trouble = surfaces.history.trouble();
    let board = surfaces.board();
    let body = html! {
        (headline(&board, &snapshot, &pauses, now))
        (users(&board, &snapshot, &pauses, now))
        (differences(&surfaces, now))
        (findings(&snapshot))
        h2 { "This program" }
        dl {
            dt { "Version" } dd { (env!("CARGO_PKG_VERSION")) ", up since " (ago(surfaces.started, now)) }
            dt { "Inventory" } dd {
                @match (&snapshot.status.error, snapshot.status.loaded_at) {
                    (None, Some(at)) => { "read " (ago(at, now)) }
                    (Some(error), Some(at)) => { span.failed { "failed: " (error) } ". The one read " (ago(at, now)) " stays in use." }
                    (error, None) => { span.failed { "never read: " (error.as_deref().unwrap_or("not tried yet")) } }
                }
            }
            dt { "History" } dd {
                @match &trouble {
                    None => { "recorded; " a href="/history" { "look" } }
                    Some(trouble) => { span.failed { "not recorded since " (ago(trouble.since, now)) ": " (trouble.detail) } }
                }
            }
        }
    };
    page("Can everybody log in?", true, &body)
}

/// What is wrong, in one sentence.
fn headline(board: &Board, snapshot: &Snapshot, pauses: &Pauses, now: SystemTime) -> Markup {
    let users: Vec<_> = board.users().collect();
    let failing: Vec<_> = users
        .iter()
        .filter(|(user, _)| !pauses.is_paused(user, now))
        .filter_map(|(user, standing)| standing.failing().map(|(last, step)| (*user, last, step)))
        .collect();
    let unknown = users.iter().filter(|(_, standing)| standing.last(Kind::Pulse).is_none()).count();
    let absent = users.iter().filter(|(_, standing)| is_skipped(standing)).count();
    let class = if !failing.is_empty() || users.is_empty() {
        "failed"
    } else if absent > 0 {
        "skipped"
    } else {
        "ok"
    };
    html! {
        div.headline.(class) role="status" {
            @if users.is_empty() {
                "Nobody is served. "
                @match &snapshot.status.error {
                    Some(error) => { "The inventory cannot be read: " (error) }
                    None => { "The dispatch table names no user." }
                }
            } @else if failing.is_empty() {
                @if unknown == users.len() {
                    "The first probes are under way."
                } @else {
                    (users.len() - absent - unknown) " of " (users.len()) " users can log in"
                    @if absent > 0 { "; " (absent) " not running or starting" }
                    @if unknown > 0 { "; " (unknown) " not probed yet" }
                    "."
                }
            } @else {
                @if failing.len() == users.len() && users.len() > 1 { "Nobody can log in: all " (users.len()) " users fail." }
                @else if failing.len() > 1 { (failing.len()) " of " (users.len()) " users fail." }
                @for (user, last, step) in &failing {
                    p {
                        strong { (user) } " fails at " code { (step.step) } " since " (ago(last.since, now)) ": "
                        (meaning(step.outcome)) " "
                        @if let Some(detail) = &step.detail { span.quiet { (detail) } }
                        @if let Some(next) = step.outcome.next(user) { br; "Next: " (next) "; " }
                        a href=(format!("/history?user={user}")) { "history of " (user) }
                    }
                }
            }
        }
    }
}

fn is_skipped(standing: &Standing) -> bool {
    standing.last(Kind::Pulse).is_some_and(|last| matches!(last.run.outcome(), Outcome::Skipped(_)))
}

fn users(board: &Board, snapshot: &Snapshot, pauses: &Pauses, now: SystemTime) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Users and steps" {
            table {
                caption { "The newest result of each step, with the time it took." }
                thead {
                    tr {
                        th scope="col" { "User" } th scope="col" { "Runs" }
                        @for step in STEPS { th scope="col" title=(step.meaning()) { (step) } }
                        th scope="col" { "Last login tried" } th scope="col" { "Same outcome since" }
                    }
                }
                tbody {
                    @for (user, standing) in board.users() {
                        tr {
                            th scope="row" {
                                a href=(format!("/history?user={user}")) { (user) }
                                @if let Some(target) = snapshot.inventory.by_user(user) { small.quiet { " :" (target.port) } }
                                @if let Some(pause) = pauses.of(user, now) {
                                    small.skipped { " paused, ends " (ago(pause.until, now)) ": " (pause.reason) }
                                }
                            }
                            td.figure { (standing.fact(|run| run.facts.version.clone()).unwrap_or_else(|| "?".to_owned())) }
                            @for step in STEPS { (cell(standing.step(*step))) }
                            td.figure { @if let Some(last) = standing.last(Kind::Handshake) { (ago(last.run.started, now)) } @else { "not yet" } }
                            td.figure { @if let Some(since) = standing.lasts().map(|last| last.since).max() { (ago(since, now)) } }
                        }
                    }
                }
            }
        }
    }
}

fn cell(result: Option<&StepResult>) -> Markup {
    html! {
        @match result {
            None => { td.quiet { "–" } }
            Some(result) => {
                td.(class(result.outcome)) title=(meaning(result.outcome)) {
                    (result.outcome.reason().unwrap_or("ok"))
                    @if !matches!(result.outcome, Outcome::Skipped(_)) { small.figure { (took(result.duration)) } }
                }
            }
        }
    }
}

/// Where pinned, installed and running versions do not match.
fn differences(surfaces: &Surfaces, now: SystemTime) -> Markup {
    let differences = surfaces.differences.lock().unwrap_or_else(PoisonError::into_inner);
    html! {
        @if !differences.is_empty() {
            h2 { "Where versions differ" }
            ul {
                @for (sentence, since) in differences.iter() {
                    li { (sentence) " " span.quiet { "(seen " (ago(*since, now)) ")" } }
                }
            }
        }
    }
}

fn findings(snapshot: &Snapshot) -> Markup {
    let findings = snapshot.inventory.findings();
    html! {
        @if !findings.is_empty() {
            h2 { "What the sources disagree about" }
            ul {
                @for finding in findings {
                    li { code { (finding.finding) } " " (finding.detail) " " span.quiet { (finding.place) } }
                }
            }
        }
    }
}

/// One run, step by step: for a probe made on demand and for one from the history.
pub fn story(run: &Run, now: SystemTime) -> Markup {
    let outcome = run.outcome();
    html! {
        section {
            h2 { (run.kind) " of " a href=(format!("/history?user={}", run.user)) { (run.user) } ", " (ago(run.started, now)) }
            p { strong.(class(outcome)) { (outcome) } ": " (meaning(outcome)) " It took " (took(run.duration)) ", made because of " code { (run.trigger) } "." }
            @if let Some(next) = outcome.next(&run.user) { p { "Next: " (next) "." } }
            div.scroll {
                table {
                    thead { tr { th scope="col" { "Step" } th scope="col" { "Outcome" } th scope="col" { "Took" } th scope="col" { "What happened" } } }
                    tbody {
                        @for step in &run.steps {
                            tr {
                                th scope="row" title=(step.step.meaning()) { (step.step) }
                                td.(class(step.outcome)) { (step.outcome) }
                                td.figure { @if !matches!(step.outcome, Outcome::Skipped(_)) { (took(step.duration)) } }
                                td { (step.detail.as_deref().unwrap_or_else(|| meaning(step.outcome))) }
                            }
                        }
                    }
                }
            }
            dl {
                @if let Some(version) = &run.facts.version { dt { "t3 version" } dd { (version) } }
                @if let Some(cookie) = &run.facts.cookie { dt { "Cookie name" } dd { code { (cookie) } } }
                @if let Some(endpoint) = run.facts.endpoint { dt { "Exchange endpoint" } dd { code { (endpoint) } } }
                dt { "Trace id" } dd { code { (run.trace_id) } }
            }
        }
    }
}
