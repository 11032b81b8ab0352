//! The demo as a newcomer meets it: what it prints is run as printed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::free_port::free_port;
use crate::support::world::{Answer, PROGRAM, http, wait_for};

struct Demo {
    child: Child,
    port: u16,
    guide: String,
    /// What it has printed so far.
    told: Arc<Mutex<String>>,
}

impl Demo {
    /// Starts the demo and reads what it prints to the last line of its guide, and on.
    fn start(dir: &Path, more: &[&str]) -> Self {
        let port = free_port();
        let mut child =
            Self::command(dir, port).args(more).stdout(Stdio::piped()).spawn().expect("the program");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let told = Arc::new(Mutex::new(String::new()));
        let heard = told.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut told = heard.lock().expect("text");
                told.push_str(&line);
                told.push('\n');
            }
        });
        let mut demo = Self { child, port, guide: String::new(), told };
        demo.until_it_tells("\nCtrl-C ");
        demo.guide = demo.told();
        demo
    }

    fn told(&self) -> String {
        self.told.lock().expect("text").clone()
    }

    fn until_it_tells(&self, words: &str) {
        wait_for(&format!("'{words}' in {}", self.told()), || self.told().contains(words).then_some(()));
    }

    fn command(dir: &Path, port: u16) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("demo").arg("--dir").arg(dir).arg("--listen").arg(format!("127.0.0.1:{port}"));
        command.stderr(Stdio::null());
        command
    }

    fn page(&self, path: &str) -> Answer {
        http(self.port, "GET", path, &[("Accept", "text/html")]).unwrap_or_default()
    }

    /// The command that the guide prints with these words in it, run by a shell as somebody would paste it.
    fn run(&self, words: &str) -> (Option<i32>, String) {
        let line = self.guide.lines().find(|line| line.contains(words)).expect(words);
        let command = &line[line.find('/').expect("a path")..];
        let output = Command::new("sh").args(["-c", command]).output().expect("a shell");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn until_page_lacks(&self, words: &str) {
        wait_for(&format!("the end of '{words}'"), || {
            let page = self.page("/").body;
            (!page.is_empty() && !page.contains(words)).then_some(())
        });
    }

    /// The messages in a user's row of the table that asks whether their data could be brought back.
    fn until_page_counts(&self, user: &str, messages: u64) {
        let (row, cell) = (format!("/history?user={user}&amp;kind=state"), format!(">{messages} messages<"));
        wait_for(&format!("{messages} messages of {user}"), || {
            let page = self.page("/").body;
            let row = page.split("<tr>").find(|part| part.contains(&row))?;
            row.contains(&cell).then_some(())
        });
    }

    fn until_page_says(&self, words: &str) {
        wait_for(words, || self.page("/").body.contains(words).then_some(()));
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        interrupt(&self.child);
        let _ = self.child.wait();
    }
}

fn interrupt(child: &Child) {
    let _ = kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT);
}

/// Nothing runs any more whose command line names the directory.
fn nothing_is_left_of(dir: &Path) {
    assert!(!dir.exists(), "{} is left behind", dir.display());
    let dir = dir.display().to_string();
    wait_for("every process to be gone", || {
        let processes = procfs::process::all_processes().expect("/proc").flatten();
        let mut lines = processes.filter_map(|process| process.cmdline().ok());
        (!lines.any(|line| line.iter().any(|word| word.contains(&dir)))).then_some(())
    });
}

