//! The rehearsals on one seed: control and candidate, and where both are well, whether there is a way back and what
//! happens in between. All chains of a run share a stage: the builds, the place, and how much may go on at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::Section;
use super::candidate::Located;
use super::evidence::{Chained, Rehearsed, SeedEvidence, Trouble};
use super::hands::{Account, Hands};
use super::place::{self, Place};
use super::rehearsal::{self, Orders, Patience};
use super::seed::Source;
use crate::outcome::{Grounds, Rehearsal};
use crate::t3::boxed::Boxes;
use crate::t3::job::{Job, Limits};

/// Beside the database a rehearsal holds its WAL and what t3 writes of its own.
const ROOM_BESIDES: u64 = 64 << 20;
/// Less than this is a full file system, whatever is to be kept free.
const SCANT: u64 = 4 << 20;
/// Copies of one seed that exist at once: control, candidate and skew.
const COPIES: u64 = 3;

/// What all rehearsals of one run share.
pub struct Stage<'a> {
    section: &'a Section,
    boxes: Option<Boxes>,
    program: PathBuf,
    place: Place,
    candidate: Located,
    control: Located,
    at_once: usize,
    turns: Semaphore,
    done: AtomicUsize,
    due: AtomicUsize,
    clock: Instant,
}

type Progress<'a> = &'a (dyn Fn(&str) + Sync);

impl<'a> Stage<'a> {
    pub fn new(
        section: &'a Section,
        boxes: Option<Boxes>,
        program: PathBuf,
        place: Place,
        candidate: Located,
        control: Located,
    ) -> Self {
        let at_once = section.at_once();
        let turns = Semaphore::new(at_once);
        let (done, due, clock) =
            (AtomicUsize::new(0), AtomicUsize::new(Rehearsal::ALL.len()), Instant::now());
        Self { section, boxes, program, place, candidate, control, at_once, turns, done, due, clock }
    }

    /// So many seeds there are.
    pub fn expect(&self, seeds: usize) {
        self.due.store(seeds * Rehearsal::ALL.len(), Ordering::Relaxed);
    }

