//! Long-lived credentials, looked at again and again: a change is in metrics, page and log within seconds.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use super::lock;
use crate::credential::{Credential, Expiry, Watch, memory};
use crate::metrics::{Metrics, Stands};
use crate::outcome::CredentialState;

const LOOK: Duration = Duration::from_secs(2);
/// How often what is known is written down, beside each change of an end.
const KEEP: Duration = Duration::from_secs(60);

/// When a credential ends, where that is known.
type Ends = Option<Expiry>;

/// What is watched, and where it is told.
pub struct Credentials {
    pub watch: Arc<Mutex<Watch>>,
    pub metrics: Arc<Metrics>,
    /// The file in which what is known outlives this process.
    pub memory: PathBuf,
}

impl Credentials {
    /// Looks until it is told to stop.
    pub async fn watch(self, stop: CancellationToken) {
        let mut told: Vec<(Credential, CredentialState)> = Vec::new();
        let mut kept: Option<(Instant, Vec<Ends>)> = None;
        let remembered = memory::load(&self.memory);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let credentials = lock(&self.watch).credentials();
            // A home may lie on a file system that takes its time.
            let looks = tokio::task::spawn_blocking(move || {
                credentials.into_iter().map(|credential| (credential.look(), credential)).collect::<Vec<_>>()
            });
            let looks = looks.await.unwrap_or_default();
            let now = SystemTime::now();
            let mut watch = lock(&self.watch);
            watch.recall(&remembered);
            for (look, credential) in looks {
                watch.saw(&credential, look, now);
            }
            self.export(&watch, now);
            told = tell(&watch, &told, now);
            let ends: Vec<_> =
                watch.all().iter().map(|watched| watched.known.map(|known| known.expiry)).collect();
            if kept.as_ref().is_none_or(|(at, before)| at.elapsed() > KEEP || *before != ends) {
                if let Err(error) = memory::store(&self.memory, &watch.remember()) {
                    tracing::warn!(%error, "what is known of credentials cannot be kept over a restart");
                }
                kept = Some((Instant::now(), ends));
            }
        }
    }

    fn export(&self, watch: &Watch, now: SystemTime) {
        let stands = watch.all().iter().map(|watched| Stands {
            name: &watched.credential.name,
            user: watched.credential.user.as_deref(),
            standing: watched.state(now),
            known: watched.known.map(|known| (known.expiry.at, known.expiry.evidence, known.seen)),
        });
        self.metrics.credential.state(&stands.collect::<Vec<_>>());
    }
}

/// One line when a word changes. Answers what has been told.
fn tell(
    watch: &Watch,
    told: &[(Credential, CredentialState)],
    now: SystemTime,
) -> Vec<(Credential, CredentialState)> {
    let tell = |watched: &crate::credential::Watched| {
        let (credential, state) = (&watched.credential, watched.state(now));
        let before = told.iter().find(|(known, _)| known == credential).map(|(_, state)| *state);
        let trouble = watched.trouble.as_deref().unwrap_or_default();
        match state {
            _ if before == Some(state) => {}
            CredentialState::Valid if before.is_none() => {
                tracing::debug!(%credential, "a credential is watched");
            }
            CredentialState::Valid => tracing::info!(%credential, "a credential is valid again"),
            CredentialState::Expired => {
                tracing::error!(%credential, %state, trouble, "a credential has ended");
            }
            _ => tracing::warn!(%credential, %state, trouble, "a credential needs a look"),
        }
        (credential.clone(), state)
    };
    watch.all().iter().map(tell).collect()
}
