//! The vocabulary: every closed set of words, and what a probe returns.
//! One word per variant; that word is the metric label, the JSON field, the log field, the history column and the
//! text on the page. Free text is `detail`: it is never a label.

use std::fmt;

use serde::{Deserialize, Serialize};

// The macro comes before whoever uses it.
#[macro_use]
mod words;
mod backup;
mod credential;
mod enforce;
mod event;
mod finding;
mod front_door;
mod helper_verb;
mod json;
mod next;
mod place;
mod rollout;
mod run;
mod verdict;

pub use backup::{BackupAct, BackupFailure, BackupRun, Flaw, RestoreStep, RowState, SessionKind, StateFile};
pub use credential::{CredentialState, Evidence};
pub use enforce::{Deferral, End, Hold, MoveStep, Stage};
pub use event::{EventKind, SpoolRefusal};
pub use finding::Finding;
pub use front_door::{Asker, CloseCause, Initiator, Refusal};
pub use helper_verb::HelperVerb;
pub use json::{seconds, utc};
pub use place::Place;
pub use rollout::{Basis, Decision};
pub use run::{Facts, Run, StateFacts, StepResult};
pub use verdict::{Elsewhere, Grounds, Rehearsal, RehearsalStep, Risk, Rollback, Verdict};
pub use words::UnknownWord;

words! {
    /// The kinds of probe, cheapest first.
    pub enum Kind {
        /// Every few seconds: nothing started, nothing consumed.
        Pulse = "pulse",
        /// The whole login, as a user would do it.
        Handshake = "handshake",
        /// The database, read-only.
        State = "state",
        /// A warm request through the dispatch proxy.
        Front = "front",
    }
}

words! {
    /// What a probe, a login or a rehearsal does, one step at a time.
    pub enum Step {
        /// The instance answers the session call with JSON.
        Reach = "reach",
        /// The exchange endpoint refuses a credential that cannot exist.
        Contract = "contract",
        /// The instance says which version it runs.
        Version = "version",
        /// A pairing credential is made.
        Mint = "mint",
        /// The credential is exchanged for a session cookie.
        Exchange = "exchange",
        /// The instance takes the cookie for a live session.
        Session = "session",
        /// The app's own first call works with the cookie.
        App = "app",
        /// A WebSocket opens and answers.
        Socket = "socket",
        /// The probe's session is ended again.
        Revoke = "revoke",
        /// The database is read.
        Database = "database",
        /// The dispatch proxy lets the user through to their own instance.
        Front = "front",
    }
}

