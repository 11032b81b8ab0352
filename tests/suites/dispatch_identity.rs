//! Who comes in, and as whom: every way to be somebody else, tried on the real program.

use crate::support::door::{Door, Instance, table};
use crate::support::tools;
use crate::support::world::{World, http, wait_for};

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Header lines that name ann, or nearly, and what becomes of them.
const SPOOFS: &[(&str, u16, &str)] = &[
    ("", 403, "no_identity"),
    ("X-authentik-username: bob", 403, "unknown_identity"),
    ("X-authentik-username: ANN", 403, "unknown_identity"),
    ("X-authentik-username: ann.", 403, "unknown_identity"),
    ("X-authentik-username: ann@evil.example", 403, "unknown_identity"),
    ("X-authentik-username: ann@example.com.evil", 403, "unknown_identity"),
    ("X-authentik-username: ann@evil@example.com", 403, "unknown_identity"),
    ("X-authentik-username: @example.com", 403, "unknown_identity"),
    ("X-authentik-username: ../ann", 403, "unknown_identity"),
    ("X-authentik-username: =?utf-8?q?ann?=", 403, "unknown_identity"),
    ("X-authentik-username: аnn", 403, "unknown_identity"),
    ("X-authentik-username:", 400, "identity_malformed"),
    ("X-authentik-username: ann,bob", 400, "identity_malformed"),
    ("X-authentik-username: ann, ann", 400, "identity_malformed"),
    ("X-authentik-username: ann bob", 400, "identity_malformed"),
    ("X-authentik-username: ann ", 400, "identity_malformed"),
    ("X-authentik-username: ann\t", 400, "identity_malformed"),
    ("X-authentik-username:  ann", 400, "identity_malformed"),
    ("X-authentik-username: %61nn", 400, "identity_malformed"),
    ("X-authentik-username: ann%00", 400, "identity_malformed"),
    ("X-authentik-username: \"ann\"", 400, "identity_malformed"),
    ("X-authentik-username: ann;q=1", 400, "identity_malformed"),
    ("X-authentik-username: ann\u{a0}", 400, "identity_malformed"),
    ("X-authentik-username: ann\0", 400, "malformed"),
    ("X-authentik-username : ann", 400, "malformed"),
    (" X-authentik-username: ann", 400, "malformed"),
    ("X-authentik-username: a\r\n nn", 400, "malformed"),
    ("X-authentik-username: ann\nX-a: b", 400, "malformed"),
    ("X_authentik_username: ann", 400, "identity_spelling"),
    ("X_AUTHENTIK_USERNAME: ann", 400, "identity_spelling"),
    ("X-authentik_username: ann", 400, "identity_spelling"),
    ("X.authentik.username: ann", 400, "identity_spelling"),
    ("XAuthentikUsername: ann", 400, "identity_spelling"),
    ("X-authentik-username: ann\r\nX_authentik_username: bob", 400, "identity_spelling"),
    ("X-authentik-username: ann\r\nX-authentik-username: ann", 400, "identity_duplicate"),
    ("X-authentik-username: ann\r\nx-AUTHENTIK-USERNAME: bob", 400, "identity_duplicate"),
];

#[test]
fn nobody_becomes_ann_by_another_spelling() {
    let instance = Instance::answering(FINE);
    let door = Door::to(&instance);
    let long = format!("X-authentik-username: {}", "a".repeat(8192));
    let spoofs = SPOOFS.iter().copied().chain([(long.as_str(), 400, "identity_malformed")]);
    for (line, status, reason) in spoofs {
        let before = door.metric(&format!("t3_dispatch_refused_total{{reason=\"{reason}\"}}"));
        let line = if line.is_empty() { String::new() } else { format!("{line}\r\n") };
        let answer = door.raw(
            format!(
                "GET /api/x HTTP/1.1\r\nHost: x\r\nCookie: t3_session=v\r\n{line}Connection: close\r\n\r\n"
            )
            .as_bytes(),
        );
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(reason),
            "{line:?}: {answer}"
        );
        let after = door.metric(&format!("t3_dispatch_refused_total{{reason=\"{reason}\"}}"));
        assert_eq!(after, before + 1.0, "{line:?}");
    }
    assert_eq!(instance.heads(), Vec::<String>::new(), "an instance saw a spoofed request");
}

#[test]
fn ann_comes_in_by_her_name_or_her_local_part_but_not_two_people_by_one() {
    let instance = Instance::answering(FINE);
    let door = Door::to_with(&instance, "edge_cookies = [\"authentik_\", \"edge\"]\n");
    let come = |identity: &str| {
        let headers =
            [("X-authentik-username", identity), ("Cookie", "t3_session=v; edge=secret; authentik_1=secret")];
        http(door.port, "GET", "/api/x", &headers).expect("an answer").status
    };
    assert_eq!(come("ann"), 200);
    assert_eq!(come("ann@example.com"), 200);
    assert_eq!(come("ann@EXAMPLE.com"), 403, "another name for the same user");
    let heads = instance.heads().concat().to_ascii_lowercase();
    assert!(!heads.contains("authentik") && !heads.contains("secret"), "{heads}");
    assert!(heads.contains("cookie: t3_session=v\r\n"), "{heads}");
}

