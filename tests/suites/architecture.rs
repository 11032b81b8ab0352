//! The structure that ARCHITECTURE.md describes, held: who may import whom, and how a file is made.

use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom: module, and the paths of ours that it may name. `*` is everything, a path includes what is
/// below it, and a module may always name itself. The sections of `config` stand beside the code that reads them.
const TABLE: &[(&str, &[&str])] = &[
    ("outcome", &[]),
    (
        "config",
        &[
            "outcome",
            "inventory",
            "t3",
            "probe",
            "operator",
            "history",
            "telemetry",
            "dispatch",
            "helper",
            "backup",
            "pins",
            "credential",
            "gate",
            "rollout",
            "enforce",
        ],
    ),
    ("t3", &["outcome"]),
    ("inventory", &["config", "outcome"]),
    ("probe", &["t3", "inventory", "outcome"]),
    ("pins", &["t3", "inventory", "outcome"]),
    ("backup", &["t3", "inventory", "outcome"]),
    ("credential", &["inventory", "outcome"]),
    ("helper", &["config", "t3", "inventory", "outcome", "probe", "backup", "pins", "gate"]),
    ("gate", &["t3", "inventory", "outcome", "probe", "backup", "pins"]),
    ("verdict", &["outcome", "gate::evidence"]),
    ("rollout", &["outcome", "gate::evidence"]),
    ("metrics", &["outcome"]),
    ("history", &["outcome"]),
    ("spool", &["outcome"]),
    ("board", &["outcome"]),
    ("pause", &["outcome"]),
    ("telemetry", &["outcome"]),
    ("dispatch", &["t3", "inventory", "metrics", "outcome", "spool"]),
    ("sim", &["t3::schema::MIGRATIONS"]),
    ("docket", &["*"]),
    ("operator", &["*"]),
    ("serve", &["*"]),
    ("enforce", &["*"]),
    ("demo", &["*"]),
    ("check", &["*"]),
    ("cli", &["*"]),
    ("main", &["*"]),
];

/// Names that say nothing of the domain.
const FORBIDDEN: &[&str] =
    &["common", "helpers", "lib", "manager", "managers", "misc", "shared", "type", "types", "util", "utils"];

const MAX_LINES: usize = 500;

/// A source file, and where it stands in the tree of modules.
struct Source {
    name: String,
    module: Vec<String>,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    files.sort();
    assert!(files.len() > 10, "the sources were not found");
    let source = |path: PathBuf| {
        let below = path.strip_prefix(&src).expect("below src").with_extension("");
        Source {
            name: path.strip_prefix(root()).expect("below the root").display().to_string(),
            module: below.iter().map(|part| part.to_string_lossy().into_owned()).collect(),
            text: fs::read_to_string(&path).expect("readable"),
        }
    };
    files.into_iter().map(source).collect()
}

/// The file's words and marks, without comments, strings and characters: what is left is code.
fn tokens(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let at = |index: usize| letters.get(index).copied().unwrap_or(' ');
    let (mut tokens, mut index) = (Vec::new(), 0);
    while index < letters.len() {
        let letter = letters[index];
        if letter == '/' && at(index + 1) == '/' {
            while index < letters.len() && letters[index] != '\n' {
                index += 1;
            }
        } else if letter == '"' {
            let raw = tokens.last().is_some_and(|token| token == "r" || token == "br");
            index += 1;
            while index < letters.len() && letters[index] != '"' {
                index += if letters[index] == '\\' && !raw { 2 } else { 1 };
            }
            index += 1;
        } else if letter == '#' && at(index + 1) == '"' && tokens.last().is_some_and(|token| token == "r") {
            index += 2;
            while index < letters.len() && !(letters[index] == '"' && at(index + 1) == '#') {
                index += 1;
            }
            index += 2;
        } else if letter == '\'' && (at(index + 1) == '\\' || at(index + 2) == '\'') {
            index += if at(index + 1) == '\\' { 3 } else { 2 };
            while index < letters.len() && letters[index] != '\'' {
                index += 1;
            }
            index += 1;
        } else if letter.is_alphanumeric() || letter == '_' {
            let start = index;
            while at(index).is_alphanumeric() || at(index) == '_' {
                index += 1;
            }
            tokens.push(letters[start..index].iter().collect());
        } else if letter == ':' && at(index + 1) == ':' {
            tokens.push("::".to_owned());
            index += 2;
        } else {
            if !letter.is_whitespace() {
                tokens.push(letter.to_string());
            }
            index += 1;
        }
    }
    tokens
}

