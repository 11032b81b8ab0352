//! What is next to worry about while all is well: of everything that has a deadline, the one that comes first.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use super::page::ago;
use crate::backup::{Section, Standing};
use crate::credential::Watch;

/// Something that will be wrong at a time if nobody does anything, or that is odd since then.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Worry {
    what: String,
    at: SystemTime,
}

/// The sentence; nothing where nothing has a deadline. It stands below the headline and not in it: a screen reader would
/// be told each time that the time in it changes.
pub fn next(
    differences: &[(String, SystemTime)],
    credentials: &Watch,
    standings: &BTreeMap<String, Standing>,
    section: &Section,
    now: SystemTime,
) -> Markup {
    let known = credentials.all().iter().filter_map(|watched| {
        let at = watched.known?.expiry.at;
        Some(Worry { what: format!("{} ends", watched.credential), at })
    });
    let differ =
        differences.iter().map(|(sentence, since)| Worry { what: format!("{sentence}, seen"), at: *since });
    let snapshots = standings.iter().flat_map(|(user, standing)| of_snapshots(user, standing, section, now));
    let first = known.chain(differ).chain(snapshots).min_by_key(|worry| worry.at);
    html! {
        @if let Some(Worry { what, at }) = first {
            p.next { "Next to worry about: " (what) " " (ago(at, now)) "." }
        }
    }
}

/// A snapshot is late after two intervals, and so is the proof that one restores.
fn of_snapshots(user: &str, standing: &Standing, section: &Section, now: SystemTime) -> Vec<Worry> {
    let Some(newest) = &standing.newest else { return Vec::new() };
    let due = |interval: Duration, last: Option<SystemTime>, what: &str| {
        let at = last.map_or(now, |last| last + 2 * interval);
        (!interval.is_zero()).then(|| Worry { what: format!("{what} of {user} is late"), at })
    };
    let proven = standing.drilled.as_ref().map(|drilled| drilled.at);
    [
        due(section.interval, Some(newest.at), "the next snapshot"),
        due(section.drill_interval, proven, "the next proof that a restore works"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A whole second, as files have it.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * 500_000
    }

    fn standing(now: SystemTime, taken: u32, drilled: Option<u32>) -> Standing {
        let at = |hours: u32| humantime::format_rfc3339(now - HOUR * hours).to_string();
        let drilled =
            drilled.map(|hours| json!({ "at": at(hours), "restore_seconds": 1.0, "rpo_seconds": 1.0 }));
        let newest = json!({ "at": at(taken), "bytes": 1, "level": 30 });
        serde_json::from_value(json!({ "newest": newest, "drilled": drilled })).expect("a standing")
    }

    fn said(standings: &[(&str, Standing)], differences: &[(String, SystemTime)], now: SystemTime) -> String {
        let standings =
            standings.iter().map(|(user, standing)| ((*user).to_owned(), standing.clone())).collect();
        let section = Section::default();
        next(differences, &Watch::default(), &standings, &section, now).into_string()
    }

    #[test]
    fn the_deadline_that_comes_first_is_named_with_its_user() {
        let now = now();
        // A snapshot is due every 6 h, a drill once a day.
        let all = [("ann", standing(now, 1, Some(1))), ("bob", standing(now, 2, Some(45)))];
        let text = said(&all, &[], now);
        assert!(
            text.contains("the next proof that a restore works of bob is late") && text.contains("in 3 h"),
            "{text}"
        );
        let all = [("ann", standing(now, 11, Some(1))), ("bob", standing(now, 2, Some(3)))];
        let text = said(&all, &[], now);
        assert!(text.contains("the next snapshot of ann is late") && text.contains("in 60 min"), "{text}");
    }

    #[test]
    fn what_was_never_proven_and_what_differs_already_come_before_any_deadline() {
        let now = now();
        let never = [("ann", standing(now, 1, None))];
        let text = said(&never, &[], now);
        assert!(text.contains("proof that a restore works of ann"), "{text}");
        let text = said(&never, &[("bob runs 0.0.24, installed is 0.0.26".to_owned(), now - HOUR * 5)], now);
        assert!(text.contains("bob runs 0.0.24") && text.contains("5 h ago"), "{text}");
    }

    #[test]
    fn where_nothing_has_a_deadline_nothing_is_said() {
        assert_eq!(said(&[("ann", Standing::default())], &[], now()), "");
    }
}
