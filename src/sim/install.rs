//! An installed t3 as npm's prefix lays it out, which is this program under another name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;

use super::Manner;
use super::release::Release;

/// Writes `DIR/bin/t3` and the package file that tells its version without running it.
pub fn install(dir: &Path, version: &Release, manner: &Manner) -> anyhow::Result<()> {
    let binary = std::env::current_exe().context("finding this program")?;
    let mutations = manner.mutations.iter().map(|chosen| format!("--mutation={chosen}"));
    let manner: String = mutations
        .chain(manner.timing.arguments())
        .map(|argument| format!(" {}", quoted(&argument)))
        .collect();
    let binary = quoted(&binary.to_string_lossy());
    let script = format!("#!/bin/sh\nexec {binary} sim t3 --as {version}{manner} -- \"$@\"\n");

    let bin = dir.join("bin");
    let package = dir.join("lib/node_modules/t3");
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    fs::create_dir_all(&package).with_context(|| format!("making {}", package.display()))?;
    let program = bin.join("t3");
    // Replaced, not written into: somebody may be running it.
    let fresh = bin.join(".t3.new");
    fs::write(&fresh, script).with_context(|| format!("writing {}", fresh.display()))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))
        .context("making the program executable")?;
    fs::rename(&fresh, &program).with_context(|| format!("writing {}", program.display()))?;
    let description = format!("{{\n  \"name\": \"t3\",\n  \"version\": \"{version}\"\n}}\n");
    fs::write(package.join("package.json"), description).context("writing package.json")
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
