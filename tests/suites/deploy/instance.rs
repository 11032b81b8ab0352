//! `t3-serve@`: the user's link decides what runs, nothing that t3 prints reaches a log of others, and its slow end is
//! waited for.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::host::{Account, Host, http, text, until};
use crate::support::root::setting;
use crate::support::tools;

const UNIT: &str = "t3-serve@.service";

/// The unit's command as systemd would run it for this user, on this host's paths.
fn start(host: &Host, user: &Account) -> Child {
    let command = setting(UNIT, "ExecStart").expect("a command").replace("%i", &user.name).replace("$$", "$");
    let script =
        command.strip_prefix("/bin/sh -c '").and_then(|rest| rest.strip_suffix('\'')).expect("a script");
    let script = script.replace("/opt/t3", text(&host.path("installs"))).replace("0.0.0.0", "127.0.0.1");
    let umask = setting(UNIT, "UMask").expect("a umask");
    let mut command = user.command("/bin/sh");
    // setpriv --reset-env cleared the environment: the unit's own is set behind it.
    let variables = format!(
        "umask {umask}; T3_PORT={} BASE_DIR='{}' RUNTIME_DIRECTORY='{}'; export T3_PORT BASE_DIR RUNTIME_DIRECTORY; ",
        user.port,
        text(&user.base_dir()),
        text(&runtime(host, user)),
    );
    command.args(["-c", &(variables + &script)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("setpriv runs")
}

fn runtime(host: &Host, user: &Account) -> std::path::PathBuf {
    host.path("run").join(&user.name)
}

fn world() -> Option<(Account, Host)> {
    tools::root().then(|| {
        let mut host = Host::new();
        host.install("0.0.26", &[]);
        host.install("0.0.33", &[]);
        let ann = host.user();
        fs::create_dir_all(runtime(&host, &ann)).expect("a directory");
        std::os::unix::fs::chown(runtime(&host, &ann), Some(ann.uid), Some(ann.gid)).expect("an owner");
        symlink("0.0.26", host.path("installs/default")).expect("a link");
        (ann, host)
    })
}

fn runs(user: &Account, version: &str) {
    until(&format!("{version} runs"), || {
        http(user.port, "GET /.well-known/t3/environment HTTP/1.1", "").contains(&format!("\"{version}\""))
    });
}

/// SIGTERM; answers the exit code and everything that reached systemd.
fn stop(server: Child) -> (Option<i32>, String) {
    let id = i32::try_from(server.id()).expect("a pid");
    kill(Pid::from_raw(id), Signal::SIGTERM).expect("it runs");
    let output = server.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_user_without_a_link_starts_the_default_and_one_with_a_link_what_it_names() {
    let Some((ann, host)) = world() else { return };
    let server = start(&host, &ann);
    runs(&ann, "0.0.26");
    stop(server);
    fs::create_dir_all(host.path("installs/users")).expect("a directory");
    symlink("../0.0.33", host.path("installs/users").join(&ann.name)).expect("a link");
    let server = start(&host, &ann);
    runs(&ann, "0.0.33");
    stop(server);
}

#[test]
fn the_owners_token_that_t3_prints_is_the_users_alone_and_its_end_is_a_success() {
    let Some((ann, host)) = world() else { return };
    let server = start(&host, &ann);
    runs(&ann, "0.0.26");
    let own = runtime(&host, &ann).join("stdout");
    until("t3 has printed its token", || fs::read_to_string(&own).is_ok_and(|text| text.contains("Token: ")));
    let metadata = own.metadata().expect("the file");
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (ann.uid, 0o600));
    let printed = fs::read_to_string(&own).expect("what it printed");
    let token =
        printed.lines().find_map(|line| line.trim().strip_prefix("Token: ")).expect("a token").to_owned();
    let (code, told) = stop(server);
    assert!(!told.contains(&token), "the token reached the log");
    assert_eq!(setting(UNIT, "StandardOutput").as_deref(), Some("null"));
    assert_eq!(setting(UNIT, "SuccessExitStatus"), code.map(|code| code.to_string()));
    assert_eq!(code, Some(130));
}

#[test]
fn the_slowest_end_there_is_fits_the_time_to_stop_and_a_deferred_user_is_started_again() {
    let seconds = setting(UNIT, "TimeoutStopSec").expect("a time");
    let patience = humantime::parse_duration(&seconds).expect("a duration");
    assert!(patience >= Duration::from_secs(60), "t3 waits 50 s for a silent browser");
    assert_eq!(setting(UNIT, "Restart").as_deref(), Some("always"));
    assert_eq!(setting(UNIT, "UMask").as_deref(), Some("0077"));
    let directories = setting(UNIT, "RuntimeDirectoryMode");
    assert_eq!(directories.as_deref(), Some("0700"), "what t3 prints is there");
    let verify = Command::new("sh").args(["-n", "-c"]).arg(script()).status().expect("sh runs");
    assert!(verify.success(), "the shell takes the script");
}

fn script() -> String {
    let command = setting(UNIT, "ExecStart").expect("a command").replace("$$", "$");
    command.trim_start_matches("/bin/sh -c ").trim_matches('\'').to_owned()
}
