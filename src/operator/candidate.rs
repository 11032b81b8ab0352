//! `/candidates/<version>`: one build that the gate has rehearsed: may it be given to these users, what differs, how one
//! would go back, and what was found on whose data.

use std::time::SystemTime;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use super::Surfaces;
use super::candidates::{class, told};
use super::page::{self, Headline, ago, live_page, meaning, took};
use crate::docket::Candidate;
use crate::gate::evidence::{Rehearsed, SeedEvidence};
use crate::outcome::{Outcome, Verdict};
use crate::verdict::Document;

pub async fn candidate(State(surfaces): State<Surfaces>, Path(version): Path<String>) -> Response {
    let now = SystemTime::now();
    let candidates = surfaces.candidates.borrow().clone();
    let Some(candidate) = candidates.iter().find(|known| known.document.candidate.version == version) else {
        return (StatusCode::NOT_FOUND, "no verdict about that version is kept; / lists those that are\n")
            .into_response();
    };
    let document = &candidate.document;
    let (sentence, headline) = headline(candidate, now);
    let rest = html! {
        (facts(document, now))
        (differences(document))
        (seeds(document))
        p { a href="/" { "All candidates" } " · " a href=(format!("/api/v1/verdicts/{version}")) { "The whole evidence, as JSON" } }
    };
    live_page(&sentence, &format!("t3 {version}"), &headline, &rest)
}

fn headline(candidate: &Candidate, now: SystemTime) -> (String, Headline) {
    let document = &candidate.document;
    let version = &document.candidate.version;
    let elsewhere = candidate.elsewhere_at(now);
    let (class, sentence) = match (document.verdict, &elsewhere) {
        (Verdict::Pass, None) => ("ok", format!("t3 {version} may be given to everybody")),
        (Verdict::Pass, Some(_)) => {
            ("skipped", format!("t3 {version} has passed, which does not count any more"))
        }
        (Verdict::Fail, _) => ("failed", format!("t3 {version} is not fit for these users")),
        (Verdict::Inconclusive | Verdict::Error, _) => {
            ("skipped", format!("Nobody can tell whether t3 {version} is fit for these users"))
        }
    };
    let said = html! {
        (sentence) "."
        p { (document.summary) }
        @if let Some((why, detail)) = &elsewhere { p { code { (why) } " " (detail) } }
    };
    (sentence, Headline { class, said })
}

fn facts(document: &Document, now: SystemTime) -> Markup {
    html! {
        h2 { "Verdict" }
        dl {
            dt { "Says" } dd { span.(class(document.verdict)) { (document.verdict) } ": " (document.grounds.meaning()) }
            dt { "Beside" } dd { "t3 " (document.control.version) ", the known-good build" }
            dt { "Made" } dd { (ago(document.made_at, now)) ", ends " (ago(document.expires_at, now)) }
            dt { "Risk" } dd { (document.risk) ", watched for " (page::rough(document.soak)) " after it is installed" }
            dt { "Going back" } dd {
                @match document.rollback {
                    None => { "not known" }
                    Some(rollback) => { code { (rollback) } " " (rollback.meaning()) }
                }
            }
            dt { "One after another" } dd {
                @match document.rolling_restart {
                    None => { "not known" }
                    Some(true) => { "users may be restarted one after another" }
                    Some(false) => { span.skipped { "all users have to be restarted at once" } }
                }
            }
            dt { "Rehearsed" } dd { @if document.boxed { "in a box" } @else { span.skipped { "without a box" } } }
        }
    }
}

fn differences(document: &Document) -> Markup {
    html! {
        h2 { "What is different" }
        @if document.differences.is_empty() { p { "Nothing that the rehearsals could see." } }
        @else { ul { @for difference in &document.differences { li { (difference) } } } }
        @if !document.findings.is_empty() || !document.trouble.is_empty() {
            h2 { "What went wrong" }
            ul {
                @for finding in &document.findings { li { (told(finding)) } }
                @for trouble in &document.trouble { li { code { (trouble.grounds) } " " (trouble.detail) } }
            }
        }
    }
}

fn seeds(document: &Document) -> Markup {
    html! {
        h2 { "On whose data" }
        div.scroll tabindex="0" role="region" aria-label="Rehearsals" {
            table {
                caption { "Each rehearsal on a copy of each database, and the time it took." }
                thead { tr { @for head in ["Data", "Level", "Rehearsal", "Ended", "Took", "Migration"] { th scope="col" { (head) } } } }
                tbody { @for seed in &document.seeds { @for rehearsed in &seed.rehearsals { (rehearsal(seed, rehearsed)) } } }
            }
        }
    }
}

fn rehearsal(seed: &SeedEvidence, rehearsed: &Rehearsed) -> Markup {
    let stopped = rehearsed.stopped_at();
    let outcome = stopped.map_or(Outcome::Ok, |step| step.outcome);
    html! {
        tr {
            th scope="row" { (seed.seed.name) @if seed.seed.is_backup { small.quiet { " a verified backup" } } }
            td.figure { @if let Some(level) = seed.seed.level { (level) } @else { "–" } }
            td { (rehearsed.rehearsal) }
            td.(page::class(outcome)) title=(meaning(outcome)) {
                (outcome) @if let Some(step) = stopped { small { "at " (step.step) } }
            }
            td.figure { (took(rehearsed.duration)) }
            td.figure {
                @if let Some(seconds) = rehearsed.facts.migration_seconds { (format!("{:.1} s", seconds.max(0.0))) } @else { "–" }
            }
        }
    }
}
