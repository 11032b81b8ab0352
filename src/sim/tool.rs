//! t3's commands: every one is a process of its own that opens the database read-write and migrates it with its own
//! idea of the schema, whatever server is running (CONTRACT §2).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::clock::{DAY, MINUTE, Millis};
use super::command::{self, Given, Request, Verb};
use super::failure::Failure;
use super::fault::{Fault, Faults};
use super::history::Change;
use super::home::Home;
use super::instance::say;
use super::mutation::Mutations;
use super::release::{Grant, Release};
use super::store::{ISSUED, Link, PAIRED, Session, Store};
use super::timing::Delays;
use super::token::SessionClaims;
use super::{serve, token};

pub mod listing;

use listing::{array, client, grant_member, migration_log, object};

/// The build that is being played.
#[derive(Clone)]
pub struct Build {
    pub release: Release,
    pub mutations: Mutations,
    pub delays: Delays,
}

/// Does what t3 does with these arguments.
pub async fn run(build: &Build, arguments: &[String]) -> ExitCode {
    let (verb, given) = match command::parse(&build.release, arguments) {
        Ok(Request::Version) => {
            tokio::time::sleep(build.delays.command).await;
            say(&format!("t3 v{}\n", build.release));
            return ExitCode::SUCCESS;
        }
        Ok(Request::Help(verb)) => {
            say(&command::help(&build.release, verb));
            return ExitCode::SUCCESS;
        }
        Err(misuse) => {
            say(&command::help(&build.release, misuse.verb));
            eprint!("\nERROR\n  {}\n", misuse.message);
            return ExitCode::FAILURE;
        }
        Ok(Request::Run(verb, given)) => (verb, given),
    };
    if matches!(verb.path, [] | ["serve" | "start"]) {
        return serve::run(build, &given).await;
    }
    tokio::time::sleep(build.delays.command).await;
    match Tool::new(build, &given) {
        Ok(mut tool) => tool.run(verb, &given).await,
        Err(failure) => fail(&build.release, &failure),
    }
}

/// The base directory that flags and environment name.
pub fn home(given: &Given) -> std::io::Result<Home> {
    let from_home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".t3"));
    let path = given.text("base-dir").map(PathBuf::from);
    let path = path.or_else(|| std::env::var_os("T3CODE_HOME").map(PathBuf::from)).or_else(from_home);
    Home::new(&path.unwrap_or_else(|| PathBuf::from(".t3")))
}

struct Tool {
    build: Build,
    home: Home,
    faults: Faults,
}

impl Tool {
    fn new(build: &Build, given: &Given) -> Result<Self, Failure> {
        let home = home(given).map_err(|error| Failure::new("PlatformError: no base directory", error))?;
        home.prepare().map_err(|error| Failure::new("PlatformError: base directory not usable", error))?;
        let faults = Faults::new(home.faults(), build.mutations.clone());
        Ok(Self { build: build.clone(), home, faults })
    }

    async fn run(&mut self, verb: &Verb, given: &Given) -> ExitCode {
        if self.faults.on(Fault::CliHang) {
            std::future::pending::<()>().await;
        }
        if let Some(on) = self.faults.strikes(Fault::CliSlow) {
            tokio::time::sleep(on.millis(2000)).await;
        }
        if self.faults.on(Fault::CliGarbage) {
            say("<<< not what was asked for >>>\n");
            return ExitCode::SUCCESS;
        }
        if self.faults.on(Fault::CliFails) {
            return fail(
                &self.build.release,
                &Failure::new("FaultError: command failed", "a fault is switched on"),
            );
        }
        if self.faults.on(Fault::CliMigrates) {
            self.build.release = self.build.release.successor();
        }
        let done = match verb.path {
            ["auth", "pairing", "create"] => self.create_link(given),
            ["auth", "pairing", "list"] => self.list_links(given),
            ["auth", "pairing", "revoke"] => self.revoke_link(given),
            ["auth", "session", "issue"] => self.issue_session(given),
            ["auth", "session", "list"] => self.list_sessions(given),
            ["auth", "session", "revoke"] => self.revoke_session(given),
            ["project", change] => self.change_project(change, given),
            _ => Ok(command::help(&self.build.release, verb)),
        };
        match done {
            Ok(answer) => {
                say(&format!("{answer}\n\n"));
                ExitCode::SUCCESS
            }
            Err(failure) => fail(&self.build.release, &failure),
        }
    }