#[test]
fn a_local_process_that_is_not_trusted_is_nobody() {
    let instance = Instance::answering(FINE);
    let keys = "secret_file = \"SECRET\"\n";
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "a secret of the edge\n").expect("written");
    let mut door = Door::to_with(&instance, &keys.replace("SECRET", &secret.path().display().to_string()));
    // From now on somebody else's uid is trusted, not the one that runs this test.
    let config = std::fs::read_to_string(door.world.path("config.toml")).expect("the configuration");
    let own = format!("trusted_uids = [{}]", nix::unistd::geteuid());
    std::fs::write(door.world.path("config.toml"), config.replace(&own, "trusted_uids = [54321]"))
        .expect("written");
    door.signal(nix::sys::signal::Signal::SIGTERM);
    door.ended();
    door.start();
    let ask = |headers: &[(&str, &str)]| {
        let mut all = vec![("Cookie", "t3_session=v")];
        all.extend_from_slice(headers);
        door.ann("GET", "/api/x", &all)
    };
    for (headers, why) in [
        (&[][..], "no secret"),
        (&[("X-Forwarded-For", "10.0.0.1")][..], "a forwarded address"),
        (&[("X-T3-Dispatch-Secret", "a secret of the edgE")][..], "a wrong secret"),
        (&[("X-T3-Dispatch-Secret", "")][..], "an empty secret"),
    ] {
        let answer = ask(headers);
        assert!(answer.status == 403 && answer.body.contains("untrusted_peer"), "{why}: {answer:?}");
    }
    assert_eq!(instance.heads().len(), 0);
    assert_eq!(ask(&[("X-T3-Dispatch-Secret", "a secret of the edge")]).status, 200);
    assert!(!instance.heads().concat().contains("secret"), "the secret reached an instance");
    assert_eq!(http(door.port, "GET", "/healthz", &[]).expect("an answer").status, 200);
}

#[test]
fn a_dispatch_that_believes_nobody_does_not_start() {
    let instance = Instance::answering(FINE);
    let door = Door::to(&instance);
    let config = std::fs::read_to_string(door.world.path("config.toml")).expect("the configuration");
    let own = format!("trusted_uids = [{}]", nix::unistd::geteuid());
    std::fs::write(door.world.path("config.toml"), config.replace(&own, "")).expect("written");
    let output = door.world.command(&["dispatch"]).output().expect("the program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("believes nobody"), "{said}");
}

#[test]
fn the_table_is_replaced_a_hundred_times_under_load_and_nobody_notices() {
    let instance = Instance::answering(FINE);
    let door = Door::to(&instance);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let answer = door.ann("GET", "/api/x", &[("Cookie", "t3_session=v")]);
                        assert_eq!(answer.status, 200, "{answer:?}");
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        for turn in 0..100_u16 {
            if turn % 2 == 0 {
                table(&door.world, &[("ann", "ann", instance.port), ("bob", "bob", 20_000 + turn)]);
            } else {
                std::fs::write(door.world.path("dispatch.json"), "{\"ann\": ").expect("written");
            }
            door.signal(nix::sys::signal::Signal::SIGHUP);
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let answers: u32 = asking.into_iter().map(|asking| asking.join().expect("no failed request")).sum();
        assert!(answers > 20, "{answers} answers are no load");
    });
    // The last good table counts, and it was read.
    table(&door.world, &[("bob", "bob", instance.port)]);
    door.signal(nix::sys::signal::Signal::SIGHUP);
    wait_for("ann to be gone", || {
        (door.ann("GET", "/api/x", &[("Cookie", "t3_session=v")]).status == 403).then_some(())
    });
}

/// The public half of a key pair made for these tests, and the private one.
const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"k1","x":"w9iS_MtXf6vcLGODt_dBnrdYkgKGS1cZNNPMTl-DIUU","y":"_KbAHbfAPnqKV5zVS656f_oJRYQxpgr30T_9l5LUTsk"}]}"#;
const SIGNER: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgcjEZAP94cBWRM2tfhYvpCxPDQGJYlslrwxAb0tEcufChRANCAATD2JL8y1d/q9wsY4O390Get1iSAoZLVxk008xOX4MhRfymwB23wD56ilec1Uuuen/6CUWEMaYK99E//ZeS1E7J";

/// What the edge signs about a user.
fn token_of(user: &str) -> String {
    use base64::Engine;
    let key = base64::prelude::BASE64_STANDARD.decode(SIGNER).expect("base64");
    let claims = serde_json::json!({
        "preferred_username": user, "aud": "t3", "iss": "https://auth.example.com/", "exp": 4_102_444_800_u64
    });
    let header = jsonwebtoken::Header {
        kid: Some("k1".to_owned()),
        ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256)
    };
    jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_ec_der(&key)).expect("signed")
}

