//! `sim write`: a history that somebody would miss. Projects, threads and what a user writes into them, each an event with
//! its receipt and its projection, in the shape that recorded databases have. As in those nobody answers: there is no
//! provider, so no turn is begun and nobody is ever busy.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio_rusqlite::rusqlite::{Connection, Transaction, TransactionBehavior};

use super::clock::Millis;
use super::fault::Faults;
use super::history::{Change, Event, project_up_to};
use super::home::Home;
use super::mutation::Mutations;
use super::release::Release;
use super::store::{Store, StoreError};
use super::token;

/// A server's write is waited for; this is no command of t3's.
const PATIENCE: Duration = Duration::from_secs(5);
const PROJECTS: &[&str] = &["shop", "newsletter", "house"];
const THREADS: &[&str] = &[
    "Prices without tax",
    "The search forgets umlauts",
    "Send it on Fridays",
    "Who has unsubscribed",
    "Thermostat in the attic",
];
const MESSAGES: &[&str] = &[
    "Please look at this first and say what you would change.",
    "Good. Now the same for the other two, one at a time.",
    "The test fails on my machine: expected 3, found 4.",
    "Keep the public names as they are.",
    "Show me the difference before you commit.",
];

/// What there is to be at least, and what is added to it.
pub struct Wanted {
    pub projects: usize,
    /// In all projects together.
    pub threads: usize,
    /// New ones, in one thread after the other.
    pub messages: usize,
}

/// Writes it into a base directory, whether a server of this release runs on it or not.
pub fn write(base_dir: &Path, release: &Release, wanted: &Wanted) -> anyhow::Result<()> {
    let home = Home::new(base_dir)?;
    home.prepare().with_context(|| format!("making {}", base_dir.display()))?;
    let mutations = Mutations::new(&[]);
    let faults = Faults::new(home.faults(), mutations.clone());
    let (mut store, _) = Store::open(&home, release, &mutations, &faults)?;
    store.connection.busy_timeout(PATIENCE)?;
    store.write(wanted).with_context(|| format!("writing into {}", home.database().display()))?;
    println!(
        "{} events and {} messages now",
        count(&store.connection, "orchestration_events")?,
        count(&store.connection, "projection_thread_messages")?
    );
    Ok(())
}

impl Store {
    fn write(&mut self, wanted: &Wanted) -> Result<(), StoreError> {
        for at in self.live("project")?.len()..wanted.projects.max(1) {
            let title = PROJECTS[at % PROJECTS.len()];
            self.change_project(&Change::Add { title, folder: &format!("/srv/{title}-{at}") })?;
        }
        let (projects, mut threads) = (self.live("project")?, self.live("thread")?);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for at in threads.len()..wanted.threads.max(1) {
            let title = THREADS[at % THREADS.len()];
            threads.push(begin_thread(&transaction, &projects[at % projects.len()], title)?);
        }
        for at in 0..wanted.messages {
            say(&transaction, &threads[at % threads.len()], MESSAGES[at % MESSAGES.len()])?;
        }
        Ok(transaction.commit()?)
    }

    /// The ids of what was not removed, oldest first.
    fn live(&self, what: &str) -> Result<Vec<String>, StoreError> {
        let sql = format!(
            "SELECT {what}_id FROM projection_{what}s WHERE deleted_at IS NULL ORDER BY created_at, rowid"
        );
        let mut statement = self.connection.prepare(&sql)?;
        let ids = statement.query_map([], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    }
}

fn begin_thread(transaction: &Transaction<'_>, project: &str, title: &str) -> Result<String, StoreError> {
    let (thread, now) = (token::uuid(), Millis::now().iso());
    let model = json!({ "instanceId": "codex", "model": "gpt-5-codex" });
    let payload = json!({
        "threadId": thread, "projectId": project, "title": title, "modelSelection": model,
        "runtimeMode": "full-access", "interactionMode": "default", "branch": null, "worktreePath": null,
        "createdAt": now, "updatedAt": now,
    });
    append(transaction, &thread, "thread.created", &payload, &now)?;
    transaction.execute(
        "INSERT INTO projection_threads (thread_id, project_id, title, created_at, updated_at, model_selection_json)
         VALUES (?1, ?2, ?3, ?4, ?4, ?5)",
        (&thread, project, title, &now, model.to_string()),
    )?;
    Ok(thread)
}

fn say(transaction: &Transaction<'_>, thread: &str, text: &str) -> Result<(), StoreError> {
    let (message, now) = (token::uuid(), Millis::now().iso());
    let payload = json!({
        "threadId": thread, "messageId": message, "role": "user", "text": text, "attachments": [],
        "turnId": null, "streaming": false, "createdAt": now, "updatedAt": now,
    });
    append(transaction, thread, "thread.message-sent", &payload, &now)?;
    transaction.execute(
        "INSERT INTO projection_thread_messages (message_id, thread_id, role, text, is_streaming, created_at,
             updated_at, attachments_json)
         VALUES (?1, ?2, 'user', ?3, 0, ?4, ?4, '[]')",
        (&message, thread, text, &now),
    )?;
    transaction.execute(
        "UPDATE projection_threads SET latest_user_message_at = ?2, updated_at = ?2 WHERE thread_id = ?1",
        (thread, &now),
    )?;
    Ok(())
}

