//! From the lock to the end that is told: done, held, failed, told to stop, broken by a defect of our own. A run that
//! could not say how it ended is found out by the next one, which says it first.

use std::any::Any;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::interrupt::{BY_HAND, Interrupt, Signals};
use super::journal::Ledger;
use super::progress::Progress;
use super::report::{count, left, tell};
use super::run::prepared;
use super::standing::Standing;
use super::{Report, Request, Stop, dir, lock};
use crate::config::Config;
use crate::outcome::{End, Failure, Hold, Reason};

/// What a run is made of.
pub struct Task<'a> {
    pub request: &'a Request,
    pub config: &'a Config,
    /// The configuration's file, for programs that are started; `None` where there is none.
    pub config_file: Option<&'a Path>,
    pub say: &'a (dyn Fn(&str) + Sync),
    pub interrupt: &'a Interrupt,
    pub progress: &'a Progress,
}

/// How the work came to its end.
enum Ended {
    Said(Report),
    /// Told to stop twice by hand.
    AtOnce,
    Panicked(Box<dyn Any + Send>),
}

/// Tells of a run that came to its end before it began.
pub fn never_began(detail: String, state: &Path) {
    let failure = Failure::new(Reason::Unreadable, detail);
    count(&Report::stopped(Stop::Failed(failure), None), state, Duration::ZERO);
}

/// Runs the enforcer. `say` is told a line for a person whenever something was done.
pub async fn run(
    request: &Request,
    config: &Config,
    config_file: Option<&Path>,
    say: &(dyn Fn(&str) + Sync),
) -> Report {
    let (began, interrupt, state) = (Instant::now(), Interrupt::default(), &config.state_dir);
    let dir = dir(state);
    // From here on no signal ends it without a word.
    let signals = Signals::listen();
    if request.dry_run {
        let progress = Progress::begin(None, SystemTime::now());
        return Task { request, config, config_file, say, interrupt: &interrupt, progress: &progress }
            .whatever_happens(signals)
            .await;
    }
    let _lock = match claim(state) {
        Ok(lock) => lock,
        Err(stop) => {
            let report = Report::stopped(stop, None);
            let another = report.hold == Some(Hold::AnotherAtWork);
            let told = if another { count } else { tell };
            told(&report, state, began.elapsed());
            return report;
        }
    };
    find_out_about_the_last(state, say);
    let progress = Progress::begin(Some(&dir), SystemTime::now());
    let task = Task { request, config, config_file, say, interrupt: &interrupt, progress: &progress };
    let report = task.whatever_happens(signals).await;
    tell(&report, state, began.elapsed());
    report
}

fn claim(state: &Path) -> Result<lock::Lock, Stop> {
    match lock::claim(state) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => {
            let detail = match Standing::load(&dir(state)).at_work {
                Some(at_work) => format!(
                    "another enforcer or a restore is at work; the enforcer's last word, at {}, was that it is {}; it holds the lock as long as it lives",
                    humantime::format_rfc3339_seconds(at_work.since),
                    at_work.stage.doing()
                ),
                None => "another enforcer or a restore is at work; it holds the lock as long as it lives"
                    .to_owned(),
            };
            Err(Stop::Held(Hold::AnotherAtWork, detail))
        }
        Err(error) => {
            let dir = dir(state);
            let detail = format!("cannot work in {}: {error}", dir.display());
            Err(Stop::Failed(Failure::new(Reason::Unreadable, detail)))
        }
    }
}

