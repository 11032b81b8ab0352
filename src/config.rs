//! What the operator writes: one TOML file, checked once. A section's struct lives beside the code that reads it, and
//! past `Config::load` nobody checks again. A new section is one field here and one header in the example file.

mod refusal;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::DeTable;

use refusal::Problem;
pub use refusal::Refused;

use crate::{
    backup, credential, dispatch, enforce, gate, helper, history, inventory, operator, pins, probe, rollout,
    t3, telemetry,
};

const DEFAULT_PATH: &str = "/etc/t3-prober/config.toml";

/// Every key with its default and a comment; a test holds it to `Config::default()`, and refusals quote it.
const EXAMPLE: &str = include_str!("../deploy/config.example.toml");

/// A configuration is written by hand; what is larger is another file.
const MAX_SIZE: u64 = 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What must not be forgotten: history, verdicts, journals. Default `/var/lib/t3-prober`.
    pub state_dir: PathBuf,
    pub inventory: inventory::Section,
    pub t3: t3::Section,
    pub probe: probe::Section,
    pub telemetry: telemetry::Section,
    pub dispatch: dispatch::Section,
    pub operator: operator::Section,
    pub history: history::Section,
    pub helper: helper::Section,
    pub pins: pins::Section,
    pub backup: backup::Section,
    pub gate: gate::Section,
    pub rollout: rollout::Section,
    pub credential: credential::Section,
    pub enforce: enforce::Section,
}

/// The file the configuration comes from, remembered for reloading.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    must_exist: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/t3-prober"),
            inventory: inventory::Section::default(),
            t3: t3::Section::default(),
            probe: probe::Section::default(),
            telemetry: telemetry::Section::default(),
            dispatch: dispatch::Section::default(),
            operator: operator::Section::default(),
            history: history::Section::default(),
            helper: helper::Section::default(),
            pins: pins::Section::default(),
            backup: backup::Section::default(),
            gate: gate::Section::default(),
            rollout: rollout::Section::default(),
            credential: credential::Section::default(),
            enforce: enforce::Section::default(),
        }
    }
}

impl Config {
    /// Reads and checks the file, at the start and again at every reload.
    pub fn load(source: &mut Source) -> Result<Self, Refused> {
        let content = match read(&source.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !source.must_exist => {
                return Ok(Self::default());
            }
            Err(error) => return Err(Refused::unreadable(&source.path, &error)),
        };
        // A file that was there once and is gone at a reload is a mistake, not a wish for the defaults.
        source.must_exist = true;
        match std::str::from_utf8(&content) {
            Ok(text) => Self::parse(text, &source.path),
            Err(error) => Err(Refused::not_utf8(&source.path, &content, error.valid_up_to())),
        }
    }

    /// The keys that differ from `new` and are only read at the start.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let fixed = [
            ("state_dir", self.state_dir != new.state_dir),
            ("telemetry", self.telemetry != new.telemetry),
            ("operator.listen", self.operator.listen != new.operator.listen),
            ("operator.socket", self.operator.socket != new.operator.socket),
            ("history", self.history != new.history),
            ("backup", self.backup != new.backup),
            ("dispatch", self.dispatch != new.dispatch),
        ];
        fixed.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// What no single key shows, as (section, key, sentence).
    fn complaints(&self) -> Vec<(&'static str, &'static str, String)> {
        let relative = self.state_dir.is_relative();
        let state_dir = format!("'{}' is not an absolute path; begin it with /", self.state_dir.display());
        let own = relative.then_some(("state_dir", state_dir));
        let privileged = self.dispatch.inside_serve && self.helper.is_used();
        let exposed = "with a [helper] the users' listener is kept apart from what may act for them; leave this out, and run t3-prober dispatch as an account of its own";
        let exposed = privileged.then(|| ("inside_serve", exposed.to_owned()));
        let sections = [
            ("", own.into_iter().collect()),
            ("dispatch", exposed.into_iter().collect()),
            ("inventory", self.inventory.complaints()),
            ("t3", self.t3.complaints()),
            ("probe", self.probe.complaints()),
            ("telemetry", self.telemetry.complaints()),
            ("dispatch", self.dispatch.complaints()),
            ("operator", self.operator.complaints()),
            ("history", self.history.complaints()),
            ("helper", self.helper.complaints()),
            ("pins", self.pins.complaints()),
            ("backup", self.backup.complaints()),
            ("gate", self.gate.complaints()),
            ("enforce", self.enforce.complaints()),
            ("rollout", self.rollout.complaints()),
        ];
        let complaints = sections.into_iter().flat_map(|(section, complaints)| {
            complaints.into_iter().map(move |(key, sentence)| (section, key, sentence))
        });
        complaints.collect()
    }

    /// Reports as many problems as there are: a key that is refused is taken out, and the rest is read on.
    fn parse(text: &str, path: &Path) -> Result<Self, Refused> {
        let (mut document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problems = errors.iter().map(|error| Problem::syntax(text, error)).collect();
            return Err(Refused::new(path, problems));
        }
        let whole = document.clone();
        let mut problems = Vec::new();
        let config = loop {
            match Self::deserialize(toml::de::Deserializer::from(document.clone())) {
                Ok(config) => break config,
                Err(error) => {
                    let span = error.span().unwrap_or_default();
                    let key = refusal::take_out(document.get_mut(), &span);
                    let is_stuck = key.is_none();
                    problems.push(Problem::refused(text, &span, key.as_deref(), error.message()));
                    if is_stuck {
                        return Err(Refused::new(path, problems));
                    }
                }
            }
        };
        for (section, key, sentence) in config.complaints() {
            problems.push(Problem::complaint(text, whole.get_ref(), section, key, &sentence));
        }
        for (index, key, sentence) in config.credential.complaints() {
            let block = ("credential", *index);
            // Not of the whole: where blocks were taken out, the others have moved up.
            problems.push(Problem::complaint_of_block(text, document.get_ref(), block, key, sentence));
        }
        if problems.is_empty() { Ok(config) } else { Err(Refused::new(path, problems)) }
    }
}

