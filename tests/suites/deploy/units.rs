//! The units: systemd finds nothing wrong with them, they are closed as far as they can be, their commands are the
//! program's, and what they leave to it is enough.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::free_port::free_port;
use crate::support::held::Held;
use crate::support::host::{Account, Host, http, text, until};
use crate::support::root::{Root, setting, source, unit};
use crate::support::tools;

/// Every unit of deploy/systemd.
fn names() -> Vec<String> {
    let entries = fs::read_dir(source("deploy/systemd")).expect("the units");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.len() > 8, "the units were not found");
    names
}

#[test]
fn systemd_finds_nothing_wrong_with_any_unit_where_the_program_is_in_its_place() {
    let Some(analyze) = tools::find("systemd-analyze") else { return };
    if !tools::root()
        || tools::find("systemd-sysusers").is_none()
        || tools::find("systemd-tmpfiles").is_none()
    {
        return;
    }
    let root = Root::new();
    // The targets that ours stand before and behind, and the two commands of the system that ours call.
    for directory in ["/bin", "/usr/lib/systemd"] {
        fs::create_dir_all(root.path(directory)).expect("a directory");
    }
    for copy in [
        &["--archive", "/usr/lib/systemd/system", text(&root.path("/usr/lib/systemd"))][..],
        &["--dereference", "/bin/sh", "/bin/kill", text(&root.path("/bin"))],
    ] {
        assert!(Command::new("cp").args(copy).status().expect("cp runs").success());
    }
    root.install();
    let verify = |units: &[String]| {
        let mut command = Command::new(&analyze);
        command.arg(format!("--root={}", root.path("/").display())).args(["--man=no", "verify"]).args(units);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let ours: Vec<_> = said.lines().filter(|line| line.contains("t3-")).map(str::to_owned).collect();
        (output.status.success(), ours)
    };
    let instances: Vec<_> = names().iter().map(|name| name.replace('@', "@ann")).collect();
    assert_eq!(verify(&instances), (true, Vec::new()));
    let program = root.path("/usr/bin/t3-prober");
    fs::remove_file(program).expect("removed");
    let (is_well, said) = verify(&["t3-prober.service".to_owned()]);
    assert!(!is_well && !said.is_empty(), "it would not see a missing program");
}

#[test]
fn the_exposure_of_what_faces_users_and_builds_is_small() {
    let Some(analyze) = tools::find("systemd-analyze") else { return };
    for (name, most) in [
        ("t3-prober.service", "20"),
        ("t3-dispatch.service", "20"),
        ("t3-prober-gate@.service", "30"),
        ("t3-prober-gate.service", "30"),
        ("t3-prober-box@.service", "30"),
        ("t3-prober-backup.service", "40"),
        ("t3-prober-helper@.service", "40"),
    ] {
        let mut command = Command::new(&analyze);
        command.args(["security", "--offline=yes", "--no-pager"]).arg(format!("--threshold={most}"));
        let output = command.arg(source("deploy/systemd").join(name)).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let open: Vec<_> = said.lines().filter(|line| line.contains('✗') || line.contains('→')).collect();
        assert!(output.status.success(), "{name}: more than {most}: {open:#?}");
    }
}

/// Every value that a unit gives to a setting.
fn values(name: &str, wanted: &str) -> Vec<String> {
    unit(name).into_iter().filter(|(_, key, _)| key == wanted).map(|(_, _, value)| value).collect()
}

/// The words of a unit's command after the program, for an instance of the template.
fn arguments(name: &str) -> Option<Vec<String>> {
    let command = setting(name, "ExecStart")?;
    let arguments = command.strip_prefix("/usr/bin/t3-prober ")?.replace("%i", "0.0.33");
    Some(arguments.split(' ').map(str::to_owned).collect())
}