/// Every path of ours that the file names, from the crate's root on.
fn imports(source: &Source) -> Vec<Vec<String>> {
    let tokens = tokens(&source.text);
    let token = |index: usize| tokens.get(index).map_or("", String::as_str);
    let mut found = Vec::new();
    // Inline modules are one level deeper, which is what `super` counts from: (name, depth of braces at its start).
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    for index in 0..tokens.len() {
        match token(index) {
            "{" => {
                if index >= 2 && token(index - 2) == "mod" {
                    inline.push((token(index - 1).to_owned(), depth));
                }
                depth += 1;
            }
            "}" => {
                depth -= 1;
                inline.pop_if(|(_, start)| *start == depth);
            }
            "crate" | "super" if token(index + 1) == "::" && (index == 0 || token(index - 1) != "::") => {
                let mut base = Vec::new();
                let mut start = index;
                if token(index) == "super" {
                    base = if source.module == ["main"] { Vec::new() } else { source.module.clone() };
                    base.extend(inline.iter().map(|(name, _)| name.clone()));
                    while token(start) == "super" {
                        base.pop();
                        start += 2;
                    }
                } else {
                    start += 2;
                }
                leaves(&tokens, start, &base, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// The paths of a use tree (or of a plain path) that begins at `index`; returns where it ends.
fn leaves(tokens: &[String], mut index: usize, base: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let token = |index: usize| tokens.get(index).map_or("", String::as_str);
    let mut path = base.to_vec();
    loop {
        if token(index) == "{" {
            index += 1;
            while token(index) != "}" && !token(index).is_empty() {
                index = leaves(tokens, index, &path, found);
                while token(index) != "," && token(index) != "}" && !token(index).is_empty() {
                    index += 1;
                }
                if token(index) == "," {
                    index += 1;
                }
            }
            return index + 1;
        }
        if token(index) != "self" {
            path.push(token(index).to_owned());
        }
        index += 1;
        if token(index) != "::" {
            found.push(path);
            return index;
        }
        index += 1;
    }
}

fn is_allowed(module: &str, path: &[String]) -> bool {
    let Some((_, allowed)) = TABLE.iter().find(|(name, _)| *name == module) else { return false };
    let joined = path.join("::");
    let lies_below = |allowed: &str| joined == allowed || joined.starts_with(&format!("{allowed}::"));
    lies_below(module) || allowed.iter().any(|allowed| *allowed == "*" || lies_below(allowed))
}

#[test]
fn every_import_is_in_the_table() {
    let mut count = 0;
    let mut strangers = Vec::new();
    for source in sources() {
        for path in imports(&source) {
            count += 1;
            // `super::super::*` of a test at the crate's root, and the like, name no module.
            let is_module = path.first().is_some_and(|name| TABLE.iter().any(|(module, _)| module == name));
            if is_module && !is_allowed(&source.module[0], &path) {
                strangers.push(format!("{} names {}", source.name, path.join("::")));
            }
        }
    }
    assert!(count > 20, "only {count} imports were found: the reader of imports is broken");
    assert_eq!(strangers, Vec::<String>::new());
}

#[test]
fn every_module_has_its_row_in_the_table() {
    for source in sources() {
        assert!(TABLE.iter().any(|(name, _)| *name == source.module[0]), "no row for {}", source.name);
    }
}

#[test]
fn architecture_md_shows_the_same_table() {
    let mut table = String::from("| module | may import |\n| --- | --- |\n");
    for (module, allowed) in TABLE {
        let names: Vec<_> = allowed.iter().map(|name| format!("`{name}`")).collect();
        let names = match allowed {
            [] => "nothing".to_owned(),
            ["*"] => "everything".to_owned(),
            _ => names.join(", "),
        };
        table.push_str(&format!("| `{module}` | {names} |\n"));
    }
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    assert!(text.contains(&table), "put this table into ARCHITECTURE.md:\n{table}");
}

#[test]
fn every_file_opens_by_saying_its_rule_and_is_short_enough_to_be_read() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "{} does not open with //!", source.name);
        let lines = source.text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines; split it by noun", source.name);
    }
}

#[test]
fn every_file_has_the_name_of_something() {
    for source in sources() {
        let last = source.module.last().expect("a name");
        assert_ne!(last, "mod", "{}: write foo.rs beside foo/", source.name);
        for part in &source.module {
            assert!(!FORBIDDEN.contains(&part.as_str()), "{}: '{part}' says nothing", source.name);
        }
    }
}

#[test]
fn the_reader_of_imports_sees_groups_supers_and_inline_modules_and_no_comments_or_strings() {
    let source = |module: &[&str], text: &str| Source {
        name: String::new(),
        module: module.iter().map(|part| (*part).to_owned()).collect(),
        text: text.to_owned(),
    };
    let found = |module: &[&str], text: &str| -> Vec<String> {
        imports(&source(module, text)).iter().map(|path| path.join("::")).collect()
    };
    assert_eq!(
        found(&["a"], "use crate::b::{self, c::{D, E as F}, g};"),
        ["b", "b::c::D", "b::c::E", "b::g"]
    );
    assert_eq!(found(&["a", "b"], "use super::c; fn f() { crate::d::e() }"), ["a::c", "d::e"]);
    assert_eq!(found(&["a"], "use super::c;\nmod tests { use super::*; } use super::d;"), ["c", "a::*", "d"]);
    assert_eq!(found(&["a", "b"], "use super::super::c::D; pub(super) struct S;"), ["c::D"]);
    assert_eq!(
        found(&["a"], "// crate::b\nlet s = \"crate::c \\\" crate::d\"; let q = '\"'; crate::e::f"),
        ["e::f"]
    );
    assert_eq!(found(&["a"], "fn f<'x>(s: &'x str) { r#\"crate::b \" \"#; '\\''; crate::c::d }"), ["c::d"]);
}

#[test]
fn the_table_refuses_what_it_should() {
    let path = |text: &str| text.split("::").map(ToOwned::to_owned).collect::<Vec<_>>();
    assert!(is_allowed("t3", &path("outcome::Reason")));
    assert!(is_allowed("t3", &path("t3::schema")));
    assert!(!is_allowed("t3", &path("inventory::UserName")));
    assert!(is_allowed("sim", &path("t3::schema::MIGRATIONS")));
    assert!(!is_allowed("sim", &path("t3::schema::SchemaLevel")));
    assert!(!is_allowed("probe", &path("metrics")));
    assert!(!is_allowed("nobody", &path("outcome")));
}

#[test]
fn whatever_program_a_test_asks_for_is_installed_by_the_test_command() {
    let script = fs::read_to_string(root().join("tests/run")).expect("tests/run");
    let mut asked = 0;
    let mut directories = vec![root().join("tests/suites"), root().join("tests/support")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for (_, rest) in
                text.match_indices("tools::find(\"").map(|(at, begin)| text.split_at(at + begin.len()))
            {
                let tool = rest.split('"').next().expect("a name");
                assert!(
                    script.contains(&format!("[{tool}]=")),
                    "{}: {tool} is not in tests/run",
                    path.display()
                );
                asked += 1;
            }
        }
    }
    assert!(asked > 10, "the tests ask for programs in another way than this one reads");
}
