//! The words of a judgement about a build that is in use.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// What to do with a build that users have got.
    pub enum Decision {
        /// It is as good as what was before; go on.
        Promote = "promote",
        /// It cannot be told yet, or not from this; wait.
        Hold = "hold",
        /// It breaks what worked before; go back.
        RollBack = "roll_back",
    }
}

words! {
    /// What a judgement about a build in use rests on.
    pub enum Basis {
        /// Logins go as well as before.
        AsGood = "as_good",
        /// Nobody has been seen to run it.
        NotInUse = "not_in_use",
        /// It has not been in use for long enough.
        Soaking = "soaking",
        /// Too few logins were tried.
        TooLittle = "too_little",
        /// More logins fail than the limit allows, and more than before.
        FailureLimit = "failure_limit",
        /// One user fails again and again, and did not before.
        ConsecutiveLimit = "consecutive_limit",
        /// Logins fail, and failed as often before: it is not the build.
        AsBadBefore = "as_bad_before",
        /// Logins fail, and too little is known of before.
        NothingBefore = "nothing_before",
        /// The numbers could not be read.
        Unreadable = "unreadable",
    }
}

impl Basis {
    pub fn decision(self) -> Decision {
        match self {
            Self::AsGood => Decision::Promote,
            Self::FailureLimit | Self::ConsecutiveLimit => Decision::RollBack,
            Self::NotInUse
            | Self::Soaking
            | Self::TooLittle
            | Self::AsBadBefore
            | Self::NothingBefore
            | Self::Unreadable => Decision::Hold,
        }
    }
}
