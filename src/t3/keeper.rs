//! The keeper: one administrative session per instance, issued by t3's command once and kept in a root-only file.
//! With it the running server itself mints and revokes in two milliseconds, with no process started and nothing
//! migrated (CONTRACT §3, measured against a second for the command).

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cli::{self, Verb};
use super::guard::Guard;
use super::http::{Answer, Client, Proof};
use super::pairing::Credential;
use super::{Mint, Section};
use crate::outcome::{Failure, NotDone, Reason};

/// What the keeper's session is called in t3's own list of clients.
const LABEL: &str = "t3-prober keeper";
/// Renewed this long before it ends: sessions live for 30 days and are never prolonged (CONTRACT §4).
const RENEW_BEFORE: Duration = Duration::from_secs(3 * 24 * 3600);

/// Administrative acts on instances: minting and revoking.
pub struct Keepers {
    dir: PathBuf,
    mint: Mint,
    pub guard: Guard,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keeper {
    session_id: String,
    token: String,
    #[serde(with = "rfc3339")]
    expires_at: SystemTime,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({}, ***)", self.session_id)
    }
}

#[derive(Deserialize)]
struct Minted {
    credential: Credential,
}

impl Keepers {
    /// `dir` holds one file per instance, readable by us alone.
    pub fn new(dir: PathBuf, section: &Section) -> Self {
        Self { dir, mint: section.mint, guard: Guard::new(section) }
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
                let printed = self.guard.run(client, Verb::PairingCreate, &flags, limits.command).await?;
                Ok(cli::json::<Minted>(Verb::PairingCreate, &printed)?.credential)
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

    /// Asks with the keeper's session, issuing or renewing it where that is due and allowed.
    async fn call<T: DeserializeOwned>(
        &self,
        client: &mut Client<'_>,
        call: Call,
        limits: Limits,
    ) -> Result<T, NotDone> {
        let now = SystemTime::now();
        let kept = self.load(&client.instance.name)?.filter(|keeper| keeper.expires_at > now);
        let had_one = kept.is_some();
        let keeper = match kept {
            Some(keeper) if keeper.expires_at > now + RENEW_BEFORE => keeper,
            // One that still lives is good enough where no other can be issued.
            Some(keeper) => match self.issue(client, limits).await {
                Err(NotDone::Failed(failure)) if failure.reason == Reason::MigratedByUs => {
                    return Err(failure.into());
                }
                issued => issued.unwrap_or(keeper),
            },
            None => self.issue(client, limits).await?,
        };
        let answer = call.send(client, &keeper, limits).await?;
        let answer = match answer.status.as_u16() {
            // The session died with the authentication tables, or with the signing key: issue another one, once.
            401 | 403 if had_one => {
                let keeper = self.issue(client, limits).await.map_err(|why| lost(&why))?;
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

    async fn issue(&self, client: &mut Client<'_>, limits: Limits) -> Result<Keeper, NotDone> {
        let printed =
            self.guard.run(client, Verb::SessionIssue, &["--label", LABEL, "--json"], limits.command).await?;
        let keeper: Keeper = cli::json(Verb::SessionIssue, &printed)?;
        self.store(&client.instance.name, &keeper).map_err(|error| {
            Failure::new(
                Reason::Unreadable,
                format!("cannot keep the administrative session in {}: {error}", self.dir.display()),
            )
        })?;
        Ok(keeper)
    }

    fn load(&self, name: &str) -> Result<Option<Keeper>, Failure> {
        let path = self.path(name);
        match fs::read(&path) {
            // A file that is not whole is as good as none: another keeper is issued over it.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", path.display())))
            }
        }
    }

    /// Written beside its place and renamed: a reader sees the old one or the new one.
    fn store(&self, name: &str, keeper: &Keeper) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let beside = self.dir.join(format!(".{name}.{:016x}", rand::random::<u64>()));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(serde_json::to_string(keeper)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, self.path(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
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
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub request: Duration,
    pub command: Duration,
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