#[test]
fn the_guide_does_what_it_says_and_ctrl_c_leaves_nothing() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().canonicalize().expect("a path").join("demo");
    let mut demo = Demo::start(&dir, &[]);
    for path in ["/", "/history", "/metrics"] {
        let url = format!("http://127.0.0.1:{}{path}", demo.port);
        assert!(demo.guide.lines().any(|line| line.trim_end().ends_with(&url)), "{url} in {}", demo.guide);
        assert_eq!(demo.page(path).status, 200, "{path}");
    }
    demo.until_page_says("All 3 users can log in");
    for (user, messages) in [("ann", 74), ("bob", 41), ("cid", 160)] {
        demo.until_page_counts(user, messages);
    }
    for (user, version) in [("ann", "0.0.33"), ("bob", "0.0.33"), ("cid", "0.0.24")] {
        let line = demo.guide.lines().find(|line| line.trim().starts_with(&format!("as {user} ")));
        let url = line.and_then(|line| line.split("http://").nth(1)).expect("an address");
        let port = url.split([':', '/']).nth(1).and_then(|port| port.parse().ok()).expect("a port");
        let first = http(port, "GET", "/any/page", &[("Accept", "text/html")]).expect("an answer");
        assert!(first.status == 302 && first.head.contains("ocation: /any/page"), "{user}: {first:?}");
        let session = first.head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let cookie = name.eq_ignore_ascii_case("set-cookie").then(|| value.split(';').next())??;
            cookie.starts_with("t3_session").then(|| cookie.to_owned())
        });
        let cookie = session.expect("a session");
        let own = http(port, "GET", "/api/auth/session", &[("Cookie", &cookie)]).expect("an answer");
        assert!(own.body.contains("\"authenticated\":true"), "{user} {version}: {own:?}");
    }
    // The line holds a '/' before the command's own.
    let line = demo.guide.lines().find(|line| line.contains("by hand")).expect("a command");
    let (_, command) = line.split_once("by hand").expect("a command");
    let output = Command::new("sh").args(["-c", command]).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("HTTP/1.1 302 ") && said.contains("Set-Cookie: t3_session"), "{said}");

    let (code, said) = demo.run("gate 0.0.34-nightly.1");
    assert!(
        code == Some(0) && said.contains("pass [all_passed]: t3 0.0.34-nightly.1 does everything"),
        "{said}"
    );
    let (code, said) = demo.run("gate 0.0.34-nightly.2");
    assert!(
        code == Some(1) && said.contains("exchange on a fresh database and 3 more: failed(no_cookie)"),
        "{said}"
    );
    demo.until_page_says("The last refusal: <strong>0.0.34-nightly.2</strong>");

    let (code, help) = demo.run(".t3 --help");
    assert!(code == Some(0) && help.contains("exchange-500"), "{help}");
    let (code, said) = demo.run("exchange-500 on");
    assert_eq!(code, Some(0), "{said}");
    demo.until_page_says("<strong>ann</strong></a> fails at <code>contract</code>");
    let (code, said) = demo.run("hang on");
    assert_eq!(code, Some(0), "{said}");
    demo.until_page_says("<strong>bob</strong></a> fails at <code>reach</code>");
    let (code, said) = demo.run("0.0.26/bin/t3 auth pairing create");
    assert!(code == Some(0) && said.contains("credential"), "{said}");
    demo.until_page_says("<strong>cid</strong></a> fails at <code>contract</code>");
    demo.until_page_says("schema_ahead");
    demo.until_page_says("Nobody can log in");
    demo.until_page_counts("cid", 160);
    let (code, said) = demo.run("one probe");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("cid pulse failed(schema_ahead)") && said.contains("bob pulse failed(timeout)"),
        "{said}"
    );

    let (code, said) = demo.run("backup restore cid --auth-only --yes");
    assert!(code == Some(0) && said.contains("repaired; somebody logged in"), "{said}");
    assert_eq!(said.matches("holds 172 events, 160 messages").count(), 2, "before and after: {said}");
    demo.until_page_lacks("<strong>cid</strong></a> fails");
    let (code, said) = demo.run("sim write");
    assert!(code == Some(0) && said.contains("175 events and 163 messages"), "{said}");
    demo.until_page_counts("cid", 163);
    let (code, said) = demo.run("0.0.33/bin/t3 auth pairing create");
    assert!(code == Some(0) && said.contains("credential"), "{said}");
    demo.until_page_says("<strong>cid</strong></a> fails at <code>contract</code>");
    let (code, said) = demo.run("says what that would cost");
    assert!(
        code == Some(0) && said.contains("dry run") && said.contains("  lost     3 messages, 3 events"),
        "{said}"
    );
    demo.until_page_counts("cid", 163);
    let (code, said) = demo.run("backup restore cid --yes");
    assert!(code == Some(0) && said.contains("restored; somebody logged in"), "{said}");
    assert!(said.contains("the database holds 172 events, 160 messages"), "{said}");
    assert!(said.contains("the former state lies in "), "{said}");
    demo.until_page_counts("cid", 160);
    demo.until_page_lacks("<strong>cid</strong></a> fails");
    // What the restore has put aside is not shouted as a loss.
    demo.until_page_lacks("history_shrank");

    interrupt(&demo.child);
    let ended = wait_for("the demo to end", || demo.child.try_wait().expect("a child"));
    assert_eq!(ended.code(), Some(0));
    nothing_is_left_of(&dir);
}

