//! The outage of CONTRACT §10, 6b: an old server runs, a newer command mints on its database. Nobody was told for 80
//! minutes; here every surface is watched from the moment the mint has ended.

use std::time::{Duration, Instant};

use crate::report::{Table, median, percentile, seconds, verdict};
use crate::support::world::{Serving, World};
use crate::until;

const ROUNDS: usize = 5;
const POLL: Duration = Duration::from_millis(50);
const GOAL: Duration = Duration::from_secs(7);

pub fn run() {
    let (mut metrics, mut page, mut asked, mut log) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut words = Vec::new();
    for number in 0..ROUNDS {
        let world = World::with(&[("ann", "0.0.24"), ("bob", "0.0.24")]);
        let serving = world.serve();
        for kind in ["pulse", "handshake"] {
            serving.until_metric(&format!("t3_probe_ok{{user=\"ann\",kind=\"{kind}\"}}"), |ok| ok == 1.0);
        }
        // Another place between two pulses every round.
        std::thread::park_timeout(Duration::from_millis(900 * number as u64));
        world.foreign_mint("ann", "0.0.26");
        let minted = Instant::now();
        let (in_metrics, on_page) = watch(&serving, minted);
        metrics.push(in_metrics);
        page.push(on_page);
        let named = || world.log().lines().find(|line| line.contains("schema_ahead")).map(str::to_owned);
        let line = until("the log", Duration::from_secs(60), named);
        log.push(minted.elapsed());
        words
            .push(("log", line.split_once("ERROR").map_or(line.clone(), |(_, said)| said.trim().to_owned())));
        let page = serving.get("/").body;
        words.push(("status page", sentence(&page)));
        // Asked last: what a probe finds is told to the running service.
        let asking = Instant::now();
        let probed = world.probe("ann");
        asked.push(asking.elapsed());
        let said = ["pulse", "handshake"].map(|kind| format!("{kind} {}", probed.decided(kind)));
        words.push(("probe ann", format!("exit {}: {}", probed.exit, said.join(", "))));
    }
    let title =
        format!("outage: 0.0.24 serves, the 0.0.26 command mints; {ROUNDS} rounds, from the end of the mint");
    let mut table = Table::new(&title, &["who", "goal", "median", "worst", "verdict"]);
    for (who, times) in
        [("metrics", metrics), ("status page", page), ("log", log), ("probe, from being asked", asked)]
    {
        let worst = percentile(&times, 100);
        table.row([
            who.to_owned(),
            format!("≤ {} s", GOAL.as_secs()),
            seconds(median(&times)),
            seconds(worst),
            verdict(worst <= GOAL).to_owned(),
        ]);
    }
    table.print();
    println!();
    words.sort();
    words.dedup_by_key(|(who, _)| *who);
    for (who, said) in words {
        println!("  {who}: {said}");
    }
}

/// When the metrics and when the page name the outage, by its step and reason.
fn watch(serving: &Serving, minted: Instant) -> (Duration, Duration) {
    let sample = "t3_probe_failures_total{user=\"ann\",step=\"contract\",reason=\"schema_ahead\"}";
    let (mut metrics, mut page) = (None, None);
    until("metrics and page to name it", Duration::from_secs(60), || {
        if metrics.is_none() && serving.metric(sample).is_some() {
            metrics = Some(minted.elapsed());
        }
        if page.is_none() && serving.get("/").body.contains("schema_ahead") {
            page = Some(minted.elapsed());
        }
        std::thread::park_timeout(POLL);
        metrics.zip(page)
    })
}

/// What the page says of whoever fails, without its markup.
fn sentence(page: &str) -> String {
    let headline = page.split("role=\"status\"").nth(1).unwrap_or_default();
    let headline = headline.split("</div>").next().unwrap_or_default();
    let text: Vec<&str> =
        headline.split('<').filter_map(|part| part.split_once('>').map(|(_, text)| text)).collect();
    text.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}
