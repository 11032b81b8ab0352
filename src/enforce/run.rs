//! One run from its beginning to its end: the lock, what was left unfinished, what is wanted, the gate, the backups, the
//! rollout; and whatever the end is, it is told.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::candidate;
use super::freeze::Freeze;
use super::journal::{Journal, Ledger, make};
use super::links::Links;
use super::moves::Moves;
use super::plan::{Found, Plan, Situation, Wanted, plan};
use super::proof::Prover;
use super::report::{count, tell};
use super::rollout::Rollout;
use super::standing::Standing;
use super::{Report, Request, Stop, dir, lock};
use crate::backup;
use crate::backup::service::is_our_ancestor;
use crate::config::Config;
use crate::inventory::{self, Target};
use crate::outcome::{Deferral, End, Failure, Hold, Reason, Rollback, Verdict};
use crate::probe::instance_of;
use crate::t3::state::stamp::Sizes;
use crate::t3::version::Version;
use crate::verdict;

/// How often somebody who is busy is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Where no verdict says how long: as for a build of which nothing is known.
pub const SOAK: Duration = Duration::from_secs(600);

/// One run.
pub struct Run<'a> {
    request: &'a Request,
    pub config: &'a Config,
    /// The configuration's file, for programs that are started; `None` where there is none.
    config_file: Option<&'a Path>,
    pub targets: Vec<Target>,
    pub moves: Moves<'a>,
    freeze: Freeze,
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// Runs the enforcer. `say` is told a line for a person whenever something was done.
pub async fn run(
    request: &Request,
    config: &Config,
    config_file: Option<&Path>,
    say: &(dyn Fn(&str) + Sync),
) -> Report {
    let began = Instant::now();
    let state = &config.state_dir;
    let lock = if request.dry_run { Ok(None) } else { claim(state) };
    let (report, ours) = match lock {
        Err(stop) => {
            let ours = matches!(stop, Stop::Failed(_));
            (Report::stopped(stop, None), ours)
        }
        Ok(_lock) => match prepared(request, config, config_file, say) {
            Err(stop) => (Report::stopped(stop, None), true),
            Ok(run) => {
                let report = Box::pin(run.to_the_end()).await;
                run.moves.prover.leave(&run.targets).await;
                (report, true)
            }
        },
    };
    match (request.dry_run, ours) {
        (true, _) => {}
        (false, true) => tell(&report, state, began.elapsed()),
        (false, false) => count(&report, state, began.elapsed()),
    }
    report
}

fn claim(state: &Path) -> Result<Option<lock::Lock>, Stop> {
    let detail = "another enforcer or a restore is at work; it holds the lock as long as it lives";
    match lock::claim(state) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Stop::Held(Hold::AnotherAtWork, detail.to_owned())),
        Err(error) => {
            let dir = dir(state);
            let detail = format!("cannot work in {}: {error}", dir.display());
            Err(Stop::Failed(Failure::new(Reason::Unreadable, detail)))
        }
    }
}

