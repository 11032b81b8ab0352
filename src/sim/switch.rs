//! `sim fault`: the switchboard of one base directory. Faults of the database itself are made in the database.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio_rusqlite::rusqlite::Connection;

use super::fault::{self, Fault};
use super::home::Home;
use super::schema;

const AUTH_TABLES: [&str; 2] = ["auth_pairing_links", "auth_sessions"];

/// Prints what is on, a name and its value per line.
pub fn list(base_dir: &Path) -> anyhow::Result<()> {
    let home = Home::new(base_dir)?;
    for (name, value) in fault::read(&home.faults()) {
        println!("{name}{}", value.map(|value| format!(" {value}")).unwrap_or_default());
    }
    Ok(())
}

/// Switches a fault; switching on what is on already changes its value only.
pub fn set(base_dir: &Path, fault: Fault, on: bool, value: Option<String>) -> anyhow::Result<()> {
    let home = Home::new(base_dir)?;
    let mut switches = fault::read(&home.faults());
    let name = fault.name();
    let was_on = switches.contains_key(&name);
    if on {
        switches.insert(name, value);
    } else {
        switches.remove(&name);
    }
    if on != was_on {
        match fault {
            Fault::AuthTables => move_auth_tables(&open(&home)?, on)?,
            Fault::ForeignMigration => schema::foreign_migration(&open(&home)?, on)?,
            _ => {}
        }
    }
    std::fs::create_dir_all(home.userdata()).context("making the userdata directory")?;
    fault::write(&home.faults(), &switches).with_context(|| format!("writing {}", home.faults().display()))
}

fn open(home: &Home) -> anyhow::Result<Connection> {
    let path = home.database();
    anyhow::ensure!(path.exists(), "{} is not there; start the server once", path.display());
    let connection = Connection::open(&path).with_context(|| format!("opening {}", path.display()))?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

fn move_auth_tables(connection: &Connection, away: bool) -> anyhow::Result<()> {
    for table in AUTH_TABLES {
        let hidden = format!("{table}_away");
        let (from, to) = if away { (table, hidden.as_str()) } else { (hidden.as_str(), table) };
        connection
            .execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}"))
            .with_context(|| format!("renaming the table {from} to {to}"))?;
    }
    Ok(())
}
