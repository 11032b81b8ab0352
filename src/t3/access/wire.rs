//! What goes between the helper and its callers: one JSON line each way, as often as the connection lasts.
//! Requests name a user and nothing else about them: port, directory and account are the helper's own knowledge.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::outcome::{Failure, HelperVerb, NotDone, Reason, Skip};
use crate::t3::cli::Verb;
use crate::t3::keeper::Limits;
use crate::t3::pairing::Credential;
use crate::t3::state::Inspection;

/// No request comes near this.
pub const LARGEST_REQUEST: usize = 4 * 1024;
/// A thousand inspected users fit.
pub const LARGEST_REPLY: usize = 4 * 1024 * 1024;

/// What a caller wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Mint {
        user: String,
        label: String,
        limits: Limits,
    },
    Revoke {
        user: String,
        session: String,
        limits: Limits,
    },
    Labelled {
        user: String,
        label: String,
        age: Duration,
        limits: Limits,
    },
    /// Without a user: every user in the map.
    Inspect {
        user: Option<String>,
        limit: Duration,
    },
    Port {
        user: String,
    },
    Snapshot {
        user: String,
        limit: Duration,
    },
    Verify {
        user: String,
        limit: Duration,
    },
    Rehearse {
        user: String,
        builds: Builds,
        limit: Duration,
    },
}

/// The programs that are compared. They run in boxes, so whoever may ask may name any; how wide a box is, and whose data
/// is in it, is the helper's own knowledge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builds {
    pub candidate: PathBuf,
    pub control: PathBuf,
}

/// What the helper answers. Its `Debug` shows no value, which may be a credential.
#[derive(Serialize, Deserialize)]
pub struct Reply {
    #[serde(flatten)]
    pub end: End,
    /// What the runs of t3's command cost that this request made necessary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu: Vec<(Verb, Duration)>,
}

/// How a request ended.
#[derive(Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "snake_case")]
pub enum End {
    Ok {
        value: Value,
    },
    Failed {
        reason: Reason,
        detail: String,
    },
    Skipped {
        skip: Skip,
        detail: String,
    },
    /// Not this caller, not this user, or not a request at all: nothing was done.
    Refused {
        detail: String,
    },
}

/// The value of `mint`.
#[derive(Deserialize)]
pub struct Minted {
    pub credential: Credential,
}

/// The value of `port`.
#[derive(Serialize, Deserialize)]
pub struct EnvPort {
    pub port: u16,
}

/// The value of `inspect`.
pub type Inspections = BTreeMap<String, Result<Inspection, NotDone>>;

impl Request {
    pub fn verb(&self) -> HelperVerb {
        match self {
            Self::Mint { .. } => HelperVerb::Mint,
            Self::Revoke { .. } => HelperVerb::Revoke,
            Self::Labelled { .. } => HelperVerb::Labelled,
            Self::Inspect { .. } => HelperVerb::Inspect,
            Self::Port { .. } => HelperVerb::Port,
            Self::Snapshot { .. } => HelperVerb::Snapshot,
            Self::Verify { .. } => HelperVerb::Verify,
            Self::Rehearse { .. } => HelperVerb::Rehearse,
        }
    }

    /// The user it is about; `None` where it is about all of them.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Mint { user, .. }
            | Self::Revoke { user, .. }
            | Self::Labelled { user, .. }
            | Self::Port { user }
            | Self::Snapshot { user, .. }
            | Self::Verify { user, .. }
            | Self::Rehearse { user, .. } => Some(user),
            Self::Inspect { user, .. } => user.as_deref(),
        }
    }

    /// The longest it may take in all.
    pub fn limit(&self) -> Duration {
        match self {
            Self::Mint { limits, .. } | Self::Revoke { limits, .. } | Self::Labelled { limits, .. } => {
                limits.whole()
            }
            Self::Inspect { limit, .. }
            | Self::Snapshot { limit, .. }
            | Self::Verify { limit, .. }
            | Self::Rehearse { limit, .. } => *limit,
            Self::Port { .. } => Duration::from_secs(2),
        }
    }
}

impl Reply {
    pub fn refused(detail: impl Into<String>) -> Self {
        Self { end: End::Refused { detail: detail.into() }, cpu: Vec::new() }
    }

    /// One line, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_else(|error| {
            json!({ "ended": "failed", "reason": Reason::Helper, "detail": error.to_string() })
                .to_string()
                .into_bytes()
        });
        line.push(b'\n');
        line
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            End::Ok { .. } => f.write_str("Ok(***)"),
            End::Failed { reason, detail } => write!(f, "Failed({reason}, {detail})"),
            End::Skipped { skip, detail } => write!(f, "Skipped({skip}, {detail})"),
            End::Refused { detail } => write!(f, "Refused({detail})"),
        }
    }
}

impl From<Result<Value, NotDone>> for End {
    fn from(result: Result<Value, NotDone>) -> Self {
        match result {
            Ok(value) => Self::Ok { value },
            Err(NotDone::Failed(Failure { reason, detail })) => Self::Failed { reason, detail },
            Err(NotDone::Skipped { skip, detail }) => Self::Skipped { skip, detail },
        }
    }
}

impl From<End> for Result<Value, NotDone> {
    fn from(end: End) -> Self {
        match end {
            End::Ok { value } => Ok(value),
            End::Failed { reason, detail } => Err(Failure { reason, detail }.into()),
            End::Skipped { skip, detail } => Err(NotDone::Skipped { skip, detail }),
            End::Refused { detail } => {
                Err(Failure::new(Reason::Helper, format!("the helper refused: {detail}")).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_flat_object_and_takes_no_field_it_does_not_know() {
        let request = Request::Port { user: "ann".to_owned() };
        let line = serde_json::to_string(&request).expect("json");
        assert_eq!(line, r#"{"verb":"port","user":"ann"}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).expect("read back"), request);
        for other in [
            r#"{"verb":"port","user":"ann","port":1}"#,
            r#"{"verb":"shell","user":"ann"}"#,
            r#"{"user":"ann"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(other).is_err(), "{other}");
        }
    }

    #[test]
    fn every_end_reads_back_as_what_it_was() {
        let ends: [Result<Value, NotDone>; 3] = [
            Ok(json!({ "credential": "ABCDEFGHJKLM" })),
            Err(Failure::new(Reason::MigratedByUs, "moved").into()),
            Err(NotDone::skipped(Skip::VersionSkew, "another version")),
        ];
        for end in ends {
            let line = Reply { end: end.clone().into(), cpu: Vec::new() }.line();
            let reply: Reply = serde_json::from_slice(&line).expect("a reply");
            assert_eq!(Result::from(reply.end), end);
        }
    }

    #[test]
    fn a_refusal_is_the_reason_helper_and_a_value_is_not_shown() {
        let refused = Result::from(Reply::refused("not in the user map").end).expect_err("refused");
        assert_eq!(refused.to_string(), "the helper refused: not in the user map [helper]");
        let reply = Reply { end: End::Ok { value: json!({ "credential": "hunter2" }) }, cpu: Vec::new() };
        assert_eq!(format!("{reply:?}"), "Ok(***)");
    }
}
