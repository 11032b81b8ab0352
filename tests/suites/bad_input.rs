//! Instances and commands that misbehave, under a running service: each is named, and nobody else's probes suffer.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::tools;
use crate::support::world::{PROGRAM, World, replace, wait_for};

const QUICK: &str = "[probe]\npulse_interval = \"1s\"\npulse_timeout = \"800ms\"\nrequest_timeout = \"2s\"\n\
                     handshake_interval = \"2s\"\nstart_grace = \"0s\"\n";

/// A listener that is no t3, keeps every byte that reaches it, and answers each request with the same bytes.
struct Impostor {
    heard: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
}

impl Impostor {
    fn on(port: u16, answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port");
        listener.set_nonblocking(true).expect("non-blocking");
        let impostor = Self { heard: Arc::default(), stop: Arc::default() };
        let (heard, stop) = (impostor.heard.clone(), impostor.stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::park_timeout(std::time::Duration::from_millis(5));
                    continue;
                };
                let (heard, answer) = (heard.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut bytes = [0; 65536];
                    stream.set_nonblocking(false).expect("blocking");
                    while let Ok(read @ 1..) = stream.read(&mut bytes) {
                        heard.lock().expect("the bytes").extend_from_slice(&bytes[..read]);
                        if stream.write_all(&answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        impostor
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().expect("the bytes")).into_owned()
    }
}

fn json(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn whatever_one_instance_does_the_others_are_probed_on() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33"), ("cid", "0.0.24")]).configured(QUICK);
    let serving = world.serve();
    for user in ["ann", "bob", "cid"] {
        serving.until_ok(user, "handshake", true);
    }
    for (fault, step, reason) in [
        ("hang", "reach", "timeout"),
        ("html-on-api", "reach", "html"),
        ("status-500", "reach", "internal_error"),
        ("close-mid-body", "reach", "closed"),
        ("huge-body", "reach", "too_large"),
        ("not-http", "reach", "malformed"),
        ("exchange-hang", "contract", "timeout"),
    ] {
        let others = ["bob", "cid"].map(|user| (user, serving.until_runs(user, "pulse", "ok", 0.0)));
        world.fault("ann", fault);
        let named = format!("t3_probe_failures_total{{user=\"ann\",step=\"{step}\",reason=\"{reason}\"}}");
        serving.until_metric(&named, |failures| failures >= 1.0);
        for (user, pulses) in others {
            serving.until_runs(user, "pulse", "ok", pulses + 1.0);
        }
        world.mend("ann", fault);
        serving.until_ok("ann", "pulse", true);
    }
}

#[test]
fn a_mint_that_hangs_holds_up_nobodys_pulses_and_is_killed() {
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(
        &QUICK
            .replace("handshake_interval = \"2s\"", "handshake_interval = \"1h\"\ncommand_timeout = \"4s\""),
    );
    world.fault("ann", "cli-hang");
    let serving = world.serve();
    // Her own pulses go on while her keeper's command hangs, and so do those of bob, whose command waits for its turn.
    for user in ["ann", "bob"] {
        serving.until_runs(user, "pulse", "ok", 1.0);
    }
    serving.until_metric("t3_probe_failures_total{user=\"ann\",step=\"mint\",reason=\"timeout\"}", |count| {
        count >= 1.0
    });
    serving.until_ok("bob", "handshake", true);
    let running = || {
        let processes = procfs::process::all_processes().expect("/proc").flatten();
        let base_dir = world.base_dir("ann").display().to_string();
        let mut lines = processes.filter_map(|process| process.cmdline().ok());
        lines.any(|line| line.contains(&base_dir) && line.contains(&"issue".to_owned()))
    };
    wait_for("the command to be gone", || (!running()).then_some(()));
}

#[test]
fn a_port_that_another_account_has_taken_is_told_no_secret() {
    if !tools::root() || tools::find("setpriv").is_none() {
        return;
    }
    let mut world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    // Whoever is quick when her instance stops has the port; his t3 answers as well as hers.
    world.kill("ann");
    let squat = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(squat.path(), std::fs::Permissions::from_mode(0o777)).expect("mode");
    let program = squat.path().join("t3");
    std::fs::copy(PROGRAM, &program).expect("a copy that he may run");
    let base_dir = squat.path().join("base");
    let mut command = Command::new(&program);
    command
        .args(["sim", "t3", "--as", "0.0.33", "--", "serve"])
        .uid(65534)
        .gid(65534)
        .env("HOME", squat.path());
    command.stdout(std::fs::File::create(world.path("squat.log")).expect("a log"));
    world.start_with("ann", &mut command, &base_dir);

    let named = |step: &str| {
        let sample =
            format!("t3_probe_failures_total{{user=\"ann\",step=\"{step}\",reason=\"wrong_owner\"}}");
        serving.until_metric(&sample, |count| count >= 1.0);
    };
    named("reach");
    named("version");
    let probed = world.probe("ann");
    assert_eq!(
        (probed.decided("pulse"), probed.decided("handshake"), probed.exit),
        ("reach: failed(wrong_owner)".to_owned(), "version: failed(wrong_owner)".to_owned(), 1)
    );
    serving.until_ok("bob", "pulse", true);
}

#[test]
fn an_impostor_on_the_port_hears_no_credential_cookie_or_token() {
    if !tools::root() {
        return;
    }
    // The instance belongs to an account that we are not; whoever listens there as us is an impostor.
    let mut world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    assert_eq!(serving.stop(), 0);
    world.kill("ann");
    let config = std::fs::read_to_string(world.path("config.toml")).expect("the configuration");
    replace(&world.path("config.toml"), &config.replace("accounts = false", "accounts = true"));
    let table = serde_json::json!({ "ann@example.com": { "os_user": "nobody", "port": world.port("ann") } });
    replace(&world.path("dispatch.json"), &table.to_string());
    // Her keeper is there to be stolen.
    let keepers = world.path("state/keepers");
    std::fs::copy(keepers.join("ann.json"), keepers.join("nobody.json")).expect("a keeper");
    // Everything that a login asks, so that nothing else than its owner stands against it.
    let answer = json(
        r#"{"authenticated":false,"environmentId":"e","serverVersion":"0.0.33","credential":"AAAAAAAAAAAA",
        "auth":{"sessionCookieName":"t3_session"}}"#,
    );
    let impostor = Impostor::on(world.port("ann"), answer);
    let probed = world.probe("nobody");
    assert_eq!(
        (probed.decided("pulse"), probed.decided("handshake")),
        ("reach: failed(wrong_owner)".to_owned(), "version: failed(wrong_owner)".to_owned())
    );
    let heard = impostor.heard().to_ascii_lowercase();
    for word in ["authorization", "bearer", "cookie", "credential", "sessionid"] {
        assert!(!heard.contains(word), "the impostor heard: {heard}");
    }
    let keeper: serde_json::Value =
        serde_json::from_slice(&std::fs::read(keepers.join("nobody.json")).expect("the keeper"))
            .expect("JSON");
    assert!(!heard.contains(&keeper["token"].as_str().expect("a token").to_ascii_lowercase()));
}

#[test]
fn a_user_whom_the_inventory_withholds_is_told_no_secret_by_a_probe_by_hand_either() {
    let mut world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    assert_eq!(world.probe("ann").exit, 0);
    world.kill("ann");
    let port = world.port("ann");
    let table = serde_json::json!({
        "ann@example.com": { "os_user": "ann", "port": port },
        "bob@example.com": { "os_user": "bob", "port": port },
    });
    replace(&world.path("dispatch.json"), &table.to_string());
    let impostor = Impostor::on(port, b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n");
    let probed = world.probe("ann");
    assert_eq!((probed.decided("handshake"), probed.exit), ("mint: failed(withheld)".to_owned(), 1));
    assert!(!impostor.heard().to_ascii_lowercase().contains("bearer"), "{}", impostor.heard());
}

#[test]
fn an_answer_without_an_end_is_given_up_and_an_instances_words_steer_no_terminal() {
    let mut world = World::empty().configured(QUICK);
    let drip = world.add("bob");
    let _drip = Impostor::on(
        drip,
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    );
    assert_eq!(world.probe("bob").decided("pulse"), "reach: failed(timeout)");
    let name = world.add("cid");
    let answer = json(r#"{"authenticated":false,"auth":{"sessionCookieName":"\u001b[31m\n\"\u0000"}}"#);
    let _name = Impostor::on(name, answer);
    let probed = world.probe("cid");
    assert_eq!(probed.decided("pulse"), "reach: failed(malformed)");
    assert!(
        !probed.json.to_string().contains("[31m"),
        "an instance's words reach a terminal: {}",
        probed.json
    );
}
