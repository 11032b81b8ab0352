//! What happens to the history on a bad night.

use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, Stdio};

use tokio_rusqlite::rusqlite::Connection;

use super::*;

/// Names the file to the copy of a test that runs as a child process.
const CHILD: &str = "T3_PROBER_TEST_HISTORY";

/// The same test once more, as a process of its own.
fn child(test: &str, file: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, file)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Killed and reaped however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn handshake(user: &str) -> Run {
    run(user, Kind::Handshake, now_in_millis(), Outcome::Ok)
}

fn integrity(file: &Path) -> String {
    let db = Connection::open(file).expect("opened");
    db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked")
}

fn rows(file: &Path) -> i64 {
    let db = Connection::open(file).expect("opened");
    db.query_row("SELECT count(*) FROM run", [], |row| row.get(0)).expect("counted")
}

#[tokio::test]
async fn a_kill_in_mid_write_costs_nothing_that_was_written_and_damages_nothing() {
    if let Some(file) = std::env::var_os(CHILD) {
        let history = History::open(Path::new(&file), &Section::default()).await;
        for _ in 0..1_000_000 {
            (0..20).for_each(|_| history.record(handshake("ann")));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        unreachable!("this process is killed long before");
    }
    let place = Place::new();
    let name =
        "history::tests::trouble::a_kill_in_mid_write_costs_nothing_that_was_written_and_damages_nothing";
    let mut before = 0;
    for round in 0..6_u64 {
        let mut writing = Killed(child(name, &place.file()).spawn().expect("child started"));
        until("the child has written", async || place.file().exists() && grown(&place.file(), before)).await;
        // Not to be lucky: at another moment of the write each time.
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        writing.0.kill().expect("killed");
        writing.0.wait().expect("reaped");
        assert_eq!(integrity(&place.file()), "ok");
        let now = rows(&place.file());
        assert!(now > before, "{now} rows after {before}");
        before = now;
    }
    let history = place.open().await;
    assert_eq!((history.trouble(), history.counts().put_aside), (None, 0));
    close(&history).await;
}

/// Whether there are more rows than before; a file whose tables are not there yet has none.
fn grown(file: &Path, before: i64) -> bool {
    let count = |db: Connection| db.query_row("SELECT count(*) FROM run", [], |row| row.get::<_, i64>(0));
    Connection::open(file).and_then(count).is_ok_and(|rows| rows > before)
}

/// A soft limit on the size of files stands in for the full disk: it needs no privilege, and it can be lifted again.
#[tokio::test]
async fn a_full_disk_stops_nothing_and_what_came_meanwhile_is_written_when_there_is_room() {
    if let Some(file) = std::env::var_os(CHILD) {
        return outlive_the_full_disk(Path::new(&file)).await;
    }
    let place = Place::new();
    let name = "history::tests::trouble::a_full_disk_stops_nothing_and_what_came_meanwhile_is_written_when_there_is_room";
    let inner = child(name, &place.file());
    // The shell ignores SIGXFSZ for the child, so that a write beyond the limit is an error and no death.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(CHILD, place.file());
    let output = limited.output().expect("child ran");
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert_eq!(integrity(&place.file()), "ok");
    assert_eq!(rows(&place.file()), 700);
}

async fn outlive_the_full_disk(file: &Path) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("limit read");
    setrlimit(Resource::RLIMIT_FSIZE, 200_000, hard).expect("limit set");
    let history = History::open(file, &Section::default()).await;
    for _ in 0..700 {
        history.record(handshake("ann"));
    }
    until("the disk is full", async || history.trouble().is_some()).await;
    assert_eq!(history.counts().lost, 0);
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).expect("limit lifted");
    until("the rows are written", async || history.trouble().is_none()).await;
    close(&history).await;
    assert_eq!(history.counts().lost, 0);
}

