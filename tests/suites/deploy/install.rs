//! The install script: twice is once, and what it brought it takes away.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::root::{Root, setting, source};
use crate::support::tools;

/// The tools that make the accounts and the directories, and the right to.
fn can_install() -> bool {
    tools::root() && tools::find("systemd-sysusers").is_some() && tools::find("systemd-tmpfiles").is_some()
}

#[test]
fn shellcheck_has_nothing_to_say() {
    let Some(shellcheck) = tools::find("shellcheck") else { return };
    let output = Command::new(shellcheck).arg(source("deploy/install.sh")).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn installed_twice_is_installed_once() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    let first = root.install();
    assert!(first.contains("installed: ") && first.contains("/usr/bin/t3-prober"), "{first}");
    let before = root.listing();
    let second = root.install();
    assert!(!second.contains("installed: ") && !second.contains("removed: "), "{second}");
    let changed: Vec<_> =
        root.listing().into_iter().filter(|(path, found)| before.get(path) != Some(found)).collect();
    assert_eq!(changed, []);
}

#[test]
fn everything_belongs_to_whom_it_should_and_nobody_else_can_write_it() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    root.install();
    let (prober, group) = root.account("t3-prober");
    let (dispatch, _) = root.account("t3-dispatch");
    let (judge, judges) = root.account("t3-gate");
    assert!(prober != 0 && dispatch != 0 && judge != 0);
    assert!(prober != dispatch && judge != prober && judge != dispatch);
    for (path, uid, gid, mode) in [
        ("/usr/bin/t3-prober", 0, 0, 0o755),
        ("/usr/share/doc/t3-prober/sudoers", 0, 0, 0o440),
        ("/etc/t3-prober", 0, 0, 0o755),
        ("/etc/t3-prober/config.toml", 0, 0, 0o644),
        ("/etc/t3-prober/probe.key", 0, group, 0o440),
        ("/var/lib/t3-prober", prober, group, 0o2710),
        ("/var/lib/t3-prober/spool", prober, group, 0o3770),
        ("/var/lib/t3-prober/verdicts", judge, group, 0o755),
        ("/var/lib/t3-prober/docket/asked", prober, group, 0o2770),
        ("/var/lib/t3-prober-gate", 0, judges, 0o1771),
        ("/var/lib/t3-prober/enforce", 0, 0, 0o755),
        ("/var/lib/t3-prober-helper", 0, 0, 0o700),
        ("/var/backups/t3", 0, 0, 0o755),
        ("/opt/t3/users", 0, 0, 0o755),
    ] {
        let found = root.path(path).metadata().unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (uid, gid, mode), "{path}");
    }
    for (path, found) in root.listing().iter().filter(|(path, _)| path.starts_with("/usr/")) {
        let mode = u32::from_str_radix(&found[..4], 8).expect("a mode");
        assert!(found[5..].starts_with("0:0 ") && mode & 0o022 == 0, "{path}: {found}");
    }
    let groups = fs::read_to_string(root.path("/etc/group")).expect("groups");
    let helper = groups.lines().find(|line| line.starts_with("t3-helper:")).expect("the group");
    assert!(helper.ends_with(':'), "nobody is a member, the units alone have it: {helper}");
}

#[test]
fn the_configuration_that_is_installed_is_taken_and_names_the_helper() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    root.install();
    let config = root.path("/etc/t3-prober/config.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    assert!(text.contains("\nsocket = \"/run/t3-prober-helper.sock\"\n"), "{text}");
    let mut check = Command::new(root.path("/usr/bin/t3-prober"));
    let output = check.args(["check", "--config"]).arg(&config).output().expect("the program runs");
    assert_ne!(output.status.code(), Some(78), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("is read without complaint"), "{said}");
}

#[test]
fn a_dry_run_says_everything_and_changes_nothing() {
    let root = Root::new();
    let script = source("deploy/install.sh");
    let output = root.run(&script, &["--dry-run", "--binary", crate::support::world::PROGRAM]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("would install: ") && said.contains("/etc/t3-prober/config.toml"), "{said}");
    assert_eq!(root.listing().len(), 0);
    if can_install() {
        root.install();
        let before = root.listing();
        let said = root.run(&script, &["--uninstall", "--dry-run"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("would remove: ") && said.contains("/usr/bin/t3-prober"), "{said}");
        assert_eq!(root.listing(), before);
    }
}

#[test]
fn uninstalled_nothing_stays_but_data_and_the_accounts_whose_it_is() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    root.install();
    fs::write(root.path("/var/lib/t3-prober/history.sqlite"), "data").expect("data");
    let script = source("deploy/install.sh");
    let output = root.run(&script, &["--uninstall"]);
    assert!(output.status.success(), "{output:?}");
    let left = root.listing();
    let is_ours = |path: &str| root.path(path).is_file() && !path.starts_with("/var/");
    let files: Vec<_> = left.keys().filter(|path| is_ours(path)).map(String::as_str).collect();
    let accounts = ["/etc/.pwd.lock", "/etc/group", "/etc/gshadow", "/etc/passwd", "/etc/shadow"];
    assert_eq!(files, accounts);
    for gone in ["/usr/share/t3-prober", "/usr/share/doc/t3-prober", "/etc/t3-prober"] {
        assert!(!left.contains_key(gone), "{gone} is still there");
    }
    assert_eq!(fs::read_to_string(root.path("/var/lib/t3-prober/history.sqlite")).expect("data"), "data");
    let again = root.run(&script, &["--uninstall"]);
    assert!(again.status.success() && root.listing() == left, "{again:?}");
}