words! {
    /// Why a step failed.
    pub enum Reason {
        /// Nothing listens on the port.
        Refused = "refused",
        /// The connection was accepted or the process started, and no answer came in time.
        Timeout = "timeout",
        /// The connection ended in the middle of the answer.
        Closed = "closed",
        /// The answer is not HTTP, or not the shape the contract names.
        Malformed = "malformed",
        /// HTML came where JSON is due: the endpoint does not exist in this build.
        Html = "html",
        /// The answer is larger than any healthy one.
        TooLarge = "too_large",
        /// A status the contract does not name for this call.
        Status = "status",
        /// The instance answered 500, and not as it does when its authentication tables are unusable: it broke.
        InternalError = "internal_error",
        /// The exchange endpoint is not there: another generation of t3 than expected, or a new contract.
        NotFound = "not_found",
        /// The instance cannot use its authentication tables; nobody can log in.
        AuthStore = "auth_store",
        /// The database has been migrated past the running version.
        SchemaAhead = "schema_ahead",
        /// The database is older than the running version needs.
        SchemaBehind = "schema_behind",
        /// The database carries a migration under a name that no known t3 gives it.
        SchemaForeign = "schema_foreign",
        /// Another process holds the database's write lock.
        Locked = "locked",
        /// The port belongs to another user's process; no secret was sent to it.
        WrongOwner = "wrong_owner",
        /// The inventory contradicts itself about this user; no secret was sent.
        Withheld = "withheld",
        /// Something answered that is not the instance of this base directory.
        WrongInstance = "wrong_instance",
        /// The administrative session is gone and could not be renewed.
        KeeperLost = "keeper_lost",
        /// The schema level moved while our own t3 command ran.
        MigratedByUs = "migrated_by_us",
        /// The t3 command could not be started.
        CliMissing = "cli_missing",
        /// The t3 command ended with an error.
        CliFailed = "cli_failed",
        /// The t3 command printed something that is not its documented answer.
        CliGarbage = "cli_garbage",
        /// The helper refused or could not be reached.
        Helper = "helper",
        /// A fresh credential or a good cookie was refused.
        Unauthorized = "unauthorized",
        /// The session may not do what its grant allows.
        Forbidden = "forbidden",
        /// The exchange succeeded without a session cookie.
        NoCookie = "no_cookie",
        /// The session cookie has another name than the instance announces.
        CookieName = "cookie_name",
        /// The session cookie lacks an attribute that protects it.
        CookieAttributes = "cookie_attributes",
        /// The instance does not recognise the session it has just issued.
        NotAuthenticated = "not_authenticated",
        /// The WebSocket upgrade was answered with something else than 101.
        NotUpgraded = "not_upgraded",
        /// The WebSocket opened and did not answer.
        NoAnswer = "no_answer",
        /// The call over the WebSocket was answered with an error.
        RpcError = "rpc_error",
        /// A redirect came where the page itself is due.
        Redirected = "redirected",
        /// The dispatch proxy paired a request that already had a session.
        PairedAgain = "paired_again",
        /// The dispatch proxy passed a first visit on without a session.
        NotPaired = "not_paired",
        /// The dispatch proxy does not know the identity.
        UnknownIdentity = "unknown_identity",
        /// The dispatch proxy does not take the prober's word about an identity.
        UntrustedPeer = "untrusted_peer",
        /// The dispatch proxy has more connections than its limit allows.
        TooManyConnections = "too_many_connections",
        /// A file is missing or may not be read.
        Unreadable = "unreadable",
        /// A database file is damaged.
        Corrupt = "corrupt",
        /// The program runs inside the very instance that it would stop.
        Inside = "inside",
        /// The file system has not enough room.
        NoSpace = "no_space",
        /// Rows that must never go were fewer than before.
        HistoryShrank = "history_shrank",
        /// Rows that nobody wrote have come.
        HistoryChanged = "history_changed",
        /// What was written is not there, or more than was written.
        NotWritten = "not_written",
        /// The process ended by itself.
        Crashed = "crashed",
        /// The process ended with another exit status than documented.
        ExitStatus = "exit_status",
        /// A second start migrated the database once more.
        MigratedAgain = "migrated_again",
        /// The probe itself broke; this is a defect of t3-prober.
        Panicked = "panicked",
    }
}

words! {
    /// Why a step was not done. A skip is never a success and never a failure.
    pub enum Skip {
        /// The listener is younger than the time t3 takes to start.
        Starting = "starting",
        /// The supervisor says that the instance was stopped on purpose.
        NotRunning = "not_running",
        /// No t3 command of the running version is installed; another one would migrate the database.
        VersionSkew = "version_skew",
        /// The running version is not known, so no t3 command may run.
        VersionUnknown = "version_unknown",
        /// An earlier step did not succeed.
        EarlierStep = "earlier_step",
        /// A real user logged in a moment ago: the same evidence.
        RecentLogin = "recent_login",
        /// The part that would do this is not configured.
        NotConfigured = "not_configured",
    }
}

words! {
    /// Which exchange endpoint answered.
    pub enum Endpoint {
        /// `POST /api/auth/bootstrap`, before 0.0.26.
        Bootstrap = "bootstrap",
        /// `POST /api/auth/browser-session`, from 0.0.26.
        BrowserSession = "browser_session",
    }
}

words! {
    /// The calls this program makes of t3's command.
    pub enum Verb {
        /// `t3 --version`.
        Version = "version",
        /// `t3 auth pairing create`.
        PairingCreate = "pairing_create",
        /// `t3 auth session issue`.
        SessionIssue = "session_issue",
        /// `t3 project add`, on copies only.
        ProjectAdd = "project_add",
    }
}

words! {
    /// What made a probe run.
    pub enum Trigger {
        /// Its interval came round.
        Schedule = "schedule",
        /// The program, or the user's place in the inventory, is new.
        Start = "start",
        /// The running version, the listening socket or the schema changed.
        Change = "change",
        /// The pulse failed.
        PulseFailed = "pulse_failed",
        /// Somebody asked for it.
        Demand = "demand",
    }
}

words! {
    /// How a step or a probe ended, without the reason.
    pub enum Ended {
        /// Every step that was due succeeded.
        Ok = "ok",
        /// A step failed.
        Failed = "failed",
        /// Nothing failed, and something that was due could not be done.
        Skipped = "skipped",
    }
}