fn append(
    transaction: &Transaction<'_>,
    thread: &str,
    kind: &str,
    payload: &Value,
    now: &str,
) -> Result<(), StoreError> {
    let event = Event { aggregate: "thread", stream: thread, kind, payload };
    let sequence = event.append(transaction, now, false)?;
    project_up_to(transaction, sequence, now)
}

fn count(connection: &Connection, table: &str) -> Result<i64, StoreError> {
    Ok(connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fixtures;

    /// The columns that are filled in every row of a table; what only some rows have came by other events.
    fn filled(connection: &Connection, sql: &str) -> BTreeSet<String> {
        let mut statement = connection.prepare(sql).expect("a statement");
        let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
        let mut rows = statement.query([]).expect("rows");
        let mut always: BTreeSet<String> = names.iter().cloned().collect();
        let mut seen = 0;
        while let Some(row) = rows.next().expect("a row") {
            seen += 1;
            for (at, name) in names.iter().enumerate() {
                if row.get::<_, tokio_rusqlite::rusqlite::types::Value>(at).expect("a value")
                    == tokio_rusqlite::rusqlite::types::Value::Null
                {
                    always.remove(name);
                }
            }
        }
        assert!(seen > 0, "no rows: {sql}");
        always
    }

    fn members(connection: &Connection, kind: &str) -> BTreeSet<String> {
        let sql = "SELECT payload_json FROM orchestration_events WHERE event_type = ?1 LIMIT 1";
        let payload: String = connection.query_row(sql, [kind], |row| row.get(0)).expect(kind);
        let payload: Value = serde_json::from_str(&payload).expect("json");
        payload.as_object().expect("an object").keys().cloned().collect()
    }

    #[test]
    fn what_a_user_writes_has_the_shape_of_recorded_databases() {
        const WRITTEN: &[&str] = &[
            "SELECT * FROM orchestration_events WHERE event_type = 'thread.message-sent'",
            "SELECT * FROM orchestration_events WHERE event_type = 'thread.created'",
            "SELECT * FROM projection_threads",
            "SELECT * FROM projection_thread_messages",
            "SELECT * FROM projection_state",
        ];
        for version in ["0.0.24", "0.0.26", "0.0.33"] {
            let dir = tempfile::tempdir().expect("a directory");
            let Some(recorded) = fixtures::copy(version, &dir.path().join("recorded")) else { return };
            let home = dir.path().join("written");
            let wanted = Wanted { projects: 2, threads: 3, messages: 7 };
            write(&home, &version.parse().expect("a version"), &wanted).expect("written");
            let recorded = Connection::open(recorded).expect("a database");
            let written = Connection::open(home.join("userdata/state.sqlite")).expect("a database");
            for sql in WRITTEN {
                assert_eq!(filled(&written, sql), filled(&recorded, sql), "{version}: {sql}");
            }
            for kind in ["project.created", "thread.created", "thread.message-sent"] {
                assert_eq!(members(&written, kind), members(&recorded, kind), "{version}: {kind}");
            }
        }
    }

    #[test]
    fn what_is_there_is_added_to_and_never_made_twice() {
        let dir = tempfile::tempdir().expect("a directory");
        let release = "0.0.24".parse().expect("a version");
        for messages in [7, 3] {
            let wanted = Wanted { projects: 2, threads: 3, messages };
            write(dir.path(), &release, &wanted).expect("written");
        }
        let connection = Connection::open(dir.path().join("userdata/state.sqlite")).expect("a database");
        let rows = ["projects", "threads", "thread_messages"]
            .map(|what| count(&connection, &format!("projection_{what}")).expect("a count"));
        assert_eq!(rows, [2, 3, 10]);
        let behind = "SELECT count(*) FROM projection_state
                      WHERE last_applied_sequence <> (SELECT max(sequence) FROM orchestration_events)";
        assert_eq!(connection.query_row(behind, [], |row| row.get::<_, i64>(0)).expect("a count"), 0);
    }
}
