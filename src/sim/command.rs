//! t3's own command line, as the recordings show it: which words lead where, which flags each command takes, what is
//! said on stderr when they are wrong. It is not clap's behaviour, so clap has no part in it (CONTRACT §2).

use std::time::Duration;

use super::release::{Generation, Release};

mod help;

pub use help::help;

/// A command with its flags.
pub struct Verb {
    /// The words that lead to it.
    pub path: &'static [&'static str],
    pub summary: &'static str,
    pub flags: &'static [Flag],
    /// Names of the positional arguments.
    pub arguments: &'static [&'static str],
    /// Whether the last positional argument may be absent.
    pub optional: bool,
    pub subcommands: &'static [(&'static str, &'static str)],
}

/// A flag and the kind of value it takes.
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    pub summary: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Switch,
    Text,
    Integer,
    Duration,
}

/// What was asked for.
pub enum Request {
    Version,
    Help(&'static Verb),
    Run(&'static Verb, Given),
}

/// The values given to a command.
#[derive(Debug, Default)]
pub struct Given {
    flags: Vec<(&'static str, String)>,
    pub arguments: Vec<String>,
}

/// A command line that t3 refuses: help on stdout, this on stderr, exit 1.
pub struct Misuse {
    pub verb: &'static Verb,
    pub message: String,
}

const fn flag(name: &'static str, kind: Kind, summary: &'static str) -> Flag {
    Flag { name, kind, summary }
}

const BASE_DIR: Flag = flag("base-dir", Kind::Text, "Base directory (as T3CODE_HOME)");
const DEV_URL: Flag = flag("dev-url", Kind::Text, "Development front end (as VITE_DEV_SERVER_URL)");
const TTL: Flag = flag("ttl", Kind::Duration, "Time to live: 5m, 1h, 30d, 15 minutes");
const LABEL: Flag = flag("label", Kind::Text, "A name for people");
const JSON: Flag = flag("json", Kind::Switch, "Print JSON");

const SERVE_FLAGS: &[Flag] = &[
    flag("mode", Kind::Text, "web or desktop"),
    flag("port", Kind::Integer, "Port to listen on"),
    flag("host", Kind::Text, "Address to bind"),
    BASE_DIR,
    DEV_URL,
    flag("no-browser", Kind::Switch, "Open no browser"),
    flag("bootstrap-fd", Kind::Integer, "Descriptor with start-up secrets"),
    flag("auto-bootstrap-project-from-cwd", Kind::Switch, "Make a project of the working directory"),
    flag("log-websocket-events", Kind::Switch, "Log what is pushed"),
    flag("log-ws-events", Kind::Switch, "Log what is pushed"),
    flag("tailscale-serve", Kind::Switch, "Show the server on the Tailnet"),
    flag("tailscale-serve-port", Kind::Integer, "HTTPS port for that"),
];

const fn group(
    path: &'static [&'static str],
    summary: &'static str,
    subcommands: &'static [(&'static str, &'static str)],
) -> Verb {
    Verb { path, summary, flags: &[], arguments: &[], optional: false, subcommands }
}

const fn leaf(
    path: &'static [&'static str],
    summary: &'static str,
    flags: &'static [Flag],
    arguments: &'static [&'static str],
) -> Verb {
    Verb { path, summary, flags, arguments, optional: false, subcommands: &[] }
}

const ROOT: Verb = Verb {
    path: &[],
    summary: "Stand-in for the T3 Code server.",
    flags: SERVE_FLAGS,
    arguments: &["cwd"],
    optional: true,
    subcommands: &[
        ("start", "Run the server."),
        ("serve", "Run the server without a browser."),
        ("auth", "Credentials and sessions."),
        ("project", "Projects."),
    ],
};

const SERVE: Verb = Verb {
    path: &["serve"],
    summary: "Run the server without a browser and print how to pair.",
    flags: SERVE_FLAGS,
    arguments: &["cwd"],
    optional: true,
    subcommands: &[],
};

const START: Verb = Verb { path: &["start"], summary: "Run the server.", ..SERVE };

