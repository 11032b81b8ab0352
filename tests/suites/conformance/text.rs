//! A text as words that must stay and values that change from run to run, told apart by their form alone.

/// The values that change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `base64url.base64url`: cookies, bearer tokens, WebSocket tickets.
    Token,
    Uuid,
    /// 12 of the 32 characters that pairing credentials are made of.
    Credential,
    /// `t3_session_<port>_<hash>`; the plain `t3_session` is a word.
    CookieName,
    /// After a colon: in a URL, in an address.
    Port,
    /// 32 hex digits.
    TraceId,
    Instant,
    HttpDate,
    LogTime,
    /// `(#12)` in a log line.
    Fiber,
    /// An IPv4 address of some machine; loopback and the wildcard are words.
    Address,
}

impl Kind {
    /// Whether the same value comes again later, so that two different values are two different things.
    pub fn has_identity(self) -> bool {
        match self {
            Self::Token | Self::Uuid | Self::Credential | Self::CookieName | Self::Port => true,
            Self::TraceId | Self::Instant | Self::HttpDate | Self::LogTime | Self::Fiber | Self::Address => {
                false
            }
        }
    }
}

#[derive(Debug, PartialEq)]
pub enum Piece<'a> {
    Words(&'a str),
    Value(Kind, &'a str),
}

/// Splits a text; its pieces joined are the text again.
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut words, mut at) = (0, 0);
    while at < text.len() {
        match value_at(text, at) {
            Some((kind, length)) => {
                if words < at {
                    pieces.push(Piece::Words(&text[words..at]));
                }
                pieces.push(Piece::Value(kind, &text[at..at + length]));
                at += length;
                words = at;
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    if words < text.len() {
        pieces.push(Piece::Words(&text[words..]));
    }
    pieces
}

fn value_at(text: &str, at: usize) -> Option<(Kind, usize)> {
    let (before, rest) = (text[..at].bytes().next_back(), &text[at..]);
    if before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return None;
    }
    if before == Some(b':') {
        let port = run(rest, |byte| byte.is_ascii_digit());
        if (4..=5).contains(&port) && ends(rest, port) {
            return Some((Kind::Port, port));
        }
    }
    token(rest)
        .map(|length| (Kind::Token, length))
        .or_else(|| cookie_name(rest).map(|length| (Kind::CookieName, length)))
        .or_else(|| form(rest, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx").map(|length| (Kind::Uuid, length)))
        .or_else(|| form(rest, "dddd-dd-ddTdd:dd:dd.dddZ").map(|length| (Kind::Instant, length)))
        .or_else(|| form(rest, "aaa, dd aaa dddd dd:dd:dd GMT").map(|length| (Kind::HttpDate, length)))
        .or_else(|| form(rest, "[dd:dd:dd.ddd]").map(|length| (Kind::LogTime, length)))
        .or_else(|| form(rest, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx").map(|length| (Kind::TraceId, length)))
        .or_else(|| form(rest, "CCCCCCCCCCCC").map(|length| (Kind::Credential, length)))
        .or_else(|| fiber(rest).map(|length| (Kind::Fiber, length)))
        .or_else(|| address(rest).map(|length| (Kind::Address, length)))
}

/// Length of the pattern where the text has its form: `d` digit, `x` lower-case hex digit, `a` letter, `C` character of a
/// credential, anything else itself.
fn form(text: &str, pattern: &str) -> Option<usize> {
    let length = pattern.len();
    let fits = text.len() >= length
        && text.bytes().zip(pattern.bytes()).all(|(byte, wanted)| match wanted {
            b'd' => byte.is_ascii_digit(),
            b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            b'a' => byte.is_ascii_alphabetic(),
            b'C' => is_of_credentials(byte),
            itself => byte == itself,
        });
    (fits && ends(text, length)).then_some(length)
}

pub fn is_of_credentials(byte: u8) -> bool {
    byte.is_ascii_digit() && !matches!(byte, b'0' | b'1')
        || byte.is_ascii_uppercase() && !matches!(byte, b'I' | b'O')
}

fn token(text: &str) -> Option<usize> {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let payload = run(text, part);
    let signature = run(text[payload..].strip_prefix('.')?, part);
    (text.starts_with("eyJ") && payload >= 24 && signature >= 24).then_some(payload + 1 + signature)
}

fn cookie_name(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("t3_session_")?;
    let port = run(rest, |byte| byte.is_ascii_digit());
    let hash = form(rest[port..].strip_prefix('_')?, "xxxxxxxxxxxx")?;
    (port > 0).then_some("t3_session_".len() + port + 1 + hash)
}

fn fiber(text: &str) -> Option<usize> {
    let digits = run(text.strip_prefix("(#")?, |byte| byte.is_ascii_digit());
    (digits > 0 && text[2 + digits..].starts_with(')')).then_some(digits + 3)
}

fn address(text: &str) -> Option<usize> {
    let length = run(text, |byte| byte.is_ascii_digit() || byte == b'.');
    let address: std::net::Ipv4Addr = text[..length].parse().ok()?;
    (!address.is_loopback() && !address.is_unspecified() && ends(text, length)).then_some(length)
}

fn run(text: &str, belongs: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|byte| belongs(*byte)).count()
}

/// Whether a word ends there.
fn ends(text: &str, at: usize) -> bool {
    text.as_bytes().get(at).is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
}

mod tests {
    use super::*;

    #[track_caller]
    fn assert_values(text: &str, expected: &[(Kind, &str)]) {
        let pieces = pieces(text);
        let joined: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Words(text) | Piece::Value(_, text) => *text,
            })
            .collect();
        assert_eq!(joined, text);
        let values: Vec<_> = pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Words(_) => None,
                Piece::Value(kind, text) => Some((*kind, *text)),
            })
            .collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn values_are_known_by_their_form() {
        assert_values(
            "Issued 7e0e2a36-93bd-49b8-a0ce-ef448b90ace9: MF7VE8RZEVCY until 2026-11-22T06:17:58.217Z.",
            &[
                (Kind::Uuid, "7e0e2a36-93bd-49b8-a0ce-ef448b90ace9"),
                (Kind::Credential, "MF7VE8RZEVCY"),
                (Kind::Instant, "2026-11-22T06:17:58.217Z"),
            ],
        );
        assert_values(
            "[06:11:21.409] ERROR (#3): at http://192.0.2.2:41774, not 127.0.0.1:41773",
            &[
                (Kind::LogTime, "[06:11:21.409]"),
                (Kind::Fiber, "(#3)"),
                (Kind::Address, "192.0.2.2"),
                (Kind::Port, "41774"),
                (Kind::Port, "41773"),
            ],
        );
        assert_values(
            "t3_session_41773_147ac95aeec0=eyJ2IjoxLCJraW5kIjoic2Vzc2lvbiJ9.w94-RnDX9KMjhNN4_GaJh2zV; Path=/; \
             Expires=Tue, 22 Dec 2026 06:12:58 GMT",
            &[
                (Kind::CookieName, "t3_session_41773_147ac95aeec0"),
                (Kind::Token, "eyJ2IjoxLCJraW5kIjoic2Vzc2lvbiJ9.w94-RnDX9KMjhNN4_GaJh2zV"),
                (Kind::HttpDate, "Tue, 22 Dec 2026 06:12:58 GMT"),
            ],
        );
        assert_values(
            "2dc1dbb1dfe7455ea56ea7feec0f6712",
            &[(Kind::TraceId, "2dc1dbb1dfe7455ea56ea7feec0f6712")],
        );
    }

    #[test]
    fn words_stay_words() {
        for text in [
            "t3_session=garbage",
            "on 0.0.0.0",
            "t3 v0.0.24",
            "INVALIDATION",
            "PROBE0000000",
            "é(#)",
            "5m",
            "",
        ] {
            assert_values(text, &[]);
        }
    }
}