    /// Whether the file system has room for the copies; a rehearsal that ran into its end would look like a bad build.
    pub fn has_room_for<'s>(
        &self,
        sources: impl IntoIterator<Item = &'s Source>,
    ) -> Result<(), (Grounds, String)> {
        let sizes: Vec<u64> = sources.into_iter().map(|source| source.seed.bytes).collect();
        let free = self.place.free();
        let free = free.map_err(|error| (Grounds::NoSpace, format!("cannot tell what is free: {error}")))?;
        let together = sizes.len().min(self.at_once) as u64;
        let largest = sizes.iter().max().copied().unwrap_or_default();
        let needed = together * COPIES * (2 * largest + ROOM_BESIDES) + (self.section.keep_free_mib << 20);
        if free >= needed {
            return Ok(());
        }
        let (free, needed, dir) = (free >> 20, needed >> 20, self.place.dir().display());
        let detail = format!(
            "{dir} has {free} MiB free, the copies need {needed} MiB; make room or set `[gate] keep_free_mib`"
        );
        Err((Grounds::NoSpace, detail))
    }

    /// Whether the file system has become too full meanwhile to tell why a build failed on it.
    fn is_short(&self) -> Option<String> {
        let (dir, left) = (self.place.dir().display(), self.place.free());
        let left = left.map_err(|error| format!("cannot tell what is free in {dir}: {error}"));
        let short = |free: u64| free < (self.section.keep_free_mib << 20).max(SCANT);
        match left {
            Ok(free) if short(free) => {
                let free = free >> 20;
                Some(format!("it failed while {dir} had {free} MiB free; make room, and run the gate again"))
            }
            Ok(_) => None,
            Err(why) => Some(why),
        }
    }

    pub async fn chain<H: Hands>(
        &self,
        index: usize,
        source: &Source,
        hands: &H,
        progress: Progress<'_>,
    ) -> Chained {
        let name = &source.seed.name;
        let hold = if source.file.is_none() { self.section.hold } else { Duration::ZERO };
        let (mut rehearsals, mut trouble) = (Vec::new(), Vec::new());
        let mut keep = |result: Result<Rehearsed, Trouble>| match result {
            Ok(rehearsed) => {
                let passed = rehearsed.passed();
                rehearsals.push(rehearsed);
                passed
            }
            Err(why) => {
                trouble.push(why);
                false
            }
        };
        let room = |which: &str| self.place.dir().join(format!("{index}-{which}"));
        let rehearse =
            |rehearsal, which, hold| self.rehearse(rehearsal, source, hands, room(which), hold, progress);
        let (control, candidate) = tokio::join!(
            rehearse(Rehearsal::Control, "control", hold),
            rehearse(Rehearsal::Candidate, "candidate", hold),
        );
        let both = [keep(control), keep(candidate)];
        if both == [true, true] {
            let (way_back, skew) = tokio::join!(
                // On what the candidate has left.
                rehearse(Rehearsal::WayBack, "candidate", Duration::ZERO),
                rehearse(Rehearsal::Skew, "skew", Duration::ZERO),
            );
            keep(way_back);
            keep(skew);
        } else {
            self.done.fetch_add(2, Ordering::Relaxed);
        }
        for which in ["control", "candidate", "skew"] {
            let _ = place::remove(&room(which));
        }
        trouble.iter_mut().for_each(|trouble| trouble.seed = Some(name.clone()));
        Chained { seed: SeedEvidence { seed: source.seed.clone(), rehearsals }, trouble }
    }

    /// The same on data that only the helper may touch; it has two rehearsals at once, so it takes two turns.
    pub async fn elsewhere(
        &self,
        user: &str,
        chain: impl Future<Output = Result<Chained, Trouble>>,
        progress: Progress<'_>,
    ) -> Result<Chained, Trouble> {
        let turns = u32::try_from(self.at_once.min(2)).unwrap_or(1);
        let _turns = self.turns.acquire_many(turns).await;
        let mut chained = chain.await;
        for told in chained.iter().flat_map(|chained| &chained.seed.rehearsals) {
            self.tell(user, told.rehearsal, &Ok(told), progress);
        }
        if let Ok(chained) = &mut chained {
            let missing = Rehearsal::ALL.len().saturating_sub(chained.seed.rehearsals.len());
            self.done.fetch_add(missing, Ordering::Relaxed);
            // It comes from where the user may have had a hand in it.
            chained.seed.rehearsals.iter_mut().for_each(Rehearsed::make_plain);
        } else {
            self.done.fetch_add(Rehearsal::ALL.len(), Ordering::Relaxed);
        }
        chained
    }

    async fn rehearse<H: Hands>(
        &self,
        rehearsal: Rehearsal,
        source: &Source,
        hands: &H,
        room: PathBuf,
        hold: Duration,
        progress: Progress<'_>,
    ) -> Result<Rehearsed, Trouble> {
        let Ok(_turn) = self.turns.acquire().await else {
            return Err(trouble(rehearsal, Grounds::Deadline, "the run was ended".to_owned()));
        };
        let name = &source.seed.name;
        if rehearsal != Rehearsal::WayBack {
            let account = Account::of(hands);
            let ready = place::furnish(&room, account)
                .and_then(|()| source.place_in(&room))
                .and_then(|()| place::hand_over(&room, account));
            ready.map_err(|error| {
                let grounds = match error.kind() {
                    std::io::ErrorKind::StorageFull => Grounds::NoSpace,
                    _ => Grounds::NoSeed,
                };
                trouble(rehearsal, grounds, format!("cannot copy the data of {name}: {error}"))
            })?;
        }
        let result = self.drive(rehearsal, source, hands, &room, hold).await;
        let result = match result {
            Ok(rehearsed) if !rehearsed.passed() => self
                .is_short()
                .map_or(Ok(rehearsed), |detail| Err(trouble(rehearsal, Grounds::NoSpace, detail))),
            other => other,
        };
        self.tell(name, rehearsal, &result.as_ref(), progress);
        result
    }

    fn tell(
        &self,
        name: &str,
        rehearsal: Rehearsal,
        result: &Result<&Rehearsed, &Trouble>,
        progress: Progress<'_>,
    ) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let due = self.due.load(Ordering::Relaxed);
        let still = self.clock.elapsed().mul_f64(due.saturating_sub(done) as f64 / done as f64).as_secs();
        let told = match result {
            Ok(rehearsed) => rehearsed
                .stopped_at()
                .map_or_else(|| "ok".to_owned(), |at| format!("{} {}", at.step, at.outcome)),
            Err(why) => format!("{}: {}", why.grounds, why.detail),
        };
        progress(&format!("{done}/{due} {name}: {rehearsal} {told}; about {still} s left"));
    }

    /// Runs the driver, in its box where there is one, and reads its evidence.
    async fn drive<H: Hands>(
        &self,
        rehearsal: Rehearsal,
        source: &Source,
        hands: &H,
        room: &Path,
        hold: Duration,
    ) -> Result<Rehearsed, Trouble> {
        let section = self.section;
        let found = if rehearsal == Rehearsal::Candidate { &self.candidate } else { &self.control };
        let boxes = self.boxes.as_ref();
        let command = |found: &Located| rehearsal::command(boxes, room, &found.prefix, &found.program);
        let orders = Orders {
            rehearsal,
            name: "rehearsal".to_owned(),
            dir: room.to_path_buf(),
            // Whoever is not in a box must not be reached from outside.
            host: if boxes.is_some() { section.host.clone() } else { "127.0.0.1".to_owned() },
            program: command(found),
            intruder: command(&self.candidate),
            patience: Patience {
                ready: section.ready_timeout,
                request: section.request_timeout,
                command: section.command_timeout,
                stop: section.stop_timeout,
                hold,
            },
        };
        let fail = |grounds, detail| trouble(rehearsal, grounds, detail);
        let mut words = match boxes {
            Some(boxes) => boxes.around_driver(room, &[&self.candidate.prefix, &self.control.prefix]),
            None => vec![self.program.to_string_lossy().into_owned()],
        };
        words.push("gate-driver".to_owned());
        let limits =
            Limits { memory: (section.memory_mib << 20) + 4 * source.seed.bytes, deadline: section.deadline };
        let input =
            serde_json::to_string(&orders).map_err(|error| fail(Grounds::NoBox, error.to_string()))?;
        let mut job = Job { input, ..Job::new(words, limits, Grounds::NoBox) };
        if boxes.is_none() {
            let path = format!("{}:/usr/bin:/bin", room.join("bin").display());
            let home = room.join("home").display().to_string();
            job.env = BTreeMap::from([("PATH".to_owned(), path), ("HOME".to_owned(), home)]);
        }
        let ran = hands.run(job).await.map_err(|stopped| fail(stopped.grounds, stopped.detail))?;
        let mut rehearsed: Rehearsed = serde_json::from_str(&ran.stdout).map_err(|_| {
            let detail =
                format!("the rehearsal's box{} ended with {}: {}", hands.by(), ran.status(), ran.complaint);
            fail(Grounds::NoBox, detail)
        })?;
        rehearsed.make_plain();
        Ok(rehearsed)
    }
}

fn trouble(rehearsal: Rehearsal, grounds: Grounds, detail: String) -> Trouble {
    Trouble { grounds, seed: None, rehearsal: Some(rehearsal), detail }
}
