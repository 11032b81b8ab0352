//! `/`: users by steps at a glance; what is failing, for how long, and where to look next.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::Surfaces;
use super::candidates;
use super::credentials::credentials;
use super::page::state::state;
use super::page::{Headline, ago, class, lasted, live_page, meaning, took};
use super::worry;
use crate::backup;
use crate::board::{Board, Standing};
use crate::enforce::Seen;
use crate::inventory::Snapshot;
use crate::outcome::{End, Kind, Outcome, Skip, Step, StepResult};
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
    Step::Front,
];

pub async fn status(State(surfaces): State<Surfaces>) -> Response {
    let now = SystemTime::now();
    let snapshot = surfaces.inventory.snapshot();
    let pauses = surfaces.pauses.lock().unwrap_or_else(PoisonError::into_inner).pauses().clone();
    let trouble = surfaces.history.trouble();
    let standings = surfaces.standings.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let board = surfaces.board();
    let (tab, headline) = headline(&board, &snapshot, &pauses, now);
    let rest = html! {
        @if headline.class == "ok" { (next_worry(&surfaces, &standings, now)) }
        (users(&board, &snapshot, &pauses, now))
        (state(&board, &standings, now))
        (differences(&surfaces, now))
        (candidates::section(&surfaces, now))
        (findings(&snapshot))
        (credentials(&surfaces.credentials.lock().unwrap_or_else(PoisonError::into_inner), now))
        h2 { "This program" }
        dl {
            dt { "Version" } dd { (env!("CARGO_PKG_VERSION")) ", up for " (lasted(surfaces.started, now)) }
            dt { "Upgrades" } dd { (upgrades(&surfaces, now)) }
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
                    Some(trouble) => { span.failed { "not recorded for " (lasted(trouble.since, now)) ": " (trouble.detail) } }
                }
            }
        }
    };
    live_page(&tab, "Can everybody log in?", &headline, &rest)
}

fn next_worry(
    surfaces: &Surfaces,
    standings: &BTreeMap<String, backup::Standing>,
    now: SystemTime,
) -> Markup {
    let differences = surfaces.differences.lock().unwrap_or_else(PoisonError::into_inner);
    let credentials = surfaces.credentials.lock().unwrap_or_else(PoisonError::into_inner);
    worry::next(&differences, &credentials, standings, &surfaces.config.borrow().backup, now)
}

/// What is wrong, in one sentence: as the tab says it, and as the page does.
fn headline(board: &Board, snapshot: &Snapshot, pauses: &Pauses, now: SystemTime) -> (String, Headline) {
    let users: Vec<_> = board.users().collect();
    let failing: Vec<_> = users
        .iter()
        .filter(|(user, standing)| !pauses.is_paused(user, now) && standing.failing().is_some())
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
    let sentence = if users.is_empty() {
        "Nobody is served.".to_owned()
    } else if failing.len() == users.len() && users.len() > 1 {
        format!("Nobody can log in: all {} users fail.", users.len())
    } else if let [(user, _)] = failing[..] {
        format!("{user} cannot log in.")
    } else if !failing.is_empty() {
        format!("{} of {} users cannot log in.", failing.len(), users.len())
    } else if unknown == users.len() {
        "The first probes are under way.".to_owned()
    } else {
        let able = users.len() - absent - unknown;
        let mut sentence = if able == users.len() && able > 1 {
            format!("All {able} users can log in")
        } else {
            format!("{able} of {} users can log in", users.len())
        };
        if absent > 0 {
            sentence += &format!("; {absent} not running or starting");
        }
        if unknown > 0 {
            sentence += &format!("; {unknown} not probed yet");
        }
        sentence + "."
    };
    let said = html! {
        (sentence)
        @if users.is_empty() {
            " "
            @match &snapshot.status.error {
                Some(error) => { "The inventory cannot be read: " (error) }
                None => { "The dispatch table names no user." }
            }
        }
        @for (user, standing) in &failing { (failure(user, standing, now)) }
    };
    (sentence.trim_end_matches('.').to_owned(), Headline { class, said })
}

/// How a user fails, for how long, and what to do next.
pub fn failure(user: &str, standing: &Standing, now: SystemTime) -> Markup {
    html! {
        @if let Some((last, step)) = standing.failing() {
            p {
                a href=(format!("/users/{user}")) { strong { (user) } } " fails at " code { (step.step) } " for " (lasted(last.since, now)) ": "
                (meaning(step.outcome)) " "
                @if let Some(detail) = &step.detail { span.quiet { (detail) } }
                @if let Some(next) = step.next(user) { br; strong { "Next: " } (next) "." }
            }
        }
    }
}

