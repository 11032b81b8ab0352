//! Traces: nothing unless an endpoint is named, and then one span a probe with a child a step, as OTLP has them.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;

use crate::support::posted::Posted;
use crate::support::world::World;

/// A collector that keeps what it is sent.
struct Collector {
    endpoint: String,
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    /// Listens until the test process ends.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests: Arc<Mutex<Vec<_>>> = Arc::default();
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let request = take(stream).expect("an export");
                kept.lock().expect("nobody panicked while holding it").push(request);
            }
        });
        Self { endpoint, requests }
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().expect("nobody panicked while holding it");
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// What the exporter says the service is called.
    fn services(&self) -> BTreeSet<String> {
        let requests = self.requests.lock().expect("nobody panicked while holding it");
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let attributes = resources.filter_map(|spans| spans.resource.as_ref()).flat_map(|of| &of.attributes);
        let named = attributes.filter(|attribute| attribute.key == "service.name");
        named.map(|attribute| format!("{:?}", attribute.value)).collect()
    }
}

fn take(stream: TcpStream) -> std::io::Result<ExportTraceServiceRequest> {
    let Posted { path, body } = Posted::read(stream)?;
    assert_eq!(path, "/v1/traces");
    Ok(ExportTraceServiceRequest::decode(body.as_slice()).expect("an export request"))
}

#[test]
fn a_probe_is_one_span_with_a_child_a_step_and_the_trace_id_that_the_report_names() {
    let world = World::with(&[("ann", "0.0.33")]);
    let collector = Collector::start();
    // The exporter sends what is left before the program ends.
    let output = world
        .command(&["probe", "ann", "--json"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
        .output()
        .expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let spans = collector.spans();
    let services = collector.services();
    assert!(
        services.len() == 1 && services.iter().all(|name| name.contains("\"t3-prober\"")),
        "{services:?}"
    );
    let handshake = spans.iter().find(|span| span.name == "handshake").expect("a span of the handshake");
    let children: BTreeSet<&str> = spans
        .iter()
        .filter(|span| span.parent_span_id == handshake.span_id && span.trace_id == handshake.trace_id)
        .map(|span| span.name.as_str())
        .collect();
    for step in ["mint", "exchange", "session", "app", "socket", "revoke"] {
        assert!(children.contains(step), "no span of {step} below the handshake: {children:?}");
    }
    let id: String = handshake.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(report.to_string().contains(&id), "the report does not name {id}: {report:#}");
}

#[test]
fn nothing_is_exported_where_tracing_is_switched_off() {
    let world = World::with(&[("ann", "0.0.33")]);
    let collector = Collector::start();
    let output = world
        .command(&["probe", "ann"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
        .env("OTEL_SDK_DISABLED", "true")
        .output()
        .expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(collector.spans().is_empty(), "something was exported");
}
