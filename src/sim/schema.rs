//! The database's shape, migration by migration: t3's table, column and index names in our own statements.
//! Only ids above the recorded maximum run, all in one transaction (CONTRACT §7).

use tokio_rusqlite::rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::mutation::{Mutation, Mutations};
use super::release::Release;
use super::store::StoreError;
use crate::t3::schema::MIGRATIONS;

/// Brings the database to the release's level; returns the names of what ran, as the log shows them.
pub fn migrate(
    connection: &mut Connection,
    release: &Release,
    mutations: &Mutations,
) -> Result<Vec<String>, StoreError> {
    let mut recorded = level(connection)?;
    let level_of_release = release.level();
    let own: Vec<Mutation> = mutations.migrations().collect();
    let each_start = own.contains(&Mutation::SecondStartMigrates);
    let target = if own.is_empty() { level_of_release } else { level_of_release + 1 };
    if recorded >= target && !each_start {
        return Ok(Vec::new());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have migrated between the look and the lock.
    recorded = recorded.max(level(&transaction)?);
    let mut ran = Vec::new();
    for id in recorded + 1..=level_of_release {
        transaction.execute_batch(&statements(id))?;
        ran.push(record(&transaction, id, MIGRATIONS.get(id - 1).copied().unwrap_or("Unknown"))?);
    }
    let next = level(&transaction)? + 1;
    if next == target || (each_start && next > target) {
        for mutation in &own {
            mutate(&transaction, *mutation)?;
        }
        ran.push(record(&transaction, next, "CandidateOfTheStandIn")?);
    }
    transaction.commit()?;
    Ok(ran)
}

/// Adds a migration row that no known t3 has, or takes it away again.
pub fn foreign_migration(connection: &Connection, present: bool) -> Result<(), StoreError> {
    const NAME: &str = "SomethingElse";
    connection.execute("DELETE FROM effect_sql_migrations WHERE name = ?1", [NAME])?;
    if present {
        record(connection, level(connection)? + 1, NAME)?;
    }
    Ok(())
}

/// The highest applied migration; a database without the table has none.
fn level(connection: &Connection) -> Result<usize, StoreError> {
    let table = connection
        .query_row("SELECT 1 FROM sqlite_schema WHERE name = 'effect_sql_migrations'", [], |_| Ok(()))
        .optional()?;
    if table.is_none() {
        return Ok(0);
    }
    let sql = "SELECT coalesce(max(migration_id), 0) FROM effect_sql_migrations";
    Ok(connection.query_row(sql, [], |row| row.get::<_, u32>(0))? as usize)
}

fn record(connection: &Connection, id: usize, name: &str) -> Result<String, StoreError> {
    connection.execute(
        "INSERT INTO effect_sql_migrations (migration_id, name) VALUES (?1, ?2)",
        (id as u32, name),
    )?;
    Ok(format!("{id}_{name}"))
}

fn mutate(transaction: &Transaction<'_>, mutation: Mutation) -> Result<(), StoreError> {
    let sql = match mutation {
        Mutation::MigrationFails => {
            "INSERT INTO projection_projects (project_id) VALUES ('incomplete')".to_owned()
        }
        Mutation::MigrationDropsMessages => "DELETE FROM projection_thread_messages".to_owned(),
        // SQLite adds no NOT NULL column without a default, so the table is made anew.
        Mutation::WayBackBreaks => {
            let indexes = EVENTS_INDEXES.iter().map(|index| format!("DROP INDEX {};", index.0));
            format!(
                "{} ALTER TABLE orchestration_events RENAME TO orchestration_events_before;
                 {}
                 INSERT INTO orchestration_events SELECT *, 'before' FROM orchestration_events_before;
                 DROP TABLE orchestration_events_before",
                indexes.collect::<String>(),
                events(", origin TEXT NOT NULL")
            )
        }
        _ => return Ok(()),
    };
    Ok(transaction.execute_batch(&sql)?)
}

const EVENTS_INDEXES: &[(&str, &str, &str)] = &[
    ("idx_orch_events_stream_version", "UNIQUE", "aggregate_kind, stream_id, stream_version"),
    ("idx_orch_events_stream_sequence", "", "aggregate_kind, stream_id, sequence"),
    ("idx_orch_events_command_id", "", "command_id"),
    ("idx_orch_events_correlation_id", "", "correlation_id"),
];

fn events(more: &str) -> String {
    let indexes = EVENTS_INDEXES.iter().map(|(name, kind, columns)| {
        format!("CREATE {kind} INDEX {name} ON orchestration_events ({columns});")
    });
    format!(
        "CREATE TABLE orchestration_events (
             sequence INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE,
             aggregate_kind TEXT NOT NULL, stream_id TEXT NOT NULL, stream_version INTEGER NOT NULL,
             event_type TEXT NOT NULL, occurred_at TEXT NOT NULL, command_id TEXT, causation_event_id TEXT,
             correlation_id TEXT, actor_kind TEXT NOT NULL, payload_json TEXT NOT NULL,
             metadata_json TEXT NOT NULL{more});
         {}",
        indexes.collect::<String>()
    )
}

