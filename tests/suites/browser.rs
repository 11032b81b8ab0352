//! A real browser at the front door: a deep link, a login nobody sees, a WebSocket across a restart of t3.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::door::Door;
use crate::support::world::World;

/// A page's own client: opens a WebSocket with its cookie, and opens it again for as long as it is closed.
const CLIENT: &str = r#"
window.pongs = 0; window.opened = 0; window.closes = [];
window.connect = () => {
  const socket = new WebSocket(`ws://${location.host}/ws`);
  socket.onopen = () => { window.opened += 1; socket.send('{"_tag":"Ping"}'); };
  socket.onmessage = (message) => { if (JSON.parse(message.data)._tag === "Pong") { window.pongs += 1; } };
  socket.onclose = (close) => { window.closes.push(close.code); setTimeout(window.connect, 100); };
};
window.connect();
"#;

#[test]
fn a_deep_link_lands_logged_in_and_its_socket_outlives_a_restart_of_t3() {
    let mut door = Door::before(World::with(&[("ann", "0.0.33")]), "");
    let Some(mut browser) = Browser::open("about:blank") else { return };
    browser.with_headers(&json!({ "X-authentik-username": "ann@example.com" }));
    browser.go(&format!("http://127.0.0.1:{}/threads/7?tab=diff#last", door.port));

    let here = "location.pathname + location.search + location.hash";
    assert_eq!(browser.evaluate(here), "/threads/7?tab=diff#last");
    let title = browser.evaluate("document.title");
    assert_eq!(title, "Stand-in for t3 0.0.33", "the app, and no page of ours or for pairing");
    // One redirect on the way, and never a page for pairing in the history.
    assert_eq!(browser.evaluate("performance.getEntriesByType('navigation')[0].redirectCount"), 1);
    let session = "fetch('/api/auth/session').then(answer => answer.json()).then(own => own.authenticated)";
    assert_eq!(browser.evaluate(session), true);
    assert_eq!(browser.evaluate("document.cookie"), "", "no script can read the session");

    browser.evaluate(CLIENT);
    browser.until("window.pongs === 1");
    let opened = "t3_dispatch_websockets{user=\"ann\"}";
    door.until_metric(opened, 1.0);
    door.world.kill("ann");
    browser.until("window.closes.length > 0");
    // Whoever reloads meanwhile waits on a page that comes back by itself.
    let mut other = Browser::open("about:blank").expect("a browser");
    other.with_headers(&json!({ "X-authentik-username": "ann@example.com" }));
    other.go(&format!("http://127.0.0.1:{}/threads/8", door.port));
    assert!(other.text().contains("One moment"), "{}", other.text());
    door.world.start("ann", "0.0.33");
    browser.until("window.pongs >= 2");
    assert_eq!(browser.evaluate(here), "/threads/7?tab=diff#last");
    assert_eq!(browser.evaluate(session), true, "the same session");
    other.until("document.title === 'Stand-in for t3 0.0.33' && location.pathname === '/threads/8'");
    assert_eq!(other.evaluate(session), true);
    door.until_metric(opened, 1.0);
    let logins = "t3_dispatch_pairings_total{user=\"ann\",endpoint=\"browser_session\"}";
    assert!(door.metric(logins) <= 2.0, "one login a browser at most");
}
