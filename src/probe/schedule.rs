//! When the next probe is due: plain functions of their arguments, the clock included.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

/// How far into its first interval a user's first probe lies: from a hash of the name, so that a fleet's probes are
/// spread evenly and a restart does not shuffle them.
pub fn phase(name: &str, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    // The top 32 bits as a fraction of the interval.
    let fraction = f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0);
    interval.mul_f64(fraction)
}

/// When the probe after one that was due at `due` is due: on the same beat, and never in the past.
pub fn next(due: Instant, interval: Duration, now: Instant) -> Instant {
    let mut next = due + interval;
    if next <= now {
        let missed = now.duration_since(due).as_nanos() / interval.as_nanos().max(1);
        next = due + interval * u32::try_from(missed + 1).unwrap_or(u32::MAX);
    }
    next
}

/// The interval that `users` handshakes of the given typical length really fit into, `concurrent` at a time, with a
/// fifth of the time to spare. Never below what was configured.
pub fn stretched(configured: Duration, users: usize, typical: Duration, concurrent: usize) -> Duration {
    let users = u32::try_from(users).unwrap_or(u32::MAX);
    let concurrent = u32::try_from(concurrent.max(1)).unwrap_or(u32::MAX);
    let needed = (typical * users.div_ceil(concurrent)).mul_f64(1.25);
    configured.max(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: Duration = Duration::from_secs(5);

    #[test]
    fn first_probes_are_spread_evenly_over_the_interval() {
        let mut tenths = [0; 10];
        for user in 0..1000 {
            let phase = phase(&format!("user{user}"), FIVE);
            assert!(phase < FIVE);
            tenths[usize::try_from(phase.as_millis() / 500).expect("a tenth")] += 1;
        }
        assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
    }

    #[test]
    fn the_phase_of_a_user_is_always_the_same() {
        assert_eq!(phase("ann", FIVE), phase("ann", FIVE));
        assert_ne!(phase("ann", FIVE), phase("bob", FIVE));
    }

    #[test]
    fn a_late_probe_keeps_its_beat_and_is_not_repeated() {
        let due = Instant::now();
        assert_eq!(next(due, FIVE, due + Duration::from_secs(1)), due + FIVE);
        assert_eq!(next(due, FIVE, due + Duration::from_secs(12)), due + Duration::from_secs(15));
        assert_eq!(next(due, FIVE, due + Duration::from_secs(15)), due + Duration::from_secs(20));
    }

    #[test]
    fn handshakes_that_do_not_fit_stretch_the_interval() {
        let ten_minutes = Duration::from_secs(600);
        assert_eq!(stretched(ten_minutes, 25, Duration::from_millis(50), 4), ten_minutes);
        assert_eq!(stretched(ten_minutes, 1000, Duration::from_secs(2), 1), Duration::from_secs(2500));
    }
}
