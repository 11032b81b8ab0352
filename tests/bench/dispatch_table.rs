//! Dispatch tables of users whose instances the world did not start itself.

use crate::support::world::{World, replace};

/// Says who is served on which port; the next start of `serve` reads it.
pub fn write(world: &World, users: impl IntoIterator<Item = (String, u16)>) {
    let table: serde_json::Map<String, serde_json::Value> = users
        .into_iter()
        .map(|(user, port)| {
            (format!("{user}@example.com"), serde_json::json!({ "os_user": user, "port": port }))
        })
        .collect();
    replace(&world.path("dispatch.json"), &serde_json::Value::Object(table).to_string());
}
