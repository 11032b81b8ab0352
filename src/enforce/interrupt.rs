//! Told to stop by systemd, by a person at the keyboard, by a terminal that has gone: what is in hand is finished, and
//! nothing else is begun. What fails from then on is held against no build, because a host that goes down starts nothing.

use std::io;
use std::sync::OnceLock;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Whether a run was told to stop, and how.
#[derive(Debug, Default)]
pub struct Interrupt {
    told: OnceLock<&'static str>,
    token: CancellationToken,
}

impl Interrupt {
    /// Tells the run; `false` where it had been told before.
    pub fn tell(&self, signal: &'static str) -> bool {
        let first = self.told.set(signal).is_ok();
        self.token.cancel();
        first
    }

    /// The signal by which it was told, where it was.
    pub fn told(&self) -> Option<&'static str> {
        self.told.get().copied()
    }

    /// Waits until it is told, for ever if need be.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }
}

/// What tells it.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// A person at the keyboard: who asks twice wants no more waiting. A hangup may come twice by itself.
pub const BY_HAND: &str = "SIGINT";

impl Signals {
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => BY_HAND,
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
