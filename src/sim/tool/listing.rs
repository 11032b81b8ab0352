//! How the command line tool writes what it tells: JSON with the members in t3's order, and the lines about migrations.

use serde_json::{Value, json};

use crate::sim::clock::Millis;
use crate::sim::release::Grant;
use crate::sim::store::Session;

/// Members in t3's order, indented by two.
pub fn object(members: &[(&str, Value)]) -> String {
    let lines = members.iter().map(|(name, value)| {
        let value = serde_json::to_string_pretty(value).unwrap_or_default().replace('\n', "\n  ");
        format!("  \"{name}\": {value}")
    });
    format!("{{\n{}\n}}", lines.collect::<Vec<_>>().join(",\n"))
}

pub fn array<'a>(objects: impl Iterator<Item = Vec<(&'a str, Value)>>) -> String {
    let objects: Vec<_> =
        objects.map(|members| format!("  {}", object(&members).replace('\n', "\n  "))).collect();
    if objects.is_empty() { "[]".to_owned() } else { format!("[\n{}\n]", objects.join(",\n")) }
}

/// The client part of a session in listings.
pub fn client(session: &Session) -> Value {
    let mut client = json!({});
    if let Some(label) = &session.label {
        client["label"] = json!(label);
    }
    if let Some(address) = &session.ip_address {
        client["ipAddress"] = json!(address);
    }
    client["deviceType"] = json!(session.device_type);
    client
}

/// The member that says what a credential or session may do: `role` or `scopes`.
pub fn grant_member(grant: &Grant) -> (&'static str, Value) {
    match &grant.role {
        Some(role) => ("role", json!(role)),
        None => ("scopes", json!(grant.scopes)),
    }
}

/// The two lines about migrations that precede an answer meant for people.
pub fn migration_log(ran: &[String]) -> String {
    let list =
        if ran.is_empty() { "{ migrations: [] }".to_owned() } else { format!("\n  {}", migration_list(ran)) };
    let now = Millis::now().time_of_day();
    let separator = if ran.is_empty() { " " } else { "" };
    format!(
        "[{now}] INFO (#3): Running all migrations...\n[{now}] INFO (#3): Migrations ran successfully{separator}{list}\n"
    )
}

/// `migrations: [ 'a', 'b' ]`, a line each where they are many.
pub fn migration_list(ran: &[String]) -> String {
    let quoted: Vec<_> = ran.iter().map(|name| format!("'{name}'")).collect();
    match quoted.len() {
        0 => "migrations: []".to_owned(),
        1..=2 => format!("migrations: [ {} ]", quoted.join(", ")),
        _ => format!("migrations: [\n    {}\n  ]", quoted.join(",\n    ")),
    }
}
