//! `process_…`: the standard set, read from /proc at every scrape. What cannot be read is absent.

use procfs::process::{LimitValue, Process as Proc};

use super::book::metrics;
use super::series::{CounterReading, Reading};

metrics! {
    pub struct Process {
        /// CPU time spent, user and system
        cpu: CounterReading = "process_cpu_seconds_total",
        /// Open file descriptors
        open_fds: Reading = "process_open_fds",
        /// The limit on open file descriptors; absent where there is none
        max_fds: Reading = "process_max_fds",
        /// Resident memory
        resident_memory: Reading = "process_resident_memory_bytes",
        /// Virtual memory
        virtual_memory: Reading = "process_virtual_memory_bytes",
        /// When the process started
        start_time: Reading = "process_start_time_seconds",
        /// Threads
        threads: Reading = "process_threads",
    }
}

impl Process {
    pub(super) fn refresh(&self) {
        let Ok(myself) = Proc::myself() else { return };
        if let Ok(stat) = myself.stat() {
            let tick = procfs::ticks_per_second() as f64;
            self.cpu.set((stat.utime + stat.stime) as f64 / tick);
            self.resident_memory.set((stat.rss * procfs::page_size()) as f64);
            self.virtual_memory.set(stat.vsize as f64);
            self.threads.set(stat.num_threads as f64);
            if let Ok(boot) = procfs::boot_time_secs() {
                self.start_time.set(boot as f64 + stat.starttime as f64 / tick);
            }
        }
        if let Ok(open) = myself.fd_count() {
            self.open_fds.set(open as f64);
        }
        if let Ok(LimitValue::Value(most)) = myself.limits().map(|limits| limits.max_open_files.soft_limit) {
            self.max_fds.set(most as f64);
        }
    }
}