#[test]
fn the_program_takes_the_command_of_every_unit() {
    let try_out = |arguments: &[String]| {
        let mut command = Command::new(crate::support::world::PROGRAM);
        command.args(arguments).arg("--help").output().expect("the program runs")
    };
    let mut tried = 0;
    for name in names() {
        let Some(arguments) = arguments(&name) else { continue };
        let output = try_out(&arguments);
        assert!(output.status.success(), "{name}: {arguments:?}: {output:?}");
        // One more word that it does not know, and it would have said so.
        let misspelt = [&arguments[..], &["--frobnicate".to_owned()]].concat();
        assert_eq!(try_out(&misspelt).status.code(), Some(64), "{misspelt:?}");
        tried += 1;
    }
    assert!(tried >= 5, "only {tried} units run the program");
}

#[test]
fn a_missed_upgrade_never_comes_by_day_and_every_timer_has_its_service() {
    for name in names().iter().filter(|name| name.ends_with(".timer")) {
        assert_eq!(setting(name, "Persistent"), None, "{name}");
        assert!(setting(name, "OnCalendar").is_some(), "{name}");
        let service = name.replace(".timer", ".service");
        assert_eq!(setting(&service, "Type").as_deref(), Some("oneshot"), "{service}");
        assert_eq!(
            unit(&service).iter().filter(|(section, ..)| section == "Install").count(),
            0,
            "{service}"
        );
    }
}

#[test]
fn an_upgrade_that_is_stopped_has_the_time_to_finish_with_those_it_has_in_hand() {
    for name in ["t3-prober-enforce.service", "t3-prober-drain.service"] {
        assert_eq!(setting(name, "KillMode").as_deref(), Some("mixed"), "{name}: its commands are finished");
        let given = setting(name, "TimeoutStopSec").and_then(|time| humantime::parse_duration(&time).ok());
        // `[backup]` stop_timeout, take_timeout, start_timeout, and the login that has as long as a start.
        let needed = std::time::Duration::from_secs(90 + 300 + 30 + 30);
        assert!(given.is_some_and(|given| given > needed), "{name}: {given:?}");
        assert_eq!(setting(name, "TimeoutStartSec").as_deref(), Some("infinity"), "{name}");
    }
}

/// The program as a unit leaves it: its account, its groups, and no way to more.
fn under(unit: &str, account: &Account, host: &Host, arguments: &[&str]) -> Child {
    under_in_group(unit, account, None, host, arguments)
}

/// The same with one group more, by its number.
fn under_in_group(
    unit: &str,
    account: &Account,
    group: Option<u32>,
    host: &Host,
    arguments: &[&str],
) -> Child {
    assert_eq!(setting(unit, "NoNewPrivileges").as_deref(), Some("yes"), "{unit}");
    assert_eq!(setting(unit, "CapabilityBoundingSet").as_deref(), Some(""), "{unit}");
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--bounding-set=-all", "--reset-env"]);
    match group {
        None => command.arg("--init-groups"),
        Some(group) => command.arg(format!("--groups={group}")),
    };
    command.args([format!("--reuid={}", account.uid), format!("--regid={}", account.gid), "--".to_owned()]);
    command.arg(&host.program).args(arguments).arg("--config").arg(host.path("config.toml"));
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("setpriv runs")
}

fn given_to(path: &Path, account: &Account) {
    fs::create_dir_all(path).expect("a directory");
    std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)).expect("an owner");
}

#[test]
fn what_the_units_leave_to_serve_is_enough_to_mint_through_the_helper() {
    if !tools::root() {
        return;
    }
    let mut host = Host::new();
    let install = host.install("0.0.33", &[]);
    let (mut ann, prober) = (host.user(), host.caller("mint revoke labelled inspect port"));
    let operator = free_port();
    host.extra = format!("[operator]\nlisten = \"127.0.0.1:{operator}\"\n");
    ann.serve(&install);
    host.start_helper();
    given_to(&host.path("state"), &prober);
    let serving = Held(under("t3-prober.service", &prober, &host, &["serve"]));
    let well = format!("t3_probe_ok{{user=\"{}\",kind=\"handshake\"}} 1", ann.name);
    until("the whole login went well", || {
        http(operator, "GET /metrics HTTP/1.1", "").lines().any(|line| line == well)
    });
    drop(serving);
}