#[test]
fn with_the_edges_keys_from_a_file_or_an_address_its_word_alone_is_not_enough() {
    let edge = Instance::start(|talk| {
        if talk.request().is_some() {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", JWKS.len());
            talk.say(format!("{head}{JWKS}").as_bytes());
        }
    });
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), JWKS).expect("written");
    let probe_key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(probe_key.path(), "a key of the prober's own").expect("written");
    for source in [
        format!("jwks_file = \"{}\"", file.path().display()),
        format!("jwks_url = \"http://127.0.0.1:{}/jwks\"", edge.port),
    ] {
        let instance = Instance::answering(FINE);
        let door = Door::to_with(
            &instance,
            &format!(
                "{source}\ntoken_audience = \"t3\"\ntoken_issuer = \"https://auth.example.com/\"\nprobe_key_file = \"{}\"\n",
                probe_key.path().display()
            ),
        );
        let ask =
            |name: &str, value: &str| door.ann("GET", "/api/x", &[("Cookie", "t3_session=v"), (name, value)]);
        wait_for(&source, || (ask("X-authentik-jwt", &token_of("ann")).status == 200).then_some(()));
        let accepted = instance.heads().len();
        for (name, value, why) in [
            ("X-a", String::new(), "no token"),
            ("X-authentik-jwt", token_of("bob"), "another's token"),
            ("X-authentik-jwt", format!("{}x", token_of("ann")), "another signature"),
            ("X-T3-Prober-Key", "not the key of the prober".to_owned(), "a wrong key"),
        ] {
            let answer = ask(name, &value);
            assert!(answer.status == 403 && answer.body.contains("token_invalid"), "{why}: {answer:?}");
        }
        assert_eq!(instance.heads().len(), accepted, "nothing reached the instance");
        assert_eq!(
            ask("X-T3-Prober-Key", "a key of the prober's own").status,
            200,
            "it is not signed in there"
        );
        let heads = instance.heads().concat().to_ascii_lowercase();
        assert!(!heads.contains("jwt") && !heads.contains("prober-key"), "{heads}");
    }
}

/// Tells threads to end however the test ends, or a failure would wait for them for ever.
struct Ends<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Binds a port, says what it receives, and answers as if all were well.
const SQUATTER: &str = r#"
    my $squat = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ARGV[0], Listen => 50, ReuseAddr => 1)
        or die "cannot squat";
    $| = 1;
    print "squatting\n";
    while (my $client = $squat->accept) {
        sysread($client, my $bytes, 65536);
        print $bytes;
        print $client "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
        close $client;
    }
"#;

#[test]
fn whoever_takes_the_port_during_a_restart_is_sent_no_cookie() {
    if !tools::root() || tools::find("setpriv").is_none() || tools::find("perl").is_none() {
        return;
    }
    let mut door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let visit = [("X-authentik-username", "ann@example.com"), ("Accept", "text/html")];
    let first = http(door.port, "GET", "/", &visit).expect("an answer");
    let set =
        first.head.lines().find_map(|line| line.strip_prefix("Set-Cookie: t3_session")).expect("a session");
    let cookie = format!("t3_session{}", set.split(';').next().expect("a value"));
    let (dispatch, instance, heard) = (door.port, door.world.port("ann"), door.world.path("squatter.log"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let ask = || {
        let headers = [("X-authentik-username", "ann@example.com"), ("Cookie", cookie.as_str())];
        http(dispatch, "GET", "/api/auth/session", &headers).unwrap_or_default()
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = ask();
                    assert!(matches!(answer.status, 200 | 502 | 503) && answer.body != "hi", "{answer:?}");
                }
            });
        }
        let _ends = Ends(&stop);
        door.world.kill("ann");
        let mut squatter = std::process::Command::new("setpriv");
        squatter.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "perl",
            "-MIO::Socket::INET",
            "-e",
        ]);
        squatter.arg(SQUATTER).arg(instance.to_string());
        squatter.stdout(std::fs::File::create(&heard).expect("a file"));
        let mut squatter = squatter.spawn().expect("setpriv runs");
        let said = || std::fs::read_to_string(&heard).unwrap_or_default();
        wait_for("the port to be taken", || said().contains("squatting").then_some(()));
        for _ in 0..20 {
            let answer = ask();
            assert!(answer.status == 503 && answer.body.contains("wrong_owner"), "{answer:?}");
        }
        let _ = squatter.kill();
        let _ = squatter.wait();
        door.world.start("ann", "0.0.33");
        wait_for("ann's own t3", || (ask().status == 200).then_some(()));
        assert!(!said().contains("t3_session") && !said().contains("HTTP/1.1"), "{}", said());
    });
}
