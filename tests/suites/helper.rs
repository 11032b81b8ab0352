//! The helper as root, with accounts made for the test: whom it acts for, for whom, as whom, and what stays shut.

mod deploy;
mod privilege;
mod refusals;
mod rehearse;
mod snapshots;
mod trouble;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::host::{Account, Host};
use crate::support::tools;

/// A helper with one served user at 0.0.24 and one caller that may ask for everything.
struct World {
    // The accounts go before the host whose directory holds their homes.
    ann: Account,
    prober: Account,
    host: Host,
}

const ALL: &str = "mint revoke labelled inspect port snapshot verify rehearse";

impl World {
    /// `None` where root is left out.
    fn new() -> Option<Self> {
        tools::root().then(|| {
            let mut host = Host::new();
            let install = host.install("0.0.24", &[]);
            let (mut ann, prober) = (host.user(), host.caller(ALL));
            ann.serve(&install);
            host.extra = format!("[backup]\ndir = \"{}\"\n", host.path("backups").display());
            host.start_helper();
            Self { ann, prober, host }
        })
    }

    fn ask(&self, request: &Value) -> Value {
        self.host.ask_one(&self.prober, request)
    }

    fn keepers(&self) -> std::path::PathBuf {
        self.host.path("helper/keepers")
    }
}

fn limits(command: Duration) -> Value {
    json!({
        "request": { "secs": 5, "nanos": 0 },
        "command": { "secs": command.as_secs(), "nanos": command.subsec_nanos() },
    })
}

fn mint(user: &str) -> Value {
    json!({ "verb": "mint", "user": user, "label": "t3-prober", "limits": limits(Duration::from_secs(15)) })
}

fn inspect(user: Option<&str>) -> Value {
    json!({ "verb": "inspect", "user": user, "limit": { "secs": 15, "nanos": 0 } })
}

fn labelled(user: &str) -> Value {
    json!({
        "verb": "labelled",
        "user": user,
        "label": "t3-prober",
        "age": { "secs": 0, "nanos": 0 },
        "limits": limits(Duration::from_secs(15)),
    })
}

fn revoke(user: &str, session: &str) -> Value {
    json!({ "verb": "revoke", "user": user, "session": session, "limits": limits(Duration::from_secs(15)) })
}

fn ended(answer: &Value) -> &str {
    answer["ended"].as_str().unwrap_or_default()
}

fn detail(answer: &Value) -> &str {
    answer["detail"].as_str().unwrap_or_default()
}

fn refused(answer: &Value, why: &str) {
    assert!(ended(answer) == "refused" && detail(answer).contains(why), "not refused for '{why}': {answer}");
}

fn failed(answer: &Value, reason: &str) {
    assert_eq!((ended(answer), answer["reason"].as_str()), ("failed", Some(reason)), "{answer}");
}
