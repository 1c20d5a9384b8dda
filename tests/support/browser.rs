//! A headless Chromium, spoken to over its debugging pipe: pages, scripts, keys and wheels, and what went wrong on them.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tempfile::TempDir;

/// Longest that any answer may take; a browser that hangs is a failed test.
const PATIENCE: Duration = Duration::from_secs(120);

/// A browser with one page.
pub struct Browser {
    process: Child,
    commands: File,
    answers: Receiver<Value>,
    session: Option<String>,
    next: u64,
    /// Errors that pages reported.
    pub faults: Vec<String>,
    /// Addresses that pages asked for.
    pub requests: Vec<String>,
    _folder: TempDir,
}

impl Browser {
    /// Shows a file that says itself when it is ready.
    pub fn open(page: &Path) -> Self {
        Self::open_at(&format!("file://{}", page.display()), "document.documentElement.dataset.ready === 'yes'")
    }

    /// Shows what is at `address`, once `ready` holds there.
    pub fn open_at(address: &str, ready: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [into, out] = ["in", "out"].map(|name| folder.path().join(name));
        for pipe in [&into, &out] {
            assert!(Command::new("mkfifo").arg(pipe).status().expect("mkfifo is there").success());
        }
        // Opened for both, so that neither end waits for the other to open.
        let pipe = |path: &Path| File::options().read(true).write(true).open(path).expect("the pipe opens");
        let (commands, answers_from) = (pipe(&into), pipe(&out));
        let script = "exec chromium --headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir=\"$1\" \
                      --window-size=1400,1100 about:blank 3<\"$2\" 4>\"$3\"";
        let process = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([&folder.path().join("profile"), &into, &out])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(answers_from).split(0) {
                let Ok(message) = message else { return };
                let message = serde_json::from_slice(&message).expect("Chromium speaks JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            commands,
            answers,
            session: None,
            next: 0,
            faults: Vec::new(),
            requests: Vec::new(),
            _folder: folder,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.call("Page.navigate", json!({ "url": address }));
        browser.await_true(ready);
        browser
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("Chromium listens");
        loop {
            let answer = self.answers.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no answer to {method}"));
            if answer["id"] == self.next {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.faults.push(params["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
                self.faults.push(params["args"].to_string())
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.faults.push(params["entry"].to_string())
            }
            Some("Network.requestWillBeSent") => self.requests.push(params["request"]["url"].to_string()),
            _ => {}
        }
    }

    /// The value of an expression; a promise is awaited.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    pub fn number(&mut self, expression: &str) -> f64 {
        self.value(expression).as_f64().unwrap_or_else(|| panic!("{expression} is no number"))
    }

    /// Lets the page draw until `expression` holds.
    pub fn await_true(&mut self, expression: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        // A frame may never come: not after the device was changed, and on no page that is not seen.
        let look = format!(
            "new Promise(done => {{ const look = () => done({expression}); requestAnimationFrame(look); setTimeout(look, 200) }})"
        );
        while self.value(&look) != true {
            assert!(std::time::Instant::now() < deadline, "never: {expression}; faults: {:?}", self.faults);
        }
    }

    pub fn wheel(&mut self, x: f64, y: f64, delta: f64) {
        let params = json!({ "type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": delta });
        self.call("Input.dispatchMouseEvent", params);
    }

    pub fn mouse(&mut self, kind: &str, x: f64, y: f64, buttons: u8) {
        let button = if kind == "mouseMoved" { "none" } else { "left" };
        let params = json!({ "type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": 1 });
        self.call("Input.dispatchMouseEvent", params);
    }

    pub fn key(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({ "type": kind, "key": key }));
        }
    }
}

impl Browser {
    /// A key as a keyboard sends it, with what it writes and `modifiers` (2: control), so that the browser acts on it.
    pub fn press(&mut self, key: &str, code: u32, text: &str, modifiers: u8) {
        for kind in ["keyDown", "keyUp"] {
            let mut params =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers });
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Writes `text` where the keyboard's attention is, over what is selected.
    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// `light` or `dark`, as a user's system asks for it.
    pub fn prefer(&mut self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to leave, it takes its own children along.
        let message = json!({ "id": self.next + 1, "method": "Browser.close" });
        let _ = self.commands.write_all(format!("{message}\0").as_bytes());
        let _ = self.process.wait();
    }
}
