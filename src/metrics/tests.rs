//! The exposition of a small world, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::*;
use crate::outcome::{
    Asker, CloseCause, CredentialState, Endpoint, Evidence, Facts, Initiator, Kind, Outcome, Place, Reason,
    Refusal, Skip, Step, StepResult, Trigger, Verb,
};

mod enforcer;
mod state;
#[path = "../../tests/support/tools.rs"]
mod tools;
mod verdicts;

const ANN: Served<'_> = Served { user: "ann", identity: "ann@example.org", port: 3801 };
const BOB: Served<'_> = Served { user: "bob", identity: "bob@example.org", port: 3802 };

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_753_000_000)
}

fn metrics_of(served: &[Served<'_>]) -> Metrics {
    let metrics = Metrics::new(Build { version: "1.2.3", revision: Some("abc1234") });
    metrics.set_users(served);
    metrics
}

fn run(user: &str, kind: Kind, steps: &[(Step, Outcome)]) -> Run {
    let steps: Vec<_> = steps
        .iter()
        .map(|&(step, outcome)| StepResult {
            step,
            outcome,
            duration: Duration::from_millis(4),
            detail: Some("a detail that must not become a label".to_owned()),
        })
        .collect();
    Run {
        user: user.to_owned(),
        kind,
        trigger: Trigger::Schedule,
        started: noon(),
        duration: Duration::from_millis(500),
        steps,
        facts: Facts::default(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
    }
}

fn pulse(user: &str, outcome: Outcome) -> Run {
    run(user, Kind::Pulse, &[(Step::Reach, Outcome::Ok), (Step::Contract, outcome)])
}

fn facts(version: &str, cookie: &str, endpoint: Option<Endpoint>) -> Facts {
    Facts { version: Some(version.to_owned()), cookie: Some(cookie.to_owned()), endpoint, ..Facts::default() }
}

/// A user with everything a user can have, failures of eight kinds included.
fn record_everything(metrics: &Metrics, user: &str) {
    metrics.record(&pulse(user, Outcome::Ok));
    for reason in [Reason::Refused, Reason::Timeout, Reason::AuthStore, Reason::Html, Reason::Closed] {
        metrics.record(&pulse(user, Outcome::Failed(reason)));
    }
    let every_step: Vec<_> = Step::ALL.iter().map(|&step| (step, Outcome::Ok)).collect();
    for &kind in Kind::ALL {
        let mut probe = run(user, kind, &every_step);
        probe.facts = Facts {
            cli_cpu: vec![(Verb::PairingCreate, Duration::from_millis(1200))],
            sessions_left: Some(1),
            ..facts("0.0.26", "t3_session", Some(Endpoint::BrowserSession))
        };
        metrics.record(&probe);
        metrics.record(&run(user, kind, &[(Step::Mint, Outcome::Skipped(Skip::VersionSkew))]));
    }
    metrics.instance.set_paused(user, true);
}

/// Everything that the dispatch counts of a user.
fn record_door(metrics: &Metrics, user: &str) {
    let door = metrics.dispatch.of_user(user);
    for asker in [Asker::User, Asker::Probe] {
        door.answered(200, asker, Some(Duration::from_millis(4)), None);
    }
    door.answered(101, Asker::User, None, None);
    door.paired(Endpoint::BrowserSession, Duration::from_millis(8), None);
    door.pairing_failed(Step::Contract, Reason::AuthStore);
    door.websocket_opened();
    door.websocket_closed(Initiator::Client, CloseCause::GoingAway, Duration::from_secs(3600), None);
}

fn small_world() -> Metrics {
    let metrics = metrics_of(&[ANN, BOB]);
    record_everything(&metrics, "ann");
    state::record_state(&metrics, "ann");
    metrics.backup.set_intervals(Duration::from_secs(6 * 3600), Duration::from_secs(24 * 3600));
    metrics.dispatch.start();
    metrics.dispatch.refused(Refusal::UnknownIdentity);
    record_door(&metrics, "ann");
    metrics.record(&pulse("bob", Outcome::Skipped(Skip::Starting)));
    metrics.inventory.set_findings(&[("port_differs", 2), ("user_without_instance", 0)]);
    let known = [(Place::Installed, "0.0.26".to_owned()), (Place::Pinned, "0.0.24".to_owned())];
    metrics.version.state(&known, &[(Place::Installed, None), (Place::Pinned, Some(noon()))]);
    metrics.version.set_skew("ann", Some(noon()));
    let end = Some((noon() + Duration::from_secs(3600), Evidence::Mtime, noon()));
    let standing = CredentialState::ExpiresIn7Days;
    metrics.credential.state(&[Stands { name: "registry", user: None, standing, known: end }]);
    verdicts::record(&metrics);
    enforcer::record(&metrics);
    metrics.inventory.reloaded(true, noon());
    metrics.prober.config_reloaded(true, noon());
    metrics.prober.config_reloaded(false, noon() + Duration::from_secs(60));
    metrics.prober.set_handshake_interval(Duration::from_secs(720), Duration::from_secs(600));
    metrics.prober.set_history(1, 2, 40_960);
    metrics.prober.spool_event("login");
    metrics.prober.spool_rejected();
    metrics
}

/// The samples of a document: everything before the value → the value.
fn samples(document: &str) -> BTreeMap<&str, &str> {
    let lines = document.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).collect()
}

fn sample(metrics: &Metrics, series: &str) -> Option<f64> {
    let document = metrics.render(Format::Classic).concat();
    samples(&document).get(series).map(|value| value.parse().expect("a value is a number"))
}

/// Everything but what differs from one process to the next.
fn without_process(document: &str) -> String {
    let lines = document.lines().filter(|line| !line.contains("process_"));
    lines.fold(String::new(), |kept, line| kept + line + "\n")
}

#[test]
fn a_small_world_in_the_classic_format() {
    insta::assert_snapshot!(without_process(&small_world().render(Format::Classic).concat()));
}

#[test]
fn a_small_world_in_open_metrics() {
    insta::assert_snapshot!(without_process(&small_world().render(Format::OpenMetrics).concat()));
}

#[test]
fn both_formats_hold_the_same_samples_but_for_exemplars() {
    let metrics = small_world();
    let open_metrics = metrics.render(Format::OpenMetrics).concat();
    let classic = metrics.render(Format::Classic).concat();
    let (plain, with_exemplars): (Vec<_>, Vec<_>) = open_metrics
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("process_"))
        .partition(|line| !line.contains(" # {"));
    assert!(!with_exemplars.is_empty());
    assert!(
        with_exemplars
            .iter()
            .all(|line| line.contains(r#" # {trace_id="0af7651916cd43dd8448eb211c80319c"} "#))
    );
    for line in plain {
        assert!(classic.contains(&format!("{line}\n")), "not in the classic format: {line}");
    }
    assert!(!classic.contains("trace_id"));
    assert!(!classic.contains("# UNIT") && !classic.contains("# EOF"));
    assert!(open_metrics.ends_with("# EOF\n"));
}

#[test]
fn promtool_has_nothing_to_say_about_the_classic_format() {
    let Some(promtool) = tools::find("promtool") else { return };
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    let odd = Served { user: "cid", identity: ODD_IDENTITY, port: 3803 };
    let metrics = small_world();
    metrics.set_users(&[ANN, BOB, odd]);
    let document = metrics.render(Format::Classic).concat();
    check.stdin.take().expect("stdin is piped").write_all(document.as_bytes()).expect("promtool reads");
    let output = check.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "promtool check metrics: {said}");
}

#[test]
fn prometheus_parses_the_open_metrics_format() {
    let Some(promtool) = tools::find("promtool") else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let odd = Served { user: "cid", identity: ODD_IDENTITY, port: 3803 };
    let metrics = small_world();
    metrics.set_users(&[ANN, BOB, odd]);
    // promtool reads the format only as a backfill, where every sample has a time.
    let mut document = String::new();
    for line in metrics.render(Format::OpenMetrics).concat().lines() {
        let (sample, exemplar) = line.split_at(line.find(" # {").unwrap_or(line.len()));
        let odd = line.contains(" # {y}");
        match line {
            _ if line.starts_with('#') => document += line,
            _ if odd => document += &format!("{line} 1753000000"),
            _ => document += &format!("{sample} 1753000000{exemplar}"),
        }
        document.push('\n');
    }
    let file = dir.path().join("metrics.om");
    std::fs::write(&file, document).expect("the temporary directory is writable");
    let output = Command::new(promtool)
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&file, &dir.path().join("blocks")])
        .output()
        .expect("promtool starts");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool tsdb create-blocks-from openmetrics: {said}");
}

