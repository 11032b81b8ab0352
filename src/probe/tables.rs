//! Why an instance cannot use its authentication tables: asked of the database, where it may be read, once the instance
//! itself has answered no more than 500.

use crate::outcome::{Failure, Reason};
use crate::t3::Instance;
use crate::t3::schema::SchemaLevel;
use crate::t3::state;
use crate::t3::version::Version;

/// The failure with the reason behind it; as it is where none is found.
pub async fn refine(instance: &Instance, version: Option<&Version>, failure: Failure) -> Failure {
    let database = instance.database();
    if let Ok(found) = state::level(&database).await {
        if !found.is_known() {
            return Failure::new(
                Reason::SchemaForeign,
                format!(
                    "the database is at level {} under the name {}, which no known t3 uses",
                    found.level, found.name
                ),
            );
        }
        if let Some((version, expected)) =
            version.and_then(|version| Some((version, SchemaLevel::expected(version)?)))
            && found.level != expected
        {
            let (reason, how) = if found.level > expected {
                (Reason::SchemaAhead, "another t3 has migrated it")
            } else {
                (Reason::SchemaBehind, "it has not been migrated")
            };
            return Failure::new(
                reason,
                format!(
                    "the database is at level {} ({}), the running {version} expects {expected}: {how}",
                    found.level, found.name
                ),
            );
        }
    }
    match state::write_lock_holder(&database) {
        Some(pid) => Failure::new(
            Reason::Locked,
            format!("process {pid} holds the write lock of {}", database.display()),
        ),
        None => failure,
    }
}
