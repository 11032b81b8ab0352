//! What a process takes of the machine, by /proc.

use std::time::Instant;

use procfs::process::Process;

/// CPU time since a moment.
pub struct Meter {
    process: Process,
    since: Instant,
    spent: f64,
}

impl Meter {
    pub fn start(pid: u32) -> Self {
        let process = process(pid);
        let spent = cpu_seconds(&process);
        Self { process, since: Instant::now(), spent }
    }

    /// CPU seconds, user and system, spent so far.
    pub fn seconds(&self) -> f64 {
        cpu_seconds(&self.process) - self.spent
    }

    /// The same in per cent of one core.
    pub fn percent(&self) -> f64 {
        self.seconds() / self.since.elapsed().as_secs_f64() * 100.0
    }
}

/// Resident memory in MB (of a million bytes).
pub fn rss_mb(pid: u32) -> f64 {
    let pages = process(pid).stat().expect("the process runs").rss;
    (pages * procfs::page_size()) as f64 / 1e6
}

pub fn threads(pid: u32) -> i64 {
    process(pid).stat().expect("the process runs").num_threads
}

fn process(pid: u32) -> Process {
    Process::new(i32::try_from(pid).expect("a pid")).expect("the process runs")
}

fn cpu_seconds(process: &Process) -> f64 {
    let stat = process.stat().expect("the process runs");
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}
