//! Where a version of t3 is written down.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// A place that names a version, beside the running instances.
    pub enum Place {
        /// What the operator wants: the configuration, or the scripts that install.
        Pinned = "pinned",
        /// What a new start of t3 executes.
        Installed = "installed",
        /// The build that was last proven, and that a rollback returns to.
        LastGood = "last_good",
        /// What the followed tag stands for.
        Tracked = "tracked",
    }
}
