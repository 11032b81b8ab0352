//! The keeper: one administrative session per instance, issued by t3's command once and kept in a root-only file.
//! With it the running server itself mints and revokes in two milliseconds, with no process started and nothing
//! migrated (CONTRACT §3, measured against a second for the command).

mod store;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::store::{Keeper, Store};
use super::Mint;
use super::cli::{self, Verb};
use super::guard::Commands;
use super::history::History;
use super::http::{Answer, Client, Proof};
use super::pairing::Credential;
use crate::outcome::{Failure, NotDone, Reason};

/// What the keeper's session is called in t3's own list of clients.
pub const LABEL: &str = "t3-prober keeper";
/// Renewed this long before it ends: sessions live for 30 days and are never prolonged (CONTRACT §4).
const RENEW_BEFORE: Duration = Duration::from_secs(3 * 24 * 3600);

/// Administrative acts on instances: minting and revoking. Who runs t3's command is the caller's matter.
pub struct Keepers<C> {
    store: Store,
    mint: Mint,
    commands: C,
}

#[derive(Deserialize)]
struct Minted {
    credential: Credential,
}

impl<C: Commands> Keepers<C> {
    /// `dir` holds one file per instance, readable by us alone.
    pub fn new(dir: PathBuf, mint: Mint, commands: C) -> Self {
        Self { store: Store::new(dir), mint, commands }
    }

    /// CPU time of every run of t3's command since this was last asked.
    pub fn take_cpu(&self) -> Vec<(Verb, Duration)> {
        self.commands.take_cpu()
    }

    /// Makes a pairing credential whose session will carry `label`.
    pub async fn mint(
        &self,
        client: &mut Client<'_>,
        label: &str,
        limits: Limits,
    ) -> Result<Credential, NotDone> {
        match self.mint {
            Mint::Keeper => {
                let answer: Minted = self
                    .call(client, Call::Post("/api/auth/pairing-token", json!({ "label": label })), limits)
                    .await?;
                Ok(answer.credential)
            }
            Mint::Cli => {
                let flags = ["--ttl", "5m", "--label", label, "--json"];
                let printed = self.commands.run(client, Verb::PairingCreate, &flags, limits.command).await?;
                Ok(cli::json::<Minted>(Verb::PairingCreate, &printed)?.credential)
            }
            Mint::Command => {
                let printed = self.commands.run(client, Verb::PairingCreate, &[], limits.command).await?;
                // A wrapper may have taken the credential out of t3's answer for us.
                match Credential::alone(&printed) {
                    Some(credential) => Ok(credential),
                    None => Ok(cli::json::<Minted>(Verb::PairingCreate, &printed)?.credential),
                }
            }
        }
    }

    /// Ends a session: its cookie is `authenticated:false` from then on.
    pub async fn revoke(
        &self,
        client: &mut Client<'_>,
        session_id: &str,
        limits: Limits,
    ) -> Result<(), NotDone> {
        // Whether there was anything left to revoke makes no difference.
        let body = json!({ "sessionId": session_id });
        self.call::<Value>(client, Call::Post("/api/auth/clients/revoke", body), limits).await?;
        Ok(())
    }