const ODD_IDENTITY: &str = "c\"i\\d\n # {y} 1";

#[test]
fn an_identity_with_quotes_newlines_and_backslashes_is_escaped_in_both_formats() {
    let metrics = metrics_of(&[Served { user: "cid", identity: ODD_IDENTITY, port: 3803 }]);
    let expected = r#"t3_user_info{user="cid",identity="c\"i\\d\n # {y} 1",port="3803"} 1"#;
    for format in [Format::Classic, Format::OpenMetrics] {
        let document = metrics.render(format).concat();
        assert!(document.lines().any(|line| line == expected), "{document}");
    }
}

#[test]
fn a_user_begins_with_every_kind_and_outcome_at_zero_and_nothing_claimed() {
    let metrics = metrics_of(&[ANN]);
    let document = metrics.render(Format::Classic).concat();
    let of_ann: Vec<_> =
        samples(&document).into_iter().filter(|(series, _)| series.contains(r#"user="ann""#)).collect();
    let runs =
        of_ann.iter().filter(|(series, value)| series.starts_with("t3_probe_runs_total{") && *value == "0");
    assert_eq!(runs.count(), Kind::ALL.len() * crate::outcome::Ended::ALL.len());
    let is_count = |series: &str| {
        series.starts_with("t3_probe_runs_total{") || series.starts_with("t3_backup_runs_total{")
    };
    let others: Vec<_> = of_ann.iter().filter(|(series, _)| !is_count(series)).collect();
    assert_eq!(others.len(), 2, "only t3_user_info and t3_user_paused: {others:?}");
}

#[test]
fn every_series_of_a_user_who_is_gone_vanishes_and_a_late_probe_brings_none_back() {
    let metrics = metrics_of(&[ANN, BOB]);
    record_everything(&metrics, "ann");
    record_everything(&metrics, "bob");
    state::record_state(&metrics, "ann");
    metrics.set_users(&[BOB]);
    record_everything(&metrics, "ann");
    state::record_state(&metrics, "ann");
    let document = metrics.render(Format::OpenMetrics).concat();
    assert!(!document.contains("\"ann\"") && !document.contains("ann@"), "{document}");
    assert!(document.contains("t3_probe_ok{user=\"bob\""));

    metrics.set_users(&[ANN, BOB]);
    assert_eq!(sample(&metrics, r#"t3_probe_runs_total{user="ann",kind="pulse",outcome="ok"}"#), Some(0.0));
}

#[test]
fn a_user_who_stays_keeps_their_counts_and_shows_their_new_port() {
    let metrics = metrics_of(&[ANN]);
    metrics.record(&pulse("ann", Outcome::Ok));
    metrics.set_users(&[Served { port: 3999, ..ANN }, BOB]);
    assert_eq!(sample(&metrics, r#"t3_probe_runs_total{user="ann",kind="pulse",outcome="ok"}"#), Some(1.0));
    let document = metrics.render(Format::Classic).concat();
    let infos = document.lines().filter(|line| line.starts_with(r#"t3_user_info{user="ann""#));
    assert_eq!(
        infos.collect::<Vec<_>>(),
        [r#"t3_user_info{user="ann",identity="ann@example.org",port="3999"} 1"#]
    );
}

#[test]
fn a_skipped_probe_is_neither_well_nor_failed_and_leaves_the_last_definite_answer() {
    let metrics = metrics_of(&[ANN]);
    let (ok, skipped) =
        (r#"t3_probe_ok{user="ann",kind="pulse"}"#, r#"t3_probe_skipped{user="ann",kind="pulse"}"#);
    metrics.record(&pulse("ann", Outcome::Skipped(Skip::Starting)));
    assert_eq!((sample(&metrics, ok), sample(&metrics, skipped)), (None, Some(1.0)));
    metrics.record(&pulse("ann", Outcome::Failed(Reason::AuthStore)));
    assert_eq!((sample(&metrics, ok), sample(&metrics, skipped)), (Some(0.0), Some(0.0)));
    metrics.record(&pulse("ann", Outcome::Skipped(Skip::NotRunning)));
    assert_eq!((sample(&metrics, ok), sample(&metrics, skipped)), (Some(0.0), Some(1.0)));
    metrics.record(&pulse("ann", Outcome::Ok));
    assert_eq!((sample(&metrics, ok), sample(&metrics, skipped)), (Some(1.0), Some(0.0)));
}

#[test]
fn what_a_user_fails_by_is_one_series_at_one_and_a_skip_does_not_end_it() {
    let metrics = metrics_of(&[ANN]);
    let failing = |reason: &str| {
        let labels = format!(r#"user="ann",kind="pulse",step="contract",reason="{reason}""#);
        sample(&metrics, &format!("t3_probe_failing{{{labels}}}"))
    };
    metrics.record(&pulse("ann", Outcome::Failed(Reason::AuthStore)));
    assert_eq!((failing("auth_store"), failing("locked")), (Some(1.0), None));
    metrics.record(&pulse("ann", Outcome::Skipped(Skip::Starting)));
    assert_eq!(failing("auth_store"), Some(1.0), "a skip tells nothing");
    metrics.record(&pulse("ann", Outcome::Failed(Reason::Locked)));
    assert_eq!((failing("auth_store"), failing("locked")), (Some(0.0), Some(1.0)));
    metrics.record(&run("ann", Kind::Handshake, &[(Step::Mint, Outcome::Ok)]));
    assert_eq!(failing("locked"), Some(1.0), "another kind of probe says nothing of this one");
    metrics.record(&pulse("ann", Outcome::Ok));
    assert_eq!(failing("locked"), Some(0.0), "an end is said, not left to a gap");
}

#[test]
fn why_a_probe_was_skipped_ends_with_the_next_probe_that_was_not() {
    let metrics = metrics_of(&[ANN]);
    let skipping = r#"t3_probe_skipping{user="ann",kind="pulse",step="contract",reason="starting"}"#;
    metrics.record(&pulse("ann", Outcome::Skipped(Skip::Starting)));
    assert_eq!(sample(&metrics, skipping), Some(1.0));
    metrics.record(&pulse("ann", Outcome::Failed(Reason::Locked)));
    assert_eq!(sample(&metrics, skipping), Some(0.0));
}

#[test]
fn the_time_of_the_last_success_stands_while_probes_fail() {
    let metrics = metrics_of(&[ANN]);
    let last_run = r#"t3_probe_last_run_timestamp_seconds{user="ann",kind="pulse"}"#;
    let last_success = r#"t3_probe_last_success_timestamp_seconds{user="ann",kind="pulse"}"#;
    metrics.record(&pulse("ann", Outcome::Ok));
    let later =
        Run { started: noon() + Duration::from_secs(5), ..pulse("ann", Outcome::Failed(Reason::Closed)) };
    metrics.record(&later);
    assert_eq!(sample(&metrics, last_success), Some(1_753_000_000.5));
    assert_eq!(sample(&metrics, last_run), Some(1_753_000_005.5));
}

#[test]
fn a_skipped_step_has_no_duration_and_every_failed_step_is_counted_with_its_reason() {
    let metrics = metrics_of(&[ANN]);
    metrics.record(&run(
        "ann",
        Kind::Handshake,
        &[
            (Step::Mint, Outcome::Failed(Reason::CliFailed)),
            (Step::Exchange, Outcome::Skipped(Skip::EarlierStep)),
            (Step::Revoke, Outcome::Failed(Reason::Locked)),
        ],
    ));
    let failures = |step, reason| {
        sample(&metrics, &format!(r#"t3_probe_failures_total{{user="ann",step="{step}",reason="{reason}"}}"#))
    };
    assert_eq!(failures("mint", "cli_failed"), Some(1.0));
    assert_eq!(failures("revoke", "locked"), Some(1.0));
    let last = |step| {
        sample(&metrics, &format!(r#"t3_probe_last_step_duration_seconds{{user="ann",step="{step}"}}"#))
    };
    assert_eq!((last("mint"), last("exchange")), (Some(0.004), None));
    let count = |step| sample(&metrics, &format!(r#"t3_probe_step_duration_seconds_count{{step="{step}"}}"#));
    assert_eq!((count("mint"), count("exchange")), (Some(1.0), Some(0.0)));
}

#[test]
fn an_instance_has_one_info_series_and_a_new_version_forgets_the_old_ones_endpoint() {
    let metrics = metrics_of(&[ANN]);
    let infos = || -> Vec<String> {
        let document = metrics.render(Format::Classic).concat();
        document.lines().filter(|line| line.starts_with("t3_instance_info{")).map(str::to_owned).collect()
    };
    let learn = |facts| metrics.record(&Run { facts, ..pulse("ann", Outcome::Ok) });
    assert_eq!(infos(), [""; 0]);
    learn(facts("0.0.24", "t3_session", Some(Endpoint::Bootstrap)));
    learn(Facts::default());
    learn(facts("0.0.24", "t3_session", None));
    assert_eq!(
        infos(),
        [r#"t3_instance_info{user="ann",version="0.0.24",cookie="t3_session",endpoint="bootstrap"} 1"#]
    );
    learn(facts("0.0.33", "t3_session_3801_ab", None));
    assert_eq!(
        infos(),
        [r#"t3_instance_info{user="ann",version="0.0.33",cookie="t3_session_3801_ab",endpoint=""} 1"#]
    );
}

#[test]
fn an_instance_that_says_a_great_deal_of_itself_is_cut_short() {
    let metrics = metrics_of(&[ANN]);
    metrics.record(&Run { facts: facts(&"é".repeat(100_000), "c", None), ..pulse("ann", Outcome::Ok) });
    let expected = format!(r#"version="{}","#, "é".repeat(64));
    assert!(metrics.render(Format::Classic).concat().contains(&expected));
}

#[test]
fn a_finding_that_is_not_named_any_more_is_zero() {
    let metrics = metrics_of(&[]);
    metrics.inventory.set_findings(&[("port_differs", 2)]);
    metrics.inventory.set_findings(&[("shared_port", 1)]);
    assert_eq!(sample(&metrics, r#"t3_inventory_findings{finding="port_differs"}"#), Some(0.0));
    assert_eq!(sample(&metrics, r#"t3_inventory_findings{finding="shared_port"}"#), Some(1.0));
}

#[test]
fn a_failed_reload_leaves_the_time_of_the_last_good_one() {
    let metrics = metrics_of(&[]);
    let ok = "t3_prober_inventory_last_reload_successful";
    let at = "t3_prober_inventory_last_reload_success_timestamp_seconds";
    assert_eq!((sample(&metrics, ok), sample(&metrics, at)), (None, None));
    metrics.inventory.reloaded(true, noon());
    metrics.inventory.reloaded(false, noon() + Duration::from_secs(9));
    assert_eq!((sample(&metrics, ok), sample(&metrics, at)), (Some(0.0), Some(1_753_000_000.0)));
}

#[test]
fn the_process_is_read_at_the_scrape() {
    let metrics = metrics_of(&[]);
    for name in [
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_threads",
    ] {
        assert!(sample(&metrics, name).is_some_and(|value| value >= 0.0), "{name}");
    }
    let started = sample(&metrics, "process_start_time_seconds").expect("the start is known");
    let now = series::unix_seconds(SystemTime::now());
    assert!((now - 86_400.0..=now + 1.0).contains(&started), "started {started}, now {now}");
    let before = sample(&metrics, "process_open_fds").expect("the descriptors can be counted");
    let held: Vec<_> =
        (0..64).map(|_| std::fs::File::open("/dev/null").expect("there is a null device")).collect();
    let after = sample(&metrics, "process_open_fds").expect("the descriptors can be counted");
    assert!(after > before, "{before} → {after} with {} more open", held.len());
}

#[test]
fn every_sample_is_in_the_reference_with_exactly_its_labels() {
    let metrics = small_world();
    let known: BTreeMap<_, BTreeSet<_>> = metrics
        .book
        .entries
        .iter()
        .map(|entry| (entry.name, entry.labels.iter().map(|label| label.name).collect()))
        .collect();
    let document = metrics.render(Format::Classic).concat();
    let mut seen = BTreeSet::new();
    for series in samples(&document).into_keys() {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let name = histogram.unwrap_or(name);
        let labels: BTreeSet<_> = labels
            .trim_end_matches('}')
            .split(',')
            .filter_map(|label| label.split_once('=').map(|(label, _)| label))
            .filter(|label| *label != "le")
            .collect();
        assert_eq!(known.get(name), Some(&labels), "{series}");
        seen.insert(name);
    }
    // A process without a limit on its descriptors has none to show.
    seen.insert("process_max_fds");
    assert_eq!(known.into_keys().collect::<BTreeSet<_>>(), seen, "the small world shows every metric");
}

#[test]
fn every_help_is_plain_text_and_every_name_is_unique_and_says_its_type() {
    let mut names = BTreeSet::new();
    for entry in Metrics::new(Build::THIS).book.entries {
        let name = entry.name;
        assert!(names.insert(name), "{name} is registered twice");
        assert!(
            !entry.help.is_empty() && !entry.help.ends_with('.'),
            "{name}: the library adds the full stop"
        );
        // The two formats escape differently; text without these characters reads the same in both.
        assert!(!entry.help.contains(['\\', '"', '\n', '|']), "{name}: {}", entry.help);
        assert!(!entry.help.contains("  "), "{name}: {}", entry.help);
        let is = |wanted: &str| entry.kind.as_str() == wanted;
        assert_eq!(name.ends_with("_total"), is("counter"), "{name}");
        assert_eq!(name.ends_with("_info"), is("info"), "{name}");
        assert_ne!(reference::group(name), "", "{name} belongs to no group of METRICS.md");
    }
}

/// Of the 150 series that a user may have, 100 are these groups' share, the dispatch comes to about 40, and the rest is
/// the enforcer's.
#[test]
fn a_user_with_failures_of_many_kinds_stays_within_their_share_of_series() {
    let metrics = small_world();
    let document = metrics.render(Format::Classic).concat();
    let (door, of_ann): (Vec<_>, Vec<_>) = samples(&document)
        .into_keys()
        .filter(|series| series.contains(r#"user="ann""#))
        .partition(|series| series.starts_with("t3_dispatch_"));
    assert!((70..=100).contains(&of_ann.len()), "{} series", of_ann.len());
    // Failures and ends of more kinds come to their share with time.
    assert!(door.len() <= 28, "{} series of the dispatch", door.len());
}
