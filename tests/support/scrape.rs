//! A real run with `--metrics`, and a reader of Prometheus' text format that takes nothing for granted.
// Each test binary uses its own part of this file.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// The graph of the runs.
pub const GRAPH: &str = "graphs/tiny-ping-pong.json";

/// A run of the real binary that goes on until this is dropped.
pub struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    pub address: String,
    _folder: tempfile::TempDir,
}

impl Running {
    /// Starts a run that is longer than any test.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let requests = folder.path().join("requests.jsonl");
        let request = |id: usize| {
            let prompt = "Once upon a time";
            serde_json::json!({ "id": id.to_string(), "prompt": prompt, "max_tokens": 40, "ignore_eos": true })
        };
        let lines: String = (0..5000).map(|id| format!("{}\n", request(id))).collect();
        std::fs::write(&requests, lines).expect("the temporary folder can be written");
        let requests = requests.to_str().expect("temporary paths are text");
        Self::spawn(&["run", GRAPH, "--requests", requests], folder)
    }

    /// Starts a bench that is longer than any test.
    pub fn bench(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::spawn(&[&["bench", GRAPH, "--num-prompts", "5000", "--warmup", "3"], more].concat(), folder)
    }

    fn spawn(arguments: &[&str], folder: tempfile::TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rally"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .args(["--metrics", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("the run says where its metrics are");
        let address = line.trim().strip_prefix("metrics on http://").and_then(|rest| rest.strip_suffix("/metrics"));
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, stderr, address, _folder: folder }
    }

    /// Status line and body of a request.
    pub fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.address).expect("the listener is there");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).expect("the listener reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the listener answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    /// The page once `tokens` have been generated.
    pub fn page_after(&mut self, tokens: f64) -> String {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let (status, page) = self.get("/metrics");
            assert_eq!(status, "HTTP/1.1 200 OK");
            let generated =
                parse(&page).unwrap_or_else(|fault| panic!("{fault}\n{page}")).total("rally_generation_tokens_total");
            if generated >= tokens {
                return page;
            }
            let ended = self.child.try_wait().expect("the child is ours");
            assert!(ended.is_none() && Instant::now() < until, "{generated} tokens, the run: {ended:?}");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A page, taken apart.
#[derive(Debug, Default)]
pub struct Page {
    /// Type of each family.
    pub types: BTreeMap<String, String>,
    pub helps: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

/// Keys with their values, in order.
type Labels = Vec<(String, String)>;

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Labels,
    pub value: f64,
}

impl Sample {
    fn series(&self) -> String {
        format!("{}{:?}", self.name, self.labels)
    }
}

impl Page {
    /// The family that a sample's name belongs to.
    pub fn family<'a>(&self, name: &'a str) -> &'a str {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        base.filter(|base| self.types.get(*base).is_some_and(|kind| kind == "histogram")).unwrap_or(name)
    }

    /// Sum over all series of a name.
    pub fn total(&self, name: &str) -> f64 {
        self.samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum()
    }
}

/// Reads a page and checks all that the format promises; the fault, if there is one.
pub fn parse(text: &str) -> Result<Page, String> {
    let mut page = Page::default();
    let mut current = String::new();
    let mut closed = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| format!("no help: {line}"))?;
            let before = page.helps.insert(name.into(), help.into());
            if before.is_some() || help.trim().is_empty() {
                return Err(format!("help twice or empty: {line}"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| format!("no type: {line}"))?;
            let known = ["counter", "gauge", "histogram"].contains(&kind);
            if !known || page.types.insert(name.into(), kind.into()).is_some() || !page.helps.contains_key(name) {
                return Err(format!("a type unknown, given twice, or without help: {line}"));
            }
            closed.insert(std::mem::replace(&mut current, name.into()));
        } else {
            let sample = parse_sample(line)?;
            let family = page.family(&sample.name).to_owned();
            if family != current || closed.contains(&family) {
                return Err(format!("a sample outside its family: {line}"));
            }
            page.samples.push(sample);
        }
    }
    check_values(&page)?;
    Ok(page)
}

fn parse_sample(line: &str) -> Result<Sample, String> {
    let fault = || format!("no sample: {line}");
    let (series, value) = line.rsplit_once(' ').ok_or_else(fault)?;
    let value: f64 = value.parse().map_err(|_| fault())?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(letters) || !value.is_finite() {
        return Err(fault());
    }
    let mut rest = labels.strip_suffix('}').ok_or_else(fault)?;
    let mut found = Labels::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"").ok_or_else(fault)?;
        let end = closing_quote(after).ok_or_else(fault)?;
        if found.iter().any(|(other, _)| other == key) {
            return Err(format!("a label twice: {line}"));
        }
        found.push((key.into(), after[..end].into()));
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Ok(Sample { name: name.into(), labels: found, value })
}

/// The first quote that no backslash stands before.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, c)| {
        let quote = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        quote.then_some(index)
    })
}

fn check_values(page: &Page) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for sample in &page.samples {
        if !seen.insert(sample.series()) {
            return Err(format!("twice: {}", sample.series()));
        }
        let rises = page.types[page.family(&sample.name)] != "gauge";
        if rises && sample.value < 0.0 {
            return Err(format!("negative: {}", sample.series()));
        }
    }
    let histograms = page.types.iter().filter(|(_, kind)| *kind == "histogram");
    histograms.map(|(name, _)| name).try_for_each(|name| check_histogram(page, name))
}

/// Each series of a histogram: edges ascend and end with +Inf, counts do not fall, the last is the count, and there is a sum.
fn check_histogram(page: &Page, name: &str) -> Result<(), String> {
    let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in page.samples.iter().filter(|sample| sample.name == format!("{name}_bucket")) {
        let mut labels = sample.labels.clone();
        let place = labels.iter().position(|(key, _)| key == "le").ok_or_else(|| format!("no edge: {sample:?}"))?;
        let (_, le) = labels.remove(place);
        let edge = if le == "+Inf" { f64::INFINITY } else { le.parse().map_err(|_| format!("an edge {le}"))? };
        buckets.entry(labels).or_default().push((edge, sample.value));
    }
    for (labels, series) in buckets {
        let ascends = series.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
        let of = |suffix: &str| {
            let name = format!("{name}{suffix}");
            page.samples.iter().find(|sample| sample.name == name && sample.labels == labels).map(|sample| sample.value)
        };
        let last = series.last().copied();
        if !ascends || last.map(|(edge, _)| edge) != Some(f64::INFINITY) {
            return Err(format!("{name}{labels:?}: buckets {series:?}"));
        }
        if of("_count") != last.map(|(_, count)| count) || of("_sum").is_none() {
            return Err(format!(
                "{name}{labels:?}: count {:?}, sum {:?}, buckets {series:?}",
                of("_count"),
                of("_sum")
            ));
        }
    }
    Ok(())
}
