//! What differs between two builds, in words: only what both of them showed.

use crate::gate::evidence::{Facts, SeedEvidence};
use crate::outcome::Rehearsal;

/// The differences that the rehearsals on any seed showed, each once.
pub fn between(seeds: &[SeedEvidence]) -> Vec<String> {
    let mut found = Vec::new();
    for seed in seeds {
        let facts = |rehearsal| seed.of(rehearsal).map(|rehearsed| &rehearsed.facts);
        let (Some(control), Some(candidate)) = (facts(Rehearsal::Control), facts(Rehearsal::Candidate))
        else {
            continue;
        };
        for difference in contract(control, candidate).chain(schema(seed, control, candidate)) {
            if !found.contains(&difference) {
                found.push(difference);
            }
        }
    }
    found
}

fn contract(control: &Facts, candidate: &Facts) -> impl Iterator<Item = String> {
    let pairs = [
        ("exchange endpoint", &control.exchange, &candidate.exchange),
        ("WebSocket ticket endpoint", &control.ticket, &candidate.ticket),
        ("cookie", &control.cookie, &candidate.cookie),
        ("cookie on loopback", &control.cookie_on_loopback, &candidate.cookie_on_loopback),
    ];
    let differs = |(what, before, after): (&str, &Option<String>, &Option<String>)| {
        let (before, after) = (before.as_ref()?, after.as_ref()?);
        (before != after).then(|| format!("{what} {before} → {after}"))
    };
    pairs.map(differs).into_iter().flatten()
}

/// The level a user's database has now and will have; whether sessions survive is what the skew showed.
fn schema(seed: &SeedEvidence, control: &Facts, candidate: &Facts) -> Option<String> {
    let before = seed.seed.level.or(control.level)?;
    let after = candidate.level.filter(|after| *after != before)?;
    let sessions = seed.of(Rehearsal::Skew).and_then(|skew| skew.facts.sessions);
    let drops = sessions.is_some_and(|(before, after)| after < before);
    Some(format!("schema {before} → {after}{}", if drops { ": drops sessions" } else { "" }))
}
