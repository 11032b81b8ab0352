//! Long-lived credentials: whether the end of each can be learned, and how near it is.

use std::time::SystemTime;

use super::{Item, Level};
use crate::credential::{Section, Watch};
use crate::outcome::CredentialState;

const SUBJECT: &str = "credential";

/// One line a credential.
pub fn credentials(section: &Section, now: SystemTime) -> Vec<Item> {
    let mut watch = Watch::default();
    watch.configure(section);
    for credential in section.iter() {
        watch.saw(credential, credential.look(), now);
    }
    let item = |watched: &crate::credential::Watched| {
        let credential = &watched.credential;
        let Some(known) = watched.known else {
            let trouble = watched.trouble.as_deref().unwrap_or_default();
            return Item::new(Level::Warn, SUBJECT, format!("{credential}: {trouble}"));
        };
        let end = humantime::format_rfc3339_seconds(known.expiry.at);
        let qualifier = known.expiry.qualifier();
        match watched.state(now) {
            CredentialState::Expired => {
                let message = format!("{credential} ended on {end}{qualifier}; mint another one");
                Item::new(Level::Error, SUBJECT, message)
            }
            CredentialState::Valid => {
                Item::new(Level::Ok, SUBJECT, format!("{credential} ends on {end}{qualifier}"))
            }
            _ => {
                let message = format!("{credential} ends on {end}{qualifier}; mint another one before");
                Item::new(Level::Warn, SUBJECT, message)
            }
        }
    };
    watch.all().iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_that_has_ended_is_an_error_and_one_that_soon_will_or_cannot_be_read_a_warning() {
        #[derive(serde::Deserialize)]
        struct Config {
            credential: Section,
        }
        let config: Config = toml::from_str(
            r#"
            credential = [
              { name = "a", user = "ann", expires = "2027-01-31" },
              { name = "b", expires = "2027-02-05" },
              { name = "c", expires = "2027-12-31" },
              { name = "d", sidecar = "/nonexistent/d.json" },
            ]"#,
        )
        .expect("four");
        let now = humantime::parse_rfc3339("2027-02-01T00:00:00Z").expect("a date");
        let said: Vec<_> = credentials(&config.credential, now)
            .iter()
            .map(|item| (item.level, item.message.clone()))
            .collect();
        assert_eq!(
            said,
            [
                (Level::Error, "a of ann ended on 2027-01-31T00:00:00Z; mint another one".to_owned()),
                (Level::Warn, "b ends on 2027-02-05T00:00:00Z; mint another one before".to_owned()),
                (Level::Ok, "c ends on 2027-12-31T00:00:00Z".to_owned()),
                (
                    Level::Warn,
                    "d: /nonexistent/d.json: cannot read it: No such file or directory (os error 2); let whatever \
                     mints the credential write it, readable by our account"
                        .to_owned()
                ),
            ]
        );
    }
}