    /// The live sessions that carry exactly this label and are older than `age`.
    pub async fn labelled(
        &self,
        client: &mut Client<'_>,
        label: &str,
        age: Duration,
        limits: Limits,
    ) -> Result<Vec<String>, NotDone> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Session {
            session_id: String,
            client: Named,
            #[serde(with = "rfc3339")]
            issued_at: SystemTime,
        }
        #[derive(Deserialize)]
        struct Named {
            label: Option<String>,
        }
        let sessions: Vec<Session> = self.call(client, Call::Get("/api/auth/clients"), limits).await?;
        let before = SystemTime::now() - age;
        let ours =
            |session: &Session| session.client.label.as_deref() == Some(label) && session.issued_at < before;
        Ok(sessions.into_iter().filter(ours).map(|session| session.session_id).collect())
    }

    /// Loads the whole history, as the app does at its start. Never asked of a live instance: the answer is as large
    /// as the database, and costs the server as much memory (CONTRACT §11).
    pub async fn history(&self, client: &mut Client<'_>, limits: Limits) -> Result<History, NotDone> {
        self.call(client, Call::Get("/api/orchestration/snapshot"), limits).await
    }

    /// Asks with the keeper's session, issuing or renewing it where that is due and allowed.
    async fn call<T: DeserializeOwned>(
        &self,
        client: &mut Client<'_>,
        call: Call,
        limits: Limits,
    ) -> Result<T, NotDone> {
        let now = SystemTime::now();
        let kept = self.store.load(&client.instance.name)?.filter(|keeper| keeper.expires_at > now);
        let had_one = kept.is_some();
        let keeper = match kept {
            Some(keeper) if keeper.expires_at > now + RENEW_BEFORE => keeper,
            // One that still lives is good enough where no other can be issued.
            Some(keeper) => match self.issue(client, None, limits).await {
                Err(NotDone::Failed(failure)) if failure.reason == Reason::MigratedByUs => {
                    return Err(failure.into());
                }
                issued => issued.unwrap_or(keeper),
            },
            None => self.issue(client, None, limits).await?,
        };
        let answer = call.send(client, &keeper, limits).await?;
        let answer = match answer.status.as_u16() {
            // The session died with the authentication tables, or with the signing key: issue another one, once.
            401 | 403 if had_one => {
                let keeper = self.issue(client, Some(&keeper), limits).await.map_err(|why| lost(&why))?;
                call.send(client, &keeper, limits).await?
            }
            _ => answer,
        };
        match answer.status.as_u16() {
            200 => Ok(answer.json()?),
            401 | 403 => Err(Failure::new(
                Reason::KeeperLost,
                format!("{call} answered {} to a freshly issued administrative session", answer.status),
            )
            .into()),
            _ => Err(answer.unexpected(&call.to_string()).into()),
        }
    }

    /// Issues a session in place of the refused one, unless another process of ours has just done so.
    async fn issue(
        &self,
        client: &mut Client<'_>,
        refused: Option<&Keeper>,
        limits: Limits,
    ) -> Result<Keeper, NotDone> {
        let name = &client.instance.name;
        let before = refused.map(|keeper| keeper.token.as_str());
        let _turn = self.store.turn(limits.command).await?;
        let fresh = |keeper: &Keeper| {
            Some(keeper.token.as_str()) != before && keeper.expires_at > SystemTime::now() + RENEW_BEFORE
        };
        if let Some(keeper) = self.store.load(name)?.filter(fresh) {
            return Ok(keeper);
        }
        let flags = ["--label", LABEL, "--json"];
        let printed = self.commands.run(client, Verb::SessionIssue, &flags, limits.command).await?;
        let keeper: Keeper = cli::json(Verb::SessionIssue, &printed)?;
        self.store.save(name, &keeper)?;
        Ok(keeper)
    }
}

/// An administrative call.
enum Call {
    Get(&'static str),
    Post(&'static str, Value),
}

impl Call {
    async fn send(
        &self,
        client: &mut Client<'_>,
        keeper: &Keeper,
        limits: Limits,
    ) -> Result<Answer, Failure> {
        let proof = Proof::Bearer(&keeper.token);
        match self {
            Self::Get(path) => client.get(path, proof, limits.request).await,
            Self::Post(path, body) => client.post(path, body, proof, limits.request).await,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(path) => write!(f, "GET {path}"),
            Self::Post(path, _) => write!(f, "POST {path}"),
        }
    }
}

/// How long one request to the instance and one run of t3's command may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub request: Duration,
    pub command: Duration,
}

impl Limits {
    /// The longest that one administrative act can take: a refused call, the turn to issue a session, the version of
    /// the command, the command itself, and the call again.
    pub fn whole(self) -> Duration {
        self.request * 3 + self.command * 3
    }
}

/// The kept session is refused and no other one can be issued. Where the reason is known to lie deeper, that is said.
fn lost(why: &NotDone) -> NotDone {
    let deeper = [
        Reason::AuthStore,
        Reason::Locked,
        Reason::MigratedByUs,
        Reason::WrongInstance,
        Reason::WrongOwner,
        Reason::CliGarbage,
        Reason::CliMissing,
    ];
    match why {
        NotDone::Failed(failure) if deeper.contains(&failure.reason) => why.clone(),
        _ => Failure::new(
            Reason::KeeperLost,
            format!(
                "the instance refuses the kept administrative session, and no other one could be issued: {}",
                why.detail()
            ),
        )
        .into(),
    }
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
