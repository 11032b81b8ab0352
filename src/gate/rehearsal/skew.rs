//! The outage, rehearsed: the control runs, and the candidate's command works on its database. Does the running server
//! survive, and do logins go on without the command meanwhile.

use tokio_rusqlite::rusqlite::Connection;

use super::{LABEL, Login, Work, pair, timed};
use crate::outcome::{Failure, NotDone, Reason, RehearsalStep};
use crate::t3::cli::{Cli, Verb};
use crate::t3::pairing;
use crate::t3::session;
use crate::t3::state::{self, count, has_table, reader};

impl Work<'_> {
    pub async fn skew(&mut self) -> Option<()> {
        let host = self.orders.host.clone();
        let (trial, _) = self.start(RehearsalStep::Start, &host).await?;
        let Login { cookie, generation } = self.log_in().await?;
        let before = self.sessions();
        let intruded = self.intrude();
        let outcome = timed(intruded).await;
        self.record(RehearsalStep::Intrude, outcome)?;
        self.facts.sessions = before.zip(self.sessions());
        let level = state::level(&self.scratch.instance.database()).await.ok();
        self.facts.level = level.map(|level| level.level.0);

        let mut client = self.client();
        let request = self.limits.request;
        let survives = async { Ok(pairing::refuses_the_impossible(&mut client, generation, request).await?) };
        self.step(RehearsalStep::Survive, survives).await?;
        let again = pair(&self.keepers, &mut client, generation, self.limits);
        let outcome = timed(again).await;
        self.record(RehearsalStep::LogIn, outcome)?;
        let kept = async {
            if session::read(&mut client, cookie.proof(), request).await?.authenticated {
                return Ok(());
            }
            let detail = "the session from before the candidate's command is no session any more";
            Err(NotDone::from(Failure::new(Reason::NotAuthenticated, detail)))
        };
        self.step(RehearsalStep::Keep, kept).await?;
        drop(client);
        self.stop(RehearsalStep::Stop, trial).await
    }

    /// What happened in the outage. The guard would refuse it, and nothing here is a live instance.
    async fn intrude(&self) -> Result<(), NotDone> {
        let flags = ["--ttl", "5m", "--label", LABEL, "--json"];
        let (program, instance) = (&self.orders.intruder, &self.scratch.instance);
        Cli::default().run(program, Verb::PairingCreate, instance, &flags, self.limits.command).await?;
        Ok(())
    }

    fn sessions(&self) -> Option<u64> {
        let rows = |connection: &Connection| {
            if !has_table(connection, "auth_sessions")? {
                return Ok(0);
            }
            connection.query_row("SELECT count(*) FROM auth_sessions", [], |row| count(row, 0))
        };
        reader::ask(&self.scratch.instance.database(), rows).ok()
    }
}