    fn create_link(&mut self, given: &Given) -> Result<String, Failure> {
        const TRIED: &str = "AuthError: no pairing credential was made";
        let ttl = given.duration("ttl").unwrap_or(5 * MINUTE);
        let label = given.text("label").map(str::to_owned);
        let link = Link::new(self.build.release.client_grant(), PAIRED, label, ttl);
        let store = self.open(given)?;
        if !self.faults.on(Fault::CliMintForeign) {
            store.create_link(&link).map_err(|error| Failure::store(TRIED, &error))?;
        }
        let pair_url = given
            .text("base-url")
            .map(|base| format!("{}/pair#token={}", base.trim_end_matches('/'), link.credential));
        if given.switched("json") {
            let mut members = vec![("id", json!(link.id)), ("credential", json!(link.credential))];
            members.extend(link.label.as_ref().map(|label| ("label", json!(label))));
            members.push(grant_member(&link.grant));
            members.push(("expiresAt", json!(link.expires_at)));
            members.extend(pair_url.as_ref().map(|url| ("pairUrl", json!(url))));
            return Ok(object(&members));
        }
        let mut text = format!(
            "Issued client pairing token {}.\nToken: {}\nExpires at: DateTime.Utc({})",
            link.id, link.credential, link.expires_at
        );
        pair_url.iter().for_each(|url| text.push_str(&format!("\nPair URL: {url}")));
        Ok(text)
    }

    fn list_links(&self, given: &Given) -> Result<String, Failure> {
        let store = self.open(given)?;
        let links =
            store.links().map_err(|error| Failure::store("AuthError: credentials not listed", &error))?;
        if !given.switched("json") {
            let lines: Vec<_> =
                links.iter().map(|link| format!("{} until {}", link.id, link.expires_at)).collect();
            return Ok(if lines.is_empty() {
                "No active pairing credentials.".to_owned()
            } else {
                lines.join("\n")
            });
        }
        let objects = links.iter().map(|link| {
            let mut members = vec![("id", json!(link.id))];
            members.extend(link.label.as_ref().map(|label| ("label", json!(label))));
            members.push(grant_member(&link.grant));
            members.push(("createdAt", json!(link.created_at)));
            members.push(("expiresAt", json!(link.expires_at)));
            members
        });
        Ok(array(objects))
    }

    fn revoke_link(&self, given: &Given) -> Result<String, Failure> {
        let id = &given.arguments[0];
        let revoked = self
            .open(given)?
            .revoke_link(id)
            .map_err(|error| Failure::store("AuthError: credential not revoked", &error))?;
        Ok(if revoked {
            format!("Revoked pairing credential {id}.")
        } else {
            format!("No active pairing credential found for {id}.")
        })
    }

    fn issue_session(&self, given: &Given) -> Result<String, Failure> {
        let release = &self.build.release;
        let store = self.open(given)?;
        let grant = match given.text("role") {
            Some("client") => release.client_grant(),
            _ => release.administrative_grant(),
        };
        let lifetime = given.duration("ttl").unwrap_or(30 * DAY);
        let mut session = Session::issued(release, grant, given.text("label").map(str::to_owned), lifetime);
        if let Some(subject) = given.text("subject") {
            subject.clone_into(&mut session.subject);
        }
        store
            .create_session(&session)
            .map_err(|error| Failure::store("AuthError: no session was issued", &error))?;
        let key = self.home.key().map_err(|error| Failure::new("PlatformError: no signing key", error))?;
        let token = key.sign(&SessionClaims::of(&session));
        if given.switched("token-only") {
            return Ok(token);
        }
        if !given.switched("json") {
            return Ok(format!(
                "Issued session {}.\nToken: {token}\nExpires at: {}",
                session.id, session.expires_at
            ));
        }
        Ok(object(&[
            ("sessionId", json!(session.id)),
            ("token", json!(token)),
            ("method", json!(session.method)),
            grant_member(&session.grant),
            ("subject", json!(session.subject)),
            ("client", client(&session)),
            ("expiresAt", json!(session.expires_at)),
        ]))
    }

    fn list_sessions(&self, given: &Given) -> Result<String, Failure> {
        let store = self.open(given)?;
        let sessions =
            store.sessions().map_err(|error| Failure::store("AuthError: sessions not listed", &error))?;
        if !given.switched("json") {
            let lines: Vec<_> = sessions
                .iter()
                .map(|session| format!("{} until {}", session.id, session.expires_at))
                .collect();
            return Ok(if lines.is_empty() { "No active sessions.".to_owned() } else { lines.join("\n") });
        }
        let objects = sessions.iter().map(|session| {
            vec![
                ("sessionId", json!(session.id)),
                ("method", json!(session.method)),
                grant_member(&session.grant),
                ("subject", json!(session.subject)),
                ("client", client(session)),
                ("connected", json!(false)),
                ("issuedAt", json!(session.issued_at)),
                ("expiresAt", json!(session.expires_at)),
                ("lastConnectedAt", json!(session.last_connected_at)),
            ]
        });
        Ok(array(objects))
    }