#[test]
fn what_the_units_leave_to_the_dispatch_is_enough_to_log_a_user_in_through_the_helper() {
    if !tools::root() {
        return;
    }
    let mut host = Host::new();
    let install = host.install("0.0.33", &[]);
    let (mut ann, dispatch) = (host.user(), host.caller("mint"));
    let (door, operator) = (free_port(), free_port());
    host.extra = format!(
        "[dispatch]\nlisten = [\"127.0.0.1:{door}\"]\noperator_listen = \"127.0.0.1:{operator}\"\ntrusted_uids = [0]\n"
    );
    ann.serve(&install);
    host.start_helper();
    given_to(&host.path("state/spool"), &dispatch);
    let dispatching = Held(under("t3-dispatch.service", &dispatch, &host, &["dispatch"]));
    until("the user comes in with a cookie", || {
        let asked = format!("GET /some/where HTTP/1.1\r\nX-authentik-username: {}@x", ann.name);
        let answer = http(door, &asked, "");
        answer.starts_with("HTTP/1.1 302") && answer.contains("t3_session")
    });
    until("the login is told to t3-prober", || {
        fs::read_dir(host.path("state/spool")).expect("the spool").count() > 0
    });
    drop(dispatching);
}

#[test]
fn by_the_key_that_is_installed_the_probes_come_in_through_the_front_door_of_another_account() {
    if !tools::root()
        || tools::find("systemd-sysusers").is_none()
        || tools::find("systemd-tmpfiles").is_none()
    {
        return;
    }
    let root = Root::new();
    root.install();
    let made = root.path("/etc/t3-prober/probe.key");
    let mut host = Host::new();
    let install = host.install("0.0.33", &[]);
    let mut ann = host.user();
    let (prober, dispatch) = (host.caller("mint revoke labelled inspect port"), host.caller("mint"));
    let (door, behind, operator) = (free_port(), free_port(), free_port());
    // The same bytes and mode, and the group that both have here.
    let key = host.path("probe.key");
    fs::copy(&made, &key).expect("a copy");
    std::os::unix::fs::chown(&key, Some(0), Some(prober.gid)).expect("a group");
    assert_eq!(fs::metadata(&key).expect("the key").permissions().mode() & 0o7777, 0o440);
    host.extra = format!(
        "[operator]\nlisten = \"127.0.0.1:{operator}\"\n\
         [probe]\nfront = \"127.0.0.1:{door}\"\nfront_uids = [{}]\nfront_interval = \"2s\"\n\
         [dispatch]\nlisten = [\"127.0.0.1:{door}\"]\noperator_listen = \"127.0.0.1:{behind}\"\n\
         trusted_uids = [0, {}]\nprobe_key_file = {key:?}\n",
        dispatch.uid, prober.uid
    );
    ann.serve(&install);
    host.start_helper();
    given_to(&host.path("state"), &prober);
    let group = Some(prober.gid);
    let dispatching = Held(under_in_group("t3-dispatch.service", &dispatch, group, &host, &["dispatch"]));
    let serving = Held(under_in_group("t3-prober.service", &prober, group, &host, &["serve"]));
    let well = format!("t3_probe_ok{{user=\"{}\",kind=\"front\"}} 1", ann.name);
    until("a visit through the front door went well", || {
        http(operator, "GET /metrics HTTP/1.1", "").lines().any(|line| line == well)
    });
    // Known by the key, it is nobody's login.
    let asked = http(behind, "GET /metrics HTTP/1.1", "");
    let probes =
        |line: &str| line.starts_with("t3_dispatch_requests_total{") && line.contains("client=\"probe\"");
    assert!(asked.lines().any(|line| probes(line) && !line.ends_with(" 0")), "{asked}");
    drop((serving, dispatching));
}

