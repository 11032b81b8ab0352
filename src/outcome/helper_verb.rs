//! What the privileged helper can be asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// A verb of the helper: the unit in which callers are allowed something.
    pub enum HelperVerb {
        /// Make a pairing credential for a user.
        Mint = "mint",
        /// End one session of a user.
        Revoke = "revoke",
        /// Name a user's sessions that carry a given label.
        Labelled = "labelled",
        /// Read a user's database, or every user's, as its owner.
        Inspect = "inspect",
        /// Name the port in a user's env file, and nothing else of that file.
        Port = "port",
        /// Take a snapshot of a user's database, as its owner, into root's tree.
        Snapshot = "snapshot",
        /// Look at every byte of a user's newest snapshot.
        Verify = "verify",
        /// Run two builds of t3 in boxes, as a user, on copies of their data.
        Rehearse = "rehearse",
    }
}
