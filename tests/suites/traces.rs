//! Traces: nothing unless an endpoint is named, and then one span a probe with a child a step, and one a request through
//! the dispatch, as OTLP has them.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;

use crate::support::door::{Door, Instance, Wire};
use crate::support::posted::Posted;
use crate::support::world::{World, http, wait_for};

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

/// Every span there is.
const KNOWN: &[&str] = &[
    "handshake",
    "pulse",
    "state",
    "front",
    "request",
    "pairing",
    "version",
    "reach",
    "contract",
    "database",
    "mint",
    "exchange",
    "session",
    "app",
    "socket",
    "revoke",
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The parents of what a user's t3 has recorded of one trace.
fn ring(world: &World, user: &str, trace_id: &str) -> BTreeSet<String> {
    let path = world.base_dir(user).join("userdata/logs/server.trace.ndjson");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let of_trace = lines.filter(|line| line["traceId"] == trace_id);
    of_trace.filter_map(|line| Some(line["parentSpanId"].as_str()?.to_owned())).collect()
}

/// What sends everything here, and soon.
fn exporting_to(collector: &Collector) -> Vec<(&'static str, String)> {
    let soon = ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned());
    vec![("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.clone()), soon]
}

/// A text attribute, or a number's digits.
fn attribute(span: &Span, key: &str) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
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
    let id = hex(&handshake.trace_id);
    assert!(report.to_string().contains(&id), "the report does not name {id}: {report:#}");
    // What t3 recorded of it is below the step that asked.
    let exchange =
        spans.iter().find(|span| span.name == "exchange" && span.parent_span_id == handshake.span_id);
    let exchange = exchange.expect("a span of the exchange");
    let parents: BTreeSet<String> = ring(&world, "ann", &id);
    assert!(parents.contains(&hex(&exchange.span_id)), "{parents:?} is below other spans");
    let ours: BTreeSet<String> = spans
        .iter()
        .filter(|span| span.trace_id == handshake.trace_id)
        .map(|span| hex(&span.span_id))
        .collect();
    assert!(parents.is_subset(&ours), "t3 hangs below spans that nobody exported: {parents:?}");
    // Other crates' spans and notes, which show requests as they stand on the wire, stay here.
    let events = spans.iter().flat_map(|span| &span.events).map(|event| format!("{event:?}"));
    let shown: Vec<_> =
        events.filter(|event| event.contains("wsTicket") || event.contains("GET /ws")).collect();
    assert!(shown.is_empty(), "{shown:?}");
    assert!(
        spans.iter().all(|span| KNOWN.contains(&span.name.as_str())),
        "other spans than ours were exported"
    );
}

/// Probes ann once with these variables in the environment.
fn probe_with(world: &World, variables: &[(&str, &str)]) {
    let mut command = world.command(&["probe", "ann"]);
    let output = command.envs(variables.iter().copied()).output().expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn of_the_service_each_kind_of_probe_is_a_trace_that_the_history_knows() {
    let world = World::with(&[("ann", "0.0.33")]).configured("[probe]\nstate_interval = \"1s\"\n");
    let collector = Collector::start();
    let serving = world.serve_as(world.command(&["serve"]).envs(exporting_to(&collector)));
    for (kind, step) in [("pulse", "reach"), ("state", "database"), ("handshake", "mint")] {
        let trace = wait_for(&format!("a span of {kind} with its {step}"), || {
            let spans = collector.spans();
            let root = spans.iter().find(|span| span.name == kind && span.parent_span_id.is_empty())?;
            let is_child = |span: &&Span| span.name == step && span.parent_span_id == root.span_id;
            spans.iter().find(is_child)?;
            Some(hex(&root.trace_id))
        });
        let known = wait_for("it to be recorded", || {
            Some(serving.get(&format!("/history/{trace}"))).filter(|answer| answer.status == 200)
        });
        assert!(known.body.contains(kind) && known.body.contains(step), "{}", known.body);
    }
    let spans = collector.spans();
    let lonely: Vec<_> =
        spans.iter().filter(|span| span.parent_span_id.is_empty()).map(|span| &span.name).collect();
    assert!(lonely.iter().all(|name| ["pulse", "state", "handshake"].contains(&name.as_str())), "{lonely:?}");
    assert_eq!(serving.stop(), 0);
}

#[test]
fn nothing_is_exported_where_tracing_is_switched_off() {
    let world = World::with(&[("ann", "0.0.33")]);
    for off in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ] {
        let collector = Collector::start();
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str());
        probe_with(&world, &[endpoint, off]);
        assert!(collector.spans().is_empty(), "something was exported with {off:?}");
        // The same without it is exported.
        probe_with(&world, &[endpoint, (off.0, "")]);
        assert!(!collector.spans().is_empty(), "nothing was exported without {off:?}");
    }
}

