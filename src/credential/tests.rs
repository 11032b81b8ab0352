//! What an operator may write, what is learned from each source, and when each word is said.

use std::fs::{File, write};
use std::path::Path;

use super::*;

fn parse(toml: &str) -> Result<Section, String> {
    #[derive(Deserialize)]
    struct Config {
        credential: Section,
    }
    let section = toml::from_str::<Config>(toml).map_err(|error| error.message().to_owned())?.credential;
    match section.complaints().first() {
        None => Ok(section),
        Some((index, key, sentence)) => Err(format!("{index} {key}: {sentence}")),
    }
}

fn one(keys: &str) -> Credential {
    let section = parse(&format!("[[credential]]\nname = \"claude\"\nuser = \"ann\"\n{keys}")).expect(keys);
    section.iter().next().cloned().expect("one credential")
}

fn at(text: &str) -> SystemTime {
    Date::try_from(text.to_owned()).expect("a date").0
}

fn section(credentials: &[&Credential]) -> Section {
    Section { credentials: credentials.iter().copied().cloned().collect(), complaints: Vec::new() }
}

fn watch(credential: &Credential) -> Watch {
    let mut watch = Watch::default();
    watch.configure(&section(&[credential]));
    watch
}

fn state(watch: &Watch, now: SystemTime) -> &'static str {
    watch.all()[0].state(now).as_str()
}

#[test]
fn an_end_is_stated_or_follows_from_when_it_was_made() {
    let stated = one("expires = \"2027-01-31T12:00:00Z\"").look();
    assert_eq!(stated, Ok(Expiry { at: at("2027-01-31T12:00:00Z"), evidence: Evidence::Expiry }));
    let minted = one("minted = \"2026-01-31\"\nlifetime = \"365d\"").look();
    assert_eq!(minted, Ok(Expiry { at: at("2027-01-31"), evidence: Evidence::Minted }));
}

#[test]
fn a_files_time_is_a_bound_and_called_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    File::create(&path).expect("a file").set_modified(at("2026-01-31")).expect("a time");
    let expiry = one(&format!("file = {path:?}\nlifetime = \"365d\"")).look().expect("its time");
    assert_eq!(expiry, Expiry { at: at("2027-01-31"), evidence: Evidence::Mtime });
    assert!(expiry.qualifier().contains("at the latest"));
    let stated = one("expires = \"2027-01-31\"").look().expect("stated");
    assert_eq!(stated.qualifier(), "");
}

fn sidecar(path: &Path, keys: &str, content: &str) -> Result<Expiry, String> {
    write(path, content).expect("written");
    one(&format!("sidecar = {path:?}\n{keys}")).look()
}

