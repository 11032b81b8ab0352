//! Verdicts, whoever made them: each new file is counted and remembered, and the newest ones are measured again and
//! again against users, databases and configuration as they are now.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lock;
use crate::board::Board;
use crate::config::Config;
use crate::docket::{self, Candidate};
use crate::history::{Event, EventFilter, History};
use crate::inventory::{Status, Watch};
use crate::metrics::{Judged, Metrics, Refused};
use crate::outcome::{EventKind, Outcome, Rehearsal, Verdict};
use crate::verdict::{self, Document};

/// A verdict that another process has made is seen within a second.
const LOOK: Duration = Duration::from_millis(500);
/// How often what is known is measured against the present situation.
const MEASURE: u32 = 20;
/// Older ones are asked for in the files.
const KEPT: usize = 12;
/// Besides the versions that are in use or wanted.
const NEWEST: usize = 2;

/// What is known of candidates, the newest first.
pub type Known = watch::Receiver<Arc<Vec<Candidate>>>;

/// Looks after the verdicts of a state directory.
pub struct Verdicts {
    pub config: watch::Receiver<Arc<Config>>,
    pub metrics: Arc<Metrics>,
    pub history: Arc<History>,
    pub inventory: Watch,
    pub board: Arc<Mutex<Board>>,
    /// The versions that places and instances name.
    pub named: Arc<Mutex<BTreeSet<String>>>,
    pub known: watch::Sender<Arc<Vec<Candidate>>>,
}

/// What tells a verdict from every other.
type Mark = (String, SystemTime);

impl Verdicts {
    /// Looks until it is told to stop.
    pub async fn watch(self, stop: CancellationToken) {
        let dir = self.config.borrow().state_dir.clone();
        let mut documents = recent(&dir);
        let (mut recorded, mut streak) = self.remembered(&documents).await;
        let mut measured = docket::Measured::default();
        let (mut stamps, mut round) = (None, 0);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = Some(stamps_of(&dir));
            let is_new = now != stamps;
            if is_new {
                stamps = now;
                documents = recent(&dir);
                for document in documents.iter().rev() {
                    self.take_in(document, &mut recorded, &mut streak);
                }
            }
            if is_new || round % MEASURE == 0 {
                let candidates = self.measure(&documents, &mut measured).await;
                self.export(&candidates, streak);
                self.known.send_if_modified(|known| {
                    let changed = **known != candidates;
                    *known = Arc::new(candidates);
                    changed
                });
            }
            round += 1;
        }
    }

    /// What the history holds already, and how many verdicts in a row it ends with that are no pass. Without a history
    /// what lies in the files is taken for known, so that nothing is recorded twice.
    async fn remembered(&self, documents: &[Arc<Document>]) -> (BTreeSet<Mark>, u64) {
        let filter = EventFilter { kind: Some(EventKind::Verdict), ..EventFilter::default() };
        match self.history.reader().events(filter).await {
            Ok(page) => {
                let is_pass = |event: &&Event| event.outcome == Verdict::Pass.as_str();
                let streak = page.rows.iter().take_while(|event| !is_pass(event)).count() as u64;
                (page.rows.into_iter().map(|event| (event.subject, event.at)).collect(), streak)
            }
            Err(error) => {
                tracing::warn!(%error, "the history of verdicts cannot be read; the streak of refusals is told from the files");
                let streak =
                    documents.iter().take_while(|document| document.verdict != Verdict::Pass).count();
                (documents.iter().map(|document| mark(document)).collect(), streak as u64)
            }
        }
    }

    fn take_in(&self, document: &Document, recorded: &mut BTreeSet<Mark>, streak: &mut u64) {
        let (version, at) = mark(document);
        if !recorded.insert((version.clone(), at)) {
            return;
        }
        *streak = if document.verdict == Verdict::Pass { 0 } else { *streak + 1 };
        self.metrics.verdicts.made(document.verdict);
        let (verdict, grounds, summary) = (document.verdict, document.grounds, &document.summary);
        match verdict {
            Verdict::Pass => tracing::info!(version, %grounds, summary, "a build has passed"),
            _ => tracing::warn!(version, %verdict, %grounds, summary, "a build has not passed"),
        }
        self.history.record_event(Event {
            at,
            user: None,
            kind: EventKind::Verdict,
            subject: version,
            outcome: verdict.to_string(),
            detail: serde_json::json!({
                "grounds": grounds,
                "summary": summary,
                "rollback": document.rollback,
                "control": document.control.version,
            }),
        });
    }

    /// Which of them are about the present situation: users as the inventory has them, databases as the probes saw them
    /// last.
    async fn measure(&self, documents: &[Arc<Document>], measured: &mut docket::Measured) -> Vec<Candidate> {
        let config = self.config.borrow().clone();
        let levels: HashMap<String, u32> = {
            let board = lock(&self.board);
            let level = |run: &crate::outcome::Run| run.facts.state.as_ref().map(|state| state.level);
            let of_user = |(user, standing): (&str, &crate::board::Standing)| {
                Some((user.to_owned(), standing.fact(level)?))
            };
            board.users().filter_map(of_user).collect()
        };
        let snapshot = self.inventory.snapshot();
        let targets = snapshot.inventory.targets().iter().map(|target| target.user.as_str().to_owned());
        let users: Vec<_> = targets.map(|user| (user.clone(), levels.get(&user).copied())).collect();
        // An inventory that cannot be read now was read once; one that never was names nobody.
        let users = match &snapshot.status {
            Status { loaded_at: None, error, .. } => {
                Err(error.clone().unwrap_or_else(|| "not read yet".to_owned()))
            }
            _ => Ok(users),
        };
        let mut candidates = Vec::new();
        for document in documents {
            let present =
                docket::situation(&config, &document.candidate.version, users.clone(), measured).await;
            let elsewhere = document.elsewhere(&present);
            candidates.push(Candidate { document: document.clone(), elsewhere });
        }
        candidates
    }

    fn export(&self, candidates: &[Candidate], streak: u64) {
        let named = lock(&self.named).clone();
        let matters = |(index, candidate): &(usize, &Candidate)| {
            *index < NEWEST || named.contains(&candidate.document.candidate.version)
        };
        let judged: Vec<_> =
            candidates.iter().enumerate().filter(matters).map(|(_, candidate)| exported(candidate)).collect();
        let refused = candidates.iter().find(|candidate| candidate.document.verdict != Verdict::Pass);
        self.metrics.verdicts.state(&judged, refused.map(|refused| refusal(&refused.document)).as_ref());
        self.metrics.verdicts.set_streak(streak);
    }
}

