//! The levels of t3's database: which migration carries which name, which release expects which level, and what a
//! migration touches (CONTRACT §1, §7). A level is known only when its name is the one in this list.

use std::fmt;

use super::version::Version;

/// The highest applied migration of a database (`max(migration_id)`, CONTRACT §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SchemaLevel(pub u32);

impl fmt::Display for SchemaLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Every migration that a known t3 applies, in order: id = index + 1 (CONTRACT §7; 41 is known from the source only).
pub const MIGRATIONS: &[&str] = &[
    "OrchestrationEvents",
    "OrchestrationCommandReceipts",
    "CheckpointDiffBlobs",
    "ProviderSessionRuntime",
    "Projections",
    "ProjectionThreadSessionRuntimeModeColumns",
    "ProjectionThreadMessageAttachments",
    "ProjectionThreadActivitySequence",
    "ProviderSessionRuntimeMode",
    "ProjectionThreadsRuntimeMode",
    "OrchestrationThreadCreatedRuntimeMode",
    "ProjectionThreadsInteractionMode",
    "ProjectionThreadProposedPlans",
    "ProjectionThreadProposedPlanImplementation",
    "ProjectionTurnsSourceProposedPlan",
    "CanonicalizeModelSelections",
    "ProjectionThreadsArchivedAt",
    "ProjectionThreadsArchivedAtIndex",
    "ProjectionSnapshotLookupIndexes",
    "AuthAccessManagement",
    "AuthSessionClientMetadata",
    "AuthSessionLastConnectedAt",
    "ProjectionThreadShellSummary",
    "BackfillProjectionThreadShellSummary",
    "CleanupInvalidProjectionPendingApprovals",
    "CanonicalizeModelSelectionOptions",
    "ProviderSessionRuntimeInstanceId",
    "ProjectionThreadSessionInstanceId",
    "ProjectionThreadDetailOrderingIndexes",
    "ProjectionThreadShellArchiveIndexes",
    "AuthAuthorizationScopes",
    "AuthPairingProofKeyThumbprint",
    "ProjectionThreadsSettled",
    "ProjectionThreadsSnoozed",
    "ProjectionThreadTitleRegeneration",
    "ProjectionThreadsPinned",
    "ProjectionTurnsKeysetIndex",
    "ProjectionThreadsPinOrderKey",
    "ProjectionProjectsDefaultThreadEnvMode",
    "ProjectionProjectFaviconPath",
    "AuthSessionClientConnection",
];

/// The level each release brings, from the first release this program knows (CONTRACT §1).
const LEVELS: &[(u64, u32)] = &[
    (20, 24),
    (21, 26),
    (22, 29),
    (23, 30),
    (24, 30),
    (26, 32),
    (27, 32),
    (28, 32),
    (29, 34),
    (30, 34),
    (31, 34),
    (32, 37),
    (33, 40),
];

/// Migrations that touch nothing but the two authentication tables, whose rows are disposable (CONTRACT §7).
/// 41 is of that kind too, but is known from the source only.
const ONLY_AUTHENTICATION: &[u32] = &[31, 32];

impl SchemaLevel {
    /// The oldest level whose tables this program knows (CONTRACT §7).
    pub const OLDEST: Self = Self(22);
    /// The newest level whose name this program knows.
    pub const NEWEST: Self = Self(MIGRATIONS.len() as u32);

    /// The migration's name at this level, where a known t3 has one.
    pub fn name(self) -> Option<&'static str> {
        let index = usize::try_from(self.0).ok()?.checked_sub(1)?;
        MIGRATIONS.get(index).copied()
    }

    /// The level that `version` brings a database to; `None` for a version this program does not know exactly.
    pub fn expected(version: &Version) -> Option<Self> {
        if version.is_prerelease() {
            return None;
        }
        LEVELS.iter().find(|(patch, _)| Version::new(0, 0, *patch) == *version).map(|(_, level)| Self(*level))
    }

    /// The releases that open a database of this level without migrating it, oldest first.
    pub fn versions(self) -> Vec<Version> {
        let at = LEVELS.iter().filter(|(_, level)| *level == self.0);
        at.map(|(patch, _)| Version::new(0, 0, *patch)).collect()
    }

    /// Whether going back to `wanted` undoes nothing but changes to the authentication tables; `Err` names the first
    /// migration of which that is not known.
    pub fn only_authentication_above(self, wanted: Self) -> Result<(), Self> {
        match (wanted.0 + 1..=self.0).find(|id| !ONLY_AUTHENTICATION.contains(id)) {
            None => Ok(()),
            Some(id) => Err(Self(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_are_those_of_the_contract() {
        let expected =
            |text: &str| SchemaLevel::expected(&text.parse().expect("version")).map(|level| level.0);
        assert_eq!(expected("0.0.24"), Some(30));
        assert_eq!(expected("0.0.26"), Some(32));
        assert_eq!(expected("0.0.33"), Some(40));
        assert_eq!(expected("0.0.34"), None);
        assert_eq!(expected("0.0.33-nightly.1"), None);
        assert_eq!(expected("0.0.25"), None);
    }

    #[test]
    fn only_the_migrations_of_the_outage_are_known_to_touch_nothing_but_authentication() {
        assert_eq!(SchemaLevel(32).only_authentication_above(SchemaLevel(30)), Ok(()));
        assert_eq!(SchemaLevel(31).only_authentication_above(SchemaLevel(30)), Ok(()));
        assert_eq!(SchemaLevel(40).only_authentication_above(SchemaLevel(30)), Err(SchemaLevel(33)));
        assert_eq!(SchemaLevel(32).only_authentication_above(SchemaLevel(29)), Err(SchemaLevel(30)));
    }

    #[test]
    fn a_level_names_the_releases_that_open_it_as_it_is() {
        let versions: Vec<_> = SchemaLevel(30).versions().iter().map(ToString::to_string).collect();
        assert_eq!(versions, ["0.0.23", "0.0.24"]);
        assert_eq!(SchemaLevel(31).versions(), []);
    }

    #[test]
    fn a_level_has_the_name_of_its_migration() {
        assert_eq!(SchemaLevel(30).name(), Some("ProjectionThreadShellArchiveIndexes"));
        assert_eq!(SchemaLevel(31).name(), Some("AuthAuthorizationScopes"));
        assert_eq!(SchemaLevel(40).name(), Some("ProjectionProjectFaviconPath"));
        assert_eq!(SchemaLevel(0).name(), None);
        assert_eq!(SchemaLevel(42).name(), None);
    }
}
