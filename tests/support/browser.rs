//! A real browser: headless Chromium, driven over its DevTools protocol through two pipes, with a profile of its own that
//! goes with it. It reaches nothing but this machine.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tools;

/// What has not happened by then does not happen; a browser on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// One page of one browser.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    events: VecDeque<Value>,
    session: String,
    next: u64,
    _profile: TempDir,
}

impl Browser {
    /// A new browser on this page; `None` where `chromium` is left out by name.
    pub fn open(url: &str) -> Option<Self> {
        let chromium = tools::find("chromium")?;
        let profile = tempfile::Builder::new().prefix("t3-prober-browser-").tempdir().expect("a directory");
        // It speaks on descriptors 3 and 4.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"]).arg(chromium);
        shell.args([
            "--headless=new",
            "--no-sandbox",
            "--remote-debugging-pipe",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
            "--hide-scrollbars",
            "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        ]);
        shell.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = shell.spawn().expect("a shell");
        let (commands, answers) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (session, messages) = (String::new(), read(answers));
        let events = VecDeque::new();
        let mut browser = Self { child, commands, messages, events, session, next: 0, _profile: profile };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", &attach);
        attached["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        browser.call("Page.enable", &json!({}));
        browser.call("Network.enable", &json!({}));
        browser.go(url);
        Some(browser)
    }

    /// Sends these headers with every request, as an edge would add them.
    pub fn with_headers(&mut self, headers: &Value) {
        self.call("Network.setExtraHTTPHeaders", &json!({ "headers": headers }));
    }

    /// Follows a link, and waits until the page has loaded.
    pub fn go(&mut self, url: &str) {
        self.events.clear();
        let answer = self.call("Page.navigate", &json!({ "url": url }));
        assert_eq!(answer["errorText"], Value::Null, "{url}: {answer}");
        self.until_event("Page.loadEventFired");
    }

    /// The page's text as a person reads it.
    pub fn text(&mut self) -> String {
        self.evaluate("document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// The value of an expression in the page; a promise is waited for.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let question = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", &question);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page, whatever page that has become.
    pub fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        let question = json!({ "expression": expression, "returnByValue": true });
        loop {
            // Between two pages there is none to ask.
            let answer = self.ask("Runtime.evaluate", &question);
            if answer["result"]["result"]["value"] == true {
                return;
            }
            if Instant::now() > deadline {
                let (url, text) = (self.evaluate("location.href"), self.text());
                panic!("waited {PATIENCE:?} for {expression}, on {url}: {text}");
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// A picture of the whole page as a screen of this size shows it, in light or dark.
    pub fn screenshot(&mut self, path: &Path, width: u32, height: u32, dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!({ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } });
        self.call("Emulation.setEmulatedMedia", &json!({ "features": [scheme] }));
        let picture =
            self.call("Page.captureScreenshot", &json!({ "format": "png", "captureBeyondViewport": true }));
        let bytes = BASE64_STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(path, bytes).expect("a file");
    }

    /// One command and its result.
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let answer = self.ask(method, parameters);
        assert_eq!(answer["error"], Value::Null, "{method}: {answer}");
        answer["result"].clone()
    }

    fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).expect("the browser listens");
        loop {
            let message = self.message(method);
            if message["id"] == id {
                return message;
            }
            self.events.push_back(message);
        }
    }

    fn until_event(&mut self, method: &str) {
        loop {
            let event = self.events.pop_front().unwrap_or_else(|| self.message(method));
            if event["method"] == method {
                return;
            }
        }
    }

    fn message(&self, what: &str) -> Value {
        let received = self.messages.recv_timeout(PATIENCE);
        received.unwrap_or_else(|error| panic!("the browser says nothing to {what}: {error}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked, it takes its own processes with it.
        let _ = self.commands.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The messages as they come, each ended by a NUL, for as long as the browser lives.
fn read(answers: ChildStdout) -> Receiver<Value> {
    let (sender, messages) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(answers).split(0).map_while(Result::ok) {
            let message = serde_json::from_slice(&message).expect("JSON");
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    messages
}