#[test]
fn a_sidecar_says_the_end_or_when_it_was_made_and_its_own_lifetime_wins() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("claude.json");
    let end = |keys, content| sidecar(&path, keys, content).map(|expiry| expiry.at);
    assert_eq!(end("", r#"{"expires": "2027-01-31"}"#), Ok(at("2027-01-31")));
    assert_eq!(end("lifetime = \"10d\"", r#"{"minted": "2026-01-01"}"#), Ok(at("2026-01-11")));
    assert_eq!(
        end("lifetime = \"10d\"", r#"{"minted": "2026-01-01", "lifetime": "20d"}"#),
        Ok(at("2026-01-21"))
    );
}

#[test]
fn a_bad_sidecar_is_told_with_file_line_and_remedy_and_without_a_word_of_its_content() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("claude.json");
    for content in [
        "hunter2",
        "\"hunter2\"",
        r#"{"expires": "hunter2"}"#,
        r#"{"token": "hunter2"}"#,
        r#"{"minted": "2026-01-01", "lifetime": "hunter2"}"#,
        r#"{"hunter2": 1}"#,
        r#"{"minted": "2026-01-01"}"#,
        r#"{"minted": "2026-01-01", "lifetime": "900000000d"}"#,
        r#"{"expires": "2026-01-01", "minted": "2026-01-01"}"#,
        "{}",
        "",
    ] {
        let said = sidecar(&path, "", content).expect_err(content);
        let place = said.strip_prefix(&format!("{}:", path.display())).expect(&said);
        assert!(place.starts_with(|digit: char| digit.is_ascii_digit()), "{said}");
        assert!(said.contains("; ") && !said.contains("hunter2"), "{said}");
    }
    std::fs::remove_file(&path).expect("removed");
    for keys in ["sidecar", "file"] {
        let credential = one(&format!("{keys} = {path:?}\nlifetime = \"1d\""));
        for _ in 0..2 {
            let said = credential.look().expect_err("no file, or a directory");
            assert!(said.starts_with(path.to_str().expect("text")) && said.contains("; "), "{said}");
            let _ = std::fs::create_dir(&path);
        }
        std::fs::remove_dir(&path).expect("removed");
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_a_remedy() {
    for keys in [
        "",
        "expires = \"2027-01-31\"\nlifetime = \"1d\"",
        "expires = \"2027-01-31\"\nminted = \"2026-01-31\"",
        "minted = \"2026-01-31\"",
        "minted = \"2026-01-31\"\nlifetime = \"0s\"",
        "minted = \"2026-01-31\"\nlifetime = \"9000000d\"",
        "minted = \"2026-02-30\"\nlifetime = \"1d\"",
        "expires = \"soon\"",
        "file = \"/token\"",
        "file = \"token\"\nlifetime = \"1d\"",
        "sidecar = \"claude.json\"",
    ] {
        let said = parse(&format!("[[credential]]\nname = \"claude\"\n{keys}")).expect_err(keys);
        assert!(said.contains("; "), "{keys}: {said}");
    }
    let twice = "[[credential]]\nname = \"claude\"\nexpires = \"2027-01-31\"\n".repeat(2);
    let said = parse(&twice).expect_err("twice");
    assert_eq!(said, "1 name: claude is here for the second time; remove one of the two");
    assert!(parse(&twice.replacen("name", "user = \"ann\"\nname", 1)).is_ok(), "two users have one each");
    assert!(parse(&twice.replace("claude", "")).is_err());
}

#[test]
fn the_word_changes_thirty_and_seven_days_before_the_end_and_at_it() {
    let credential = one("expires = \"2027-01-31\"");
    let mut watch = watch(&credential);
    let end = at("2027-01-31");
    assert_eq!(state(&watch, end), "never_seen");
    watch.saw(&credential, credential.look(), end - 40 * DAY);
    let second = Duration::from_secs(1);
    for (now, word) in [
        (end - 30 * DAY - second, "valid"),
        (end - 30 * DAY, "expires_in_30_days"),
        (end - 7 * DAY - second, "expires_in_30_days"),
        (end - 7 * DAY, "expires_in_7_days"),
        (end - second, "expires_in_7_days"),
        (end, "expired"),
        (end + DAY, "expired"),
    ] {
        assert_eq!(state(&watch, now), word);
    }
}

#[test]
fn what_cannot_be_read_any_more_keeps_its_end_and_is_stale_after_an_hour() {
    let credential = one("sidecar = \"/nonexistent/claude.json\"");
    let mut watch = watch(&credential);
    let (now, gone) = (at("2026-01-01"), || Err("it is gone".to_owned()));
    watch.saw(&credential, gone(), now);
    assert_eq!(state(&watch, now + DAY), "never_seen");
    let expiry = Expiry { at: now + 90 * DAY, evidence: Evidence::Expiry };
    watch.saw(&credential, Ok(expiry), now);
    assert_eq!((state(&watch, now + DAY), &watch.all()[0].trouble), ("valid", &None));
    watch.saw(&credential, gone(), now + STALE_AFTER);
    assert_eq!(state(&watch, now + STALE_AFTER), "valid");
    assert_eq!(state(&watch, now + STALE_AFTER + Duration::from_secs(1)), "watch_stale");
    assert_eq!(state(&watch, now + 70 * DAY), "watch_stale", "that is worse than thirty days");
    assert_eq!(state(&watch, now + 85 * DAY), "expires_in_7_days", "and seven days worse than that");
    watch.saw(&credential, Ok(expiry), now + DAY);
    assert_eq!(state(&watch, now + DAY), "valid");
}

#[test]
fn a_reload_keeps_what_is_known_of_those_that_stay_and_forgets_the_others() {
    let (stays, goes) = (one("expires = \"2027-01-31\""), one("expires = \"2028-01-31\""));
    let mut watch = watch(&stays);
    let now = at("2026-01-01");
    watch.saw(&stays, stays.look(), now);
    watch.configure(&section(&[&goes, &stays]));
    assert_eq!(watch.credentials(), [goes.clone(), stays.clone()]);
    assert!(watch.all()[0].known.is_none() && watch.all()[1].known.is_some());
    watch.configure(&section(&[&stays]));
    watch.saw(&goes, goes.look(), now);
    assert_eq!(watch.all().len(), 1, "a look at one that has gone meanwhile is passed over");
}

#[test]
fn a_source_that_was_lost_while_the_program_was_down_is_stale_and_not_one_that_was_never_seen() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("credentials.json");
    let credential = one("sidecar = \"/nonexistent/claude.json\"");
    let now = at("2026-01-01");
    let expiry = Expiry { at: now + 5 * DAY, evidence: Evidence::Minted };
    let mut before = watch(&credential);
    before.saw(&credential, Ok(expiry), now);
    memory::store(&file, &before.remember()).expect("written");
    let mut after = watch(&credential);
    after.recall(&memory::load(&file));
    after.saw(&credential, credential.look(), now + DAY);
    assert_eq!(state(&after, now + DAY), "expires_in_7_days");
    assert_eq!(after.all()[0].known, Some(Known { expiry, seen: now }));
    // What is learned now wins, and another's memory is nobody's.
    after.saw(&credential, Ok(Expiry { at: now + 90 * DAY, ..expiry }), now + DAY);
    after.recall(&memory::load(&file));
    assert_eq!(state(&after, now + DAY), "valid");
    let mut others = watch(&Credential { user: None, ..credential });
    others.recall(&memory::load(&file));
    assert_eq!(state(&others, now), "never_seen");
    write(&file, "{\"half").expect("written");
    assert_eq!(memory::load(&file), []);
}
