//! Help pages, in our own words; only their outline is t3's.

use std::fmt::Write;

use super::{Kind, Verb};
use crate::sim::release::{Generation, Release};

/// The help page of a command.
pub fn help(release: &Release, verb: &Verb) -> String {
    let mut page = format!("DESCRIPTION\n  {}\n\nUSAGE\n  {}", verb.summary, verb.name());
    page.push_str(if verb.subcommands.is_empty() { " [flags]" } else { " <subcommand> [flags]" });
    for argument in verb.arguments {
        page.push_str(&if verb.optional { format!(" [<{argument}>]") } else { format!(" <{argument}>") });
    }
    page.push('\n');
    if !verb.flags.is_empty() {
        page.push_str("\nFLAGS\n");
        for flag in verb.flags.iter().filter(|flag| flag.is_known_to(release)) {
            let kind = match flag.kind {
                Kind::Switch => "",
                Kind::Text | Kind::Duration => " string",
                Kind::Integer => " integer",
            };
            line(&mut page, &format!("--{}{kind}", flag.name), flag.summary);
        }
    }
    page.push_str("\nGLOBAL FLAGS\n");
    line(&mut page, "--help, -h", "Show this");
    let version = if release.generation() == Generation::B { "--version, -v" } else { "--version" };
    line(&mut page, version, "Show the version");
    line(&mut page, "--completions choice", "Print completions for bash, zsh, fish or sh");
    line(&mut page, "--log-level choice", "Lowest level that is logged");
    if !verb.subcommands.is_empty() {
        page.push_str("\nSUBCOMMANDS\n");
        for (name, summary) in verb.subcommands {
            line(&mut page, name, summary);
        }
    }
    page
}

fn line(page: &mut String, left: &str, right: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(page, "  {left:<42} {right}");
}
