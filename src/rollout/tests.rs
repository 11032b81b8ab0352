//! What is decided from which numbers.

use super::*;

const NOW: u64 = 1_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);

fn login(user: &str, minutes_ago: u64, version: Option<&str>, is_ok: bool) -> Login {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW - minutes_ago * 60);
    Login { user: user.to_owned(), at, is_ok, count: 1, version: version.map(str::to_owned) }
}

fn decided(logins: Vec<Login>) -> (Decision, Basis) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    let judged = judge("0.0.33", observe("0.0.33", logins, now, DAY), &Section::default());
    (judged.decision, judged.basis)
}

/// A good hour on the old build, then these on the new one, oldest first, five minutes apart.
fn after_a_good_hour(user: &str, outcomes: &[bool]) -> Vec<Login> {
    let before = (0..6).map(|index| login(user, 120 - index * 10, Some("0.0.26"), true));
    let count = outcomes.len() as u64;
    let after = outcomes.iter().zip(0..).map(move |(is_ok, index)| {
        login(user, (count - index) * 5, (index == 0).then_some("0.0.33"), *is_ok)
    });
    before.chain(after).collect()
}

#[test]
fn as_good_as_before_for_long_enough_and_often_enough_is_promoted() {
    assert_eq!(decided(after_a_good_hour("ann", &[true; 4])), (Decision::Promote, Basis::AsGood));
    assert_eq!(decided(after_a_good_hour("ann", &[true; 2])), (Decision::Hold, Basis::TooLittle));
    let soon = (0..4).map(|_| login("ann", 3, Some("0.0.33"), true)).collect();
    assert_eq!(decided(soon), (Decision::Hold, Basis::Soaking));
    assert_eq!(decided(Vec::new()), (Decision::Hold, Basis::NotInUse));
}

#[test]
fn one_user_who_fails_again_and_again_rolls_back_though_all_others_are_well() {
    let mut logins = after_a_good_hour("ann", &[false, false]);
    for user in ["bob", "cid"] {
        logins.extend(after_a_good_hour(user, &[true; 20]));
    }
    assert_eq!(decided(logins), (Decision::RollBack, Basis::ConsecutiveLimit));
    let once = after_a_good_hour("ann", &[true, false, true, true]);
    assert_eq!(decided(once), (Decision::Promote, Basis::AsGood), "one failure is an accident");
}

#[test]
fn more_failures_than_the_limit_and_than_before_roll_back() {
    let scattered = [false, true, false, true, false, true];
    assert_eq!(decided(after_a_good_hour("ann", &scattered)), (Decision::RollBack, Basis::FailureLimit));
}

#[test]
fn what_failed_before_as_well_is_not_the_builds_fault() {
    let before = (0..6).map(|index| login("ann", 120 - index * 10, Some("0.0.26"), false));
    let after = (0..6).map(|index| login("ann", 40 - index * 5, Some("0.0.33"), false));
    assert_eq!(decided(before.chain(after).collect()), (Decision::Hold, Basis::AsBadBefore));
    let nothing = (0..6).map(|index| login("ann", 40 - index * 5, Some("0.0.33"), false)).collect();
    assert_eq!(decided(nothing), (Decision::Hold, Basis::NothingBefore));
}

#[test]
fn a_login_that_does_not_tell_its_version_belongs_to_what_was_told_before_it() {
    let mut logins = after_a_good_hour("ann", &[true, true, true]);
    logins.push(login("ann", 70, None, false));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    let observed = observe("0.0.33", logins, now, DAY);
    assert_eq!(observed.users["ann"].before, Tally { ok: 6, failed: 1 });
    assert_eq!(observed.users["ann"].after, Tally { ok: 3, failed: 0 });
    assert_eq!(observed.in_use, Some(Duration::from_secs(900)));
}

#[test]
fn whoever_was_brought_back_has_no_part_in_how_it_goes_now() {
    let mut logins = after_a_good_hour("ann", &[false, false, false]);
    logins.push(login("ann", 1, Some("0.0.26"), true));
    assert_eq!(decided(logins.clone()), (Decision::Hold, Basis::NotInUse));
    // And a second try begins anew.
    logins.extend([login("ann", 0, Some("0.0.33"), true)]);
    assert_eq!(decided(logins).1, Basis::TooLittle);
}

/// A login in each of these minutes ago, one in so many failed.
fn flaky(user: &str, version: &str, minutes_ago: std::ops::Range<u64>, one_in: u64) -> Vec<Login> {
    minutes_ago.map(|minutes| login(user, minutes, Some(version), minutes % one_in != 45)).collect()
}

#[test]
fn a_build_that_is_better_than_before_is_not_rolled_back_because_a_day_passes() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    for hours in 1..60 {
        let upgraded = hours * 60;
        let mut logins = flaky("ann", "0.0.26", upgraded..upgraded + 3 * 1440, 70);
        logins.extend(flaky("ann", "0.0.33", 0..upgraded, 100));
        // As much as is read.
        logins.retain(|login| login.at >= now - Section::default().reach());
        let observed = observe("0.0.33", logins, now, DAY);
        let before = observed.users["ann"].before.all();
        assert_eq!(before, if hours <= 24 { 1440 } else { 0 }, "after {hours} h");
        let judged = judge("0.0.33", observed, &Section::default());
        assert_ne!(judged.decision, Decision::RollBack, "after {hours} h: {judged:?}");
    }
}

#[test]
fn whose_time_before_is_over_is_no_evidence_beside_those_whose_is_not() {
    // Ann has run it for longer than a window, and fails now and then as she always has.
    let mut logins = flaky("ann", "0.0.26", 1500..2880, 100);
    logins.extend(flaky("ann", "0.0.33", 0..1500, 100));
    logins.extend((60..600).map(|minutes| login("bob", minutes, Some("0.0.26"), true)));
    logins.extend((0..60).map(|minutes| login("bob", minutes, Some("0.0.33"), true)));
    assert_eq!(decided(logins), (Decision::Hold, Basis::NothingBefore));
}

#[test]
fn a_few_logins_before_are_nothing_to_compare_with() {
    let few = |before: u64| {
        let mut logins: Vec<_> =
            (0..before).map(|index| login("ann", 100 + index, Some("0.0.26"), true)).collect();
        logins.extend((0..9).map(|index| login("ann", index * 5, Some("0.0.33"), index % 2 == 0)));
        decided(logins)
    };
    assert_eq!(few(2), (Decision::Hold, Basis::NothingBefore));
    assert_eq!(few(3), (Decision::RollBack, Basis::FailureLimit));
}
