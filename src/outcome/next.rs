//! What to do about a reason: one sentence for whoever was woken by it, where `{user}` stands for the user's name.

use super::{Outcome, Reason, Skip, Step, StepResult};

impl Reason {
    /// The next thing to look at or to run.
    pub fn next(self) -> &'static str {
        match self {
            Self::Refused => {
                "look why the instance is down: systemctl status t3-serve@{user}, journalctl -u t3-serve@{user}"
            }
            Self::Timeout => {
                "the process hangs: look at it with ps and top as {user}; restart the instance if it stays so"
            }
            Self::Closed | Self::Malformed | Self::TooLarge | Self::Status => {
                "look at what listens on the port (ss -ltnp) and at the instance's log"
            }
            Self::Html | Self::NotFound => {
                "this t3 build has another login contract: stop rolling it out, and go back to the last good build"
            }
            Self::InternalError => {
                "look at the instance's log for the error; restart the instance if it stays so"
            }
            Self::AuthStore => {
                "look at the instance's log for the database error; see whether the disk is full"
            }
            Self::SchemaAhead => {
                "find the t3 command that did it (another version on somebody's PATH), stop it, then repair or \
                 restore the database: t3-prober backup restore {user} says how"
            }
            Self::SchemaBehind => "restart the instance: t3 migrates its database when it starts",
            Self::SchemaForeign => {
                "this database was made by a t3 that is not known; find out which build ran last"
            }
            Self::Locked => "find the process that holds the lock, and end it if it is not t3 itself",
            Self::WrongOwner => {
                "somebody else's process holds the port: find it with ss -ltnp, end it, and restart the instance"
            }
            Self::Withheld => "put the dispatch table right: t3-prober check names file and line",
            Self::WrongInstance => {
                "the port and the base directory belong to different instances: compare the dispatch table"
            }
            Self::KeeperLost => {
                "see whether a t3 command of the running version is installed: t3-prober check"
            }
            Self::MigratedByUs => {
                "stop t3-prober and every t3 command on this host, and see whether {user} can still log in; then \
                 restart the instance"
            }
            Self::CliMissing | Self::CliFailed | Self::CliGarbage => {
                "run the t3 command by hand as {user} with --version; t3-prober check shows which one is used"
            }
            Self::Helper => "look at the helper's log: journalctl -u 't3-prober-helper@*'",
            Self::Unauthorized
            | Self::NotAuthenticated
            | Self::NoCookie
            | Self::CookieName
            | Self::CookieAttributes => {
                "this t3 build breaks the login contract: stop rolling it out, and compare it with the last good build"
            }
            Self::Forbidden => {
                "the session's grants have changed in this t3 build: compare it with the last good build"
            }
            Self::NotUpgraded | Self::NoAnswer | Self::RpcError => {
                "logging in works and the app does not: look at the instance's log, and restart it"
            }
            Self::Redirected | Self::PairedAgain | Self::NotPaired | Self::UnknownIdentity => {
                "look at the dispatch: its log, its table, and what stands in front of it"
            }
            Self::UntrustedPeer => {
                "put the account that t3-prober serves as into [dispatch] trusted_uids, or give both the edge's secret_file"
            }
            Self::TooManyConnections => {
                "look at what holds the dispatch's connections (ss -tnp), or raise [dispatch] max_connections"
            }
            Self::Unreadable => {
                "see the path in the detail: its owner, its mode, and whether the disk answers"
            }
            Self::Corrupt => {
                "do not restart the instance; keep the file, and restore the newest verified snapshot: t3-prober backup restore \
                 {user}"
            }
            Self::HistoryShrank => {
                "stop the instance before more is written, and compare with the newest verified snapshot: t3-prober backup \
                 list {user}"
            }
            Self::NoSpace => "make room on the file system of the path in the detail",
            Self::Inside => "run the command from outside the instance, as the detail shows",
            Self::HistoryChanged | Self::NotWritten | Self::MigratedAgain => {
                "this t3 build treats the history differently: do not install it, and report it to its makers"
            }
            Self::Crashed | Self::ExitStatus => "look at the last lines of the instance's log for the error",
            Self::Panicked => "this is a defect of t3-prober: keep the log, and report it",
        }
    }
}

impl Skip {
    /// The next thing to look at or to run; `None` where waiting is right.
    pub fn next(self) -> Option<&'static str> {
        match self {
            Self::VersionSkew => Some(
                "install the running version beside the others, or restart the instance so that it runs the installed one",
            ),
            Self::VersionUnknown => {
                Some("see why the instance does not say its version: t3-prober probe {user}")
            }
            Self::Starting
            | Self::NotRunning
            | Self::EarlierStep
            | Self::RecentLogin
            | Self::NotConfigured => None,
        }
    }
}

/// For whoever does not answer at the front door: it is asked only while the instances behind it are well.
const NO_DOOR: &str = "look whether the dispatch runs: systemctl status t3-dispatch, journalctl -u t3-dispatch; then whether \
     {user}'s instance does";

impl StepResult {
    /// What to do about it, for this user; `None` where there is nothing to do.
    pub fn next(&self, user: &str) -> Option<String> {
        let sentence = match self.outcome {
            Outcome::Ok => None,
            Outcome::Failed(Reason::Refused | Reason::Timeout | Reason::Closed)
                if self.step == Step::Front =>
            {
                Some(NO_DOOR)
            }
            Outcome::Failed(reason) => Some(reason.next()),
            Outcome::Skipped(skip) => skip.next(),
        };
        sentence.map(|sentence| sentence.replace("{user}", user))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_failure_has_a_next_step_that_reads_as_one_sentence() {
        for reason in Reason::ALL {
            let next = reason.next();
            assert!(next.len() > 20 && !next.contains("  ") && !next.ends_with('.'), "{reason}: {next}");
        }
    }

    fn next(step: Step, outcome: Outcome) -> Option<String> {
        StepResult { step, outcome, detail: None, duration: Duration::ZERO }.next("ann")
    }

    #[test]
    fn the_user_stands_in_the_command() {
        let next = next(Step::Reach, Outcome::Failed(Reason::Refused)).expect("something to do");
        assert!(next.contains("t3-serve@ann"), "{next}");
    }

    #[test]
    fn nothing_is_to_be_done_about_what_is_well() {
        assert_eq!(next(Step::Reach, Outcome::Ok), None);
    }

    #[test]
    fn where_the_front_door_is_silent_the_dispatch_is_looked_at_before_the_instance() {
        for reason in [Reason::Refused, Reason::Timeout, Reason::Closed] {
            let next = next(Step::Front, Outcome::Failed(reason)).expect("something to do");
            assert!(next.starts_with("look whether the dispatch runs"), "{reason}: {next}");
        }
    }
}
