//! No credential, cookie or token is in anything that this program writes, but for the keepers' own files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio_rusqlite::rusqlite::Connection;

use crate::support::world::{World, wait_for};

/// How every signed token of t3 begins: cookies, keepers' tokens and tickets are claims in base64url, `{"v":…`.
const TOKEN: &str = "eyJ2";

const QUICK: &str = "[probe]\npulse_interval = \"500ms\"\npulse_timeout = \"400ms\"\nhandshake_interval = \"1s\"\n\
                     request_timeout = \"1s\"\ncommand_timeout = \"5s\"\n";

/// Every file below a directory with its bytes.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    let read = |path: &Path| (path.display().to_string(), std::fs::read(path).unwrap_or_default());
    let below = entries.map(|entry| entry.path());
    below.flat_map(|path| if path.is_dir() { files(&path) } else { vec![read(&path)] }).collect()
}

fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

#[test]
fn no_secret_is_in_any_output_of_a_run_full_of_faults() {
    let users = [("ann", "0.0.33"), ("bob", "0.0.24"), ("cid", "0.0.26")];
    let world = World::with(&users).configured(QUICK);
    let serving = world.serve_as(world.command(&["serve"]).env("RUST_LOG", "trace"));
    let mut outputs = Vec::new();
    for (user, _) in users {
        serving.until_ok(user, "handshake", true);
    }
    for fault in [
        "session-false",
        "cookie-renamed",
        "cookie-without-http-only",
        "exchange-refuses",
        "ticket-500",
        "socket-200",
        "socket-closes",
        "rpc-error",
        "revoke-fails",
        "mint-foreign",
        "keeper-refused",
        "no-cookie",
    ] {
        let before = users.map(|(user, _)| serving.metric(&failed(user)).unwrap_or_default());
        for (user, _) in users {
            world.fault(user, fault);
        }
        for ((user, _), before) in users.iter().zip(before) {
            let args = ["probe", "--json", user];
            let probed = world.command(&args).env("RUST_LOG", "trace").output().expect("the program");
            assert_eq!(probed.status.code(), Some(1), "{fault}");
            outputs.push((format!("probe, {fault}"), [probed.stdout, probed.stderr].concat()));
            serving.until_metric(&failed(user), |failures| failures > before);
            world.mend(user, fault);
        }
    }
    let text = world.command(&["probe"]).output().expect("the program");
    outputs.push(("probe as text".to_owned(), [text.stdout, text.stderr].concat()));
    for path in
        ["/", "/history", "/history?user=ann", "/history/events", "/probe?user=ann&debug=true", "/metrics"]
    {
        outputs.push((path.to_owned(), serving.get(path).body.into_bytes()));
        outputs.push((format!("{path} in HTML"), serving.page(path).body.into_bytes()));
    }
    let open = [("Accept", "application/openmetrics-text; version=1.0.0")];
    outputs.push((
        "/metrics in OpenMetrics".to_owned(),
        serving.request("GET", "/metrics", &open).body.into_bytes(),
    ));
    outputs.push(("/history in JSON".to_owned(), serving.get("/history").body.into_bytes()));
    wait_for("the spool to be taken in", || {
        (std::fs::read_dir(world.path("state/spool")).expect("the spool").count() == 0).then_some(())
    });
    assert_eq!(serving.stop(), 0);
    outputs.push(("the log".to_owned(), world.log().into_bytes()));
    assert!(world.log().contains("DEBUG"), "the log is not as talkative as it can be");
    let (keepers, kept): (Vec<_>, Vec<_>) =
        files(&world.path("state")).into_iter().partition(|(path, _)| path.contains("/keepers/"));
    let sizes: Vec<_> = kept.iter().map(|(path, bytes)| (path.as_str(), bytes.len())).collect();
    assert!(sizes.iter().any(|(path, size)| path.contains("history.sqlite") && *size > 10_000), "{sizes:?}");
    outputs.extend(kept);

    let mut secrets = vec![TOKEN.to_owned()];
    for (user, _) in users {
        let database = Connection::open(world.database(user)).expect("the database");
        let mut credentials = database.prepare("SELECT credential FROM auth_pairing_links").expect("links");
        let found = credentials.query_map([], |row| row.get::<_, String>(0)).expect("credentials");
        secrets.extend(found.map(|credential| credential.expect("a credential")));
    }
    // Beside the keepers lies the lock under which they are issued.
    let keepers: Vec<_> = keepers.iter().filter(|(path, _)| path.ends_with(".json")).collect();
    for (path, bytes) in &keepers {
        let keeper: serde_json::Value = serde_json::from_slice(bytes).expect("a keeper");
        let token = keeper["token"].as_str().expect("a token");
        assert!(token.starts_with(TOKEN), "what is searched for is not how a token begins: {path}");
        // The signature by itself, too.
        secrets.extend(token.rsplit('.').next().map(str::to_owned));
    }
    assert!(keepers.len() == 3 && secrets.len() > 30, "{} secrets", secrets.len());
    for secret in &secrets {
        for (place, bytes) in &outputs {
            assert!(!holds(bytes, secret), "a secret is in {place}:\n{}", String::from_utf8_lossy(bytes));
        }
    }
    for (path, mode) in [("state/keepers", 0o700), ("state/keepers/ann.json", 0o600)] {
        let found = std::fs::metadata(world.path(path)).expect(path).permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path}");
    }
}

fn failed(user: &str) -> String {
    format!("t3_probe_runs_total{{user=\"{user}\",kind=\"handshake\",outcome=\"failed\"}}")
}
