//! The status page's part about long-lived credentials: when each ends, how that is known, the most urgent first.

use std::time::SystemTime;

use maud::{Markup, html};

use super::page::ago;
use crate::credential::{Watch, Watched};
use crate::outcome::CredentialState;

pub fn credentials(watch: &Watch, now: SystemTime) -> Markup {
    let mut all: Vec<_> = watch.all().iter().map(|watched| (watched.state(now), watched)).collect();
    all.sort_by_key(|(state, watched)| (*state, watched.known.map(|known| known.expiry.at)));
    html! {
        @if !all.is_empty() {
            h2 { "Credentials" }
            ul { @for (state, watched) in all { (line(state, watched, now)) } }
        }
    }
}

fn line(state: CredentialState, watched: &Watched, now: SystemTime) -> Markup {
    html! {
        li {
            strong { (watched.credential) } " " span.(class(state)) title=(state.meaning()) { (words(state)) }
            @if let Some(known) = watched.known {
                ": " @if known.expiry.at > now { "ends " } @else { "ended " }
                (ago(known.expiry.at, now)) (known.expiry.qualifier())
            }
            @if let Some(trouble) = &watched.trouble {
                ". " @if let Some(known) = watched.known { "Last confirmed " (ago(known.seen, now)) "; now " }
                span.failed { (trouble) }
            }
        }
    }
}

/// The state's word, as people write it.
fn words(state: CredentialState) -> String {
    state.as_str().replace('_', " ")
}

fn class(state: CredentialState) -> &'static str {
    match state {
        CredentialState::Expired | CredentialState::ExpiresIn7Days => "failed",
        CredentialState::NeverSeen | CredentialState::WatchStale | CredentialState::ExpiresIn30Days => {
            "skipped"
        }
        CredentialState::Valid => "ok",
    }
}