#[test]
fn the_service_is_called_as_the_environment_says() {
    let world = World::with(&[("ann", "0.0.33")]);
    let collector = Collector::start();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str());
    probe_with(&world, &[endpoint, ("OTEL_SERVICE_NAME", "prober-of-host-a")]);
    let services = collector.services();
    assert!(
        services.len() == 1 && services.iter().all(|name| name.contains("\"prober-of-host-a\"")),
        "{services:?}"
    );
}

#[test]
fn an_endpoint_for_traces_alone_is_taken_as_it_stands_and_before_the_common_one() {
    let world = World::with(&[("ann", "0.0.33")]);
    let (traces, common) = (Collector::start(), Collector::start());
    let address = format!("{}/v1/traces", traces.endpoint);
    probe_with(
        &world,
        &[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &address),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &common.endpoint),
        ],
    );
    assert!(traces.spans().iter().any(|span| span.name == "handshake"), "nothing came");
    assert!(common.spans().is_empty(), "it went to the common endpoint");
    // It is enough by itself.
    let alone = Collector::start();
    let address = format!("{}/v1/traces", alone.endpoint);
    probe_with(&world, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &address)]);
    assert!(!alone.spans().is_empty(), "nothing came");
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Asks as ann with a session, in a trace or in none, and answers the `traceparent` that the instance saw.
fn passed_on(door: &Door, instance: &Instance, traceparent: Option<&str>) -> Option<String> {
    let mut headers = vec![("Cookie", "t3_session=v")];
    headers.extend(traceparent.map(|value| ("traceparent", value)));
    assert_eq!(door.ann("GET", "/a?wsTicket=hush", &headers).status, 200);
    let head = instance.heads().pop().expect("a request");
    head.lines().find_map(|line| line.strip_prefix("traceparent: ").map(ToOwned::to_owned))
}

#[test]
fn untraced_a_request_goes_on_in_the_trace_it_came_in_and_none_is_made_up() {
    let instance = Instance::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let door = Door::to(&instance);
    assert_eq!(passed_on(&door, &instance, None), None);
    for flags in ["00", "01"] {
        let theirs = format!("00-{TRACE}-{PARENT}-{flags}");
        assert_eq!(passed_on(&door, &instance, Some(&theirs)), Some(theirs));
    }
}

#[test]
fn traced_each_request_is_a_span_between_the_one_it_came_from_and_what_t3_makes_of_it() {
    let instance = Instance::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let collector = Collector::start();
    let door = Door::to(&instance).restarted_with(exporting_to(&collector));
    let began = passed_on(&door, &instance, None).expect("a traceparent");
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    assert_eq!(passed_on(&door, &instance, Some(&unsampled)), Some(unsampled));
    let continued = passed_on(&door, &instance, Some(&format!("00-{TRACE}-{PARENT}-01")));
    let continued = continued.expect("a traceparent");
    let exposition =
        http(door.operator_port(), "GET", "/metrics", &[("Accept", "application/openmetrics-text")]);

    let spans = wait_for("two spans", || Some(collector.spans()).filter(|spans| spans.len() >= 2));
    assert_eq!(spans.len(), 2, "what came unsampled is not exported: {spans:#?}");
    for (header, parent) in [(began, ""), (continued, PARENT)] {
        let of_header =
            |span: &&Span| header == format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id));
        let span = spans.iter().find(of_header).unwrap_or_else(|| panic!("no span is {header}: {spans:#?}"));
        assert_eq!((span.name.as_str(), hex(&span.parent_span_id).as_str()), ("request", parent));
        assert!(parent.is_empty() || hex(&span.trace_id) == TRACE);
        let told = ["user", "client", "http.request.method", "http.response.status_code"];
        let told = told.map(|key| attribute(span, key).unwrap_or_default());
        assert_eq!(told, ["ann", "user", "GET", "200"]);
        assert!(!format!("{span:?}").contains("hush"));
    }
    // The last request of a bucket is its exemplar.
    let exposition = exposition.expect("the metrics").body;
    let exemplar = format!("# {{trace_id=\"{TRACE}\"}}");
    let of_requests = |line: &&str| line.starts_with("t3_dispatch_request_duration_seconds_bucket");
    assert!(exposition.lines().filter(of_requests).any(|line| line.contains(&exemplar)), "{exposition}");
}

