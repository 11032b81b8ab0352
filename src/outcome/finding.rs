//! What can be wrong with the inventory: one word per way in which its sources contradict themselves or each other.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// A disagreement in or between the dispatch table, the user map, the env files and the machine.
    pub enum Finding {
        /// The user map or an env file names a user for whom the dispatch table has no instance.
        NoInstance = "no_instance",
        /// The dispatch table serves an identity that the user map does not know.
        NotInMap = "not_in_map",
        /// The user map gives an identity to another user than the dispatch table does.
        UserDiffers = "user_differs",
        /// The user map gives one identity to two users.
        MapConflict = "map_conflict",
        /// The user map is missing or may not be read.
        MapUnreadable = "map_unreadable",
        /// A line of the user map is not `identity=os_user`.
        InvalidLine = "invalid_line",
        /// Two users have the same port; neither is sent a credential.
        SharedPort = "shared_port",
        /// One user has two ports; no credential is sent to either.
        TwoPorts = "two_ports",
        /// One user is reached under two identities.
        SharedUser = "shared_user",
        /// One identity is in the dispatch table twice.
        DuplicateIdentity = "duplicate_identity",
        /// Two identities differ only in the case of their letters.
        IdentityCase = "identity_case",
        /// An identity is empty, or holds characters that no request header can.
        InvalidIdentity = "invalid_identity",
        /// An entry's `os_user` is not the name of an account that may be served.
        InvalidUser = "invalid_user",
        /// An entry's `port` is not a number from 1 to 65535.
        InvalidPort = "invalid_port",
        /// An entry of the dispatch table is not an object, or says one thing twice.
        InvalidEntry = "invalid_entry",
        /// The env file names another port than the dispatch table.
        PortDiffers = "port_differs",
        /// The user has no env file.
        EnvMissing = "env_missing",
        /// The env file may not be read, so its port is not compared.
        EnvUnreadable = "env_unreadable",
        /// The env file names no port that could be one.
        EnvInvalid = "env_invalid",
        /// The machine has no account of that name; no credential is sent.
        UnknownAccount = "unknown_account",
        /// Every account of the machine can read the user's database, credentials included.
        StateExposed = "state_exposed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_reads_back_from_its_own_word() {
        for finding in Finding::ALL {
            assert_eq!(finding.as_str().parse::<Finding>().ok(), Some(*finding));
            assert!(finding.meaning().ends_with('.'), "{finding} has no sentence");
        }
    }
}
