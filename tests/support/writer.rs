//! A server's database while it is in use: a connection that stays open and writes one event after another, with no
//! patience for locks, as t3 has none.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_rusqlite::rusqlite::{self, Connection};

/// Writes until it is asked how it went.
pub struct Writer {
    stop: Sender<()>,
    thread: JoinHandle<rusqlite::Result<Vec<Duration>>>,
}

impl Writer {
    /// One event and one message in a transaction, then a pause.
    pub fn start(database: &Path, pause: Duration) -> Self {
        let connection = open(database);
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut latencies = Vec::new();
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let clock = Instant::now();
                write(&connection)?;
                latencies.push(clock.elapsed());
            }
            connection.close().map_err(|(_, error)| error)?;
            Ok(latencies)
        });
        Self { stop, thread }
    }

    /// How long each write took; an error is a write that was refused.
    pub fn finish(self) -> rusqlite::Result<Vec<Duration>> {
        self.stop.send(()).ok();
        self.thread.join().expect("the writer does not panic")
    }
}

/// Opens a database as a server does and leaves something in its WAL.
pub fn open(database: &Path) -> Connection {
    let connection = Connection::open(database).expect("the database opens");
    connection.busy_timeout(Duration::ZERO).expect("no patience");
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).expect("WAL");
    write(&connection).expect("the first write");
    connection
}

/// One event and the message it stands for.
pub fn write(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "BEGIN IMMEDIATE;
         INSERT INTO orchestration_events (event_id, aggregate_kind, stream_id, stream_version, event_type, occurred_at,
             actor_kind, payload_json, metadata_json)
         SELECT 'event-' || (n + 1), 'thread', 'written', n + 1, 'thread.message-sent',
             strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'client', hex(zeroblob(500)), '{}'
         FROM (SELECT coalesce(max(sequence), 0) AS n FROM orchestration_events);
         INSERT INTO projection_thread_messages (message_id, thread_id, role, text, is_streaming, created_at, updated_at)
         SELECT 'message-' || max(sequence), 'written', 'user', hex(zeroblob(500)), 0, max(occurred_at), max(occurred_at)
         FROM orchestration_events;
         COMMIT",
    )
}
