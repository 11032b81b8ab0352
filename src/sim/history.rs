//! The user's history: projects are written as one event each with its receipt and projections (CONTRACT §7), and what
//! the app loads is read back from the projections.

use serde_json::{Value, json};
use tokio_rusqlite::rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior};

use super::clock::Millis;
use super::mutation::Mutation;
use super::store::{Store, StoreError};
use super::token;

const PROJECTORS: &[&str] = &[
    "projection.projects",
    "projection.thread-messages",
    "projection.thread-proposed-plans",
    "projection.thread-activities",
    "projection.thread-sessions",
    "projection.thread-turns",
    "projection.checkpoints",
    "projection.pending-approvals",
    "projection.threads",
];

/// A change to one project.
pub enum Change<'a> {
    Add { title: &'a str, folder: &'a str },
    Rename { project: &'a str, title: &'a str },
    Remove { project: &'a str },
}

impl Store {
    /// Appends the event and brings the projections up to it; the id of the project.
    pub fn change_project(&mut self, change: &Change<'_>) -> Result<String, StoreError> {
        self.writable()?;
        let modern = self.release.since(33);
        let origin = self.mutation(Mutation::WayBackBreaks);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let now = Millis::now().iso();
        let (project, kind, payload) = match change {
            Change::Add { title, folder } => {
                let project = token::uuid();
                let mut payload = json!({
                    "projectId": project, "title": title, "workspaceRoot": folder,
                    "defaultModelSelection": { "instanceId": "codex", "model": "gpt-5-codex" },
                    "scripts": [], "createdAt": now, "updatedAt": now,
                });
                if modern {
                    payload["faviconPath"] = Value::Null;
                }
                (project, "project.created", payload)
            }
            Change::Rename { project, title } => (
                (*project).to_owned(),
                "project.meta-updated",
                json!({ "projectId": project, "title": title, "updatedAt": now }),
            ),
            Change::Remove { project } => {
                ((*project).to_owned(), "project.deleted", json!({ "projectId": project, "deletedAt": now }))
            }
        };
        let event = Event { aggregate: "project", stream: &project, kind, payload: &payload };
        let sequence = event.append(&transaction, &now, origin)?;
        match change {
            Change::Add { title, folder } => transaction.execute(
                "INSERT INTO projection_projects (project_id, title, workspace_root, scripts_json, created_at,
                     updated_at, default_model_selection_json)
                 VALUES (?1, ?2, ?3, '[]', ?4, ?4, ?5)",
                (&project, title, folder, &now, payload["defaultModelSelection"].to_string()),
            )?,
            Change::Rename { title, .. } => transaction.execute(
                "UPDATE projection_projects SET title = ?2, updated_at = ?3 WHERE project_id = ?1",
                (&project, title, &now),
            )?,
            Change::Remove { .. } => transaction.execute(
                "UPDATE projection_projects SET deleted_at = ?2, updated_at = ?2 WHERE project_id = ?1",
                (&project, &now),
            )?,
        };
        project_up_to(&transaction, sequence, &now)?;
        transaction.commit()?;
        Ok(project)
    }

    /// The project of that id or that folder, unless it was removed.
    pub fn project(&self, id_or_folder: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT project_id FROM projection_projects
                   WHERE (project_id = ?1 OR workspace_root = ?1) AND deleted_at IS NULL";
        Ok(self.connection.query_row(sql, [id_or_folder], |row| row.get(0)).optional()?)
    }

    /// Whether any project's folder contains `part`.
    pub fn has_project_in(&self, part: &str) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM projection_projects WHERE instr(workspace_root, ?1) > 0";
        Ok(self.connection.query_row(sql, [part], |_| Ok(())).optional()?.is_some())
    }

    /// What the app loads at its start: everything, or from 0.0.33 on everything but the messages.
    pub fn snapshot(&self) -> Result<Value, StoreError> {
        self.document(!self.release.since(33))
    }

    /// The light form that only names projects and threads.
    pub fn shell(&self) -> Result<Value, StoreError> {
        self.document(false)
    }

    fn document(&self, whole: bool) -> Result<Value, StoreError> {
        let connection = &self.connection;
        let projects =
            rows(connection, "SELECT * FROM projection_projects ORDER BY created_at", [], project)?;
        let mut threads =
            rows(connection, "SELECT * FROM projection_threads ORDER BY created_at", [], thread)?;
        for thread in &mut threads {
            let id = thread["id"].as_str().unwrap_or_default().to_owned();
            let of = "FROM projection_thread_sessions WHERE thread_id = ?1";
            let mut sessions = rows(connection, &format!("SELECT * {of}"), [&id], session)?;
            thread["session"] = sessions.pop().unwrap_or_default();
            let one_thread =
                |table: &str| format!("SELECT * FROM {table} WHERE thread_id = ?1 ORDER BY created_at");
            let (mut messages, mut activities) = (Vec::new(), Vec::new());
            if whole {
                messages = rows(connection, &one_thread("projection_thread_messages"), [&id], message)?;
                activities = rows(connection, &one_thread("projection_thread_activities"), [&id], activity)?;
            }
            thread["messages"] = json!(messages);
            thread["activities"] = json!(activities);
        }
        let sql = "SELECT coalesce(min(last_applied_sequence), 0), max(updated_at) FROM projection_state";
        let (sequence, updated): (i64, Option<String>) =
            connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(json!({
            "snapshotSequence": sequence, "projects": projects, "threads": threads,
            "updatedAt": updated.unwrap_or_else(|| Millis(0).iso()),
        }))
    }
}

