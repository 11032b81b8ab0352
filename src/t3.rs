//! What t3 does, and nothing else: every fact about t3 that this program relies on is below this module, with the
//! section of CONTRACT.md (beside these files) that it comes from. It knows nothing of users, schedules or metrics.

pub mod schema;
pub mod version;
