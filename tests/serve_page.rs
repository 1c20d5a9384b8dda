//! The page at `/` in a real browser: it draws lanes, streams an answer, is used by keyboard alone, in light and dark, and asks nobody
//! but its own server for anything.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/browser.rs"]
mod browser;
#[path = "support/http.rs"]
mod http;

use browser::Browser;
use http::Serving;
use serde_json::json;

const READY: &str = "document.getElementById('model').textContent === 'tiny-step3'";

fn open(server: &Serving) -> Browser {
    Browser::open_at(&format!("http://{}/", server.address), READY)
}

/// Nothing went wrong on the page, and nothing was asked of anyone else.
#[track_caller]
fn is_quiet(browser: &Browser, server: &Serving) {
    assert!(browser.faults.is_empty(), "{:?}", browser.faults);
    let own = format!("\"http://{}/", server.address);
    // Browsers ask for an icon by themselves.
    assert!(browser.requests.iter().all(|request| request.starts_with(&own)), "{:?}", browser.requests);
}

#[test]
fn a_prompt_is_asked_and_answered_by_keyboard_alone() {
    let server = Serving::start(&[]);
    let mut browser = open(&server);
    browser.await_true("document.querySelectorAll('#lanes .lane').length === 2");
    let expected = server.complete(json!({ "prompt": "Nora", "max_tokens": 40, "temperature": 0 }));
    let text = expected["choices"][0]["text"].as_str().expect("text");

    // From the top of the page through all fields to the button, in the order they stand in.
    for (id, text) in [("prompt", "Nora"), ("max", "40"), ("temperature", "0"), ("key", ""), ("send", "")] {
        browser.press("Tab", 9, "", 0);
        assert_eq!(browser.value("document.activeElement.id"), id);
        let outline = browser.value("getComputedStyle(document.activeElement).outlineStyle");
        assert_eq!(outline, "solid", "who has the keyboard's attention is seen: {id}");
        if !text.is_empty() {
            // All of it, as a keyboard selects it.
            browser.call("Input.dispatchKeyEvent", json!({ "type": "keyDown", "commands": ["selectAll"] }));
            browser.write(text);
        }
    }
    browser.press("Enter", 13, "\r", 0);
    browser.await_true("document.getElementById('told').textContent.includes('40 made')");
    assert_eq!(browser.value("document.getElementById('answer').textContent"), text);
    is_quiet(&browser, &server);
}

#[test]
fn an_answer_is_seen_while_it_comes_and_escape_stops_it() {
    let server = Serving::start(&[]);
    let mut browser = open(&server);
    // Others keep the server busy, or the answer would be over before anyone could look.
    let long = http::completion(json!({ "prompt": "Nora", "max_tokens": 1900, "ignore_eos": true, "n": 8 }));
    let others: Vec<_> = (0..7).map(|_| server.send("/v1/completions", &long)).collect();
    server.until("others are decoded", |server| server.metric("rally_num_requests_running") == 56.0);
    browser.value("document.getElementById('max').value = '2000'; document.getElementById('prompt').focus()");
    browser.press("Enter", 13, "\r", 2);
    // It grows in more than one piece before it is over.
    browser.await_true("document.getElementById('answer').textContent.length > 0");
    let length = "document.getElementById('answer').textContent.length";
    let first = browser.number(length);
    browser.await_true(&format!("{length} > {first}"));
    assert_eq!(browser.value("document.getElementById('told').textContent"), "", "it is not over");
    browser.press("Escape", 27, "", 0);
    browser.await_true("document.getElementById('told').textContent === 'Stopped.'");
    browser.await_true("Number(document.getElementById('running').textContent) > 0");
    drop(others);
    server.until_empty();
    browser.await_true("document.getElementById('running').textContent === '0'");
    is_quiet(&browser, &server);
}

/// Contrast of two colours by WCAG, 1 to 21, of the text of an element on what is behind it.
const CONTRAST: &str = "(selector => {
    const parse = colour => colour.match(/[0-9.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const own = document.querySelector(selector);
    let behind = own;
    while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(own).color, getComputedStyle(behind).backgroundColor].map(parse).map(light).sort((a, b) => b - a);
    return (a + 0.05) / (b + 0.05);
})";

#[test]
fn it_is_read_in_light_and_in_dark_and_fits_a_telephone() {
    let server = Serving::start(&[]);
    let mut browser = open(&server);
    browser.await_true("document.querySelectorAll('#lanes .lane').length === 2");
    let ground = "getComputedStyle(document.body).backgroundColor";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        grounds.push(browser.value(ground));
        for element in ["h1", "h2", "dt", "dd", "label", "textarea", "input", "#send", "form p", ".lane span"] {
            let contrast = browser.number(&format!("{CONTRAST}('{element}')"));
            assert!(contrast >= 4.5, "{scheme}, {element}: {contrast:.2}");
        }
    }
    assert_ne!(grounds[0], grounds[1]);
    let narrow = json!({ "width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": true });
    browser.call("Emulation.setDeviceMetricsOverride", narrow);
    let width = browser.number("document.documentElement.scrollWidth");
    assert!(width <= 360.0, "it is {width} wide");
    is_quiet(&browser, &server);
}

/// Where the server has gone, the page says so and shows what it knew.
#[test]
fn a_server_that_goes_is_told_of() {
    let mut server = Serving::start(&["--drain-seconds", "0"]);
    let mut browser = open(&server);
    server.signal("-TERM");
    assert!(server.ended().success());
    browser.await_true("document.getElementById('state').textContent === 'The server does not answer.'");
    assert_eq!(browser.value("document.getElementById('model').textContent"), http::MODEL);
}
