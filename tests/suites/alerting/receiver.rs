//! Where Alertmanager sends to: every alert of every notification is kept, with the receiver it was meant for.

use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use serde_json::Value;

use crate::support::posted::Posted;

/// One alert of one notification.
#[derive(Clone, Debug)]
pub struct Notice {
    pub receiver: String,
    pub is_firing: bool,
    /// When it came.
    pub at: SystemTime,
    /// When Prometheus found that it fires.
    pub since: SystemTime,
    pub labels: Value,
    pub annotations: Value,
}

#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    notices: Arc<Mutex<Vec<Notice>>>,
}

impl Notice {
    pub fn alert(&self) -> &str {
        self.labels["alertname"].as_str().unwrap_or_default()
    }

    /// The user it is about; empty where it is about none.
    pub fn user(&self) -> &str {
        self.labels["user"].as_str().unwrap_or_default()
    }

    /// The command that its text tells to run next.
    pub fn next(&self) -> &str {
        let text = self.annotations["description"].as_str().unwrap_or_default();
        text.rsplit_once("Next: ").map(|(_, command)| command).unwrap_or_default()
    }
}

impl Receiver {
    /// Listens until the test process ends.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let receiver = Self { port, notices: Arc::default() };
        let keeper = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One at a time: what it sends again because it hung up is a duplicate, and duplicates are harmless.
                let _ = keeper.take(stream);
            }
        });
        receiver
    }

    pub fn notices(&self) -> MutexGuard<'_, Vec<Notice>> {
        self.notices.lock().expect("nobody panicked while holding it")
    }

    fn take(&self, stream: TcpStream) -> std::io::Result<()> {
        let Posted { path, body } = Posted::read(stream)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let receiver = path.trim_start_matches('/').to_owned();
        let at = SystemTime::now();
        let alerts = body["alerts"].as_array().cloned().unwrap_or_default();
        self.notices().extend(alerts.into_iter().map(|alert| {
            Notice {
                receiver: receiver.clone(),
                is_firing: alert["status"] == "firing",
                at,
                since: alert["startsAt"]
                    .as_str()
                    .and_then(|since| humantime::parse_rfc3339(since).ok())
                    .unwrap_or(SystemTime::UNIX_EPOCH),
                labels: alert["labels"].clone(),
                annotations: alert["annotations"].clone(),
            }
        }));
        Ok(())
    }
}
