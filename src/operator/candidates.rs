//! The part of the status page about builds that nobody has yet: what was found of each, what the last refusal said, and
//! what is being found out now.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::SystemTime;

use maud::{Markup, html};

use super::Surfaces;
use super::page::ago;
use crate::docket::Candidate;
use crate::outcome::Verdict;
use crate::verdict::{Document, Finding};

/// More are on disk.
const SHOWN: usize = 5;

pub fn section(surfaces: &Surfaces, now: SystemTime) -> Markup {
    let candidates = surfaces.candidates.borrow().clone();
    let broken = surfaces.enforcer.lock().unwrap_or_else(PoisonError::into_inner).broken.clone();
    let refused = candidates.iter().find(|candidate| candidate.document.verdict != Verdict::Pass);
    html! {
        @if !candidates.is_empty() {
            h2 { "Candidates" }
            div.scroll tabindex="0" role="region" aria-label="Candidates" {
                table {
                    caption { "Builds that the gate has rehearsed, the newest verdict first." }
                    thead { tr { @for head in ["Build", "Verdict", "Made", "Going back", "What it says"] { th scope="col" { (head) } } } }
                    tbody { @for candidate in candidates.iter().take(SHOWN) { (row(candidate, &broken, now)) } }
                }
            }
            @if let Some(refused) = refused { (refusal(&refused.document, now)) }
        }
    }
}

fn row(candidate: &Candidate, broken: &BTreeMap<String, String>, now: SystemTime) -> Markup {
    let document = &candidate.document;
    html! {
        tr {
            th scope="row" { a href=(format!("/candidates/{}", document.candidate.version)) { (document.candidate.version) } small.quiet { " beside " (document.control.version) } }
            td.(class(document.verdict)) title=(document.grounds.meaning()) {
                (document.verdict) small { (document.grounds) }
                // What users have found counts for more than any rehearsal.
                @if let Some(why) = broken.get(&document.candidate.version) {
                    small.failed title=(why) { "rolled back here" }
                }
            }
            td.figure {
                (ago(document.made_at, now))
                @match &candidate.elsewhere {
                    None => { small.quiet { "ends " (ago(document.expires_at, now)) } }
                    Some((why, sentence)) => { small.skipped title=(sentence) { "does not count any more: " (why) } }
                }
            }
            td {
                @if let Some(rollback) = document.rollback { span title=(rollback.meaning()) { (rollback) } }
                @if document.rolling_restart == Some(false) { small.skipped { "not one user after another" } }
            }
            td {
                (document.summary)
                @if !document.differences.is_empty() {
                    small { "differs: " (document.differences.join("; ")) }
                }
            }
        }
    }
}

/// What the newest verdict that is no pass rests on.
fn refusal(document: &Document, now: SystemTime) -> Markup {
    html! {
        p {
            "The last refusal: " strong { (document.candidate.version) } ", " (ago(document.made_at, now)) ", "
            (document.grounds.meaning())
        }
        @if !document.findings.is_empty() || !document.trouble.is_empty() {
            ul {
                @for finding in document.findings.iter().take(SHOWN) { li { (told(finding)) } }
                @for trouble in document.trouble.iter().take(SHOWN) { li { code { (trouble.grounds) } " " (trouble.detail) } }
            }
        }
    }
}

pub fn told(finding: &Finding) -> Markup {
    html! {
        (finding.rehearsal) " on the data of " strong { (finding.seed) } " stops at "
        code title=(finding.step.meaning()) { (finding.step) } ": " (finding.outcome)
        @if let Some(detail) = &finding.detail { " " span.quiet { (detail) } }
    }
}

pub fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "ok",
        Verdict::Fail => "failed",
        Verdict::Inconclusive | Verdict::Error => "skipped",
    }
}
