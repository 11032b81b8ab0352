//! The words of rehearsals and verdicts.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::UnknownWord;

words! {
    /// May this build be given to these users.
    pub enum Verdict {
        /// Every rehearsal that counts went well.
        Pass = "pass",
        /// The build failed where the known-good one does not.
        Fail = "fail",
        /// There is evidence, and it does not tell whether the build is good.
        Inconclusive = "inconclusive",
        /// The gate could not run.
        Error = "error",
    }
}

words! {
    /// Why a verdict is what it is.
    pub enum Grounds {
        /// The candidate did everything that the control did.
        AllPassed = "all_passed",
        /// The candidate did everything; the control cannot, because the databases are already ahead of it.
        ControlOutrun = "control_outrun",
        /// The candidate failed where the control did not.
        CandidateFailed = "candidate_failed",
        /// Candidate and control failed in the same place: the box, the data or the machine is at fault.
        GateBroken = "gate_broken",
        /// The known-good build failed, so nothing can be compared with it.
        ControlFailed = "control_failed",
        /// A step was not done, and no step may be missing from a pass.
        Incomplete = "incomplete",
        /// There was no box to rehearse in.
        NotBoxed = "not_boxed",
        /// Going back needs a restore, and not every user has a fresh verified backup.
        NoWayBack = "no_way_back",
        /// The file system has no room for the copies.
        NoSpace = "no_space",
        /// The candidate could not be installed or found.
        NoCandidate = "no_candidate",
        /// There is no known-good build to compare with.
        NoControl = "no_control",
        /// A user's data could not be copied.
        NoSeed = "no_seed",
        /// The box could not be made.
        NoBox = "no_box",
        /// A rehearsal did not end in its time.
        Deadline = "deadline",
        /// A rehearsal needed more memory than it may use.
        OutOfMemory = "out_of_memory",
    }
}

impl Grounds {
    /// The verdict that stands on these grounds.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::AllPassed | Self::ControlOutrun => Verdict::Pass,
            Self::CandidateFailed => Verdict::Fail,
            Self::GateBroken | Self::ControlFailed | Self::Incomplete | Self::NotBoxed | Self::NoWayBack => {
                Verdict::Inconclusive
            }
            Self::NoSpace
            | Self::NoCandidate
            | Self::NoControl
            | Self::NoSeed
            | Self::NoBox
            | Self::Deadline
            | Self::OutOfMemory => Verdict::Error,
        }
    }
}

words! {
    /// How to go back from a build, best first.
    pub enum Rollback {
        /// Starting the control again is enough.
        BinaryOnly = "binary_only",
        /// The users' databases have to be restored as well.
        NeedsRestore = "needs_restore",
        /// There is no way back: the control does not run on the databases as they are now.
        Unsafe = "unsafe",
    }
}

words! {
    /// How closely an upgrade should be watched.
    pub enum Risk {
        /// Nothing that matters to a login or a rollback differs.
        Safe = "safe",
        /// Something differs.
        Caution = "caution",
    }
}

words! {
    /// What is rehearsed on one copy of one database.
    pub enum Rehearsal {
        /// The known-good build.
        Control = "control",
        /// The build in question.
        Candidate = "candidate",
        /// The known-good build on the database that the candidate has migrated and written.
        WayBack = "way_back",
        /// The known-good build running while the candidate's command works on its database.
        Skew = "skew",
    }
}

words! {
    /// The steps of a rehearsal, in order.
    pub enum RehearsalStep {
        /// The server starts and answers in time.
        Start = "start",
        /// It says which version it is, and its command says the same.
        Version = "version",
        /// What users made before is still there, row for row.
        History = "history",
        /// The exchange refuses a credential that cannot exist.
        Contract = "contract",
        /// The running server makes a credential.
        Mint = "mint",
        /// The credential becomes a session cookie.
        Exchange = "exchange",
        /// The cookie is a session, under its announced name and protected.
        Session = "session",
        /// The app's own first call works.
        App = "app",
        /// A WebSocket opens and answers.
        Socket = "socket",
        /// A credential made by the command logs in, through a proxy.
        Command = "command",
        /// The app loads the history.
        Load = "load",
        /// A project is added: one event and one project more.
        Write = "write",
        /// All stays well for a while.
        Hold = "hold",
        /// SIGTERM ends it, with the documented exit status.
        Stop = "stop",
        /// A second start migrates nothing.
        Restart = "restart",
        /// The database is whole.
        Integrity = "integrity",
        /// The candidate's command makes a credential on the running control's database.
        Intrude = "intrude",
        /// The running control still refuses what cannot exist.
        Survive = "survive",
        /// The running control still makes credentials and logs in with them.
        LogIn = "log_in",
        /// A session from before is still one.
        Keep = "keep",
    }
}

impl Rehearsal {
    /// All that belongs to it, in order: a rehearsal with one of them missing proves nothing.
    pub fn steps(self) -> &'static [RehearsalStep] {
        match self {
            Self::Control | Self::Candidate | Self::WayBack => WHOLE,
            Self::Skew => SKEW,
        }
    }
}

/// What a build has to do by itself.
const WHOLE: &[RehearsalStep] = &[
    RehearsalStep::Start,
    RehearsalStep::Version,
    RehearsalStep::History,
    RehearsalStep::Contract,
    RehearsalStep::Mint,
    RehearsalStep::Exchange,
    RehearsalStep::Session,
    RehearsalStep::App,
    RehearsalStep::Socket,
    RehearsalStep::Command,
    RehearsalStep::Load,
    RehearsalStep::Write,
    RehearsalStep::Hold,
    RehearsalStep::Stop,
    RehearsalStep::Restart,
    RehearsalStep::Integrity,
];

/// What happens around the candidate's command on a running control.
const SKEW: &[RehearsalStep] = &[
    RehearsalStep::Start,
    RehearsalStep::Version,
    RehearsalStep::Contract,
    RehearsalStep::Mint,
    RehearsalStep::Exchange,
    RehearsalStep::Session,
    RehearsalStep::Intrude,
    RehearsalStep::Survive,
    RehearsalStep::LogIn,
    RehearsalStep::Keep,
    RehearsalStep::Stop,
];

words! {
    /// Why a stored verdict is not about the present situation.
    pub enum Elsewhere {
        /// Its time is over.
        Expired = "expired",
        /// Another version of this program made it.
        OtherProgram = "other_program",
        /// It was made under another configuration.
        OtherConfig = "other_config",
        /// The installed build of this version is not the one that was rehearsed.
        OtherBuild = "other_build",
        /// A user has come whose data was not rehearsed.
        NotCovered = "not_covered",
        /// A user's database is at another level than the copy was.
        LevelDiffers = "level_differs",
        /// A user's copy is too old.
        SeedOld = "seed_old",
        /// Whether it is about everybody cannot be told, because it is not known who is served.
        CannotTell = "cannot_tell",
    }
}
