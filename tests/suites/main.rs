//! All integration suites, one binary. Each suite drives the real program.

#[path = "../support"]
mod support {
    pub mod free_port;
    pub mod host;
    pub mod raw_http;
    pub mod sim;
    pub mod tools;
    pub mod world;
}

mod architecture;
mod bad_input;
mod config;
mod conformance;
mod demo;
mod faults;
mod helper;
mod inventory;
mod metrics;
mod operator;
mod outage;
mod secrets;
mod serve;
mod sim;