const VERBS: &[Verb] = &[
    ROOT,
    SERVE,
    START,
    group(
        &["auth"],
        "Credentials and sessions.",
        &[("pairing", "One-time credentials."), ("session", "Sessions.")],
    ),
    group(
        &["auth", "pairing"],
        "One-time credentials.",
        &[("create", "Issue one."), ("list", "Show the active ones."), ("revoke", "Revoke one.")],
    ),
    leaf(
        &["auth", "pairing", "create"],
        "Issue a pairing credential.",
        &[
            BASE_DIR,
            DEV_URL,
            TTL,
            LABEL,
            flag("base-url", Kind::Text, "Address for a ready pairing link"),
            JSON,
        ],
        &[],
    ),
    leaf(&["auth", "pairing", "list"], "Show the active credentials.", &[BASE_DIR, DEV_URL, JSON], &[]),
    leaf(&["auth", "pairing", "revoke"], "Revoke a credential.", &[BASE_DIR, DEV_URL], &["id"]),
    group(
        &["auth", "session"],
        "Sessions.",
        &[("issue", "Issue one."), ("list", "Show the active ones."), ("revoke", "Revoke one.")],
    ),
    leaf(
        &["auth", "session", "issue"],
        "Issue an administrative session.",
        &[
            BASE_DIR,
            DEV_URL,
            TTL,
            LABEL,
            flag("subject", Kind::Text, "Subject of the session"),
            flag("role", Kind::Text, "owner or client (before 0.0.26)"),
            flag("token-only", Kind::Switch, "Print the token alone"),
            JSON,
        ],
        &[],
    ),
    leaf(&["auth", "session", "list"], "Show the active sessions.", &[BASE_DIR, DEV_URL, JSON], &[]),
    leaf(&["auth", "session", "revoke"], "Revoke a session.", &[BASE_DIR, DEV_URL], &["id"]),
    group(
        &["project"],
        "Projects.",
        &[("add", "Add a folder."), ("remove", "Remove a project."), ("rename", "Rename a project.")],
    ),
    leaf(
        &["project", "add"],
        "Add a folder as a project.",
        &[BASE_DIR, DEV_URL, flag("title", Kind::Text, "Title (default: the folder's name)")],
        &["path"],
    ),
    leaf(&["project", "remove"], "Remove a project.", &[BASE_DIR, DEV_URL], &["project"]),
    leaf(&["project", "rename"], "Rename a project.", &[BASE_DIR, DEV_URL], &["project", "title"]),
];

impl Verb {
    /// `t3 auth pairing create`
    pub fn name(&self) -> String {
        ["t3"].iter().chain(self.path).copied().collect::<Vec<_>>().join(" ")
    }

    /// A group does nothing by itself but show its help.
    fn is_group(&self) -> bool {
        !self.subcommands.is_empty() && !self.path.is_empty()
    }
}

impl Flag {
    /// Roles ended with generation A.
    fn is_known_to(&self, release: &Release) -> bool {
        self.name != "role" || release.generation() == Generation::A
    }
}