    fn revoke_session(&self, given: &Given) -> Result<String, Failure> {
        const TRIED: &str = "AuthError: session not revoked";
        let id = &given.arguments[0];
        if self.faults.on(Fault::CliRevokeFails) {
            return Err(Failure::new(TRIED, "a fault is switched on"));
        }
        let revoked = self.open(given)?.revoke_session(id).map_err(|error| Failure::store(TRIED, &error))?;
        Ok(if revoked {
            format!("Revoked session {id}.")
        } else {
            format!("No active session found for {id}.")
        })
    }

    fn change_project(&self, change: &str, given: &Given) -> Result<String, Failure> {
        const TRIED: &str = "ProjectError: project not changed";
        if self.faults.on(Fault::CliProjectFails) {
            return Err(Failure::new(TRIED, "a fault is switched on"));
        }
        let mut store = self.open(given)?;
        let store_failed = |error| Failure::store(TRIED, &error);
        // With a server running, t3 goes through it with a session of its own; the session's row stays.
        if self.home.served() {
            let grant = self.build.release.administrative_grant();
            let session =
                Session::issued(&self.build.release, grant, Some("t3 project cli".to_owned()), 30 * DAY);
            store.create_session(&session).map_err(store_failed)?;
            store.revoke_session(&session.id).map_err(store_failed)?;
        }
        if change == "add" {
            let folder = std::fs::canonicalize(&given.arguments[0])
                .map_err(|error| Failure::new("ProjectError: the folder is not there", error))?;
            let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
            let title = given.text("title").unwrap_or(&name);
            let folder = folder.to_string_lossy();
            if store.project(&folder).map_err(store_failed)?.is_some() {
                return Err(Failure::new(TRIED, format!("{folder} is a project already")));
            }
            let id = store.change_project(&Change::Add { title, folder: &folder }).map_err(store_failed)?;
            return Ok(format!("Added project {id} ({title})."));
        }
        let wanted = &given.arguments[0];
        let project = store.project(wanted).map_err(store_failed)?;
        let Some(project) = project else {
            return Err(Failure::new(TRIED, format!("no project is called {wanted}")));
        };
        let change = match given.arguments.get(1) {
            Some(title) if change == "rename" => Change::Rename { project: &project, title },
            _ => Change::Remove { project: &project },
        };
        store.change_project(&change).map_err(store_failed)?;
        Ok(match change {
            Change::Rename { title, .. } => format!("Renamed project {project} to {title}."),
            _ => format!("Removed project {project}."),
        })
    }

    fn open(&self, given: &Given) -> Result<Store, Failure> {
        let release = &self.build.release;
        let (store, ran) = Store::open(&self.home, release, &self.build.mutations, &self.faults)
            .map_err(|error| Failure::store("SqlError: the database could not be opened", &error))?;
        if !given.switched("json") && !given.switched("token-only") && !release.since(29) {
            say(&migration_log(&ran));
        }
        Ok(store)
    }
}

impl Session {
    /// A session as the command line tool issues it.
    pub fn issued(release: &Release, grant: Grant, label: Option<String>, lifetime: Duration) -> Self {
        let now = Millis::now();
        Self {
            id: token::uuid(),
            subject: ISSUED.to_owned(),
            grant,
            method: release.bearer_method().to_owned(),
            label,
            ip_address: None,
            user_agent: None,
            device_type: "bot".to_owned(),
            issued_at: now.iso(),
            expires_at: now.plus(lifetime).iso(),
            last_connected_at: None,
            revoked: false,
        }
    }
}

impl SessionClaims {
    pub fn of(session: &Session) -> Self {
        let millis = |iso: &str| Millis::from_iso(iso).unwrap_or(Millis(0)).0;
        Self {
            v: 1,
            kind: "session".to_owned(),
            sid: session.id.clone(),
            sub: session.subject.clone(),
            grant: session.grant.clone(),
            method: session.method.clone(),
            iat: millis(&session.issued_at),
            exp: millis(&session.expires_at),
        }
    }
}

fn fail(release: &Release, failure: &Failure) -> ExitCode {
    say(&failure.report(release));
    ExitCode::FAILURE
}
