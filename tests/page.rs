//! Trace pages in a real browser: it draws, zooms, moves, shows numbers, breaks out of nothing, asks the network for nothing, and
//! bears the largest trace that a run keeps.

#[path = "support/browser.rs"]
mod browser;
#[path = "../runtime/trace/tests/toy/mod.rs"]
mod toy;

use browser::Browser;
use rally_engine::schedule::virtual_lanes::VirtualTask;
use rally_trace::digest::digest;
use rally_trace::html::{PageText, write};
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use tempfile::TempDir;
use toy::{Ran, Toy};

const NASTY: &str = "</script><script>document.title='broken'</script>";

fn page(ran: &Ran, title: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("trace.html");
    let mut file = BufWriter::new(File::create(&path).expect("the folder can be written"));
    let text =
        PageText { title: title.into(), subtitle: "virtual lanes".into(), digest: digest(&ran.recording(), None) };
    write(&mut file, &ran.recording(), &text).expect("the page is written");
    drop(file);
    (folder, path)
}

fn costs(task: &VirtualTask<'_>) -> u64 {
    let template = &task.table.tasks[task.task];
    3000 + 7000 * (template.stage as u64 % 3) + 500 * task.load.rows as u64
}

fn small() -> Ran {
    Toy::new(2, 1, 4, true, 3).virtually(&costs, &[(0, 3, 20), (0, 5, 20), (0, 2, 12), (400_000, 2, 20)])
}

const LENGTH: &str = "document.documentElement.dataset.to - document.documentElement.dataset.from";
const FROM: &str = "Number(document.documentElement.dataset.from)";
/// Where the chart is: left, top.
const CHART: &str = "(({ left, top }) => [left, top])(document.getElementById('chart').getBoundingClientRect())";
/// How many different colours the chart has.
const COLOURS: &str = "(() => { const chart = document.getElementById('chart');
    const pixels = new Uint32Array(chart.getContext('2d').getImageData(0, 0, chart.width, chart.height).data.buffer);
    return new Set(pixels).size; })()";

fn corner(browser: &mut Browser) -> (f64, f64) {
    let corner = browser.value(CHART);
    (corner[0].as_f64().expect("a number"), corner[1].as_f64().expect("a number"))
}

#[test]
fn it_draws_zooms_moves_and_tells_numbers() {
    let ran = small();
    let (_folder, path) = page(&ran, "a toy");
    let mut browser = Browser::open(&path);
    assert!(browser.number(COLOURS) > 8.0, "tasks, bubbles, path and text have colours of their own");
    assert!(browser.number("Number(document.documentElement.dataset.bars)") > 20.0, "a step has its tasks as bars");
    let lanes = browser.number("document.querySelectorAll('#lanes tbody tr').length");
    assert_eq!(lanes, 3.0);
    assert!(browser.number("document.querySelectorAll('#stages tbody tr').length") >= 8.0);
    assert!(
        browser.value("document.getElementById('digest').textContent").as_str().is_some_and(|t| t.contains("bound"))
    );

    let (left, top) = corner(&mut browser);
    let length = browser.number(LENGTH);
    browser.wheel(left + 600.0, top + 60.0, -200.0);
    browser.await_true(&format!("{LENGTH} < {length} * 0.7"));
    let from = browser.number(FROM);
    browser.mouse("mousePressed", left + 700.0, top + 60.0, 1);
    browser.mouse("mouseMoved", left + 500.0, top + 60.0, 1);
    browser.mouse("mouseReleased", left + 500.0, top + 60.0, 0);
    browser.await_true(&format!("{FROM} > {from}"));
    let from = browser.number(FROM);
    browser.key("ArrowLeft");
    browser.await_true(&format!("{FROM} < {from}"));
    browser.key("0");
    browser.await_true(&format!("{LENGTH} > {length} * 3"));
    let step = browser.number("Number(document.getElementById('step').value)");
    browser.key("]");
    browser.await_true(&format!("Number(document.getElementById('step').value) > {step}"));

    // Over a lane there is a task or a bubble under most pixels; both have a title and numbers.
    let shown = (0..40).any(|i| {
        browser.mouse("mouseMoved", left + 300.0 + 20.0 * f64::from(i), top + 50.0, 0);
        browser.value("!document.getElementById('tip').hidden && document.querySelectorAll('#tip dd').length > 4")
            == true
    });
    assert!(shown, "hovering tells numbers");

    browser.value("document.querySelector('#stages th').click()");
    let names = "[...document.querySelectorAll('#stages tbody tr')].map(row => row.cells[0].textContent)";
    let sorted = browser.value(&format!("(names => names.join() === [...names].sort().join())({names})"));
    assert_eq!(sorted, true, "a click on a head sorts");
    browser.value("document.getElementById('scheme').click()");
    assert_eq!(browser.value("document.documentElement.dataset.scheme"), "dark");
    browser.await_true(&format!("{COLOURS} > 8"));
    assert!(browser.faults.is_empty(), "{:#?}", browser.faults);
    assert_eq!(browser.requests.len(), 1, "the page itself and nothing else: {:?}", browser.requests);
}