fn exported(candidate: &Candidate) -> Judged<'_> {
    let document = &candidate.document;
    let slowest = |rehearsal: &Rehearsal| {
        let took = document.seeds.iter().filter_map(|seed| Some(seed.of(*rehearsal)?.duration)).max();
        Some((*rehearsal, took?))
    };
    Judged {
        version: &document.candidate.version,
        verdict: document.verdict,
        grounds: document.grounds,
        rollback: document.rollback,
        holds: candidate.elsewhere.is_none(),
        made_at: document.made_at,
        expires_at: document.expires_at,
        rehearsals: Rehearsal::ALL.iter().filter_map(slowest).collect(),
    }
}

fn refusal(document: &Document) -> Refused<'_> {
    let decided = document.findings.first();
    Refused {
        version: &document.candidate.version,
        verdict: document.verdict,
        grounds: document.grounds,
        step: decided.map(|finding| finding.step),
        reason: decided.and_then(|finding| match finding.outcome {
            Outcome::Failed(reason) => Some(reason),
            Outcome::Ok | Outcome::Skipped(_) => None,
        }),
    }
}

/// A document is large where there are many users; everybody looks at the same.
fn recent(state_dir: &Path) -> Vec<Arc<Document>> {
    verdict::recent(state_dir, KEPT).into_iter().map(Arc::new).collect()
}

/// Which files there are, and when each was renamed into place.
fn stamps_of(state_dir: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(state_dir.join("verdicts")).into_iter().flatten().flatten();
    let stamp = |entry: std::fs::DirEntry| {
        let metadata = entry.metadata().ok()?;
        let path = entry.path();
        let is_verdict = path.extension().is_some_and(|extension| extension == "json");
        is_verdict.then_some((path, metadata.ino(), metadata.modified().ok()?))
    };
    let mut stamps: Vec<_> = entries.filter_map(stamp).collect();
    stamps.sort();
    stamps
}

/// The history keeps times to the millisecond.
fn mark(document: &Document) -> Mark {
    let since = document.made_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    (document.candidate.version.clone(), SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
}