#[test]
fn the_bad_nightly_is_played_from_the_timer_to_the_freeze() {
    const BAD: &str = "0.0.34-nightly.3";
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().canonicalize().expect("a path").join("demo");
    let demo = Demo::start(&dir, &["--nightly"]);
    // The gate lets it pass, some get it, and it breaks under them.
    for words in [
        format!("  the gate rehearses t3 {BAD} beside t3 0.0.33"),
        format!("to be moved to t3 {BAD}: "),
        format!("cid: on t3 {BAD}; somebody logged in"),
        format!("t3 {BAD} is bad: cid fails at "),
        "cid: back on t3 0.0.24 with its database".to_owned(),
        "the enforcer ends with exit code 1".to_owned(),
        format!("{}/state/enforce/freeze says: {BAD} was rolled back at ", dir.display()),
    ] {
        demo.until_it_tells(&words);
    }
    let told = demo.told();
    let back = told.lines().find(|line| line.contains("; back where they were: ")).expect("an end");
    assert!(back.contains("[rolled_back]") && !told.contains("ROLLBACK FAILED"), "{told}");
    for (user, version) in [("ann", "0.0.33"), ("bob", "0.0.33"), ("cid", "0.0.24")] {
        let link = std::fs::read_link(dir.join("installs/users").join(user)).expect("a link");
        assert_eq!(link, Path::new("..").join(version), "{user}");
    }

    demo.until_page_says("All 3 users can log in");
    demo.until_page_says(&format!("{BAD} was rolled back at "));
    demo.until_page_says("state/enforce/freeze when it is understood");
    demo.until_page_says("rolled back here");
    for line in [
        "t3_enforcer_runs_total{outcome=\"rolled_back\"} 1",
        "t3_enforcer_frozen 1",
        "t3_schema_level{user=\"cid\"} 30",
        &format!("t3_verdict_info{{version=\"{BAD}\",verdict=\"pass\""),
    ] {
        wait_for(line, || demo.page("/metrics").body.contains(line).then_some(()));
    }
    wait_for("the end in the history", || {
        let ends = http(demo.port, "GET", "/history/events?kind=upgrade", &[]).unwrap_or_default().body;
        (ends.contains(BAD) && ends.contains("\"outcome\":\"rolled_back\"")).then_some(())
    });

    let (code, said) = demo.run("enforce --dry-run");
    assert!(code == Some(3) && said.contains("[held: frozen]"), "{said}");
    let freeze = dir.join("state/enforce/freeze");
    assert!(demo.guide.contains(&format!("\n  rm {}\n", freeze.display())), "{}", demo.guide);
    std::fs::remove_file(freeze).expect("it is frozen");
    let (code, said) = demo.run("enforce --dry-run");
    assert!(code == Some(3) && said.contains("[held: rolled_back_before]"), "{said}");
}

#[test]
fn ctrl_c_while_it_starts_leaves_nothing_either() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().canonicalize().expect("a path").join("demo");
    let mut child = Demo::command(&dir, free_port()).stdout(Stdio::null()).spawn().expect("the program");
    wait_for("it to have begun", || dir.exists().then_some(()));
    interrupt(&child);
    let ended = wait_for("the demo to end", || child.try_wait().expect("a child"));
    assert_eq!(ended.code(), Some(0));
    nothing_is_left_of(&dir);
}

#[test]
fn somebodys_directory_is_never_used_or_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("thesis"), "years").expect("a file");
    let output = Demo::command(dir.path(), free_port()).stderr(Stdio::piped()).output().expect("the program");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("it must not exist yet"), "{said}");
    assert!(dir.path().join("thesis").exists());
}