#[test]
fn the_door_to_the_helper_is_open_to_the_two_units_that_knock_and_to_nobody_else() {
    assert_eq!(setting("t3-prober-helper.socket", "SocketGroup").as_deref(), Some("t3-helper"));
    assert_eq!(setting("t3-prober-helper.socket", "SocketMode").as_deref(), Some("0660"));
    let has_group = |name: &String| {
        setting(name, "SupplementaryGroups")
            .is_some_and(|groups| groups.split(' ').any(|group| group == "t3-helper"))
    };
    let knocking: Vec<_> = names().into_iter().filter(has_group).collect();
    let gates = ["t3-prober-gate.service", "t3-prober-gate@.service"];
    assert_eq!(knocking, [&["t3-dispatch.service"][..], &gates, &["t3-prober.service"]].concat());
    assert_eq!(setting("t3-prober-box.socket", "SocketGroup").as_deref(), Some("t3-helper"));
    assert_eq!(setting("t3-prober-box.socket", "SocketMode").as_deref(), Some("0660"));
}

/// A command behind the wall of a unit, as far as that can be had without systemd: the capabilities that it leaves, and
/// no way to more.
fn behind_the_wall(unit: &str, command: &Command) -> Command {
    assert_eq!(setting(unit, "NoNewPrivileges").as_deref(), Some("yes"), "{unit}");
    let left = setting(unit, "CapabilityBoundingSet").expect("a bounding set").to_lowercase();
    let left: String = left.split(' ').map(|name| format!(",+{}", name.trim_start_matches("cap_"))).collect();
    let mut wall = Command::new("setpriv");
    wall.args(["--no-new-privs", &format!("--bounding-set=-all{left}"), "--"]);
    wall.arg(command.get_program()).args(command.get_args());
    wall
}

#[test]
fn what_the_units_leave_to_the_gate_is_enough_to_judge_a_build_in_its_boxes() {
    if !tools::root() || tools::find("bwrap").is_none() {
        return;
    }
    let mut host = Host::new();
    let control = host.install("0.0.26", &[]);
    host.install("0.0.33", &[]);
    let (mut ann, judge) = (host.user(), host.caller("rehearse"));
    ann.serve(&control);
    let place = host.path("place");
    given_to(&host.path("state"), &judge);
    fs::create_dir(&place).expect("a directory");
    std::os::unix::fs::chown(&place, None, Some(judge.gid)).expect("a group");
    fs::set_permissions(&place, fs::Permissions::from_mode(mode_of("/var/lib/t3-prober-gate")))
        .expect("a mode");
    host.extra = format!(
        "[gate]\ndir = {place:?}\nexpose = [{:?}]\ncontrol = \"0.0.26\"\nhold = \"100ms\"\nkeep_free_mib = 1\n",
        host.program.parent().expect("a directory")
    );
    host.start_helper();
    // With no more than that unit leaves, too.
    host.start_boxes();
    for (unit, arguments) in
        [("t3-prober-gate@.service", &["gate", "0.0.33"][..]), ("t3-prober-gate.service", &["gate", "--due"])]
    {
        let status = under(unit, &judge, &host, arguments).wait().expect("an end");
        // Without a box there is no pass.
        assert_eq!(status.code(), Some(0), "{unit}");
    }
    let kept = fs::read_to_string(host.path("state/verdicts/0.0.33.json")).expect("the verdict");
    let document: serde_json::Value = serde_json::from_str(&kept).expect("json");
    assert_eq!(document["bound_to"]["users"][0]["user"], serde_json::json!(ann.name), "{document}");
}

/// The mode that a directory is made with.
fn mode_of(directory: &str) -> u32 {
    let made = fs::read_to_string(source("deploy/tmpfiles.d/t3-prober.conf")).expect("the directories");
    let line = made.lines().find(|line| line.split_whitespace().nth(1) == Some(directory)).expect(directory);
    u32::from_str_radix(line.split_whitespace().nth(2).expect("a mode"), 8).expect("octal")
}