#[tokio::test]
async fn the_file_stays_below_its_bound_and_the_oldest_rows_make_room() {
    let place = Place::new();
    let history = History::open(&place.file(), &Section { max_mib: 1, ..Section::default() }).await;
    let start = ago(1);
    let mut failed = run("bob", Kind::Handshake, start, Outcome::Failed(outcome::Reason::Locked));
    failed.trace_id = "b".repeat(32);
    history.record(failed);
    for n in 0..6000_u64 {
        let mut long = run("ann", Kind::Handshake, start + Duration::from_secs(n), Outcome::Ok);
        long.steps[0].detail = Some("x".repeat(400));
        history.record(long);
        if n % 500 == 0 {
            written(&history, n).await;
        }
    }
    close(&history).await;
    assert_eq!(history.counts().lost, 0);
    let size = std::fs::metadata(place.file()).expect("file").len();
    assert!(size <= 1024 * 1024, "{size} bytes");

    let history = place.open().await;
    let newest = all(&history).await;
    assert_eq!(newest[0].run.started, start + Duration::from_secs(5999));
    assert!(
        history.reader().by_trace(&"b".repeat(32)).await.expect("read").is_some(),
        "a last failure stays"
    );
    assert!(rows(&place.file()) < 6000);
    close(&history).await;
}

#[tokio::test]
async fn a_file_damaged_before_the_start_is_put_aside_and_a_new_one_begun() {
    let place = Place::new();
    std::fs::write(place.file(), "this is no database, whatever its name says").expect("written");
    let history = place.open().await;
    history.record(handshake("ann"));
    written(&history, 1).await;
    assert_eq!((history.counts().put_aside, history.trouble()), (1, None));
    assert_eq!(all(&history).await.len(), 1);
    close(&history).await;
    let aside = place.names().into_iter().find(|name| name.contains(".corrupt-")).expect("put aside");
    let kept = std::fs::read_to_string(place.directory.path().join(aside)).expect("read");
    assert!(kept.starts_with("this is no database"));
}

#[tokio::test]
async fn damage_in_the_middle_of_the_file_is_found_at_the_start() {
    let place = Place::new();
    place.holding((0..300).map(|_| handshake("ann")).collect()).await;
    scribble(&place.file());
    let history = place.open().await;
    assert_eq!(history.counts().put_aside, 1);
    assert_eq!(all(&history).await, []);
    close(&history).await;
}

#[tokio::test]
async fn a_file_damaged_while_in_use_is_put_aside_and_what_comes_after_is_kept() {
    let place = Place::new();
    place.holding((0..300).map(|_| handshake("ann")).collect()).await;
    let history = place.open().await;
    scribble(&place.file());
    until("the damage was met", async || {
        history.record(handshake("bob"));
        let _ = history.reader().runs(Filter::default()).await;
        history.counts().put_aside == 1
    })
    .await;
    history.record(handshake("cid"));
    until("new outcomes are found", async || {
        let cid = Filter { user: Some("cid".to_owned()), ..Filter::default() };
        history.reader().runs(cid).await.is_ok_and(|page| page.rows.len() == 1)
    })
    .await;
    close(&history).await;
    assert_eq!(integrity(&place.file()), "ok");
    assert_eq!(history.counts().lost, 0);
}

/// Overwrites every page but the first.
fn scribble(file: &Path) {
    let mut file = std::fs::OpenOptions::new().write(true).read(true).open(file).expect("opened");
    let mut all = Vec::new();
    file.read_to_end(&mut all).expect("read");
    file.seek(SeekFrom::Start(4096)).expect("sought");
    file.write_all(&vec![0xa5; all.len() - 4096]).expect("written");
}

#[tokio::test]
async fn a_missing_directory_is_trouble_and_outcomes_wait_until_it_is_there() {
    let place = Place::new();
    let directory = place.directory.path().join("state");
    let file = directory.join("history.sqlite");
    let history = History::open(&file, &Section::default()).await;
    let trouble = history.trouble().expect("trouble");
    assert!(trouble.detail.contains("check that its directory exists"), "{}", trouble.detail);
    history.record(handshake("ann"));
    assert!(history.reader().runs(Filter::default()).await.is_err());

    std::fs::create_dir(&directory).expect("created");
    written(&history, 1).await;
    assert_eq!((all(&history).await.len(), history.trouble(), history.counts().lost), (1, None, 0));
    close(&history).await;
}

