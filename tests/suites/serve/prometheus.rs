//! A real Prometheus scrapes the running service.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use super::QUICK;
use crate::support::free_port::free_port;
use crate::support::held::Held;
use crate::support::tools;
use crate::support::world::{World, http, wait_for};

/// Passes scrapes on without what they accept, as a scraper that knows the classic format only.
fn forget_openmetrics(to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let Ok(mut upstream) = TcpStream::connect(("127.0.0.1", to)) else { return };
            let _ = write!(upstream, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
            let _ = std::io::copy(&mut upstream, &mut stream);
        }
    });
    port
}

#[test]
fn a_real_prometheus_scrapes_both_formats_and_answers_queries() {
    let Some(prometheus) = tools::find("prometheus") else { return };
    let world = World::with(&[("ann", "0.0.33"), ("bob", "0.0.24")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    world.fault("bob", "exchange-500");
    serving.until_ok("bob", "pulse", false);

    let (port, classic) = (free_port(), forget_openmetrics(serving.port));
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n\
         - {{job_name: open, static_configs: [{{targets: ['127.0.0.1:{}']}}]}}\n\
         - {{job_name: classic, static_configs: [{{targets: ['127.0.0.1:{classic}']}}]}}\n",
        serving.port
    );
    std::fs::write(world.path("prometheus.yml"), config).expect("the configuration");
    let log = std::fs::File::create(world.path("prometheus.log")).expect("a log");
    let child = Command::new(prometheus)
        .arg(format!("--config.file={}", world.path("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", world.path("tsdb").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--enable-feature=exemplar-storage")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("prometheus");
    let _prometheus = Held(child);

    let query = |path: &str, expression: &str| {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = http(port, "GET", &format!("/api/v1/{path}query={encoded}"), &[]).ok()?;
        // A chunked body: the document is what stands between the first and the last brace.
        let json = answer.body.get(answer.body.find('{')?..=answer.body.rfind('}')?)?.to_owned();
        serde_json::from_str::<serde_json::Value>(&json).ok()
    };
    let value = |expression: &str| {
        let answer = query("query?", expression)?;

        answer["data"]["result"].get(0)?["value"].get(1)?.as_str()?.parse::<f64>().ok()
    };
    for job in ["open", "classic"] {
        let expect = |expression: String, wanted: f64| {
            wait_for(&expression, || value(&expression).filter(|value| *value == wanted))
        };
        expect(format!("up{{job=\"{job}\"}}"), 1.0);
        expect(format!("t3_probe_ok{{job=\"{job}\",user=\"ann\",kind=\"handshake\"}}"), 1.0);
        expect(format!("t3_probe_ok{{job=\"{job}\",user=\"bob\",kind=\"pulse\"}}"), 0.0);
        let failures = "t3_probe_failures_total{user=\"bob\",step=\"contract\",reason=\"auth_store\"";
        expect(format!("{failures},job=\"{job}\"}} > bool 0"), 1.0);
        expect(format!("count(t3_prober_build_info{{job=\"{job}\"}})"), 1.0);
        let quantile = format!(
            "histogram_quantile(0.9, t3_probe_step_duration_seconds_bucket{{job=\"{job}\",step=\"reach\"}}) > bool 0"
        );
        expect(quantile, 1.0);
    }
    // Exemplars travel only in OpenMetrics, and lead to the story of the probe.
    let trace = wait_for("an exemplar", || {
        let found =
            query("query_exemplars?start=0&end=99999999999&", "t3_probe_step_duration_seconds_bucket")?;
        let first = found["data"].get(0)?;
        assert_eq!(first["seriesLabels"]["job"], "open");
        Some(first["exemplars"].get(0)?["labels"]["trace_id"].as_str()?.to_owned())
    });
    assert_eq!(trace.len(), 32);
    // Of pulses that end alike the history keeps the first only, and only that is an exemplar.
    let all = wait_for("every exemplar", || {
        query("query_exemplars?start=0&end=99999999999&", "t3_probe_step_duration_seconds_bucket")
    });
    let traces = all["data"].as_array().into_iter().flatten().flat_map(|series| {
        let exemplars = series["exemplars"].as_array().cloned().unwrap_or_default();
        exemplars.into_iter().filter_map(|one| Some(one["labels"]["trace_id"].as_str()?.to_owned()))
    });
    let traces: std::collections::BTreeSet<String> = traces.collect();
    assert!(traces.contains(&trace), "{traces:?}");
    for trace in traces {
        wait_for(&format!("the story of {trace}"), || {
            let story = serving.get(&format!("/history/{trace}"));
            (story.status == 200 && story.body.contains(&trace)).then_some(())
        });
    }
}
