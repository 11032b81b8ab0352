//! Ports that stay free: a server under test is stopped and started again on its port, so the port must not be one that
//! the kernel hands to somebody else's outgoing connection or port 0 in between.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the kernel's ephemeral range (32768 upwards), above what a machine usually serves.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on and that no other caller in this process gets.
pub fn free_port() -> u16 {
    // Two test processes at once start at different places.
    let start = std::process::id() as u16;
    for _ in 0..COUNT {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_mul(97).wrapping_add(turn) % COUNT;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