/// How a step or a whole probe ended.
///
/// In JSON two fields: `"outcome": "failed", "reason": "auth_store"`; with `ok` there is no `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    Failed(Reason),
    Skipped(Skip),
}

impl Outcome {
    pub fn ended(self) -> Ended {
        match self {
            Self::Ok => Ended::Ok,
            Self::Failed(_) => Ended::Failed,
            Self::Skipped(_) => Ended::Skipped,
        }
    }

    pub fn is_ok(self) -> bool {
        self == Self::Ok
    }

    /// The reason's word, where there is one.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Ok => None,
            Self::Failed(reason) => Some(reason.as_str()),
            Self::Skipped(skip) => Some(skip.as_str()),
        }
    }
}

impl fmt::Display for Outcome {
    /// `ok`, `failed(auth_store)`, `skipped(starting)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            None => f.pad(self.ended().as_str()),
            Some(reason) => f.pad(&format!("{}({reason})", self.ended())),
        }
    }
}

/// A failed call: the word for machines and a sentence for people.
///
/// `detail` says what was being done and what came instead; it never holds a credential, cookie or token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail} [{reason}]")]
pub struct Failure {
    pub reason: Reason,
    pub detail: String,
}

impl Failure {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Why a step has no result: it failed, or it was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NotDone {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("{detail} [{skip}]")]
    Skipped { skip: Skip, detail: String },
}

impl NotDone {
    pub fn skipped(skip: Skip, detail: impl Into<String>) -> Self {
        Self::Skipped { skip, detail: detail.into() }
    }

    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Failed(failure) => Outcome::Failed(failure.reason),
            Self::Skipped { skip, .. } => Outcome::Skipped(*skip),
        }
    }

    pub fn detail(&self) -> &str {
        match self {
            Self::Failed(failure) => &failure.detail,
            Self::Skipped { detail, .. } => detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_unique_in_its_set_and_reads_back() {
        fn check<T: Copy + PartialEq + fmt::Debug + std::str::FromStr>(
            all: &[T],
            word: fn(T) -> &'static str,
        ) {
            let mut words: Vec<_> = all.iter().map(|value| word(*value)).collect();
            for value in all {
                assert_eq!(word(*value).parse::<T>().ok(), Some(*value));
            }
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), all.len());
        }
        check(Kind::ALL, Kind::as_str);
        check(Step::ALL, Step::as_str);
        check(Reason::ALL, Reason::as_str);
        check(Skip::ALL, Skip::as_str);
        check(Endpoint::ALL, Endpoint::as_str);
        check(Verb::ALL, Verb::as_str);
        check(EventKind::ALL, EventKind::as_str);
        check(SpoolRefusal::ALL, SpoolRefusal::as_str);
        check(Trigger::ALL, Trigger::as_str);
        check(Ended::ALL, Ended::as_str);
        check(HelperVerb::ALL, HelperVerb::as_str);
        check(Place::ALL, Place::as_str);
        check(Refusal::ALL, Refusal::as_str);
        check(Asker::ALL, Asker::as_str);
        check(Initiator::ALL, Initiator::as_str);
        check(CloseCause::ALL, CloseCause::as_str);
        check(SessionKind::ALL, SessionKind::as_str);
        check(Flaw::ALL, Flaw::as_str);
        check(Verdict::ALL, Verdict::as_str);
        check(Grounds::ALL, Grounds::as_str);
        check(Rollback::ALL, Rollback::as_str);
        check(Risk::ALL, Risk::as_str);
        check(Rehearsal::ALL, Rehearsal::as_str);
        check(RehearsalStep::ALL, RehearsalStep::as_str);
        check(Elsewhere::ALL, Elsewhere::as_str);
        check(Decision::ALL, Decision::as_str);
        check(Basis::ALL, Basis::as_str);
        check(RestoreStep::ALL, RestoreStep::as_str);
        check(End::ALL, End::as_str);
        check(Stage::ALL, Stage::as_str);
        check(Hold::ALL, Hold::as_str);
        check(Deferral::ALL, Deferral::as_str);
        check(MoveStep::ALL, MoveStep::as_str);
    }

    #[test]
    fn a_word_from_another_version_is_an_error_that_names_the_set() {
        let error = "teapot".parse::<Reason>().expect_err("no such reason");
        assert_eq!(error.to_string(), "unknown Reason 'teapot'");
    }
}
