//! One run, told step by step: of a probe made now, of one from the history, and of a user's last ones.

use std::time::SystemTime;

use maud::{Markup, html};

use super::page::{ago, class, meaning, took};
use crate::outcome::{Outcome, Run, StepResult};

pub fn story(run: &Run, now: SystemTime) -> Markup {
    let outcome = run.outcome();
    html! {
        section {
            h2 { (run.kind) " of " a href=(format!("/users/{}", run.user)) { (run.user) } ", " (ago(run.started, now)) }
            p { strong.(class(outcome)) { (outcome) } ": " (meaning(outcome)) " It took " (took(run.duration)) ", made because of " code { (run.trigger) } "." }
            @if let Some(next) = run.decided_by().and_then(|step| step.next(&run.user)) { p { "Next: " (next) "." } }
            div.scroll {
                table {
                    thead { tr { th scope="col" { "Step" } th scope="col" { "Outcome" } th scope="col" { "Took" } th scope="col" { "What happened" } } }
                    tbody {
                        @for step in &run.steps {
                            tr {
                                th scope="row" title=(step.step.meaning()) { (step.step) }
                                td.(class(step.outcome)) { (step.outcome) }
                                td.figure { @if !matches!(step.outcome, Outcome::Skipped(_)) { (took(step.duration)) } }
                                td { (what_happened(step)) }
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

/// What was found, else what the step shows when it is well, else what its word means.
fn what_happened(step: &StepResult) -> &str {
    match (&step.detail, step.outcome) {
        (Some(detail), _) => detail,
        (None, Outcome::Ok) => step.step.meaning(),
        (None, outcome) => meaning(outcome),
    }
}
