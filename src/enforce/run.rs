//! One run from its beginning to its end: what was left unfinished, what is wanted, the gate, the backups, the rollout.
//! Up to the journal it can be cut off anywhere; from then on only where the next run can go on.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::attempt::Task;
use super::canary::Why;
use super::candidate;
use super::freeze::Freeze;
use super::interrupt::Interrupt;
use super::journal::{Journal, Ledger, make};
use super::links::Links;
use super::moves::Moves;
use super::plan::{Found, Plan, Situation, Wanted, plan};
use super::progress::Progress;
use super::proof::Prover;
use super::rollout::Rollout;
use super::standing::Standing;
use super::{Report, Request, Stop, dir};
use crate::backup;
use crate::backup::service::is_our_ancestor;
use crate::config::Config;
use crate::inventory::{self, Target};
use crate::outcome::{Deferral, End, Failure, Hold, Reason, Stage};
use crate::probe::instance_of;
use crate::t3::version::Version;

/// How often somebody who is busy is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Where no verdict says how long: as for a build of which nothing is known.
pub const SOAK: Duration = Duration::from_secs(600);

/// One run.
pub struct Run<'a> {
    pub request: &'a Request,
    pub config: &'a Config,
    /// The configuration's file, for programs that are started; `None` where there is none.
    pub config_file: Option<&'a Path>,
    pub targets: Vec<Target>,
    pub moves: Moves<'a>,
    freeze: Freeze,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// Makes a run of a task, or says why none can be made.
pub fn prepared<'a>(task: &Task<'a>) -> Result<Run<'a>, Stop> {
    let Task { request, config, config_file, say, interrupt, progress } = *task;
    let unreadable = |detail: String| Stop::Failed(Failure::new(Reason::Unreadable, detail));
    let inventory = inventory::read_once(&config.inventory)
        .map_err(|error| unreadable(format!("cannot read the inventory: {error}")))?;
    let targets = in_order(inventory.targets(), &config.enforce.canaries);
    for user in &request.except {
        if inventory.by_user(user).is_none() {
            return Err(unreadable(format!("no user '{user}' in the inventory, named with --except")));
        }
    }
    if let Some(why) = Prover::cannot(config, &targets) {
        return Err(Stop::Failed(Failure::new(Reason::Helper, format!("no login could be proven: {why}"))));
    }
    if let Some(inside) = targets.iter().find(|target| is_our_ancestor(&instance_of(target))) {
        return Err(Stop::Held(
            Hold::Inside,
            format!(
                "this runs inside the instance of {}, which it would stop; run it from outside: systemd-run --pipe {}",
                inside.user,
                command_line(request, config_file)
            ),
        ));
    }
    let service = backup::Section {
        stop_command: config.enforce.stop_command.clone(),
        start_command: config.enforce.start_command.clone(),
        ..config.backup.clone()
    };
    let moves = Moves {
        config,
        service,
        links: Links::new(&config.t3.installs, config.pins.last_good.as_deref()),
        prover: Prover::new(config, &targets)?,
        access: config.helper.access(&config.t3, &config.state_dir),
        forward_fix: request.forward_fix,
        interrupt,
        say,
    };
    Ok(Run {
        interrupt,
        progress,
        request,
        config,
        config_file,
        freeze: Freeze::new(&dir(&config.state_dir)),
        targets,
        moves,
        say,
    })
}

/// The canaries first, in the order in which they are configured.
fn in_order(targets: &[Target], canaries: &[String]) -> Vec<Target> {
    let rank = |target: &Target| {
        canaries.iter().position(|canary| canary == target.user.as_str()).unwrap_or(canaries.len())
    };
    let mut targets = targets.to_vec();
    targets.sort_by_key(rank);
    targets
}

