//! All integration suites, one binary. Each suite drives the real program.

mod architecture;
mod config;
mod inventory;
mod metrics;
