//! The words of the dispatch proxy: whom it refuses, who asks, and how a WebSocket ends.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// Why the dispatch proxy refused a request, before any instance saw it.
    pub enum Refusal {
        /// The peer is nobody whose word about an identity is taken.
        UntrustedPeer = "untrusted_peer",
        /// The request names no identity.
        NoIdentity = "no_identity",
        /// The identity came more than once.
        IdentityDuplicate = "identity_duplicate",
        /// The identity's header came in a spelling that only some programs take for it.
        IdentitySpelling = "identity_spelling",
        /// The identity is not one plain name.
        IdentityMalformed = "identity_malformed",
        /// No user has this identity.
        UnknownIdentity = "unknown_identity",
        /// Another identity already leads to this user by its local part.
        IdentityAmbiguous = "identity_ambiguous",
        /// The dispatch table contradicts itself about this user.
        Withheld = "withheld",
        /// The edge's signed token is missing, does not verify or names somebody else.
        TokenInvalid = "token_invalid",
        /// The request is not HTTP/1.1 as everybody reads it.
        Malformed = "malformed",
        /// The request's length could be read in two ways.
        Framing = "framing",
        /// The head is larger than any browser's.
        HeadTooLarge = "head_too_large",
        /// The head did not arrive in time.
        HeadTimeout = "head_timeout",
        /// More connections are open than the limit allows.
        TooManyConnections = "too_many_connections",
    }
}

words! {
    /// Whose request it was.
    pub enum Asker {
        /// A person's browser or tool.
        User = "user",
        /// The prober.
        Probe = "probe",
    }
}

words! {
    /// Who ended a WebSocket.
    pub enum Initiator {
        /// The browser, or the edge in front of us.
        Client = "client",
        /// The user's instance.
        Instance = "instance",
        /// The dispatch proxy itself.
        Dispatch = "dispatch",
    }
}

words! {
    /// How a WebSocket ended.
    pub enum CloseCause {
        /// A close frame with code 1000 or none.
        Normal = "normal",
        /// A close frame with code 1001: a page was left, or a server stops.
        GoingAway = "going_away",
        /// A close frame with any other code.
        ErrorCode = "error_code",
        /// The connection was closed without a close frame.
        Dropped = "dropped",
        /// The connection was reset.
        Reset = "reset",
        /// The peer's machine or network no longer answers.
        PeerDead = "peer_dead",
        /// The dispatch proxy is stopping.
        Drain = "drain",
        /// The user is no longer served, or on another port.
        UserRemoved = "user_removed",
    }
}

impl CloseCause {
    /// Whether neither side meant it to end.
    pub fn is_a_drop(self) -> bool {
        matches!(self, Self::ErrorCode | Self::Dropped | Self::Reset | Self::PeerDead)
    }
}