fn prepared<'a>(
    request: &'a Request,
    config: &'a Config,
    config_file: Option<&'a Path>,
    say: &'a (dyn Fn(&str) + Sync),
) -> Result<Run<'a>, Stop> {
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
        say,
    };
    Ok(Run {
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
    for (flag, given) in
        [("--drain", request.drain), ("--forward-fix", request.forward_fix), ("--dry-run", request.dry_run)]
    {
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

impl Run<'_> {
    async fn to_the_end(&self) -> Report {
        let patience = Instant::now() + self.request.wait;
        loop {
            let mut target = None;
            let report = self.once(&mut target).await.unwrap_or_else(|stop| Report::stopped(stop, target));
            let busy = report.deferred.iter().any(|deferred| deferred.why == Deferral::Busy);
            let waits = report.end == End::Done
                || report.end == End::NothingToDo
                || report.hold == Some(Hold::NobodyIdle);
            if !waits || !busy || self.request.dry_run || Instant::now() + LOOK_AGAIN > patience {
                return report;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn once(&self, target: &mut Option<Version>) -> Result<Report, Stop> {
        let dir = dir(&self.config.state_dir);
        let found = Ledger::find(&dir).map_err(|error| {
            let detail = format!(
                "cannot read {}: {error}; what an earlier run left unfinished is in it",
                dir.join("journal.json").display()
            );
            Failure::new(Reason::Unreadable, detail)
        })?;
        if let Some(ledger) = found {
            *target = Some(ledger.read().target);
            if self.request.dry_run {
                return Ok(self.told_unfinished(&ledger.read()));
            }
            return self.finish(ledger).await;
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
        let users = self.found().await;
        let plan = self.planned(&wanted, &users)?;
        if self.request.dry_run {
            return Ok(self.told(&wanted, &plan, &users));
        }
        for (user, version) in &plan.adopt {
            self.link(user, version)?;
        }
        for user in &plan.settle {
            self.link(user, &plan.target)?;
        }
        if plan.queue.is_empty() && plan.stopped.is_empty() {
            return self.nothing_to_do(&plan);
        }
        let last_good = self.moves.links.last_good();
        let proven = last_good.as_ref() == Some(&plan.target);
        let known_good =
            last_good.or_else(|| plan.queue.first().or(plan.stopped.first()).map(|(_, from)| from.clone()));
        let mut soak = self.config.enforce.soak.unwrap_or(SOAK);
        if !proven && let Some(known_good) = known_good {
            soak = self.accept(&plan, &known_good).await?;
        }
        candidate::install(self.config, &self.moves.links, &plan.target).await?;
        self.is_the_one_that_passed(&plan.target, proven).await?;
        self.back_up(&plan).await?;
        make(&dir).map_err(|error| unwritable(&dir, &error))?;
        let journal = Journal::new(plan.target.clone(), soak, SystemTime::now());
        let ledger = Ledger::begin(&dir, journal).map_err(|error| unwritable(&dir, &error))?;
        (self.say)(&format!("moving {} users to t3 {}", plan.queue.len() + plan.stopped.len(), plan.target));
        self.rollout().forward(ledger, plan).await
    }

    fn rollout(&self) -> Rollout<'_> {
        Rollout { moves: &self.moves, targets: &self.targets, freeze: &self.freeze, say: self.say }
    }

    /// Brings to an end what an earlier run left in the middle.
    async fn finish(&self, ledger: Ledger) -> Result<Report, Stop> {
        let journal = ledger.read();
        let rollout = self.rollout();
        if let Some(why) = journal.back {
            (self.say)("an earlier run was going back; it is carried on");
            return Ok(rollout.back(ledger, why).await);
        }
        (self.say)(&format!("an earlier run was moving users to t3 {}; it is carried on", journal.target));
        if let Some(report) = rollout.settle(&ledger).await? {
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
        let plan = Plan::of(&self.situation(&wanted, None, None, &users, &installed));
        rollout.forward(ledger, plan).await
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

    /// The verdict; answers for how long the build is watched.
    async fn accept(&self, plan: &Plan, known_good: &Version) -> Result<Duration, Stop> {
        let section = &self.config.enforce;
        candidate::judge(self.config, self.config_file, &plan.target, known_good, self.say).await?;
        let document = self.document(&plan.target);
        if let Some(document) = &document
            && document.rollback == Some(Rollback::Unsafe)
            && !self.request.forward_fix
        {
            let detail = format!(
                "{}; there would be no way back, so it is installed with --forward-fix only",
                document.summary
            );
            return Err(Stop::Held(Hold::NoWayBack, detail));
        }
        let soak = section.soak.or(document.map(|document| document.soak));
        Ok(soak.unwrap_or(SOAK))
    }

    /// The verdict's document; a gate of somebody else's need not write one.
    pub fn document(&self, version: &Version) -> Option<verdict::Document> {
        let document = verdict::load(&self.config.state_dir, &version.to_string()).ok()?;
        (document.verdict == Verdict::Pass).then_some(document)
    }

    /// A verdict is about certain bytes and no others.
    async fn is_the_one_that_passed(&self, version: &Version, proven: bool) -> Result<(), Stop> {
        let Some(document) = self.document(version).filter(|_| !proven) else { return Ok(()) };
        let program = self.moves.links.build(version).join("bin/t3");
        let unreadable = |error: std::io::Error| {
            Failure::new(Reason::Unreadable, format!("cannot read {}: {error}", program.display()))
        };
        let located = crate::gate::candidate::Located::at(&program).map_err(unreadable)?;
        let integrity = located.integrity().await.map_err(unreadable)?;
        if document.candidate.integrity.is_empty() || integrity == document.candidate.integrity {
            return Ok(());
        }
        let detail = format!(
            "the installed t3 {version} is {}, the gate let {} pass; run the gate again",
            integrity, document.candidate.integrity
        );
        Err(Stop::Held(Hold::OtherBuild, detail))
    }

    /// Everybody's state, before anything is touched, and the room that going back would need.
    async fn back_up(&self, plan: &Plan) -> Result<(), Stop> {
        let moved = |target: &&Target| {
            plan.queue.iter().chain(&plan.stopped).any(|(user, _)| user == target.user.as_str())
        };
        for target in self.targets.iter().filter(moved) {
            has_room(target)?;
        }
        for target in &self.targets {
            let instance = instance_of(target);
            if !instance.database().exists() {
                continue;
            }
            let version = self.moves.links.of(target.user.as_str());
            let snapshot = self.moves.copy(target, version.as_ref()).await.map_err(|failure| {
                let detail = format!("nothing was changed: no backup of {}: {}", target.user, failure.detail);
                Failure::new(failure.reason, detail)
            })?;
            (self.say)(&format!("{}: backed up as {}", target.user, snapshot.name()));
        }
        Ok(())
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

/// Going back needs room for a copy beside the database: better found out before than then.
fn has_room(target: &Target) -> Result<(), Failure> {
    let database = instance_of(target).database();
    let Some(dir) = database.parent().filter(|dir| dir.is_dir()) else { return Ok(()) };
    let Ok(system) = nix::sys::statvfs::statvfs(dir) else { return Ok(()) };
    let (free, needed) =
        (system.blocks_available() * system.fragment_size(), 2 * Sizes::of(&database).total());
    if free >= needed {
        return Ok(());
    }
    let detail = format!(
        "nothing was changed: {} has {free} bytes free, bringing {} back would need {needed}",
        dir.display(),
        target.user
    );
    Err(Failure::new(Reason::NoSpace, detail))
}

fn unwritable(dir: &Path, error: &std::io::Error) -> Failure {
    let reason = match error.kind() {
        std::io::ErrorKind::StorageFull => Reason::NoSpace,
        _ => Reason::Unreadable,
    };
    Failure::new(reason, format!("nothing was changed: cannot write in {}: {error}", dir.display()))
}
