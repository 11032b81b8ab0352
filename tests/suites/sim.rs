//! The stand-in t3: what it does by itself. What it shares with the recorded servers is the conformance suite's part.

mod commands;
mod compression;
mod faults;
mod fixtures;
mod fleet;
mod life;
mod logins;
mod mutations;