impl Given {
    pub fn text(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    pub fn switched(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.text(name).and_then(|text| humantime::parse_duration(text).ok())
    }
}

/// Reads t3's arguments as this release does.
pub fn parse(release: &Release, arguments: &[String]) -> Result<Request, Misuse> {
    let mut words = arguments.iter().map(String::as_str).peekable();
    let mut verb = &VERBS[0];
    // An unknown first word is a folder to serve; an unknown word inside a group is an error.
    while let Some(word) = words.peek().copied().filter(|word| !word.starts_with('-')) {
        let path: Vec<&str> = verb.path.iter().copied().chain([word]).collect();
        match VERBS.iter().find(|known| known.path == path) {
            Some(known) => verb = known,
            None if verb.is_group() => {
                let message = format!("Unknown subcommand \"{word}\" for \"{}\"", verb.name());
                return Err(Misuse { verb, message });
            }
            None => break,
        }
        words.next();
    }
    let mut given = Given::default();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
            given.arguments.push(word.to_owned());
            continue;
        };
        match name {
            "-help" | "h" => return Ok(Request::Help(verb)),
            "-version" => return Ok(Request::Version),
            "v" if release.generation() == Generation::B => return Ok(Request::Version),
            _ => {}
        }
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        if matches!(name, "-log-level" | "-completions") {
            words.next_if(|_| value.is_none());
            continue;
        }
        let Some(flag) = name
            .strip_prefix('-')
            .and_then(|name| verb.flags.iter().find(|flag| flag.name == name && flag.is_known_to(release)))
        else {
            let name = word.split('=').next().unwrap_or(word);
            return Err(Misuse {
                verb,
                message: format!("Unrecognized flag: {name} in command {}", verb.name()),
            });
        };
        let value = match (flag.kind, value) {
            (Kind::Switch, _) => "true".to_owned(),
            (_, Some(value)) => value.to_owned(),
            (_, None) => match words.next() {
                Some(value) => value.to_owned(),
                None => {
                    return Err(Misuse { verb, message: format!("Missing value for flag --{}", flag.name) });
                }
            },
        };
        if let Some(expected) = unfit(flag.kind, &value) {
            let message =
                format!("Invalid value for flag --{}: \"{value}\". Expected: {expected}", flag.name);
            return Err(Misuse { verb, message });
        }
        given.flags.push((flag.name, value));
    }
    if verb.is_group() {
        return Ok(Request::Help(verb));
    }
    let required = verb.arguments.len() - usize::from(verb.optional);
    if given.arguments.len() < required {
        let missing = verb.arguments[given.arguments.len()];
        return Err(Misuse { verb, message: format!("Missing required argument: {missing}") });
    }
    Ok(Request::Run(verb, given))
}

fn unfit(kind: Kind, value: &str) -> Option<&'static str> {
    match kind {
        Kind::Duration if humantime::parse_duration(value).is_err() => {
            Some("Schema validation failed: Invalid duration. Use values like 5m, 1h, 30d, or 15 minutes.")
        }
        Kind::Integer if value.parse::<i64>().is_err() => Some("an integer"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(version: &str, line: &str) -> Result<Request, Misuse> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&version.parse().expect("a version"), &words)
    }

    fn refused(line: &str) -> String {
        asked("0.0.24", line).err().expect("refused").message
    }

    #[test]
    fn misuse_is_told_in_the_recorded_words() {
        assert_eq!(refused("auth frobnicate"), "Unknown subcommand \"frobnicate\" for \"t3 auth\"");
        assert_eq!(
            refused("auth pairing create --nope --json"),
            "Unrecognized flag: --nope in command t3 auth pairing create"
        );
        assert!(
            refused("auth pairing create --ttl banana")
                .starts_with("Invalid value for flag --ttl: \"banana\".")
        );
    }

    #[test]
    fn an_unknown_first_word_is_a_folder_to_serve() {
        let Ok(Request::Run(verb, given)) = asked("0.0.24", "frobnicate") else { panic!("not a server") };
        assert!(verb.path.is_empty());
        assert_eq!(given.arguments, ["frobnicate"]);
    }

    #[test]
    fn a_group_alone_shows_its_help() {
        assert!(matches!(asked("0.0.33", "auth"), Ok(Request::Help(verb)) if verb.path == ["auth"]));
    }

    #[test]
    fn flags_take_their_values_in_both_spellings() {
        for line in ["auth pairing create --ttl 5m --label=x", "auth pairing create --label x --ttl=5m"] {
            let Ok(Request::Run(_, given)) = asked("0.0.26", line) else { panic!("not taken: {line}") };
            assert_eq!(
                (given.text("label"), given.duration("ttl")),
                (Some("x"), Some(Duration::from_secs(300)))
            );
        }
    }

    #[test]
    fn the_short_version_flag_came_with_generation_b() {
        assert!(matches!(asked("0.0.26", "-v"), Ok(Request::Version)));
        assert!(asked("0.0.24", "-v").is_err());
    }
}
