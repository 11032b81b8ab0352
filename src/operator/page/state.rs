//! Users by their data: does the database fit the running version, could it be brought back, and by which builds.

use std::collections::BTreeMap;
use std::time::SystemTime;

use maud::{Markup, html};

use super::{ago, class, meaning, rough};
use crate::backup::Standing;
use crate::board::{self, Board};
use crate::outcome::{BackupRun, Kind, StateFacts};

/// The table, and below it what failed.
pub fn state(board: &Board, standings: &BTreeMap<String, Standing>, now: SystemTime) -> Markup {
    let nobody = Standing::default();
    let standing = |user: &str| standings.get(user).unwrap_or(&nobody);
    let failing: Vec<_> = board.users().flat_map(|(user, _)| &standing(user).failing).collect();
    html! {
        h2 { "Can everybody's data be brought back?" }
        div.scroll tabindex="0" role="region" aria-label="Users and their data" {
            table {
                caption { "The database as it was read last, and the newest snapshots of it." }
                thead {
                    tr {
                        @for head in ["User", "Database", "Level", "At work", "History", "Size", "Sessions", "Newest snapshot", "Verified", "Opened by", "Restore proven"] {
                            th scope="col" { (head) }
                        }
                    }
                }
                tbody {
                    @for (user, probes) in board.users() {
                        tr {
                            th scope="row" { a href=(format!("/history?user={user}&kind=state")) { (user) } }
                            (database(probes))
                            (snapshots(standing(user), now))
                        }
                    }
                }
            }
        }
        @if !failing.is_empty() {
            ul { @for run in failing { (failed(run, now)) } }
        }
    }
}

fn database(probes: &board::Standing) -> Markup {
    let last = probes.last(Kind::State);
    let outcome = last.map(|last| last.run.outcome());
    let facts = probes.fact(|run| run.facts.state.as_deref());
    html! {
        @match outcome {
            None => { td.quiet { "–" } }
            Some(outcome) => { td.(class(outcome)) title=(meaning(outcome)) { (outcome.reason().unwrap_or("ok")) } }
        }
        @match facts {
            None => { @for _ in 0..5 { td.quiet { "–" } } }
            Some(facts) => {
                td.figure title=(facts.level_name) { (level(facts)) }
                td { @if facts.busy { "busy" } @else { "idle" } }
                td.figure { (facts.events) " events" small.figure { (facts.messages) " messages" } }
                td.figure { (megabytes(facts.main_bytes + facts.wal_bytes)) }
                td.figure title="live, and all rows: t3 never removes one" {
                    (facts.sessions.iter().map(|(_, live)| live).sum::<u64>()) " of " (facts.session_rows)
                }
            }
        }
    }
}

/// "30", or "32, expected 30".
fn level(facts: &StateFacts) -> String {
    match facts.expected_level {
        Some(expected) if expected != facts.level => format!("{}, expected {expected}", facts.level),
        _ => facts.level.to_string(),
    }
}

fn snapshots(standing: &Standing, now: SystemTime) -> Markup {
    let Standing { count, newest, flaw, proven, opened_by, drilled, .. } = standing;
    let builds = match opened_by.as_slice() {
        [] => String::new(),
        [only] => only.to_string(),
        [first, .., last] => format!("{first} – {last}"),
    };
    html! {
        @match newest {
            None => { td.skipped { "none" } }
            Some(newest) => {
                td.figure {
                    (ago(newest.at, now)) small.figure { (megabytes(newest.bytes)) ", 1 of " (count) }
                    @if let Some(flaw) = flaw { " " span.failed title=(flaw.meaning()) { (flaw) } }
                }
            }
        }
        @match proven {
            None => { td.skipped { "never" } td.quiet { "–" } }
            Some(proven) => {
                td.figure { (ago(proven.at, now)) }
                td.figure title=(format!("schema level {}", proven.level)) { (builds) }
            }
        }
        @match drilled {
            None => { td.skipped { "never" } }
            Some(drilled) => {
                td.figure {
                    (ago(drilled.at, now))
                    small.figure { "in " (rough(drilled.restore)) ", data " (rough(drilled.rpo)) " old" }
                }
            }
        }
    }
}

fn failed(run: &BackupRun, now: SystemTime) -> Markup {
    let Some(failure) = &run.failure else { return html! {} };
    html! {
        li.failed {
            strong { (run.user) } " " code { (run.act) } " failed " (ago(run.at, now)) ": "
            @if let Some(step) = failure.step { "at " code { (step) } ", " }
            code { (failure.flaw.map_or_else(|| failure.reason.as_str(), |flaw| flaw.as_str())) } " "
            span.quiet { (failure.detail) }
        }
    }
}

/// "12.3 MB".
#[allow(clippy::cast_precision_loss)] // One decimal is shown.
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
