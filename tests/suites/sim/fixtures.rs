//! Databases that real servers made, where `T3_FIXTURES` names the directory that holds them.

use std::path::PathBuf;

use crate::support::sim::{Sim, open};

const COUNTED: [&str; 5] = [
    "orchestration_events",
    "projection_projects",
    "projection_threads",
    "projection_thread_messages",
    "projection_thread_activities",
];

/// The database of that version; `None` where there are no fixtures, which is said past the test harness's capture.
fn fixture(version: &str) -> Option<PathBuf> {
    use std::io::Write;
    let Some(folder) = std::env::var_os("T3_FIXTURES") else {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        writeln!(std::io::stderr(), "left out: {test}, which needs T3_FIXTURES").expect("stderr is open");
        return None;
    };
    Some(PathBuf::from(folder).join(format!("state-{version}.sqlite")))
}

fn counts(sim: &Sim) -> [u32; 5] {
    COUNTED.map(|table| sim.count(&format!("SELECT count(*) FROM {table}")))
}

/// Tables with their columns, and indexes.
fn shape(path: &std::path::Path) -> Vec<String> {
    let database = open(path);
    let sql =
        "SELECT m.type || ' ' || m.name || ' ' || coalesce(group_concat(c.name), '') FROM sqlite_schema AS m
               LEFT JOIN pragma_table_info(m.name) AS c WHERE m.name NOT LIKE 'sqlite_autoindex%'
               GROUP BY m.type, m.name ORDER BY 1";
    let mut statement = database.prepare(sql).expect("a statement");
    let rows = statement.query_map([], |row| row.get(0)).expect("rows");
    rows.collect::<Result<_, _>>().expect("text")
}

#[test]
fn a_real_database_is_migrated_to_the_shape_of_a_real_one_and_keeps_its_history() {
    for (from, to) in [("0.0.24", "0.0.26"), ("0.0.24", "0.0.33"), ("0.0.26", "0.0.33")] {
        let (Some(before), Some(after)) = (fixture(from), fixture(to)) else { return };
        let sim = Sim::stopped(to, &[]);
        std::fs::create_dir_all(sim.userdata("")).expect("a directory");
        std::fs::copy(&before, sim.userdata("state.sqlite")).expect("a copy");
        let history = counts(&sim);
        sim.mint();
        assert_eq!(counts(&sim), history, "{from} to {to}");
        let reference = sim.userdata("reference.sqlite");
        std::fs::copy(&after, &reference).expect("a copy");
        assert_eq!(shape(&sim.userdata("state.sqlite")), shape(&reference), "{from} to {to}");
    }
}

#[tokio::test]
async fn the_app_loads_the_history_of_a_real_database() {
    for version in ["0.0.24", "0.0.26", "0.0.33"] {
        let Some(fixture) = fixture(version) else { return };
        let mut sim = Sim::stopped(version, &[]);
        std::fs::create_dir_all(sim.userdata("")).expect("a directory");
        std::fs::copy(&fixture, sim.userdata("state.sqlite")).expect("a copy");
        sim.serve().await;
        let cookie = format!("{}={}", sim.login().await.split('=').next().expect("a name"), sim.keeper());
        let answer = sim.get_with_cookie("/api/orchestration/snapshot", &cookie).await.expect("an answer");
        let snapshot = crate::support::sim::body(answer).await;
        let threads = snapshot["threads"].as_array().expect("threads");
        assert_eq!(
            (threads.len(), snapshot["projects"].as_array().map(Vec::len)),
            (17, Some(3)),
            "{version}"
        );
        let messages: usize =
            threads.iter().filter_map(|thread| thread["messages"].as_array()).map(Vec::len).sum();
        assert_eq!(messages, if version == "0.0.33" { 0 } else { 54 }, "{version}");
    }
}
