//! The status page in a real browser: on a phone and at a desk, in light and dark, renewed while it is looked at.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::world::{PROGRAM, World, wait_for};

const QUICK: &str = "[probe]\npulse_interval = \"2s\"\npulse_timeout = \"1600ms\"\n";

/// Text whose contrast with what is behind it is below 4.5, as WCAG AA wants it.
const FAINT: &str = r#"
(() => {
  const channels = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (it) => {
    for (let at = it; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) { return color; }
    }
    return [255, 255, 255];
  };
  const own = (it) => [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll('body *')]
    .filter((it) => own(it) && it.getClientRects().length && !['SCRIPT', 'NOSCRIPT', 'OPTION'].includes(it.tagName))
    .map((it) => {
      const [a, b] = [light(channels(getComputedStyle(it).color)), light(behind(it))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), it.outerHTML.slice(0, 80)];
    })
    .filter(([ratio]) => ratio < 4.5);
})()
"#;

#[test]
fn the_pages_fit_a_phone_and_a_desk_in_light_and_in_dark() {
    // The stand-in's builds are this program under another name.
    let program = std::path::Path::new(PROGRAM).parent().expect("a directory").display();
    let gate = format!(
        "[gate]\nexpose = [\"{program}\"]\nhold = \"100ms\"\nkeep_free_mib = 1\ncontrol = \"0.0.26\"\n"
    );
    let world = World::with(&[("ann", "0.0.26"), ("bob", "0.0.24")]).configured(&format!("{QUICK}{gate}"));
    world.install("0.0.33");
    let serving = world.serve();
    for user in ["ann", "bob"] {
        serving.until_ok(user, "handshake", true);
    }
    let judged = world.command(&["gate", "0.0.33"]).output().expect("the program");
    assert!(judged.status.code().is_some_and(|code| code < 4), "{}", String::from_utf8_lossy(&judged.stderr));
    wait_for("the verdict", || (serving.page("/candidates/0.0.33").status == 200).then_some(()));
    let Some(mut browser) = Browser::open("about:blank") else { return };
    let pictures = tempfile::tempdir().expect("a directory");
    for path in ["/", "/users/bob", "/candidates/0.0.33", "/history?user=ann"] {
        browser.go(&format!("http://127.0.0.1:{}{path}", serving.port));
        for (width, height) in [(390, 844), (1280, 900)] {
            let mut grounds = Vec::new();
            for dark in [false, true] {
                browser.screenshot(&pictures.path().join("page.png"), width, height, dark);
                let faint = browser.evaluate(FAINT);
                assert_eq!(faint, json!([]), "{path} has text that is hard to read, dark: {dark}");
                let wide = format!(
                    "[...document.querySelectorAll('body *')].filter(it => !it.closest('.scroll') \
                     && it.getBoundingClientRect().right > {width}).map(it => it.outerHTML.slice(0, 80))"
                );
                let found = browser.evaluate(&wide);
                assert_eq!(found, json!([]), "{path} has something that is too wide for {width} px");
                grounds.push(browser.evaluate("getComputedStyle(document.body).backgroundColor"));
            }
            assert_ne!(grounds[0], grounds[1], "{path} looks the same in light and dark");
        }
        let structure = "[document.documentElement.lang, document.querySelectorAll('header, nav[aria-label], main#main, h1').length, \
            document.querySelectorAll('th:not([scope])').length, document.querySelector('a').getAttribute('href')]";
        assert_eq!(
            browser.evaluate(structure),
            json!(["en", 4, 0, "#main"]),
            "landmarks, headings of tables, a way past them"
        );
        let unnamed = "[...document.querySelectorAll('a, button, input, select')]\
            .filter(it => !(it.innerText || it.labels?.[0]?.innerText || it.ariaLabel)).length";
        assert_eq!(browser.evaluate(unnamed), 0, "{path} has something that a screen reader cannot name");
    }
}

#[test]
fn a_page_that_is_looked_at_is_renewed_in_place() {
    let world = World::with(&[("ann", "0.0.33")]).configured(QUICK);
    let serving = world.serve();
    serving.until_ok("ann", "handshake", true);
    let Some(mut browser) = Browser::open("about:blank") else { return };
    browser.go(&format!("http://127.0.0.1:{}/", serving.port));
    assert!(browser.text().contains("1 of 1 users can log in."), "{}", browser.text());
    // What only this load of the page has is still there after a renewal.
    browser.evaluate("window.loaded = 'once'; document.querySelector('a[href=\"/users/ann\"]').focus()");
    world.fault("ann", "exchange-500");
    browser.until("document.querySelector('[data-live=headline]').innerText.includes('ann cannot log in')");
    assert_eq!(browser.evaluate("window.loaded"), "once");
    assert_eq!(browser.evaluate("document.title"), "ann cannot log in · t3-prober");
    assert_eq!(
        browser.evaluate("document.activeElement.getAttribute('href')"),
        "/users/ann",
        "the focus stays"
    );
    assert_eq!(serving.stop(), 0);
    browser.until("document.documentElement.classList.contains('stale')");
    assert!(browser.text().contains("This page is not being renewed"), "{}", browser.text());
}