#[test]
fn what_is_asked_for_by_the_service_is_where_the_path_unit_looks() {
    let place = setting("t3-prober-gate.path", "DirectoryNotEmpty").expect("a directory");
    assert_eq!(place, "/var/lib/t3-prober/docket/asked");
    assert_eq!(mode_of(&place), 0o2770);
    // Without a capability nobody can give a user their copy, and with the rest of them root could look into a home.
    assert_eq!(
        setting("t3-prober-box@.service", "CapabilityBoundingSet").as_deref(),
        Some("CAP_SETUID CAP_SETGID CAP_KILL CAP_CHOWN")
    );
    // Data or the network, never both.
    assert_eq!(setting("t3-prober-box@.service", "PrivateNetwork").as_deref(), Some("yes"));
    for unit in ["t3-prober-gate@.service", "t3-prober-gate.service"] {
        assert_eq!(setting(unit, "ProtectHome").as_deref(), Some("yes"), "{unit}");
    }
    let boxing = ["box@", "gate@", "gate", "backup"].map(|name| format!("t3-prober-{name}.service"));
    for unit in &boxing {
        // A covered part of /proc, and no user could make a box.
        for key in ["ProtectKernelTunables", "ProtectKernelLogs", "ProcSubset", "InaccessiblePaths"] {
            assert_eq!(setting(unit, key), None, "{unit}");
        }
        let left = setting(unit, "RestrictNamespaces").expect("namespaces");
        assert_eq!(left, "user mnt pid net ipc", "{unit}");
        let filters = values(unit, "SystemCallFilter");
        assert!(filters.iter().any(|filter| filter.split(' ').any(|group| group == "@mount")), "{unit}");
    }
}

#[test]
fn what_the_units_leave_to_the_snapshots_is_enough_to_take_and_drill_those_of_homes_that_are_closed() {
    if !tools::root() {
        return;
    }
    let mut host = Host::new();
    let install = host.install("0.0.33", &[]);
    let mut ann = host.user();
    // The stand-in is our own program.
    host.extra = format!(
        "[backup]\ndir = \"{}\"\n[gate]\nexpose = [\"{}\"]\n",
        text(&host.path("backups")),
        text(&host.program)
    );
    ann.serve(&install);
    host.configure();
    let mut due = Command::new(&host.program);
    due.args(["backup", "due", "--config"]).arg(host.path("config.toml"));
    let output = behind_the_wall("t3-prober-backup.service", &due).output().expect("setpriv runs");
    assert!(output.status.success(), "{output:?}");
    let mut list = Command::new(&host.program);
    let listed =
        list.args(["backup", "list", "--config"]).arg(host.path("config.toml")).output().expect("it runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains(&ann.name), "{listed}");
    // The owner, who is not root and can become nobody else, makes the drill's box.
    assert!(tools::find("bwrap").is_none() || listed.contains("(boxed)"), "{listed}");
}

#[test]
fn without_systemd_sudo_has_a_line_for_each_verb_that_each_caller_may_ask_for() {
    let example = fs::read_to_string(source("deploy/config.example.toml")).expect("the example");
    let callers = example.lines().find_map(|line| line.strip_prefix("#callers = ")).expect("the callers");
    let callers: toml::Table = toml::from_str(&format!("callers = {callers}")).expect("TOML");
    let may = |(caller, verbs): (&String, &toml::Value)| {
        let verbs = verbs.as_array().expect("verbs").clone();
        let line = |verb: toml::Value| {
            let verb = verb.as_str().expect("a verb").to_owned();
            format!("{caller} ALL=(root) NOPASSWD: /usr/bin/t3-prober helper {verb}")
        };
        verbs.into_iter().map(line).collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = callers["callers"].as_table().expect("callers").iter().flat_map(may).collect();
    let sudoers = fs::read_to_string(source("deploy/sudoers")).expect("the lines");
    let mut lines: Vec<_> = sudoers
        .lines()
        .filter(|line| line.contains(" helper ") && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    expected.sort();
    lines.sort();
    assert_eq!(lines, expected);
}
