//! What goes on while something else waits, and what becomes of defects.

use std::path::Path;

use super::*;
use crate::t3::access::Way;

/// Nobody listens on her port.
fn ann(base_dir: &Path) -> Target {
    Target {
        user: "ann".parse().expect("a user name"),
        identity: "ann".to_owned(),
        port: crate::inventory::Port::new(1).expect("a port"),
        base_dir: base_dir.to_owned(),
        uid: None,
        withheld: None,
    }
}

#[tokio::test]
async fn pulses_go_on_while_a_login_waits_for_its_turn() {
    let section = Section {
        pulse_interval: Duration::from_millis(20),
        pulse_timeout: Duration::from_millis(5),
        concurrent_handshakes: 1,
        ..Section::default()
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let access = Access::own(dir.path().join("keepers"), &t3::Section::default());
    let shared = Arc::new(Shared::new(section, t3::Section::default(), access));
    let (runs, mut recorded) = mpsc::channel(1);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let turn = shared.handshakes.acquire().await.expect("a turn");
    let mut prober = Prober::new(shared.clone(), runs, tasks, stop.clone());
    prober.serve(&[ann(dir.path())]);

    for _ in 0..5 {
        assert_eq!(recorded.recv().await.expect("a run").kind, Kind::Pulse);
    }
    drop(turn);
    while recorded.recv().await.expect("a run").kind != Kind::Handshake {}
    stop.cancel();
}

#[tokio::test]
async fn pulses_go_on_while_a_helper_does_not_answer_about_a_database() {
    let section = Section {
        pulse_interval: Duration::from_millis(20),
        pulse_timeout: Duration::from_millis(5),
        state_interval: Duration::from_millis(20),
        ..Section::default()
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("sock");
    let helper = tokio::net::UnixListener::bind(&socket).expect("bind");
    let access = Access::helper(Way::Socket(socket));
    let shared = Arc::new(Shared::new(section, t3::Section::default(), access));
    let (runs, mut recorded) = mpsc::channel(1);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let mut prober = Prober::new(shared, runs, tasks.clone(), stop.clone());
    prober.serve(&[ann(dir.path())]);
    let recording = async {
        let mut pulses = 0;
        while let Some(run) = recorded.recv().await {
            pulses += u32::from(run.kind == Kind::Pulse);
            if pulses == 20 {
                stop.cancel();
            }
        }
    };
    // Held open and never answered.
    let (connection, ()) = tokio::join!(helper.accept(), async {
        tasks.close();
        tokio::join!(recording, async {
            tasks.wait().await;
            drop(prober);
        });
    });
    assert!(connection.is_ok(), "it was asked");
}

#[tokio::test]
async fn a_panic_in_a_probe_is_an_outcome() {
    let instance = Instance { name: "ann".to_owned(), port: 1, base_dir: "/nowhere".into(), uid: 0 };
    let run =
        survive(Kind::Pulse, Step::Reach, Trigger::Schedule, &instance, async { panic!("broken") }).await;
    assert_eq!(run.outcome(), Outcome::Failed(Reason::Panicked));
    assert_eq!(run.decided_by().and_then(|step| step.detail.as_deref()), Some("the probe panicked: broken"));
}

#[tokio::test]
async fn a_withheld_user_fails_to_log_in_and_nothing_is_sent_to_the_port() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let port = listener.local_addr().expect("an address").port();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let access = Access::own(dir.path().join("keepers"), &t3::Section::default());
    let shared = Shared::new(Section::default(), t3::Section::default(), access);
    let instance = Instance { name: "ann".to_owned(), port, base_dir: dir.path().to_owned(), uid: 0 };
    let known = Known { withheld: Some(Finding::SharedPort), pulsed: Some(Outcome::Ok) };
    let mut leftovers = Leftovers::default();
    let run = shared.handshake(&instance, known, &mut leftovers, Trigger::Schedule).await;
    assert_eq!(run.outcome(), Outcome::Failed(Reason::Withheld));
    assert_eq!(run.decided_by().map(|step| step.step), Some(Step::Mint));
    assert!(listener.accept().is_err(), "something was sent");
}
