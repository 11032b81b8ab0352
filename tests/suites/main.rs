//! All integration suites, one binary. Each suite drives the real program.

#[path = "../support"]
mod support {
    pub mod browser;
    pub mod dashboards;
    pub mod disk;
    pub mod door;
    pub mod fixtures;
    pub mod fleet;
    pub mod free_port;
    pub mod gate;
    pub mod held;
    pub mod host;
    pub mod kubernetes;
    pub mod posted;
    pub mod prometheus;
    pub mod promql;
    pub mod raw_http;
    pub mod root;
    pub mod rules;
    pub mod sim;
    pub mod tools;
    pub mod world;
}

mod alerting;
mod alerts;
mod architecture;
mod backup;
mod bad_input;
mod browser;
mod config;
mod conformance;
mod credential;
mod dashboards;
mod demo;
mod deploy;
mod dispatch_forward;
mod dispatch_identity;
mod dispatch_life;
mod dispatch_login;
mod dispatch_smuggling;
mod dispatch_socket;
mod enforce;
mod faults;
mod front;
mod gate;
mod helper;
mod inventory;
mod metrics;
mod operator;
mod outage;
mod pages;
mod rollout;
mod secrets;
mod series;
mod serve;
mod sim;
mod traces;
mod verdicts;
