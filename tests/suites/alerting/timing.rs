//! From the fault to the webhook: the promise is the rule's `for`, two evaluations and one pulse. What is Prometheus's own is
//! held exactly, by the times that it notes; the whole way by its median, and each fault by what a busy machine adds at most.

use std::time::{Duration, SystemTime};

use super::control_room::{ControlRoom, EVALUATION, FASTER, SCRAPE};
use crate::support::rules;

/// What a busy machine adds to one fault at most: processes that wait for their turn. That each `for` is what it should be
/// is held by alerts/tests; that Prometheus waits for it and no longer is held exactly beside.
const BUSY: Duration = Duration::from_secs(10);

/// A fault that a pulse can see: whom it hit, the alert that it has to become, and when it was switched on.
pub struct Seen<'a> {
    pub user: &'a str,
    pub alert: &'a str,
    pub broken: SystemTime,
}

/// The terms of the promise, as this run divides them.
struct Bound {
    hold: Duration,
    /// The next pulse has begun and ended.
    pulse: Duration,
    group_wait: Duration,
}

impl Bound {
    /// In production a scrape and the wait for the group fit into the second evaluation (a test of the routes holds
    /// that). Here the scrape is not thirty times faster, and stands for itself.
    fn all(&self) -> Duration {
        self.hold + self.pulse + SCRAPE + 2 * EVALUATION + self.group_wait
    }
}

/// Expects every notice in time, and the median where there are enough for one; `pulse` is the interval and the limit of
/// one.
pub fn hold(room: &ControlRoom, pulse: Duration, faults: &[Seen<'_>]) {
    let missed = missed_evaluations(room);
    println!("  user  alert                 for      allowed  seen     held     sent     in all");
    let mut over: Vec<Duration> = Vec::new();
    let mut whole: Vec<(Duration, Duration)> = Vec::new();
    for Seen { user, alert, broken } in faults {
        let rule = rules::all().into_iter().find(|rule| rule.alert == *alert).expect("a rule");
        let held = rules::milliseconds(&rule.hold).unwrap_or(0) / FASTER;
        let bound = Bound {
            hold: Duration::from_millis(held),
            pulse,
            group_wait: group_wait(&rule.labels["severity"]),
        };
        let notice = room.until(user, alert);
        let active = room.active_since(user, alert);
        let between = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
        let (seen, waited, sent) =
            (between(*broken, active), between(active, notice.since), between(notice.since, notice.at));
        let took = between(*broken, notice.at);
        println!(
            "  {user:<5} {alert:<20} {:>6.1?} {:>10.1?} {seen:>8.1?} {waited:>8.1?} {sent:>8.1?} {took:>8.1?}",
            bound.hold,
            bound.all()
        );
        // In the times of evaluations, which no load moves: a `for` that is wrong and an evaluation that is lost show
        // here, however fast the rest was.
        let evaluations = EVALUATION * (1 + missed);
        assert!(
            bound.hold <= waited + Duration::from_millis(1) && waited <= bound.hold + evaluations,
            "{alert} about {user} waited {waited:?} with a `for` of {:?} and {missed} evaluations missed",
            bound.hold
        );
        assert!(took <= bound.all() + BUSY, "{alert} about {user} took {took:?}, not {:?}", bound.all());
        over.push(took.saturating_sub(bound.all()));
        whole.push((took, bound.all()));
    }
    if over.len() < 3 {
        return;
    }
    over.sort();
    // Half of them in time is what a machine with other work still does, and a chain that is late by a scrape does not.
    assert_eq!(over[(over.len() - 1) / 2], Duration::ZERO, "most came late: {whole:?}");
}

/// How often Prometheus left an evaluation out because it had not ended the one before.
fn missed_evaluations(room: &ControlRoom) -> u32 {
    let text = room.prometheus.text("/metrics").expect("prometheus's own metrics");
    let lines =
        text.lines().filter(|line| line.starts_with("prometheus_rule_group_iterations_missed_total{"));
    let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok());
    counts.max().unwrap_or(0)
}

/// The wait for others of the group, as it is configured for production, divided.
fn group_wait(severity: &str) -> Duration {
    let text = std::fs::read_to_string(rules::root().join("deploy/alertmanager/alertmanager.yml"));
    let config: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text.expect("readable")).expect("YAML");
    let routes = config["route"]["routes"].as_sequence().expect("routes");
    let named = format!("severity=\"{severity}\"");
    let of_route = |route: &&serde_yaml_ng::Value| {
        route["matchers"].as_sequence().is_some_and(|all| all.iter().any(|one| *one == named.as_str()))
    };
    let own = routes.iter().find(of_route).and_then(|route| route["group_wait"].as_str());
    let wait = own.or(config["route"]["group_wait"].as_str()).and_then(rules::milliseconds);
    Duration::from_millis(wait.expect("a wait") / FASTER)
}
