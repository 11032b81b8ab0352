//! What stands for what: a value of the recording, and the value that took its place in this run. Bound at the step that
//! produced it, put into every later request, and expected wherever the recording shows it again.

use std::collections::HashMap;

use super::text::{Kind, Piece, is_of_credentials, pieces};

/// Values that requests bring of themselves: they are meant to be unknown to the server.
const INVENTED: [&str; 3] =
    ["AAAABBBBCCCC", "00000000-0000-4000-8000-000000000000", "t3_session_1_000000000000"];

/// Where the recordings were made.
const RECORDED_HOME: &str = "/home/ann";

#[derive(Default)]
pub struct Bindings {
    live: HashMap<String, String>,
    recorded: HashMap<String, String>,
    /// The directory that stands for the recorded home.
    home: String,
}

/// Why a recorded value cannot be the live one.
#[derive(Debug, PartialEq)]
pub struct Conflict {
    pub expected: String,
}

impl Bindings {
    pub fn new(home: &str) -> Self {
        Self { home: home.to_owned(), ..Self::default() }
    }

    /// Binds two values, or finds that one of them stands for something else already.
    pub fn bind(&mut self, recorded: &str, live: &str) -> Result<(), Conflict> {
        match (self.live.get(recorded), self.recorded.get(live)) {
            (Some(bound), _) if bound == live => Ok(()),
            (Some(bound), _) => Err(Conflict { expected: bound.clone() }),
            (None, Some(other)) => {
                Err(Conflict { expected: format!("something else than what stands for {other}") })
            }
            (None, None) => {
                self.live.insert(recorded.to_owned(), live.to_owned());
                self.recorded.insert(live.to_owned(), recorded.to_owned());
                Ok(())
            }
        }
    }

    pub fn knows(&self, recorded: &str) -> bool {
        self.live.contains_key(recorded)
    }

    /// A live text with its paths as they would have been recorded.
    pub fn recorded_paths(&self, live: &str) -> String {
        if self.home.is_empty() { live.to_owned() } else { live.replace(&self.home, RECORDED_HOME) }
    }

    pub fn live_path(&self, recorded: &str) -> String {
        recorded.replacen(RECORDED_HOME, &self.home, 1)
    }

    /// A recorded text as this run has to say it. A value that no step has produced is an error: the recorder did
    /// something that the list of what happened between the steps does not know.
    pub fn live_text(&self, recorded: &str) -> Result<String, String> {
        // The whole text may be a value on its own where, within a text, its form would not tell: `--port 41773`, a
        // credential in lower case.
        if let Some(live) = self.live.get(recorded) {
            return Ok(live.clone());
        }
        let mut text = String::new();
        for piece in pieces(recorded) {
            match piece {
                Piece::Words(words) => text.push_str(&self.live_words(words)),
                Piece::Value(kind, value) => match self.live.get(value) {
                    Some(live) => text.push_str(live),
                    None if INVENTED.contains(&value) || !kind.has_identity() => text.push_str(value),
                    None => text.push_str(&self.tampered(kind, value).ok_or_else(|| value.to_owned())?),
                },
            }
        }
        Ok(text)
    }

    fn live_words(&self, words: &str) -> String {
        let words = words.replace(RECORDED_HOME, &self.home);
        // `{"credential": "uv3whyg9cwuj"}`: in lower case it has the form of any word.
        words
            .split('"')
            .map(|word| self.lowered(word).unwrap_or_else(|| word.to_owned()))
            .collect::<Vec<_>>()
            .join("\"")
    }

    fn lowered(&self, word: &str) -> Option<String> {
        let upper = word.to_ascii_uppercase();
        (word != upper && upper.len() == 12 && upper.bytes().all(is_of_credentials))
            .then(|| self.live.get(&upper).map(|live| live.to_ascii_lowercase()))
            .flatten()
    }

    /// A recorded token that is a known one with one character of the signature changed, changed the same way.
    fn tampered(&self, kind: Kind, value: &str) -> Option<String> {
        let (payload, signature) = value.rsplit_once('.').filter(|_| kind == Kind::Token)?;
        let (genuine, live) = self.live.iter().find(|(genuine, _)| {
            genuine
                .rsplit_once('.')
                .is_some_and(|(other, of)| other == payload && of.len() == signature.len())
        })?;
        let from_end =
            genuine.bytes().rev().zip(value.bytes().rev()).position(|(one, other)| one != other)?;
        let at = live.len() - 1 - from_end;
        let other = if live.as_bytes()[at] == b'A' { "B" } else { "A" };
        Some(format!("{}{other}{}", &live[..at], &live[at + 1..]))
    }
}

mod tests {
    use super::*;

    const GENUINE: &str = "eyJ2IjoxLCJraW5kIjoic2Vzc2lvbiJ9.w94-RnDX9KMjhNN4_GaJh2zV";
    const LIVE: &str = "eyJ2IjoyLCJraW5kIjoic2Vzc2lvbiJ9.Ax4-RnDX9KMjhNN4_GaJh2zQ";

    #[test]
    fn a_value_is_put_into_later_requests() {
        let mut bindings = Bindings::new("/tmp/x/home");
        bindings.bind("UV3WHYG9CWUJ", "ABCDEFGHJKLM").expect("free");
        bindings.bind("41773", "20001").expect("free");
        let live = |text| bindings.live_text(text).expect("known");
        assert_eq!(live(r#"{"credential": "UV3WHYG9CWUJ"}"#), r#"{"credential": "ABCDEFGHJKLM"}"#);
        assert_eq!(live(r#"{"credential": "uv3whyg9cwuj"}"#), r#"{"credential": "abcdefghjklm"}"#);
        assert_eq!(live("127.0.0.1:41773"), "127.0.0.1:20001");
        assert_eq!(live("41773"), "20001");
        assert_eq!(live("/home/ann/.t3"), "/tmp/x/home/.t3");
        assert_eq!(live(r#"{"credential": "AAAABBBBCCCC"}"#), r#"{"credential": "AAAABBBBCCCC"}"#);
    }

    #[test]
    fn a_value_that_no_step_produced_is_refused() {
        let unknown = Bindings::default().live_text(r#"{"credential": "UV3WHYG9CWUJ"}"#);
        assert_eq!(unknown, Err("UV3WHYG9CWUJ".to_owned()));
    }

    #[test]
    fn a_tampered_token_is_tampered_with_in_the_same_place() {
        let mut bindings = Bindings::default();
        bindings.bind(GENUINE, LIVE).expect("free");
        let tampered = bindings.live_text(&GENUINE.replace(".w", ".A")).expect("known");
        assert_eq!(tampered, LIVE.replace(".A", ".B"));
    }

    #[test]
    fn two_things_are_never_one() {
        let mut bindings = Bindings::default();
        bindings.bind("one", "1").expect("free");
        assert_eq!(bindings.bind("one", "1"), Ok(()));
        assert_eq!(bindings.bind("one", "2"), Err(Conflict { expected: "1".to_owned() }));
        assert!(bindings.bind("two", "1").is_err());
    }
}