#[test]
fn a_first_visit_is_one_trace_from_the_request_to_what_t3_does_for_it() {
    let collector = Collector::start();
    let door = Door::before(World::with(&[("ann", "0.0.33")]), "").restarted_with(exporting_to(&collector));
    let browser = [("X-authentik-username", "ann@example.com"), ("Accept", "text/html")];
    let first = http(door.port, "GET", "/deep?ticket=hush", &browser).expect("an answer");
    assert_eq!(first.status, 302, "{first:?}");
    let exposition =
        http(door.operator_port(), "GET", "/metrics", &[("Accept", "application/openmetrics-text")]);

    let named = |name: &str| collector.spans().into_iter().find(|span| span.name == name);
    let request = wait_for("the request's span", || named("request"));
    let pairing = named("pairing").expect("a span of the pairing");
    assert_eq!(pairing.parent_span_id, request.span_id);
    assert_eq!(attribute(&pairing, "endpoint").as_deref(), Some("browser_session"));
    let steps: BTreeSet<String> = collector
        .spans()
        .into_iter()
        .filter(|span| span.parent_span_id == pairing.span_id && span.trace_id == request.trace_id)
        .map(|span| span.name)
        .collect();
    assert!(["contract", "mint", "exchange"].iter().all(|step| steps.contains(*step)), "{steps:?}");
    let id = hex(&request.trace_id);
    let exchange = named("exchange").expect("a span of the exchange");
    let parents = ring(&door.world, "ann", &id);
    assert!(parents.contains(&hex(&exchange.span_id)), "t3 recorded nothing below the exchange: {parents:?}");
    assert!(collector.spans().iter().all(|span| !format!("{span:?}").contains("hush")));

    let exposition = exposition.expect("the metrics").body;
    let of_pairings = |line: &&str| line.starts_with("t3_dispatch_pairing_duration_seconds_bucket");
    let exemplar = format!("# {{trace_id=\"{id}\"}}");
    assert!(exposition.lines().filter(of_pairings).any(|line| line.contains(&exemplar)), "{exposition}");
}

#[test]
fn a_websocket_is_a_span_as_long_as_it_lives_that_tells_who_ended_it() {
    let instance = Instance::start(|talk| {
        talk.request();
        talk.say(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        // A close frame, 1000.
        talk.say(&[0x88, 2, 0x03, 0xe8]);
        talk.request();
    });
    let collector = Collector::start();
    let door = Door::to(&instance).restarted_with(exporting_to(&collector));
    let mut wire = Wire::connect(door.port);
    wire.send(
        b"GET /ws?wsTicket=hush HTTP/1.1\r\nHost: x\r\nX-authentik-username: ann\r\nCookie: t3_session=v\r\n\
          Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    wire.until("\x03");
    drop(wire);
    let span = wait_for("the span", || collector.spans().pop());
    let told = ["http.response.status_code", "initiator", "cause"].map(|key| attribute(&span, key));
    assert_eq!(told.map(Option::unwrap_or_default), ["101", "instance", "normal"]);
    assert!(!format!("{span:?}").contains("hush"));
}
