//! The frame of every page: plain HTML that works without JavaScript, in light and dark, on a phone and for a screen
//! reader. Times are shown as people say them, with the exact time behind.

use std::time::{Duration, SystemTime};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::outcome::{Ended, Outcome, Skip};

pub mod state;

const STYLE: &str = include_str!("page.css");

/// Renews a live page in place; without it the browser loads the page anew.
const LIVE: &str = include_str!("live.js");

/// Seconds between two renewals of a live page.
const RENEWAL: u32 = 5;

/// A page that stays as it is, ready to be sent.
pub fn page(title: &str, body: &Markup) -> Response {
    let head = html! {};
    send(&document(title, &head, &html! { h1 { (title) } (body) }))
}

/// A page that renews itself: what is wrong in one sentence, which screen readers are told when it changes, and the
/// rest, which they are not. `tab` is what the browser's tab says.
pub fn live_page(tab: &str, title: &str, headline: &Headline, rest: &Markup) -> Response {
    let head = html! {
        noscript { meta http-equiv="refresh" content=(RENEWAL); }
        script type="module" src="/live.js" {}
    };
    let body = html! {
        h1 { (title) }
        div.headline.(headline.class) role="status" aria-atomic="true" data-live="headline" { (headline.said) }
        p.stale-note.failed { "This page is not being renewed: t3-prober does not answer." }
        div data-live="rest" { (rest) }
    };
    send(&document(tab, &head, &body))
}

/// `/live.js`.
pub async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")], LIVE)
}

/// What a live page says first.
pub struct Headline {
    /// `ok`, `failed` or `skipped`: its colour.
    pub class: &'static str,
    pub said: Markup,
}

fn document(title: &str, head: &Markup, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · t3-prober" }
                style { (PreEscaped(STYLE)) }
                (head)
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a href="/" { strong { "t3-prober" } }
                    nav aria-label="Pages" {
                        a href="/" { "Status" } " "
                        a href="/history" { "History" } " "
                        a href="/metrics" { "Metrics" }
                    }
                }
                main id="main" tabindex="-1" { (body) }
            }
        }
    }
}

/// Nothing on a page comes from elsewhere, runs but our own script, or is kept.
fn send(document: &Markup) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, document.0.clone()).into_response()
}

/// "3 min ago", with the exact time behind it.
pub fn ago(time: SystemTime, now: SystemTime) -> Markup {
    let exact = humantime::format_rfc3339_seconds(time).to_string();
    let text = match now.duration_since(time) {
        Ok(age) => format!("{} ago", rough(age)),
        Err(ahead) => format!("in {}", rough(ahead.duration())),
    };
    html! { time datetime=(exact) title=(exact) { (text) } }
}

/// How long it has been so: "3 min", with the exact beginning behind it.
pub fn lasted(since: SystemTime, now: SystemTime) -> Markup {
    let exact = humantime::format_rfc3339_seconds(since).to_string();
    let text = rough(now.duration_since(since).unwrap_or_default());
    html! { time datetime=(exact) title=(format!("since {exact}")) { (text) } }
}

/// A duration in its largest unit: "8 s", "3 min", "5 h", "2 d".
pub fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        0..=1 => "1 s".to_owned(),
        seconds @ 2..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86400),
    }
}

/// How long a step took: "2.4 ms", "1.31 s".
pub fn took(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1000.0;
    if millis < 10.0 {
        format!("{millis:.1} ms")
    } else if millis < 1000.0 {
        format!("{millis:.0} ms")
    } else {
        format!("{:.2} s", millis / 1000.0)
    }
}

/// The class that colours an outcome; the word itself always stands beside it.
pub fn class(outcome: Outcome) -> &'static str {
    if outcome == Outcome::Skipped(Skip::EarlierStep) {
        // What follows from a failure is not worth a colour of its own.
        return "quiet";
    }
    match outcome.ended() {
        Ended::Ok => "ok",
        Ended::Failed => "failed",
        Ended::Skipped => "skipped",
    }
}

/// What the reason's word means, for whoever points at it.
pub fn meaning(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => Ended::Ok.meaning(),
        Outcome::Failed(reason) => reason.meaning(),
        Outcome::Skipped(skip) => skip.meaning(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_said_in_one_unit() {
        let said = [1, 59, 119, 120, 7199, 7200, 172_800].map(|seconds| rough(Duration::from_secs(seconds)));
        assert_eq!(said, ["1 s", "59 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
    }

    #[test]
    fn a_step_shows_three_digits() {
        let said = [2_412, 48_000, 1_312_000].map(|micros| took(Duration::from_micros(micros)));
        assert_eq!(said, ["2.4 ms", "48 ms", "1.31 s"]);
    }
}