/// Whoever has the lock is alone: a run that is still at work by its own word is dead.
fn find_out_about_the_last(state: &Path, say: &(dyn Fn(&str) + Sync)) {
    let dir = dir(state);
    let Some(at_work) = Standing::load(&dir).at_work else { return };
    let lasted = at_work.since.duration_since(at_work.began).unwrap_or_default();
    let (mut detail, mut moved) = (at_work.epitaph(), Vec::new());
    if let Ok(Some(ledger)) = Ledger::find(&dir) {
        let journal = ledger.read();
        detail = format!("{detail}; {}", left(&journal));
        moved.extend(journal.moves.into_iter().map(|entry| entry.user));
    }
    let lost =
        Report { end: End::Killed, hold: None, target: at_work.target, detail, moved, deferred: Vec::new() };
    say(&format!("{} [{}]", lost.detail, lost.end));
    tell(&lost, state, lasted);
}

impl Task<'_> {
    async fn whatever_happens(&self, signals: io::Result<Signals>) -> Report {
        let signals = match signals {
            Ok(signals) => signals,
            Err(error) => {
                let detail = format!("cannot listen for signals: {error}");
                return Report::stopped(Stop::Failed(Failure::new(Reason::Unreadable, detail)), None);
            }
        };
        let mut report = match self.ended(signals).await {
            Ended::Said(report) => report,
            Ended::AtOnce => {
                let doing = self.progress.read().stage.doing();
                let detail = format!("told to stop twice ({BY_HAND}) while {doing}: it stopped at once");
                Report::interrupted(detail, self.progress.read().target)
            }
            Ended::Panicked(payload) => {
                let detail = format!(
                    "a defect of this program while {}: {}; keep its log, and report it",
                    self.progress.read().stage.doing(),
                    said(payload.as_ref())
                );
                let stop = Stop::Failed(Failure::new(Reason::Panicked, detail));
                let mut report = Report::stopped(stop, self.progress.read().target);
                report.detail.push_str(&self.kept_up().await);
                report
            }
        };
        if !self.request.dry_run && matches!(report.end, End::Error | End::Interrupted) {
            self.add_what_is_left(&mut report);
        }
        report
    }

    async fn ended(&self, mut signals: Signals) -> Ended {
        let work = async {
            match prepared(self) {
                Err(stop) => Report::stopped(stop, None),
                Ok(run) => {
                    let report = Box::pin(run.to_the_end()).await;
                    run.moves.prover.leave(&run.targets).await;
                    report
                }
            }
        };
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        loop {
            tokio::select! {
                // A failure that comes together with the signal is one of the signal.
                biased;
                signal = signals.next() => {
                    if self.interrupt.tell(signal) {
                        (self.say)(&format!("told to stop ({signal}): what is in hand is finished, nothing more is begun"));
                    } else if signal == BY_HAND {
                        return Ended::AtOnce;
                    }
                }
                ended = &mut work => return ended.map_or_else(Ended::Panicked, Ended::Said),
            }
        }
    }

    /// After a defect: whoever ran before runs again. Answers what there is to say about it.
    async fn kept_up(&self) -> String {
        let (true, Ok(Some(ledger))) = (!self.request.dry_run, Ledger::find(&dir(&self.config.state_dir)))
        else {
            return String::new();
        };
        let work = async {
            match prepared(self) {
                Err(_) => vec!["whoever is down could not be started again".to_owned()],
                Ok(run) => run.keep_up(&ledger).await,
            }
        };
        let lines = AssertUnwindSafe(work).catch_unwind().await;
        let lines = lines.unwrap_or_else(|payload| {
            vec![format!("starting who is down failed: {}", said(payload.as_ref()))]
        });
        lines.iter().map(|line| format!("; {line}")).collect()
    }

    fn add_what_is_left(&self, report: &mut Report) {
        match Ledger::find(&dir(&self.config.state_dir)) {
            Ok(Some(ledger)) => {
                let journal = ledger.read();
                report.detail.push_str(&format!("; {}", left(&journal)));
                report.target = Some(journal.target);
                report.moved = journal.moves.into_iter().map(|entry| entry.user).collect();
            }
            Ok(None) => {
                report.detail.push_str("; no rollout is under way");
            }
            Err(_) => {}
        }
    }
}

/// What a panic said.
fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it did not say what").to_owned()
}
