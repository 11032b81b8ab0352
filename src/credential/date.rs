//! A moment as people write it: a day, or a day and a time, in UTC.

use std::time::SystemTime;

use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Date(pub SystemTime);

impl TryFrom<String> for Date {
    type Error = &'static str;

    /// The error does not repeat the text: a file that was named by mistake may hold a secret.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let midnight = format!("{text}T00:00:00Z");
        let moment = [text, midnight].iter().find_map(|text| humantime::parse_rfc3339(text).ok());
        moment.map(Self).ok_or("it is no date; write it as in \"2027-01-31\" or \"2027-01-31T12:00:00Z\"")
    }
}
