//! Why an instance cannot use its authentication tables: asked of the database, where it may be read, once the instance
//! itself has answered no more than 500.

use std::time::Duration;

use tokio::time::timeout;

use crate::outcome::{Failure, Reason};
use crate::t3::Instance;
use crate::t3::access::Access;
use crate::t3::state::Inspection;
use crate::t3::version::Version;

/// A failure is worth this much longer where it can be explained.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// The failure with the reason behind it; as it is where none is found.
pub async fn refine(
    access: &Access,
    instance: &Instance,
    version: Option<&Version>,
    failure: Failure,
) -> Failure {
    let looked = timeout(LAST_LOOK, access.inspect(instance, LAST_LOOK)).await;
    let Ok(Ok(Inspection { level, locked_by, .. })) = looked else { return failure };
    if let Ok(found) = level
        && let Some(refined) = super::state::schema_failure(&instance.name, &found, version)
    {
        return refined;
    }
    match locked_by {
        Some(pid) => Failure::new(
            Reason::Locked,
            format!("process {pid} holds the write lock of {}", instance.database().display()),
        ),
        None => failure,
    }
}
