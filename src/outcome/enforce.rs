//! The words of the enforcer: how a run ends, why it holds, how far a user has come.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// How a run of the enforcer ended.
    pub enum End {
        /// Everybody who could be moved runs the wanted build.
        Done = "done",
        /// Everybody ran the wanted build already.
        NothingToDo = "nothing_to_do",
        /// The build broke live, and everybody is back on the old one.
        RolledBack = "rolled_back",
        /// Whoever is not on the wanted build may not be moved yet; another run moves them when they are idle.
        Waiting = "waiting",
        /// Nothing was begun, or no more than was; somebody has to decide.
        Held = "held",
        /// Something of ours failed, and not the build.
        Error = "error",
        /// Somebody could not be brought back; look at once.
        RollbackFailed = "rollback_failed",
        /// It was told to stop, and stopped where the next run goes on.
        Interrupted = "interrupted",
        /// It ended without a word, killed or with its machine; the next run found that out, and goes on.
        Killed = "killed",
    }
}

impl End {
    /// The exit code that says it.
    pub fn code(self) -> u8 {
        match self {
            Self::Done | Self::NothingToDo => 0,
            Self::RolledBack => 1,
            Self::Held | Self::Waiting => 3,
            Self::Error | Self::Interrupted | Self::Killed => 4,
            Self::RollbackFailed => 6,
        }
    }
}

words! {
    /// What a run of the enforcer is at. The word is on disk meanwhile, so that whoever is killed is found out.
    pub enum Stage {
        /// Finding out what is wanted and who runs what.
        Looking = "looking",
        /// Having the build judged.
        Judging = "judging",
        /// Installing the build beside the others.
        Installing = "installing",
        /// Taking everybody's backup.
        BackingUp = "backing_up",
        /// Moving users to the build.
        Moving = "moving",
        /// Watching those who were moved.
        Watching = "watching",
        /// Bringing everybody back.
        Returning = "returning",
        /// Waiting for those who are busy.
        Waiting = "waiting",
    }
}

impl Stage {
    /// What is done, for the middle of a sentence.
    pub fn doing(self) -> String {
        let mut letters = self.meaning().trim_end_matches('.').chars();
        letters
            .next()
            .map_or_else(String::new, |first| format!("{}{}", first.to_lowercase(), letters.as_str()))
    }
}

words! {
    /// Why the enforcer holds.
    pub enum Hold {
        /// There is a freeze file.
        Frozen = "frozen",
        /// Another enforcer or a restore is at work.
        AnotherAtWork = "another_at_work",
        /// It runs inside an instance that it would stop.
        Inside = "inside",
        /// Everybody is to be brought back, and no rollout is under way.
        NothingUnderWay = "nothing_under_way",
        /// Neither a pin nor a followed tag names a version.
        NoTarget = "no_target",
        /// The followed tag stands for an older version than one that is in use.
        Downgrade = "downgrade",
        /// This build broke live before.
        RolledBackBefore = "rolled_back_before",
        /// The gate did not let the build pass.
        NotPassed = "not_passed",
        /// There is no way back from the build.
        NoWayBack = "no_way_back",
        /// The installed build is not the one that the verdict is about.
        OtherBuild = "other_build",
        /// Nobody is idle, so there is no canary.
        NobodyIdle = "nobody_idle",
    }
}

words! {
    /// Why a user stays on the old build for now.
    pub enum Deferral {
        /// The user is at work.
        Busy = "busy",
        /// The operator named the user with --except.
        Excepted = "excepted",
        /// It cannot be told whether the user is at work.
        Unknown = "unknown",
        /// The user could not log in before either, so nothing would be proven.
        Unwell = "unwell",
        /// The inventory contradicts itself about the user.
        Withheld = "withheld",
        /// The old build is not installed side by side, so there would be no way back.
        NotInstalled = "not_installed",
        /// Another process than t3 has the user's database open, which can be copied and put back only while none has.
        Held = "held",
    }
}

words! {
    /// How far a user has come, to the new build or back. Each word is on disk before it is acted upon.
    pub enum MoveStep {
        /// The instance is about to be stopped.
        Stopping = "stopping",
        /// It has stopped, and a copy of its database was taken.
        Copied = "copied",
        /// The link names the new build, which is about to be started.
        Linked = "linked",
        /// The new build was started and somebody logged in to it.
        Proven = "proven",
        /// It is about to be stopped to go back.
        Returning = "returning",
        /// The link names the old build again; the database is being put back where the new build changed it.
        Unlinked = "unlinked",
        /// The old build was started and somebody logged in to it.
        Back = "back",
    }
}