#[test]
fn what_the_operator_wrote_outlives_an_upgrade_and_an_uninstall() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    root.install();
    let config = root.path("/etc/t3-prober/config.toml");
    fs::write(&config, "[inventory]\naccounts = false\n").expect("written");
    root.install();
    root.run(&source("deploy/install.sh"), &["--uninstall"]);
    assert_eq!(fs::read_to_string(config).expect("it is there"), "[inventory]\naccounts = false\n");
}

#[test]
fn an_upgrade_takes_away_what_the_new_version_does_not_bring_and_puts_right_what_was_changed() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    root.install();
    let old = root.path("/usr/lib/systemd/system/t3-prober-old.service");
    fs::write(&old, "[Unit]\n").expect("written");
    let manifest = root.path("/usr/share/t3-prober/manifest");
    let listed = fs::read_to_string(&manifest).expect("the manifest");
    fs::write(&manifest, format!("{listed}/usr/lib/systemd/system/t3-prober-old.service\n"))
        .expect("written");
    let program = root.path("/usr/bin/t3-prober");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).expect("a mode");
    let said = root.install();
    assert!(said.contains("removed: ") && !old.exists(), "{said}");
    assert_eq!(program.metadata().expect("the program").permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_to_string(manifest).expect("the manifest"), listed);
}

#[test]
fn every_file_of_the_units_the_accounts_and_the_directories_is_installed() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    root.install();
    for (from, to) in [
        ("deploy/systemd", "/usr/lib/systemd/system"),
        ("deploy/sysusers.d", "/usr/lib/sysusers.d"),
        ("deploy/tmpfiles.d", "/usr/lib/tmpfiles.d"),
    ] {
        let names = |directory| {
            let entries = fs::read_dir(directory).expect("a directory");
            let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
            entries.map(|entry| name(entry.expect("an entry"))).collect::<BTreeSet<_>>()
        };
        assert_eq!(names(source(from)), names(root.path(to)), "{from}");
    }
}

#[test]
fn the_probes_key_is_made_once_for_both_services_and_for_nobody_else() {
    if !can_install() {
        return;
    }
    let root = Root::new();
    root.install();
    let key = root.path("/etc/t3-prober/probe.key");
    let made = fs::read_to_string(&key).expect("a key");
    assert!(made.len() == 64 && made.chars().all(|c| c.is_ascii_hexdigit()), "{} characters", made.len());
    let groups = fs::read_to_string(root.path("/etc/group")).expect("groups");
    let number = |group: &str| {
        let line = groups.lines().find(|line| line.starts_with(&format!("{group}:"))).expect(group);
        line.split(':').nth(2).expect("a number").to_owned()
    };
    // Whether an account reads it, with the groups that its unit gives it.
    let reads = |uid: u32, gid: u32, more: &[&str]| {
        let mut read = Command::new("setpriv");
        read.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
        let groups: Vec<_> = more.iter().map(|group| number(group)).collect();
        match groups.as_slice() {
            [] => read.arg("--clear-groups"),
            groups => read.arg(format!("--groups={}", groups.join(","))),
        };
        let output = read.args(["--", "cat"]).arg(&key).output().expect("setpriv");
        String::from_utf8_lossy(&output.stdout) == made
    };
    for unit in ["t3-prober.service", "t3-dispatch.service"] {
        let (uid, gid) = root.account(&setting(unit, "User").expect("an account"));
        let more = setting(unit, "SupplementaryGroups").expect("groups");
        assert!(reads(uid, gid, &more.split(' ').collect::<Vec<_>>()), "{unit}");
    }
    assert!(!reads(65534, 65534, &[]) && !reads(65534, 65534, &["t3-helper"]), "others read it");

    let config = root.path("/etc/t3-prober/config.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    let (prober, _) = root.account("t3-prober");
    assert!(text.contains(&format!("\n#trusted_uids = [0, {prober}] # no default")), "{text}");
    root.install();
    assert_eq!(fs::read_to_string(&key).expect("a key"), made, "the same key");
    root.run(&source("deploy/install.sh"), &["--uninstall"]);
    assert!(!key.exists(), "it opens nothing any more");
}
