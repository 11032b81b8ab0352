//! A host that has lost its network, where only loopback is left: going back needs nothing else.

use std::process::Command;

use super::{NEW, OLD, PASSES, USERS};
use crate::support::fleet::Fleet;
use crate::support::tools;

const INSIDE: &str = "T3_PROBER_TEST_WITHOUT_NETWORK";

#[test]
fn a_bad_build_is_rolled_back_and_what_needs_the_network_changes_nothing() {
    if std::env::var_os(INSIDE).is_some() {
        return offline();
    }
    if !tools::root() || tools::find("ip").is_none() || tools::find("unshare").is_none() {
        return;
    }
    // This very test once more, in a network of its own.
    let (_, module) = module_path!().split_once("::").expect("a module");
    let name = format!("{module}::a_bad_build_is_rolled_back_and_what_needs_the_network_changes_nothing");
    let mut again = Command::new("unshare");
    again.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
    again.arg(std::env::current_exe().expect("this program")).args(["--exact", &name]).env(INSIDE, "1");
    let output = again.output().expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

fn offline() {
    let elsewhere = std::net::TcpStream::connect(("192.0.2.1", 80)).expect_err("there is a network");
    assert_eq!(elsewhere.kind(), std::io::ErrorKind::NetworkUnreachable);
    let install =
        "install_command = [\"bash\", \"-c\", \"exec 3<>/dev/tcp/192.0.2.1/443 # {prefix} {version}\"]\n";
    let fleet = Fleet::on(OLD, &USERS, &format!("{PASSES}soak = \"2s\"\n"));
    fleet.install_broken(NEW, "fails-on-third-login");
    for user in USERS {
        fleet.write_message(user, "before");
    }
    let rows: Vec<_> = USERS.iter().map(|user| fleet.rows(user)).collect();
    let said = fleet.enforce(&["--to", NEW]).exits(1);
    fleet.everybody_is_on(OLD);
    for (user, rows) in USERS.iter().zip(rows) {
        assert_eq!(fleet.rows(user), rows, "{said}");
    }
    std::fs::remove_file(fleet.freeze_file()).expect("thawed");

    let text = std::fs::read_to_string(fleet.path("config.toml")).expect("the configuration");
    let old = text.lines().find(|line| line.starts_with("install_command")).expect("a line").to_owned();
    let fleet = fleet.changed(&format!("{old}\n"), install);
    let said = fleet.enforce(&["--to", "0.0.26"]).exits(4);
    assert!(said.contains("cannot install t3 0.0.26"), "{said}");
    fleet.everybody_is_on(OLD);
    assert!(!fleet.path("installs/0.0.26").exists() && fleet.journal().is_none());
}