const AUTH_INDEXES: &str = "
    CREATE INDEX idx_auth_pairing_links_active ON auth_pairing_links (revoked_at, consumed_at, expires_at);
    CREATE INDEX idx_auth_sessions_active ON auth_sessions (revoked_at, expires_at, issued_at);";

fn statements(id: usize) -> String {
    let fixed = match id {
        1 => {
            "CREATE TABLE IF NOT EXISTS effect_sql_migrations (
                 migration_id INTEGER PRIMARY KEY NOT NULL, created_at DATETIME NOT NULL DEFAULT current_timestamp,
                 name VARCHAR(255) NOT NULL)"
        }
        2 => {
            "CREATE TABLE orchestration_command_receipts (
                 command_id TEXT PRIMARY KEY, aggregate_kind TEXT NOT NULL, aggregate_id TEXT NOT NULL,
                 accepted_at TEXT NOT NULL, result_sequence INTEGER NOT NULL, status TEXT NOT NULL, error TEXT);
             CREATE INDEX idx_orch_command_receipts_aggregate
                 ON orchestration_command_receipts (aggregate_kind, aggregate_id);
             CREATE INDEX idx_orch_command_receipts_sequence ON orchestration_command_receipts (result_sequence)"
        }
        3 => {
            "CREATE TABLE checkpoint_diff_blobs (
                 thread_id TEXT NOT NULL, from_turn_count INTEGER NOT NULL, to_turn_count INTEGER NOT NULL,
                 diff TEXT NOT NULL, created_at TEXT NOT NULL, UNIQUE (thread_id, from_turn_count, to_turn_count));
             CREATE INDEX idx_checkpoint_diff_blobs_thread_to_turn ON checkpoint_diff_blobs (thread_id, to_turn_count)"
        }
        4 => {
            "CREATE TABLE provider_session_runtime (
                 thread_id TEXT PRIMARY KEY, provider_name TEXT NOT NULL, adapter_key TEXT NOT NULL,
                 runtime_mode TEXT NOT NULL DEFAULT 'full-access', status TEXT NOT NULL, last_seen_at TEXT NOT NULL,
                 resume_cursor_json TEXT, runtime_payload_json TEXT);
             CREATE INDEX idx_provider_session_runtime_provider ON provider_session_runtime (provider_name);
             CREATE INDEX idx_provider_session_runtime_status ON provider_session_runtime (status)"
        }
        5 => {
            "CREATE TABLE projection_projects (
                 project_id TEXT PRIMARY KEY, title TEXT NOT NULL, workspace_root TEXT NOT NULL,
                 scripts_json TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, deleted_at TEXT);
             CREATE TABLE projection_threads (
                 thread_id TEXT PRIMARY KEY, project_id TEXT NOT NULL, title TEXT NOT NULL, branch TEXT,
                 worktree_path TEXT, latest_turn_id TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
                 deleted_at TEXT);
             CREATE TABLE projection_thread_messages (
                 message_id TEXT PRIMARY KEY, thread_id TEXT NOT NULL, turn_id TEXT, role TEXT NOT NULL,
                 text TEXT NOT NULL, is_streaming INTEGER NOT NULL, created_at TEXT NOT NULL,
                 updated_at TEXT NOT NULL);
             CREATE TABLE projection_thread_activities (
                 activity_id TEXT PRIMARY KEY, thread_id TEXT NOT NULL, turn_id TEXT, tone TEXT NOT NULL,
                 kind TEXT NOT NULL, summary TEXT NOT NULL, payload_json TEXT NOT NULL, created_at TEXT NOT NULL);
             CREATE TABLE projection_thread_sessions (
                 thread_id TEXT PRIMARY KEY, status TEXT NOT NULL, provider_name TEXT, provider_session_id TEXT,
                 provider_thread_id TEXT, active_turn_id TEXT, last_error TEXT, updated_at TEXT NOT NULL);
             CREATE TABLE projection_turns (
                 row_id INTEGER PRIMARY KEY AUTOINCREMENT, thread_id TEXT NOT NULL, turn_id TEXT,
                 pending_message_id TEXT, assistant_message_id TEXT, state TEXT NOT NULL, requested_at TEXT NOT NULL,
                 started_at TEXT, completed_at TEXT, checkpoint_turn_count INTEGER, checkpoint_ref TEXT,
                 checkpoint_status TEXT, checkpoint_files_json TEXT NOT NULL,
                 UNIQUE (thread_id, turn_id), UNIQUE (thread_id, checkpoint_turn_count));
             CREATE TABLE projection_pending_approvals (
                 request_id TEXT PRIMARY KEY, thread_id TEXT NOT NULL, turn_id TEXT, status TEXT NOT NULL,
                 decision TEXT, created_at TEXT NOT NULL, resolved_at TEXT);
             CREATE TABLE projection_state (
                 projector TEXT PRIMARY KEY, last_applied_sequence INTEGER NOT NULL, updated_at TEXT NOT NULL);
             CREATE INDEX idx_projection_projects_updated_at ON projection_projects (updated_at);
             CREATE INDEX idx_projection_threads_project_id ON projection_threads (project_id);
             CREATE INDEX idx_projection_thread_messages_thread_created
                 ON projection_thread_messages (thread_id, created_at);
             CREATE INDEX idx_projection_thread_activities_thread_created
                 ON projection_thread_activities (thread_id, created_at);
             CREATE INDEX idx_projection_thread_sessions_provider_session
                 ON projection_thread_sessions (provider_session_id);
             CREATE INDEX idx_projection_turns_thread_requested ON projection_turns (thread_id, requested_at);
             CREATE INDEX idx_projection_turns_thread_checkpoint_completed
                 ON projection_turns (thread_id, checkpoint_turn_count, completed_at);
             CREATE INDEX idx_projection_pending_approvals_thread_status
                 ON projection_pending_approvals (thread_id, status)"
        }
        6 => "ALTER TABLE projection_thread_sessions ADD COLUMN runtime_mode TEXT NOT NULL DEFAULT 'full-access'",
        7 => "ALTER TABLE projection_thread_messages ADD COLUMN attachments_json TEXT",
        8 => {
            "ALTER TABLE projection_thread_activities ADD COLUMN sequence INTEGER;
             CREATE INDEX idx_projection_thread_activities_thread_sequence
                 ON projection_thread_activities (thread_id, sequence)"
        }
        10 => "ALTER TABLE projection_threads ADD COLUMN runtime_mode TEXT NOT NULL DEFAULT 'full-access'",
        12 => "ALTER TABLE projection_threads ADD COLUMN interaction_mode TEXT NOT NULL DEFAULT 'default'",
        13 => {
            "CREATE TABLE projection_thread_proposed_plans (
                 plan_id TEXT PRIMARY KEY, thread_id TEXT NOT NULL, turn_id TEXT, plan_markdown TEXT NOT NULL,
                 created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
             CREATE INDEX idx_projection_thread_proposed_plans_thread_created
                 ON projection_thread_proposed_plans (thread_id, created_at)"
        }
        14 => {
            "ALTER TABLE projection_thread_proposed_plans ADD COLUMN implemented_at TEXT;
             ALTER TABLE projection_thread_proposed_plans ADD COLUMN implementation_thread_id TEXT"
        }
        15 => {
            "ALTER TABLE projection_turns ADD COLUMN source_proposed_plan_thread_id TEXT;
             ALTER TABLE projection_turns ADD COLUMN source_proposed_plan_id TEXT"
        }
        16 => {
            "ALTER TABLE projection_projects ADD COLUMN default_model_selection_json TEXT;
             ALTER TABLE projection_threads ADD COLUMN model_selection_json TEXT"
        }
        17 => "ALTER TABLE projection_threads ADD COLUMN archived_at TEXT",
        18 => "CREATE INDEX idx_projection_threads_project_archived_at ON projection_threads (project_id, archived_at)",
        19 => {
            "CREATE INDEX idx_projection_projects_workspace_root_deleted_at
                 ON projection_projects (workspace_root, deleted_at);
             CREATE INDEX idx_projection_threads_project_deleted_created
                 ON projection_threads (project_id, deleted_at, created_at)"
        }
        20 => {
            "CREATE TABLE auth_pairing_links (
                 id TEXT PRIMARY KEY, credential TEXT NOT NULL UNIQUE, method TEXT NOT NULL, role TEXT NOT NULL,
                 subject TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT NOT NULL, consumed_at TEXT,
                 revoked_at TEXT);
             CREATE TABLE auth_sessions (
                 session_id TEXT PRIMARY KEY, subject TEXT NOT NULL, role TEXT NOT NULL, method TEXT NOT NULL,
                 issued_at TEXT NOT NULL, expires_at TEXT NOT NULL, revoked_at TEXT)"
        }
        21 => {
            "ALTER TABLE auth_pairing_links ADD COLUMN label TEXT;
             ALTER TABLE auth_sessions ADD COLUMN client_label TEXT;
             ALTER TABLE auth_sessions ADD COLUMN client_ip_address TEXT;
             ALTER TABLE auth_sessions ADD COLUMN client_user_agent TEXT;
             ALTER TABLE auth_sessions ADD COLUMN client_device_type TEXT NOT NULL DEFAULT 'unknown';
             ALTER TABLE auth_sessions ADD COLUMN client_os TEXT;
             ALTER TABLE auth_sessions ADD COLUMN client_browser TEXT"
        }
        22 => "ALTER TABLE auth_sessions ADD COLUMN last_connected_at TEXT",
        23 => {
            "ALTER TABLE projection_threads ADD COLUMN latest_user_message_at TEXT;
             ALTER TABLE projection_threads ADD COLUMN pending_approval_count INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE projection_threads ADD COLUMN pending_user_input_count INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE projection_threads ADD COLUMN has_actionable_proposed_plan INTEGER NOT NULL DEFAULT 0"
        }
        27 => {
            "ALTER TABLE provider_session_runtime ADD COLUMN provider_instance_id TEXT;
             CREATE INDEX idx_provider_session_runtime_instance ON provider_session_runtime (provider_instance_id)"
        }
        28 => {
            "ALTER TABLE projection_thread_sessions ADD COLUMN provider_instance_id TEXT;
             CREATE INDEX idx_projection_thread_sessions_instance ON projection_thread_sessions (provider_instance_id)"
        }
        29 => {
            "CREATE INDEX idx_projection_thread_messages_thread_created_id
                 ON projection_thread_messages (thread_id, created_at, message_id);
             CREATE INDEX idx_projection_thread_activities_thread_sequence_created_id
                 ON projection_thread_activities (thread_id, sequence, created_at, activity_id)"
        }
        30 => {
            "CREATE INDEX idx_projection_threads_shell_active
                 ON projection_threads (deleted_at, archived_at, project_id, created_at, thread_id);
             CREATE INDEX idx_projection_threads_shell_archived
                 ON projection_threads (deleted_at, archived_at, project_id, thread_id)"
        }
        // Roles become scopes by starting afresh: every session and every credential is gone.
        31 => {
            "DROP TABLE IF EXISTS auth_pairing_links;
             DROP TABLE IF EXISTS auth_sessions;
             CREATE TABLE auth_pairing_links (
                 id TEXT PRIMARY KEY, credential TEXT NOT NULL UNIQUE, method TEXT NOT NULL, scopes TEXT NOT NULL,
                 subject TEXT NOT NULL, label TEXT, created_at TEXT NOT NULL, expires_at TEXT NOT NULL,
                 consumed_at TEXT, revoked_at TEXT);
             CREATE TABLE auth_sessions (
                 session_id TEXT PRIMARY KEY, subject TEXT NOT NULL, scopes TEXT NOT NULL, method TEXT NOT NULL,
                 client_label TEXT, client_ip_address TEXT, client_user_agent TEXT,
                 client_device_type TEXT NOT NULL DEFAULT 'unknown', client_os TEXT, client_browser TEXT,
                 issued_at TEXT NOT NULL, expires_at TEXT NOT NULL, last_connected_at TEXT, revoked_at TEXT)"
        }
        32 => "ALTER TABLE auth_pairing_links ADD COLUMN proof_key_thumbprint TEXT",
        33 => {
            "ALTER TABLE projection_threads ADD COLUMN settled_override TEXT;
             ALTER TABLE projection_threads ADD COLUMN settled_at TEXT"
        }
        34 => {
            "ALTER TABLE projection_threads ADD COLUMN snoozed_until TEXT;
             ALTER TABLE projection_threads ADD COLUMN snoozed_at TEXT"
        }
        35 => {
            "ALTER TABLE projection_threads ADD COLUMN title_regeneration_request_id TEXT;
             ALTER TABLE projection_threads ADD COLUMN title_regeneration_started_at TEXT"
        }
        36 => "ALTER TABLE projection_threads ADD COLUMN pinned_at TEXT",
        37 => "CREATE INDEX idx_projection_turns_thread_keyset ON projection_turns (thread_id, requested_at, turn_id)",
        38 => "ALTER TABLE projection_threads ADD COLUMN pin_order_key TEXT",
        39 => "ALTER TABLE projection_projects ADD COLUMN default_thread_env_mode TEXT",
        40 => "ALTER TABLE projection_projects ADD COLUMN favicon_path TEXT",
        41 => {
            "ALTER TABLE auth_sessions ADD COLUMN client_surface TEXT;
             ALTER TABLE auth_sessions ADD COLUMN client_app_version TEXT"
        }
        // 9, 11, 24, 25 and 26 rewrite rows that a fresh database does not have; 9's column stands in 4.
        _ => "",
    };
    match id {
        1 => format!("{fixed};{}", events("")),
        20 | 31 => format!("{fixed};{AUTH_INDEXES}"),
        _ => fixed.to_owned(),
    }
}
