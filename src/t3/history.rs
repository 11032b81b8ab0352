//! The history as the app loads it: `GET /api/orchestration/snapshot` (CONTRACT §3, §11). Only how much there is of it
//! is kept; what users wrote is passed over.

use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// The event up to which this is the history.
    pub snapshot_sequence: u64,
    pub projects: Vec<IgnoredAny>,
    pub threads: Vec<IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_counted_and_not_kept() {
        let text = r#"{"snapshotSequence":193,"projects":[{"id":"a"}],"threads":[{"messages":[{"text":"x"}]},{}],"updatedAt":""}"#;
        let history: History = serde_json::from_str(text).expect("a history");
        assert_eq!((history.snapshot_sequence, history.projects.len(), history.threads.len()), (193, 1, 2));
    }
}