/// What a client has asked for, and was given.
pub(super) struct Event<'a> {
    /// `project` or `thread`.
    pub aggregate: &'a str,
    pub stream: &'a str,
    pub kind: &'a str,
    pub payload: &'a Value,
}

impl Event<'_> {
    /// Appends it with its command's receipt; its sequence number.
    pub fn append(&self, transaction: &Transaction<'_>, now: &str, origin: bool) -> Result<i64, StoreError> {
        let Self { aggregate, stream, kind, payload } = self;
        let (command, version) =
            (token::uuid(), "SELECT count(*) FROM orchestration_events WHERE stream_id = ?1");
        let version: i64 = transaction.query_row(version, [stream], |row| row.get(0))?;
        let (column, value) = if origin { (", origin", ", 'candidate'") } else { ("", "") };
        transaction.execute(
            &format!(
                "INSERT INTO orchestration_events (event_id, aggregate_kind, stream_id, stream_version, event_type,
                     occurred_at, command_id, correlation_id, actor_kind, payload_json, metadata_json{column})
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, 'client', ?8, '{{}}'{value})"
            ),
            (token::uuid(), aggregate, stream, version, kind, now, &command, payload.to_string()),
        )?;
        let sequence = transaction.last_insert_rowid();
        transaction.execute(
            "INSERT INTO orchestration_command_receipts
                 (command_id, aggregate_kind, aggregate_id, accepted_at, result_sequence, status)
             VALUES (?1, ?2, ?3, ?4, ?5, 'accepted')",
            (&command, aggregate, stream, now, sequence),
        )?;
        Ok(sequence)
    }
}

/// Says of every projector that it has taken in everything up to here.
pub(super) fn project_up_to(
    transaction: &Transaction<'_>,
    sequence: i64,
    now: &str,
) -> Result<(), StoreError> {
    for projector in PROJECTORS {
        transaction.execute(
            "INSERT INTO projection_state (projector, last_applied_sequence, updated_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (projector) DO UPDATE SET last_applied_sequence = ?2, updated_at = ?3",
            (projector, sequence, now),
        )?;
    }
    Ok(())
}

fn rows<P: tokio_rusqlite::rusqlite::Params>(
    connection: &Connection,
    sql: &str,
    parameters: P,
    read: fn(&Row<'_>) -> Value,
) -> Result<Vec<Value>, StoreError> {
    let mut statement = connection.prepare(sql)?;
    let found = statement.query_map(parameters, |row| Ok(read(row)))?;
    Ok(found.collect::<Result<_, _>>()?)
}

fn project(row: &Row<'_>) -> Value {
    json!({
        "id": text(row, "project_id"), "title": text(row, "title"), "workspaceRoot": text(row, "workspace_root"),
        "defaultModelSelection": nested(row, "default_model_selection_json"),
        "scripts": nested(row, "scripts_json"), "createdAt": text(row, "created_at"),
        "updatedAt": text(row, "updated_at"), "deletedAt": text(row, "deleted_at"),
    })
}

fn thread(row: &Row<'_>) -> Value {
    json!({
        "id": text(row, "thread_id"), "projectId": text(row, "project_id"), "title": text(row, "title"),
        "modelSelection": nested(row, "model_selection_json"), "runtimeMode": text(row, "runtime_mode"),
        "interactionMode": text(row, "interaction_mode"), "branch": text(row, "branch"),
        "worktreePath": text(row, "worktree_path"), "createdAt": text(row, "created_at"),
        "updatedAt": text(row, "updated_at"), "archivedAt": text(row, "archived_at"),
        "deletedAt": text(row, "deleted_at"),
    })
}

fn message(row: &Row<'_>) -> Value {
    json!({
        "id": text(row, "message_id"), "role": text(row, "role"), "text": text(row, "text"),
        "turnId": text(row, "turn_id"), "streaming": row.get::<_, bool>("is_streaming").unwrap_or(false),
        "attachments": nested(row, "attachments_json"), "createdAt": text(row, "created_at"),
        "updatedAt": text(row, "updated_at"),
    })
}

fn activity(row: &Row<'_>) -> Value {
    json!({
        "id": text(row, "activity_id"), "tone": text(row, "tone"), "kind": text(row, "kind"),
        "summary": text(row, "summary"), "payload": nested(row, "payload_json"), "turnId": text(row, "turn_id"),
        "createdAt": text(row, "created_at"),
    })
}

fn session(row: &Row<'_>) -> Value {
    json!({
        "threadId": text(row, "thread_id"), "status": text(row, "status"),
        "providerName": text(row, "provider_name"), "activeTurnId": text(row, "active_turn_id"),
        "lastError": text(row, "last_error"), "updatedAt": text(row, "updated_at"),
    })
}

fn text(row: &Row<'_>, column: &str) -> Option<String> {
    row.get(column).ok().flatten()
}

fn nested(row: &Row<'_>, column: &str) -> Value {
    text(row, column).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}
