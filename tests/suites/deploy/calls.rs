//! What the units forbid is nothing that the program does: its system calls and the families of its sockets, traced and
//! held to the units' own filters.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::free_port::free_port;
use crate::support::root::{setting, unit};
use crate::support::tools;
use crate::support::world::{World, http, wait_for};

/// A group of systemd's, with the groups in it.
fn calls_of(analyze: &Path, group: &str) -> BTreeSet<String> {
    let output = Command::new(analyze).args(["syscall-filter", group]).output().expect("it runs");
    assert!(output.status.success(), "{group}: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().skip(1).map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#'));
    let calls = names.flat_map(|name| match name.strip_prefix('@') {
        Some(_) => calls_of(analyze, name),
        None => BTreeSet::from([name.to_owned()]),
    });
    calls.collect()
}

/// What the unit's lines leave: the first names what is allowed, one with `~` takes away.
fn allowed(analyze: &Path, name: &str) -> BTreeSet<String> {
    let mut allowed = calls_of(analyze, "@default");
    for (_, _, value) in unit(name).iter().filter(|(_, key, _)| key == "SystemCallFilter") {
        let (taken, groups) = match value.strip_prefix('~') {
            Some(groups) => (true, groups),
            None => (false, value.as_str()),
        };
        for group in groups.split(' ') {
            let calls = calls_of(analyze, group);
            if taken {
                allowed.retain(|call| !calls.contains(call));
            } else {
                allowed.extend(calls);
            }
        }
    }
    allowed
}

/// A command of this world, traced: the process is the program's own, so it ends as ever.
fn traced(world: &World, strace: &Path, trace: &Path, argument: &str) -> Command {
    let program = world.command(&[argument]);
    let mut command = Command::new(strace);
    command.args(["-D", "-f", "-qq", "-o"]).arg(trace).arg(program.get_program()).args(program.get_args());
    command
}

/// Every call of a trace, and the family of every socket.
fn seen(trace: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let text = fs::read_to_string(trace).expect("a trace");
    // `PID name(arguments`; what was interrupted is resumed under the same name.
    let call = |line: &str| {
        let (name, _) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        name.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            .then(|| name.to_owned())
    };
    let family = |line: &str| {
        let (family, _) = line.split_once(" socket(")?.1.split_once(',')?;
        Some(family.to_owned())
    };
    (text.lines().filter_map(call).collect(), text.lines().filter_map(family).collect())
}

fn holds(analyze: &Path, name: &str, trace: &Path) {
    let (calls, families) = seen(trace);
    assert!(calls.contains("execve") && calls.len() > 20, "{name}: the trace was not read: {calls:?}");
    let allowed = allowed(analyze, name);
    // A file's group is set where that may be done, and comes from the directory where not.
    let forbidden: Vec<_> =
        calls.iter().filter(|call| !allowed.contains(*call) && *call != "fchown").collect();
    assert_eq!(forbidden, [""; 0], "{name}");
    let left = setting(name, "RestrictAddressFamilies").expect("families");
    let strange: Vec<_> =
        families.iter().filter(|family| !left.split(' ').any(|known| known == *family)).collect();
    assert_eq!(strange, [""; 0], "{name}");
    assert!(families.contains("AF_NETLINK"), "{name}: nobody asked whose a port is");
}

#[test]
fn the_units_forbid_no_call_that_serve_and_the_dispatch_make() {
    let (Some(analyze), Some(strace)) = (tools::find("systemd-analyze"), tools::find("strace")) else {
        return;
    };
    let (door, operator) = (free_port(), free_port());
    let world = World::with(&[("ann", "0.0.33")]).configured(&format!(
        "[dispatch]\nlisten = [\"127.0.0.1:{door}\"]\noperator_listen = \"127.0.0.1:{operator}\"\ntrusted_uids = [{}]\n",
        nix::unistd::geteuid()
    ));
    let trace = world.path("serve.strace");
    let serving = world.serve_as(&mut traced(&world, &strace, &trace, "serve"));
    serving.until_ok("ann", "handshake", true);
    serving.page("/");
    assert_eq!(serving.stop(), 0);
    holds(&analyze, "t3-prober.service", &trace);

    let trace = world.path("dispatch.strace");
    let mut dispatch = traced(&world, &strace, &trace, "dispatch");
    let mut dispatch = dispatch.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace runs");
    let came_in = wait_for("a user to come in", || {
        let answer = http(door, "GET", "/", &[("X-authentik-username", "ann@example.com")]).ok()?;
        Some(answer).filter(|answer| answer.head.contains("t3_session"))
    });
    let _ = dispatch.kill();
    let _ = dispatch.wait();
    assert_eq!(came_in.status, 302);
    holds(&analyze, "t3-dispatch.service", &trace);
}

#[test]
fn every_unit_in_which_secrets_are_sent_may_ask_the_kernel_whose_a_port_is() {
    for name in ["t3-prober", "t3-dispatch", "t3-prober-helper@", "t3-prober-box@", "t3-prober-backup"] {
        let families = setting(&format!("{name}.service"), "RestrictAddressFamilies").expect("families");
        assert!(families.split(' ').any(|family| family == "AF_NETLINK"), "{name}: {families}");
    }
}
