//! The log, and traces where somebody collects them: off by default, switched on by the standard `OTEL_*` variables.

use std::io::IsTerminal;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Deserialize;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// `[telemetry]`: the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    /// `text` for people, `json` for a log store. Default `text`. A change needs a restart.
    pub log: Log,
    /// What is logged, in the form of RUST_LOG, which wins over it. Default `info`. A change needs a restart.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    Text,
    Json,
}

impl Default for Section {
    fn default() -> Self {
        Self { log: Log::Text, level: "info".to_owned() }
    }
}

impl Section {
    /// What no single key shows: the key it is best put right at, and a sentence with the remedy.
    pub fn complaints(&self) -> Vec<(&'static str, String)> {
        let refused = EnvFilter::try_new(&self.level).err();
        let complaint = refused.map(|_| {
            (
                "level",
                format!("'{}' is not a log filter; write something like info or t3_prober=debug", self.level),
            )
        });
        complaint.into_iter().collect()
    }
}

/// Flushes what is still to be exported when it is dropped.
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Starts the log on standard error, and the export of traces where an endpoint is named. Called before any runtime
/// exists: the exporter brings its own threads.
pub fn start(section: &Section) -> anyhow::Result<Telemetry> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) => filter,
        Err(_) => section.level.clone(),
    };
    let filter = EnvFilter::try_new(&filter).with_context(|| {
        format!("'{filter}' is not a log filter; write something like info or t3_prober=debug")
    })?;
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let log = match section.log {
        Log::Json => log.json().flatten_event(true).boxed(),
        Log::Text => log.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let traces = provider()?;
    // Of our own code, and all of it: other crates' spans are noise, and what some of them note shows secrets.
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::TRACE);
    let exported = traces.as_ref().map(|traces| {
        tracing_opentelemetry::layer().with_tracer(traces.tracer("t3-prober")).with_filter(ours)
    });
    let filter = filter.and(filter_fn(shows_no_secret));
    tracing_subscriber::registry().with(exported).with(log.with_filter(filter)).init();
    Ok(Telemetry { traces })
}

/// The WebSocket library's own log shows its requests as they stand on the wire, tickets included: whoever asks for all
/// there is to see gets all but that.
fn shows_no_secret(line: &Metadata<'_>) -> bool {
    *line.level() <= Level::INFO || !line.target().contains("tungstenite")
}

/// `None` unless an endpoint is named and tracing is not switched off.
fn provider() -> anyhow::Result<Option<SdkTracerProvider>> {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    let off = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"))
        || std::env::var("OTEL_TRACES_EXPORTER").is_ok_and(|value| value == "none");
    if off || !(set("OTEL_EXPORTER_OTLP_ENDPOINT") || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")) {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .build()
        .context("cannot export traces to the endpoint that OTEL_EXPORTER_OTLP_ENDPOINT names")?;
    let mut resource = opentelemetry_sdk::Resource::builder();
    if !set("OTEL_SERVICE_NAME") {
        resource = resource.with_service_name("t3-prober");
    }
    Ok(Some(
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build(),
    ))
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = &self.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::warn!(%error, "the last traces could not be exported");
        }
    }
}
