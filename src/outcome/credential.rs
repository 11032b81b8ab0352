//! What is known of a long-lived credential: how it stands, and how its end is known.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// How the end of a credential is known.
    pub enum Evidence {
        /// The end itself was written down.
        Expiry = "expiry",
        /// The moment it was made was written down, and how long it lives.
        Minted = "minted",
        /// From its file's modification time, which only shows that it is at least that old: it ends then at the latest.
        Mtime = "mtime",
    }
}

words! {
    /// How a credential stands, the most urgent word first.
    pub enum CredentialState {
        /// It has ended.
        Expired = "expired",
        /// It ends within seven days.
        ExpiresIn7Days = "expires_in_7_days",
        /// Nothing was ever learned of it.
        NeverSeen = "never_seen",
        /// What is known of it has not been confirmed for an hour.
        WatchStale = "watch_stale",
        /// It ends within thirty days.
        ExpiresIn30Days = "expires_in_30_days",
        /// It ends later than that.
        Valid = "valid",
    }
}