#[test]
fn names_do_not_break_out() {
    let mut ran = small();
    for lane in &mut ran.lanes {
        lane.name.push_str(NASTY);
    }
    let (_folder, path) = page(&ran, NASTY);
    let mut browser = Browser::open(&path);
    assert_eq!(browser.value("document.title"), format!("{NASTY} · rally trace"));
    assert_eq!(browser.value("document.querySelector('h1').textContent"), NASTY);
    let lane = browser.value(
        "[...document.querySelectorAll('#lanes tbody tr')].some(row => row.cells[0].textContent.endsWith('</script>'))",
    );
    assert_eq!(lane, true);
    assert_eq!(browser.value("document.scripts.length"), 2, "the data and the page's own script");
    assert!(browser.faults.is_empty(), "{:#?}", browser.faults);
}

#[test]
fn a_trace_without_tasks_is_a_page_too() {
    let ran = Toy::new(1, 1, 1, true, 1).virtually(&costs, &[]);
    let (_folder, path) = page(&ran, "nothing");
    let mut browser = Browser::open(&path);
    browser.key("+");
    browser.key("]");
    browser.key("0");
    assert!(browser.number(COLOURS) >= 2.0);
    assert!(browser.faults.is_empty(), "{:#?}", browser.faults);
}

/// The most that `rally run` keeps on eight lanes. Frames of the whole trace, of a step and of a part of one take at most a quarter
/// of a second: the best of fifteen, since what others take of the machine's time is not the page's.
#[test]
fn the_largest_trace_stays_usable() {
    const SPANS: usize = 262_144;
    let toy = Toy { layers: 61, ..Toy::new(4, 4, 61, true, 3) };
    let mut ran = toy.virtually(&costs, &[(0, 2, 640); 12]);
    for lane in &mut ran.lanes {
        let surplus = lane.spans.len().saturating_sub(SPANS);
        lane.spans.drain(..surplus);
        lane.dropped_spans = surplus as u64;
    }
    let spans: usize = ran.lanes.iter().map(|lane| lane.spans.len()).sum();
    assert!(spans > SPANS * 4, "a large trace: {spans}");
    let began = std::time::Instant::now();
    let (_folder, path) = page(&ran, "large");
    let wrote = began.elapsed();
    let bytes = std::fs::metadata(&path).expect("the page is there").len();
    let began = std::time::Instant::now();
    let mut browser = Browser::open(&path);
    println!("{spans} spans: {bytes} bytes written in {wrote:?}, open in {:?}", began.elapsed());
    for key in ["0", "]", "w"] {
        browser.key(key);
        let frame = "(async () => { const times = []; for (let i = 0; i < 15; i++) { const began = performance.now();
            document.dispatchEvent(new KeyboardEvent('keydown', { key: i % 2 ? 'ArrowLeft' : 'ArrowRight' }));
            await new Promise(requestAnimationFrame); await new Promise(done => setTimeout(done)); times.push(performance.now() - began); }
            return Math.min(...times); })()";
        let best_ms = browser.number(frame);
        println!("after {key:?}: {best_ms:.0} ms a frame");
        assert!(best_ms < 250.0, "after {key}: {best_ms} ms a frame");
    }
    assert!(browser.faults.is_empty(), "{:#?}", browser.faults);
}