#[tokio::test]
async fn a_directory_in_the_place_of_the_file_is_trouble_and_is_left_alone() {
    let place = Place::new();
    std::fs::create_dir(place.file()).expect("created");
    let history = place.open().await;
    assert!(history.trouble().is_some());
    history.record(handshake("ann"));
    close(&history).await;
    assert_eq!(history.counts().lost, 1);
    assert!(place.file().is_dir());
}

#[tokio::test]
async fn a_history_of_a_newer_version_is_refused_and_left_as_it_was() {
    let place = Place::new();
    place.holding(vec![handshake("ann")]).await;
    let db = Connection::open(place.file()).expect("opened");
    db.execute_batch("PRAGMA user_version = 99").expect("set");
    drop(db);
    let before = std::fs::read(place.file()).expect("read");

    let history = place.open().await;
    history.record(handshake("bob"));
    let trouble = history.trouble().expect("trouble");
    assert!(trouble.detail.contains("newer t3-prober (schema 99, this one knows 1)"), "{}", trouble.detail);
    let refused = history.reader().runs(Filter::default()).await.expect_err("refused");
    assert!(matches!(refused, ReadError::Newer(99)), "{refused}");
    close(&history).await;
    assert_eq!(std::fs::read(place.file()).expect("read"), before);
    assert_eq!((history.counts().put_aside, history.counts().lost), (0, 1));
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    let place = Place::new();
    let db = Connection::open(place.file()).expect("opened");
    db.execute_batch("CREATE TABLE precious (row TEXT)").expect("created");
    drop(db);
    let before = std::fs::read(place.file()).expect("read");
    let history = place.open().await;
    assert!(history.trouble().expect("trouble").detail.contains("another program"));
    close(&history).await;
    assert_eq!(std::fs::read(place.file()).expect("read"), before);
}

#[tokio::test]
async fn a_file_removed_while_in_use_is_begun_anew() {
    let place = Place::new();
    let history = place.open().await;
    history.record(handshake("ann"));
    written(&history, 1).await;
    std::fs::remove_file(place.file()).expect("removed");
    history.record(handshake("bob"));
    written(&history, 2).await;
    assert_eq!(all(&history).await.iter().map(|row| row.run.user.as_str()).collect::<Vec<_>>(), ["bob"]);
    close(&history).await;
    assert_eq!(rows(&place.file()), 1);
}

#[tokio::test]
async fn while_another_process_holds_the_file_recording_never_waits_and_too_much_is_counted() {
    let place = Place::new();
    let history = place.open().await;
    let mut db = Connection::open(place.file()).expect("opened");
    let held = db
        .transaction_with_behavior(tokio_rusqlite::rusqlite::TransactionBehavior::Exclusive)
        .expect("locked");
    let started = std::time::Instant::now();
    for n in 0..20_000 {
        history.record(handshake("ann"));
        if n % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(started.elapsed() < Duration::from_secs(2), "recording took {:?}", started.elapsed());
    until("the trouble is known", async || history.trouble().is_some()).await;
    held.rollback().expect("released");
    until("writing goes on", async || history.trouble().is_none()).await;
    close(&history).await;
    let counts = history.counts();
    assert!(counts.lost > 0, "{counts:?}");
    assert_eq!(rows(&place.file()), i64::try_from(20_000 - counts.lost).expect("fits"));
}

#[tokio::test]
async fn a_shut_down_ends_at_its_deadline_even_when_the_file_is_held() {
    let place = Place::new();
    let history = place.open().await;
    let mut db = Connection::open(place.file()).expect("opened");
    let held = db
        .transaction_with_behavior(tokio_rusqlite::rusqlite::TransactionBehavior::Exclusive)
        .expect("locked");
    history.record(handshake("ann"));
    let error = history.close(Duration::from_millis(300)).await.expect_err("not written");
    assert!(error.to_string().contains("300ms"), "{error}");
    drop(held);
}
