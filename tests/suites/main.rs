//! All integration suites, one binary. Each suite drives the real program.

#[path = "../support"]
mod support {
    pub mod free_port;
    pub mod sim;
}

mod metrics;
mod sim;