fn is_skipped(standing: &Standing) -> bool {
    standing.last(Kind::Pulse).is_some_and(|last| matches!(last.run.outcome(), Outcome::Skipped(_)))
}

fn users(board: &Board, snapshot: &Snapshot, pauses: &Pauses, now: SystemTime) -> Markup {
    let has_front = board.users().any(|(_, standing)| standing.step(Step::Front).is_some());
    let steps: Vec<_> = STEPS.iter().filter(|step| has_front || **step != Step::Front).copied().collect();
    html! {
        div.scroll tabindex="0" role="region" aria-label="Users and steps" {
            table.cards {
                caption { "The newest result of each step, with the time it took." }
                thead {
                    tr {
                        th scope="col" { "User" } th scope="col" { "Runs" }
                        @for step in &steps { th scope="col" title=(step.meaning()) { (step) } }
                        th scope="col" { "Login tried" } th scope="col" { "Changed" }
                    }
                }
                tbody {
                    @for (user, standing) in board.users() {
                        tr {
                            th scope="row" {
                                a href=(format!("/users/{user}")) { (user) }
                                @if let Some(target) = snapshot.inventory.by_user(user) { small.quiet { " :" (target.port) } }
                                @if let Some(pause) = pauses.of(user, now) {
                                    small.skipped { " paused, ends " (ago(pause.until, now)) ": " (pause.reason) }
                                }
                            }
                            td.figure data-name="runs" { (standing.fact(|run| run.facts.version.clone()).unwrap_or_else(|| "?".to_owned())) }
                            @for step in &steps { (cell(*step, standing.step(*step))) }
                            td.figure data-name="login tried" { @if let Some(last) = standing.last(Kind::Handshake) { (ago(last.run.started, now)) } @else { "not yet" } }
                            td.figure data-name="changed" { @if let Some(since) = standing.lasts().map(|last| last.since).max() { (ago(since, now)) } }
                        }
                    }
                }
            }
        }
    }
}

fn cell(step: Step, result: Option<&StepResult>) -> Markup {
    html! {
        @match result {
            None => { td.quiet data-name=(step) { "–" } }
            Some(result) => {
                td.(class(result.outcome)) data-name=(step) title=(meaning(result.outcome)) {
                    @match result.outcome {
                        // What comes after a failure was not tried; the failure itself is what to look at.
                        Outcome::Skipped(Skip::EarlierStep) => { span.quiet { "not tried" } }
                        outcome => { (outcome.reason().unwrap_or("ok")) }
                    }
                    @if !matches!(result.outcome, Outcome::Skipped(_)) { small.figure { (took(result.duration)) } }
                }
            }
        }
    }
}

/// How the last run of the enforcer ended, and who was left behind.
fn upgrades(surfaces: &Surfaces, now: SystemTime) -> Markup {
    let Seen { standing, under_way, alive, frozen, .. } =
        surfaces.enforcer.lock().unwrap_or_else(PoisonError::into_inner).clone();
    html! {
        @match &standing.last {
            None => { "the enforcer has never run" }
            Some(last) => {
                span.(judged(last.end)) title=(last.end.meaning()) { (last.end) } " " (ago(last.at, now)) ": " (last.detail)
            }
        }
        @match &standing.at_work {
            Some(at_work) if alive => {
                ". " span.skipped { "At work " (ago(at_work.since, now)) ": " (at_work.stage.doing()) "." }
            }
            Some(at_work) => { ". " span.failed { "But " (at_work.epitaph()) "." } }
            None => {}
        }
        @if under_way && !alive {
            ". " span.skipped { "A rollout is not finished; the next run goes on, and t3-prober enforce --back brings everybody back." }
        }
        @if let Some(why) = &frozen { ". " span.failed { "Frozen: " (why) } }
        @for deferred in &standing.deferred {
            br; (deferred.user) " has stayed for " (lasted(deferred.since, now)) ": " (deferred.detail) " " code { (deferred.why) }
        }
    }
}

fn judged(end: End) -> &'static str {
    match end {
        End::Done | End::NothingToDo => "ok",
        End::Held | End::Waiting | End::Interrupted => "skipped",
        End::RolledBack | End::Error | End::RollbackFailed | End::Killed => "failed",
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
