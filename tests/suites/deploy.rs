//! What deploy/ gives to an operator: installed into a root of its own, its units held to systemd and to the program.

mod calls;
mod guides;
mod install;
mod instance;
mod kubernetes;
mod migration;
mod units;
