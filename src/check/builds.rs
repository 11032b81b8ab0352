//! What is judged ahead, and what users are to get.

use super::{Item, Level};
use crate::config::Config;

/// Two tags are followed for two purposes; where they differ the enforcer finds no verdict ready.
pub fn tags(config: &Config) -> Option<Item> {
    let (judged, wanted) = (config.gate.track.tag.as_ref()?, config.enforce.track.as_ref()?);
    let item = |level, message: String| Some(Item::new(level, "gate.track", message));
    if judged == wanted {
        return item(Level::Ok, format!("builds of '{judged}' are judged before [enforce] asks for them"));
    }
    item(
        Level::Warn,
        format!(
            "builds of '{judged}' are judged ahead, and users get those of '{wanted}' ([enforce] track); name one tag in both"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tags_that_differ_are_a_warning_and_one_alone_is_nothing() {
        let mut config = Config::default();
        assert_eq!(tags(&config), None);
        config.gate.track.tag = Some("nightly".to_owned());
        assert_eq!(tags(&config), None);
        config.enforce.track = Some("nightly".to_owned());
        assert_eq!(tags(&config).map(|item| item.level), Some(Level::Ok));
        config.enforce.track = Some("latest".to_owned());
        assert_eq!(tags(&config).map(|item| item.level), Some(Level::Warn));
    }
}
