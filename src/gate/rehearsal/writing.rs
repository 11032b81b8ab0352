//! What a build does to the history: it keeps every row, shows it to the app, and adds exactly what was written.

use std::path::Path;

use crate::outcome::{Failure, NotDone, Reason};
use crate::t3::cli::Verb;
use crate::t3::guard::{Commands, Guard};
use crate::t3::http::Client;
use crate::t3::keeper::{Keepers, Limits};
use crate::t3::launch::Scratch;
use crate::t3::state::fingerprint::Fingerprint;
use crate::t3::state::{self, reader};
use crate::t3::state::{count, has_table};
use tokio_rusqlite::rusqlite::Connection;

/// What nobody but a user adds to; other tables hold what the server keeps for itself.
const USERS_OWN: &[&str] = &[
    "orchestration_events",
    "projection_projects",
    "projection_threads",
    "projection_thread_messages",
    "projection_thread_activities",
];

/// Neither a row less nor a row more; answers what is there.
pub async fn unchanged(before: &Fingerprint, database: &Path) -> Result<Fingerprint, NotDone> {
    let now = reader::ask(database, Fingerprint::of)?;
    let lost = now.lost_since(before);
    if !lost.is_empty() {
        return Err(Failure::new(Reason::HistoryShrank, lost.join("; ")).into());
    }
    let grown: Vec<_> = USERS_OWN.iter().filter(|table| now.count(table) > before.count(table)).collect();
    let told =
        |table: &&&str| format!("{table} has {} rows, it had {}", now.count(table), before.count(table));
    if grown.is_empty() {
        return Ok(now);
    }
    let detail = grown.iter().map(told).collect::<Vec<_>>().join("; ");
    Err(Failure::new(Reason::HistoryChanged, detail).into())
}

/// The app loads all that is there.
pub async fn load(
    keepers: &Keepers<Guard>,
    mut client: Client<'_>,
    there: &Fingerprint,
    limits: Limits,
) -> Result<(), NotDone> {
    let database = client.instance.database();
    let bytes = state::stamp::Sizes::of(&database).total();
    client.allow(usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(2).max(1 << 24));
    let history = keepers.history(&mut client, limits).await?;
    let visible = |table: &str| {
        let rows = |connection: &Connection| {
            if !has_table(connection, table)? {
                return Ok(0);
            }
            let sql = format!("SELECT count(*) FROM {table} WHERE deleted_at IS NULL");
            connection.query_row(&sql, [], |row| count(row, 0))
        };
        reader::ask(&database, rows)
    };
    let wanted = [
        ("the newest event", history.snapshot_sequence, there.last_sequence),
        ("projects:", history.projects.len() as u64, visible("projection_projects")?),
        ("threads:", history.threads.len() as u64, visible("projection_threads")?),
    ];
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(_, found, wanted)| found < wanted)
        .map(|(what, found, wanted)| format!("{what} {found} instead of {wanted}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Reason::HistoryShrank, format!("the app loads {}", missing.join(", "))).into())
}

/// One project more is one event and one project more; answers what is there then.
pub async fn add_project(
    guard: &Guard,
    mut client: Client<'_>,
    scratch: &Scratch,
    before: &Fingerprint,
    limits: Limits,
) -> Result<Fingerprint, NotDone> {
    // The way back adds another one to the same database.
    let folder = scratch.path(&format!("work/project-{}", before.last_sequence));
    std::fs::create_dir_all(&folder).map_err(|error| {
        Failure::new(Reason::Unreadable, format!("cannot make a scratch project: {error}"))
    })?;
    let folder = folder.to_string_lossy().into_owned();
    guard.run(&mut client, Verb::ProjectAdd, &[&folder], limits.command).await?;
    let now = reader::ask(&client.instance.database(), Fingerprint::of)?;
    let lost = now.lost_since(before);
    if !lost.is_empty() {
        return Err(Failure::new(Reason::HistoryShrank, lost.join("; ")).into());
    }
    for (table, expected) in
        [("orchestration_events", 1), ("projection_projects", 1), ("projection_thread_messages", 0)]
    {
        let added = now.count(table).saturating_sub(before.count(table));
        if added != expected {
            let detail = format!("adding a project added {added} rows to {table} instead of {expected}");
            return Err(Failure::new(Reason::NotWritten, detail).into());
        }
    }
    Ok(now)
}

/// `integrity_check` of the stopped database.
pub async fn is_whole(database: &Path) -> Result<(), NotDone> {
    let check = |connection: &Connection| {
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0))
    };
    let answer = reader::ask(database, check)?;
    if answer == "ok" {
        return Ok(());
    }
    Err(Failure::new(Reason::Corrupt, format!("integrity_check: {}", answer.replace('\n', "; "))).into())
}