/// The command that does the same.
fn command_line(request: &Request, config_file: Option<&Path>) -> String {
    let mut line = "t3-prober".to_owned();
    if let Some(file) = config_file {
        line.push_str(&format!(" --config {}", file.display()));
    }
    line.push_str(" enforce");
    if let Some(version) = &request.to {
        line.push_str(&format!(" --to {version}"));
    }
    for (flag, given) in [
        ("--drain", request.drain),
        ("--forward-fix", request.forward_fix),
        ("--back", request.back),
        ("--dry-run", request.dry_run),
    ] {
        if given {
            line.push_str(&format!(" {flag}"));
        }
    }
    for user in &request.except {
        line.push_str(&format!(" --except {user}"));
    }
    if !request.wait.is_zero() {
        line.push_str(&format!(
            " --wait {}",
            humantime::format_duration(request.wait).to_string().replace(' ', "")
        ));
    }
    line
}

/// What has to be done, once it is known.
enum Work {
    Nothing(Report),
    Move(Plan, Duration),
}

impl Run<'_> {
    pub async fn to_the_end(&self) -> Report {
        let began = Instant::now();
        loop {
            let mut target = None;
            let mut report = match self.once(&mut target).await {
                Ok(report) => report,
                Err(stop) => self.stopped(stop, target),
            };
            let busy = report.deferred.iter().any(|deferred| deferred.why == Deferral::Busy);
            let waits =
                matches!(report.end, End::Done | End::NothingToDo) || report.hold == Some(Hold::NobodyIdle);
            if !waits || !busy || self.request.dry_run || began.elapsed() + LOOK_AGAIN > self.request.wait {
                return report;
            }
            self.progress.at(Stage::Waiting);
            tokio::select! {
                () = sleep(LOOK_AGAIN) => {}
                () = self.interrupt.wait() => {
                    report.detail.push_str("; told to stop, so nobody is waited for any longer");
                    return report;
                }
            }
        }
    }

    /// What is no fault of ours any more once somebody wants it stopped.
    fn stopped(&self, stop: Stop, target: Option<Version>) -> Report {
        let Some(signal) = self.interrupt.told() else { return Report::stopped(stop, target) };
        let told = format!("told to stop ({signal}) while {}", self.progress.read().stage.doing());
        match stop {
            Stop::Interrupted => Report::interrupted(told, target),
            Stop::Failed(failure) => Report::interrupted(format!("{told}: {failure}"), target),
            held @ Stop::Held(..) => Report::stopped(held, target),
        }
    }

    async fn once(&self, target: &mut Option<Version>) -> Result<Report, Stop> {
        let dir = dir(&self.config.state_dir);
        self.progress.at(Stage::Looking);
        let found = Ledger::find(&dir).map_err(|error| {
            let detail = format!(
                "cannot read {}: {error}; what an earlier run left unfinished is in it",
                dir.join("journal.json").display()
            );
            Failure::new(Reason::Unreadable, detail)
        })?;
        if let Some(ledger) = found {
            *target = Some(ledger.read().target);
            self.progress.to(&ledger.read().target);
            if self.request.dry_run {
                return Ok(self.told_unfinished(&ledger.read()));
            }
            return self.finish(ledger).await;
        }
        let work = tokio::select! {
            biased;
            () = self.interrupt.wait() => return Err(Stop::Interrupted),
            work = self.work(target) => work?,
        };
        let (plan, soak) = match work {
            Work::Nothing(report) => return Ok(report),
            Work::Move(plan, soak) => (plan, soak),
        };
        make(&dir).map_err(|error| unwritable(&dir, &error))?;
        let mut journal = Journal::new(plan.target.clone(), soak, SystemTime::now());
        let excepted = plan.deferred.iter().filter(|deferred| deferred.why == Deferral::Excepted);
        journal.except = excepted.map(|deferred| deferred.user.clone()).collect();
        let ledger = Ledger::begin(&dir, journal).map_err(|error| unwritable(&dir, &error))?;
        let who: Vec<_> = plan.queue.iter().chain(&plan.stopped).map(|(user, _)| user.as_str()).collect();
        (self.say)(&format!("to be moved to t3 {}: {}", plan.target, who.join(", ")));
        self.rollout().forward(ledger, plan).await
    }

    /// Everything before the first user is touched.
    async fn work(&self, target: &mut Option<Version>) -> Result<Work, Stop> {
        if self.request.back {
            let detail = "no rollout is under way, so nobody is brought back; one user's copy is put back by t3-prober backup restore";
            return Err(Stop::Held(Hold::NothingUnderWay, detail.to_owned()));
        }
        if let Some(why) = self.freeze.reason() {
            let file = self.freeze.file().display();
            return Err(Stop::Held(
                Hold::Frozen,
                format!("frozen: {why}; remove {file} when it is understood"),
            ));
        }
        let wanted = self.wanted().await?;
        *target = Some(wanted.version().clone());
        self.progress.to(wanted.version());
        let users = self.found().await;
        let plan = self.planned(&wanted, &users)?;
        if self.request.dry_run {
            return Ok(Work::Nothing(self.told(&wanted, &plan, &users)));
        }
        if plan.finds_nobody_idle() {
            return Ok(Work::Nothing(Report::nobody_idle(plan.target, plan.deferred)));
        }
        for (user, version) in &plan.adopt {
            self.link(user, version)?;
        }
        for user in &plan.settle {
            self.link(user, &plan.target)?;
        }
        if plan.queue.is_empty() && plan.stopped.is_empty() {
            return self.nothing_to_do(&plan).map(Work::Nothing);
        }
        let last_good = self.moves.links.last_good();
        let proven = last_good.as_ref() == Some(&plan.target);
        let known_good =
            last_good.or_else(|| plan.queue.first().or(plan.stopped.first()).map(|(_, from)| from.clone()));
        let mut soak = self.config.enforce.soak.unwrap_or(SOAK);
        if !proven && let Some(known_good) = known_good {
            self.progress.at(Stage::Judging);
            soak = self.accept(&plan, &known_good).await?;
        }
        self.progress.at(Stage::Installing);
        candidate::install(self.config, &self.moves.links, &plan.target).await?;
        self.is_the_one_that_passed(&plan.target, proven).await?;
        self.progress.at(Stage::BackingUp);
        self.back_up(&plan).await?;
        Ok(Work::Move(plan, soak))
    }

    fn rollout(&self) -> Rollout<'_> {
        let Self { moves, targets, freeze, interrupt, progress, say, .. } = self;
        Rollout { moves, targets, freeze, interrupt, progress, say: *say }
    }

    /// Brings to an end what an earlier run left in the middle.
    async fn finish(&self, ledger: Ledger) -> Result<Report, Stop> {
        let journal = ledger.read();
        let rollout = self.rollout();
        if let Some(why) = journal.back {
            (self.say)("an earlier run was going back; it is carried on");
            return Ok(rollout.back(ledger, why).await);
        }
        if self.request.back {
            let detail = "an operator asked for it".to_owned();
            let why = Why { user: String::new(), step: None, reason: "operator".to_owned(), detail };
            return Ok(rollout.back(ledger, why).await);
        }
        (self.say)(&format!("an earlier run was moving users to t3 {}; it is carried on", journal.target));
        let mut deferred = Vec::new();
        if let Some(report) = rollout.settle(&ledger, &mut deferred).await? {
            return Ok(report.end(ledger, &rollout).await);
        }
        if let Some(why) = self.freeze.reason() {
            let detail =
                format!("frozen in the middle of a rollout: {why}; everybody runs, nobody else is moved");
            return Err(Stop::Held(Hold::Frozen, detail));
        }
        let users = self.found().await;
        let users: Vec<_> = users
            .into_iter()
            .filter(|found| !journal.moves.iter().any(|entry| entry.user == found.user))
            .collect();
        let wanted = Wanted::Pinned(journal.target);
        let installed = self.moves.links.builds();
        let mut except = self.request.except.clone();
        except.extend(journal.except);
        let situation = self.situation(&wanted, None, None, &users, &installed);
        let mut plan = Plan::of(&Situation { except: &except, ..situation });
        plan.deferred.extend(deferred);
        rollout.forward(ledger, plan).await
    }

    /// After a defect of our own; answers a line for each who had to be started, or could not be.
    pub async fn keep_up(&self, ledger: &Ledger) -> Vec<String> {
        let mut lines = Vec::new();
        for target in &self.targets {
            match self.moves.keep_up(ledger, target).await {
                Ok(false) => {}
                Ok(true) => lines.push(format!("{} was down and was started", target.user)),
                Err(failure) => lines.push(format!("{} is down: {failure}", target.user)),
            }
        }
        lines
    }

    async fn wanted(&self) -> Result<Wanted, Stop> {
        if let Some(version) = &self.request.to {
            return Ok(Wanted::Pinned(version.clone()));
        }
        if self.request.drain {
            let good = self.moves.links.default().or_else(|| self.moves.links.last_good());
            return good.map(Wanted::Drained).ok_or_else(|| {
                Stop::Held(
                    Hold::NoTarget,
                    "no build is proven here yet, so nobody was left behind".to_owned(),
                )
            });
        }
        let pinned = self.config.pins.pinned();
        let pinned = pinned
            .map_err(|why| Failure::new(Reason::Unreadable, format!("the pin cannot be told: {why}")))?;
        if let Some(version) = pinned {
            return Ok(Wanted::Pinned(version));
        }
        let Some(tag) = &self.config.enforce.track else {
            let detail = "nothing is wanted: set `[pins]` or `[enforce] track`, or name a version with --to";
            return Err(Stop::Held(Hold::NoTarget, detail.to_owned()));
        };
        let version = candidate::tracked(&self.config.enforce, tag).await?;
        Ok(Wanted::Tracked(tag.clone(), version))
    }

    /// Everybody as they are now.
    async fn found(&self) -> Vec<Found> {
        let look = |target| async move {
            let (running, pulse) = self.moves.prover.look(target).await;
            let presence = self.moves.presence(target, &pulse).await;
            let user = target.user.to_string();
            Found { linked: self.moves.links.of(&user), user, running, presence }
        };
        futures_util::future::join_all(self.targets.iter().map(look)).await
    }

    fn situation<'s>(
        &'s self,
        wanted: &'s Wanted,
        last_good: Option<&'s Version>,
        broke_before: Option<&'s str>,
        users: &'s [Found],
        installed: &'s [Version],
    ) -> Situation<'s> {
        Situation { wanted, last_good, broke_before, users, except: &self.request.except, installed }
    }

    fn planned(&self, wanted: &Wanted, users: &[Found]) -> Result<Plan, Stop> {
        let last_good = self.moves.links.last_good();
        let broke = self.freeze.broke(wanted.version()).filter(|_| self.request.to.is_none());
        let mut except = self.request.except.clone();
        if self.request.drain {
            // Who was left behind by name stays so until a run without --drain.
            let standing = Standing::load(&dir(&self.config.state_dir));
            let excepted = standing.deferred.into_iter().filter(|it| it.why == Deferral::Excepted);
            except.extend(excepted.map(|it| it.user));
        }
        let installed = self.moves.links.builds();
        let situation = self.situation(wanted, last_good.as_ref(), broke.as_deref(), users, &installed);
        plan(&Situation { except: &except, ..situation }).map_err(|(hold, detail)| Stop::Held(hold, detail))
    }

    fn link(&self, user: &str, version: &Version) -> Result<(), Failure> {
        self.moves.links.set(user, version).map_err(|error| {
            Failure::new(Reason::Unreadable, format!("cannot change the link of {user}: {error}"))
        })
    }

    fn nothing_to_do(&self, plan: &Plan) -> Result<Report, Stop> {
        if plan.deferred.is_empty() {
            self.rollout().promote(&plan.target)?;
        }
        let stays: Vec<_> = plan.deferred.iter().map(|deferred| format!("; {deferred}")).collect();
        Ok(Report {
            end: End::NothingToDo,
            hold: None,
            target: Some(plan.target.clone()),
            detail: format!("nothing to do: everybody is on t3 {}{}", plan.target, stays.concat()),
            moved: Vec::new(),
            deferred: plan.deferred.clone(),
        })
    }
}

fn unwritable(dir: &Path, error: &std::io::Error) -> Failure {
    let reason = match error.kind() {
        std::io::ErrorKind::StorageFull => Reason::NoSpace,
        _ => Reason::Unreadable,
    };
    Failure::new(reason, format!("nothing was changed: cannot write in {}: {error}", dir.display()))
}
