//! What is exported of databases and snapshots.

use super::*;
use crate::outcome::{BackupAct, BackupFailure, BackupRun, Flaw, SessionKind, StateFacts};

/// A database that was migrated past the running version, with tables that have grown.
fn migrated() -> StateFacts {
    StateFacts {
        level: 32,
        level_name: "AuthAuthorizationScopes".to_owned(),
        expected_level: Some(30),
        busy: true,
        turns: 1,
        approvals: 0,
        providers: 0,
        sessions: SessionKind::ALL.iter().map(|kind| (*kind, 2)).collect(),
        links: 1,
        session_rows: 900,
        link_rows: 1200,
        main_bytes: 40_960,
        wal_bytes: 4_152,
        events: 193,
        messages: 54,
        last_sequence: 193,
    }
}

fn backup(user: &str, act: BackupAct, failure: Option<(Reason, Option<Flaw>)>) -> BackupRun {
    BackupRun {
        user: user.to_owned(),
        act,
        at: noon(),
        duration: Duration::from_secs(1),
        snapshot: None,
        failure: failure.map(|(reason, flaw)| BackupFailure {
            step: None,
            flaw,
            reason,
            detail: "a detail that must not become a label".to_owned(),
        }),
    }
}

/// Everything that is known of a user's database and snapshots.
pub fn record_state(metrics: &Metrics, user: &str) {
    let mut look = run(user, Kind::State, &[(Step::Database, Outcome::Failed(Reason::SchemaAhead))]);
    look.facts.state = Some(Box::new(migrated()));
    metrics.record(&look);
    metrics.backup.record(&backup(user, BackupAct::Take, None));
    let verified = backup(user, BackupAct::Verify, Some((Reason::Corrupt, Some(Flaw::Page))));
    metrics.backup.record(&verified);
    metrics.backup.set_failing(user, &[verified]);
    let hour = Duration::from_secs(3600);
    metrics.backup.state(
        user,
        &Snapshots {
            taken_at: Some(noon()),
            verified_taken_at: Some(noon() - 6 * hour),
            count: 14,
            bytes: Some(40_960),
            level: Some(30),
            drilled_at: Some(noon() - hour),
            restore: Some(Duration::from_millis(1500)),
            rpo: Some(5 * hour),
        },
    );
}

#[test]
fn a_database_is_said_to_be_ahead_or_behind_only_where_the_running_version_is_known() {
    let metrics = metrics_of(&[ANN]);
    let look = |level, expected_level| {
        let mut look = run("ann", Kind::State, &[(Step::Database, Outcome::Ok)]);
        look.facts.state = Some(Box::new(StateFacts { level, expected_level, ..migrated() }));
        metrics.record(&look);
        let of = |name: &str| sample(&metrics, &format!("t3_schema_{name}{{user=\"ann\"}}"));
        (of("level"), of("expected_level"), of("ahead"), of("behind"))
    };
    assert_eq!(look(32, Some(30)), (Some(32.0), Some(30.0), Some(2.0), Some(0.0)));
    assert_eq!(look(29, Some(30)), (Some(29.0), Some(30.0), Some(0.0), Some(1.0)));
    assert_eq!(look(32, None), (Some(32.0), None, None, None), "what was known before is no claim any more");
}

#[test]
fn the_growth_of_tables_that_are_never_pruned_is_told_apart_from_what_is_in_use() {
    let metrics = metrics_of(&[ANN]);
    record_state(&metrics, "ann");
    let rows = |name: &str, state: &str| {
        sample(&metrics, &format!("t3_auth_{name}{{user=\"ann\",state=\"{state}\"}}"))
    };
    assert_eq!((rows("sessions", "live"), rows("sessions", "ended")), (Some(8.0), Some(892.0)));
    assert_eq!((rows("pairing_links", "live"), rows("pairing_links", "ended")), (Some(1.0), Some(1199.0)));
    assert_eq!(sample(&metrics, r#"t3_auth_live_sessions{user="ann",maker="keeper"}"#), Some(2.0));
}

#[test]
fn a_snapshot_that_does_not_restore_is_counted_by_what_was_found() {
    let metrics = metrics_of(&[ANN]);
    record_state(&metrics, "ann");
    for (series, value) in [
        (r#"t3_backup_runs_total{user="ann",act="verify",outcome="failed"}"#, 1.0),
        (r#"t3_backup_failures_total{user="ann",act="verify",reason="corrupt"}"#, 1.0),
        (r#"t3_restore_verification_failures_total{user="ann",reason="page"}"#, 1.0),
        (r#"t3_backup_runs_total{user="ann",act="take",outcome="failed"}"#, 0.0),
    ] {
        assert_eq!(sample(&metrics, series), Some(value), "{series}");
    }
    metrics.backup.state("ann", &Snapshots::default());
    assert_eq!(sample(&metrics, r#"t3_backup_last_success_timestamp_seconds{user="ann"}"#), None);
    assert_eq!(sample(&metrics, r#"t3_backup_snapshots{user="ann"}"#), Some(0.0));
}

#[test]
fn an_act_on_snapshots_is_failing_until_it_succeeds() {
    let metrics = metrics_of(&[ANN]);
    let failing = |reason: &str| {
        sample(&metrics, &format!(r#"t3_backup_failing{{user="ann",act="drill",reason="{reason}"}}"#))
    };
    let drill = |reason: Reason| backup("ann", BackupAct::Drill, Some((reason, None)));
    metrics.backup.set_failing("ann", &[drill(Reason::Crashed)]);
    metrics.backup.set_failing("ann", &[drill(Reason::NoSpace)]);
    assert_eq!((failing("crashed"), failing("no_space")), (Some(0.0), Some(1.0)));
    metrics.backup.set_failing("ann", &[]);
    assert_eq!((failing("crashed"), failing("no_space")), (Some(0.0), Some(0.0)));
}
