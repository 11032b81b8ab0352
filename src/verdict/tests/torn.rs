//! Writers are killed in the middle of writing: this test starts itself as the writer, and kills it.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;

const DIR: &str = "T3_PROBER_WRITE_VERDICTS_IN";
const KILLS: u64 = 1000;

#[tokio::test]
async fn however_often_a_writer_is_killed_a_reader_sees_a_whole_verdict() {
    if let Some(dir) = std::env::var_os(DIR) {
        write_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut seen = 0;
    for kill in 0..KILLS {
        let mut writer = Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--exact",
                "verdict::tests::torn::however_often_a_writer_is_killed_a_reader_sees_a_whole_verdict",
            ])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("the writer starts");
        let before = load(dir.path(), "0.0.26").ok().map(|document| document.summary);
        let deadline = Instant::now() + Duration::from_secs(20);
        // It has to be writing before it is killed, and another moment of its work is hit each time.
        loop {
            match load(dir.path(), "0.0.26") {
                Ok(document) if Some(&document.summary) != before.as_ref() => break,
                Ok(_) | Err(NotKept::Missing(_)) => {}
                Err(torn) => panic!("{torn}"),
            }
            assert!(Instant::now() < deadline, "nothing was written");
        }
        tokio::time::sleep(Duration::from_micros(kill * 137 % 3000)).await;
        writer.kill().expect("killed");
        writer.wait().expect("gone");
        seen += u64::from(load(dir.path(), "0.0.26").expect("a whole verdict").format == FORMAT);
    }
    assert_eq!(seen, KILLS);
}

fn write_for_ever(dir: &Path) -> ! {
    let mut document = of(vec![seed("ann", GOOD), seed("bob", GOOD)]);
    loop {
        // Long enough for a torn write to show.
        document.summary = format!("{:016x}", rand::random::<u64>()).repeat(4096);
        store(dir, &document).expect("stored");
    }
}