impl Source {
    /// The file named with `--config`, which must exist, or the one at the default path, which need not.
    pub fn new(named: Option<PathBuf>) -> Self {
        let must_exist = named.is_some();
        Self { path: named.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH)), must_exist }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the state lies, from a file that may be refused for whatever else is in it.
    pub fn state_dir(&self) -> PathBuf {
        let content = read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        let (document, _) = DeTable::parse_recoverable(&text);
        let named = document.get_ref().get("state_dir").and_then(|value| value.get_ref().as_str());
        named
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
            .unwrap_or_else(|| Config::default().state_dir)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_SIZE {
        return Err(io::Error::other("it is larger than 1 MiB, which no configuration is"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// One `#key = value` line of the example.
    struct Shown {
        section: String,
        key: String,
        assignment: String,
        is_default: bool,
        is_explained: bool,
    }

    /// The keys of the sections. What lies in `#[[credential]]`, of which there may be many, is shown by `blocks`.
    fn shown() -> Vec<Shown> {
        let (mut section, mut explained, mut shown) = (String::new(), false, Vec::new());
        for line in EXAMPLE.lines() {
            if line.starts_with("#[[") {
                section.clear();
                section.push_str("[[");
            }
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_matches(['[', ']']).to_owned();
            } else if let Some(line) =
                line.strip_prefix('#').filter(|line| line.starts_with(char::is_alphabetic))
            {
                let (assignment, is_default) = match line.strip_suffix(" # no default") {
                    Some(assignment) => (assignment, false),
                    None => (line, true),
                };
                let (key, _) = assignment.split_once(" = ").expect("'#key = value'");
                shown.push(Shown {
                    section: section.clone(),
                    key: key.to_owned(),
                    assignment: assignment.to_owned(),
                    is_default,
                    is_explained: explained,
                });
            }
            explained = line.starts_with("# ");
        }
        shown.retain(|key| key.section != "[[");
        shown
    }

    /// Each `#[[name]]` of the example with its lines, comments included.
    fn blocks() -> Vec<(&'static str, &'static str)> {
        let blocks = EXAMPLE.split("#[[").skip(1).map(|block| block.split("\n[").next().unwrap_or_default());
        blocks.map(|block| block.split_once("]]").expect("'#[[name]]'")).collect()
    }

    fn document(keys: &[Shown], wanted: fn(&Shown) -> bool) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in keys.iter().filter(|key| wanted(key)) {
            if key.section != section {
                section = &key.section;
                text.push_str(&format!("[{section}]\n"));
            }
            text.push_str(&format!("{}\n", key.assignment));
        }
        text
    }

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("config.toml")).map_err(|refused| refused.to_string())
    }

    #[test]
    fn the_example_as_it_stands_changes_nothing() {
        assert_eq!(parse(EXAMPLE), Ok(Config::default()));
    }

    #[test]
    fn every_default_that_the_example_shows_is_the_default() {
        let keys = shown();
        for key in keys.iter().filter(|key| key.is_default) {
            let alone = document(std::slice::from_ref(key), |_| true);
            assert_eq!(parse(&alone), Ok(Config::default()), "{alone}");
        }
        assert_eq!(parse(&document(&keys, |key| key.is_default)), Ok(Config::default()));
    }

    #[test]
    fn every_key_that_the_example_shows_without_a_default_parses_and_changes_something() {
        let keys = shown();
        for key in keys.iter().filter(|key| !key.is_default) {
            let alone = document(std::slice::from_ref(key), |_| true);
            assert_ne!(parse(&alone).expect(&alone), Config::default(), "{alone}");
        }
        parse(&document(&keys, |_| true)).expect("all keys at once");
    }

    #[test]
    fn the_example_shows_and_explains_every_key_there_is() {
        // The refusal of a key that cannot exist lists those that do.
        let known = |section: &str| -> BTreeSet<String> {
            let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
            let refused = parse(&format!("{header}qqqqqqqqqqqqqqqqqqqq = 1")).expect_err("no such key");
            let (_, known) = refused.split_once("known here: ").expect("the keys are listed");
            known.trim().split(", ").map(ToOwned::to_owned).collect()
        };
        let sections: BTreeSet<String> = EXAMPLE
            .lines()
            .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'))
            .map(ToOwned::to_owned)
            .chain(blocks().iter().map(|(name, _)| (*name).to_owned()))
            .collect();
        let keys = shown();
        let of = |section: &str| -> BTreeSet<String> {
            keys.iter().filter(|key| key.section == section).map(|key| key.key.clone()).collect()
        };
        let within = |section: &str| -> BTreeSet<String> {
            let name = |name: &String| match name.rsplit_once('.') {
                Some((outer, inner)) => (outer == section).then(|| inner.to_owned()),
                None => section.is_empty().then(|| name.clone()),
            };
            sections.iter().filter_map(name).collect()
        };
        assert_eq!(known(""), &of("") | &within(""));
        for section in sections.iter().filter(|section| !blocks().iter().any(|(name, _)| name == section)) {
            assert_eq!(known(section), &of(section) | &within(section), "[{section}]");
        }
        let unexplained: Vec<_> = keys.iter().filter(|key| !key.is_explained).map(|key| &key.key).collect();
        assert_eq!(unexplained, Vec::<&String>::new());
    }

    #[test]
    fn the_example_shows_every_way_to_write_a_credential_and_explains_every_key_once() {
        let (mut whole, mut shown, mut explained) = (String::new(), BTreeSet::new(), BTreeSet::new());
        for (name, lines) in blocks() {
            let mut block = format!("[[{name}]]\n");
            let mut before = "";
            for line in lines.lines() {
                if let Some(line) =
                    line.strip_prefix('#').filter(|line| line.starts_with(char::is_alphabetic))
                {
                    let assignment =
                        line.strip_suffix(" # no default").expect("no key of a block has a default");
                    let (key, _) = assignment.split_once(" = ").expect("'#key = value'");
                    block.push_str(&format!("{assignment}\n"));
                    shown.insert(key);
                    if before.starts_with("# ") {
                        explained.insert(key);
                    }
                }
                before = line;
            }
            assert_ne!(parse(&block).expect(&block), Config::default());
            whole.push_str(&block);
        }
        parse(&whole).expect("all blocks at once");
        assert_eq!(shown, explained);
        let refused = parse("[[credential]]\nqqqqqqqqqqqqqqqqqqqq = 1").expect_err("no such key");
        let (_, known) = refused.split_once("known here: ").expect("the keys are listed");
        assert_eq!(known.trim().split(", ").collect::<BTreeSet<_>>(), shown);
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn a_missing_file_is_the_default_only_where_nobody_named_it_and_only_until_it_was_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.toml");
        assert!(Config::load(&mut Source::new(Some(path.clone()))).is_err());
        let mut source = Source { path: path.clone(), must_exist: false };
        assert_eq!(Config::load(&mut source).ok(), Some(Config::default()));
        std::fs::write(&path, "state_dir = \"/srv/t3\"").expect("written");
        assert_eq!(
            Config::load(&mut source).map(|config| config.state_dir).ok(),
            Some(PathBuf::from("/srv/t3"))
        );
        std::fs::remove_file(&path).expect("removed");
        assert!(Config::load(&mut source).is_err());
    }

    #[test]
    fn what_cannot_change_at_run_time_is_named_and_what_can_is_not() {
        let old = Config::default();
        let mut new = old.clone();
        new.inventory.accounts = false;
        new.operator.trusted_uids = vec![1000];
        assert_eq!(old.needs_restart(&new), Vec::<&str>::new());
        new.operator.listen.set_port(9999);
        new.state_dir = PathBuf::from("/srv/t3");
        assert_eq!(old.needs_restart(&new), ["state_dir", "operator.listen"]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_at_all_makes_it_panic_or_go_on_for_ever(text in "[a-z_=\\[\\]\"0-9{}, \\n.]{0,80}") {
            let _ = parse(&text);
            let _ = parse(&format!("[inventory]\n{text}"));
        }
    }
}
