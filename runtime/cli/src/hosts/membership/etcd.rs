//! etcd's v3 API through its JSON gateway, as far as membership needs it: leases, and keys below a prefix.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use ureq::Agent;

/// For one question to one endpoint. etcd answers within milliseconds, and whoever asks has others waiting.
const ANSWER: Duration = Duration::from_secs(1);
/// Longest answer that is read.
const MOST_BYTES: u64 = 16 << 20;

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// None of the endpoints answers, or those that do have no quorum.
    #[error("etcd at {endpoint}: {why}")]
    Unreachable {
        /// The last that was tried.
        endpoint: String,
        /// What was noticed.
        why: String,
    },
    /// It answers, and will not.
    #[error("etcd at {endpoint} refuses: {message}")]
    Refused {
        /// Who.
        endpoint: String,
        /// What it says.
        message: String,
    },
}

impl EtcdError {
    /// Whether trying again can help.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Id of a lease, as the gateway writes it.
pub type Lease = String;

/// A cluster.
#[derive(Debug)]
pub struct Etcd {
    agent: Agent,
    endpoints: Vec<String>,
    /// The endpoint that answered last.
    first: AtomicUsize,
}

impl Etcd {
    /// The cluster of which `endpoints` (`http://address:port`) are members. Nobody is asked yet.
    pub fn new(endpoints: &[String]) -> Self {
        // Where hosts are is no business of a proxy that an environment variable names.
        let config = Agent::config_builder().timeout_global(Some(ANSWER)).http_status_as_error(false).proxy(None);
        let endpoints = endpoints.iter().map(|endpoint| endpoint.trim_end_matches('/').to_owned()).collect();
        Self { agent: config.build().into(), endpoints, first: AtomicUsize::new(0) }
    }

    /// As in the graph.
    pub fn endpoints(&self) -> String {
        self.endpoints.join(", ")
    }

    /// A lease that runs out after `seconds` unless it is kept.
    pub fn grant(&self, seconds: u32) -> Result<Lease, EtcdError> {
        let answer = self.call("lease/grant", &json!({ "TTL": seconds.to_string() }))?;
        self.expect(answer["ID"].as_str().map(str::to_owned), "a lease")
    }

    /// Keeps a lease for its whole time once more. False if it has run out.
    pub fn keep(&self, lease: &str) -> Result<bool, EtcdError> {
        let answer = self.call("lease/keepalive", &json!({ "ID": lease }))?;
        let left = answer["result"]["TTL"].as_str().unwrap_or("0");
        Ok(left.parse::<i64>().is_ok_and(|left| left > 0))
    }

    /// Ends a lease, and with it its keys.
    pub fn revoke(&self, lease: &str) -> Result<(), EtcdError> {
        self.call("lease/revoke", &json!({ "ID": lease })).map(drop)
    }

    /// Writes a key that goes when `lease` does.
    pub fn put(&self, key: &str, value: &[u8], lease: &str) -> Result<(), EtcdError> {
        let body = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value), "lease": lease });
        self.call("kv/put", &body).map(drop)
    }

    /// All keys that begin with `prefix`, with their values.
    pub fn below(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, EtcdError> {
        // The first key behind all that begin so: `prefix` ends with a slash.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let answer =
            self.call("kv/range", &json!({ "key": STANDARD.encode(prefix), "range_end": STANDARD.encode(end) }))?;
        let text = |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).ok();
        let pair = |pair: &Value| Some((String::from_utf8(text(&pair["key"])?).ok()?, text(&pair["value"])?));
        let pairs = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.expect(pairs.iter().map(pair).collect(), "keys and values")
    }

    fn expect<T>(&self, found: Option<T>, what: &str) -> Result<T, EtcdError> {
        let endpoint = || self.endpoints[self.first.load(Ordering::Relaxed)].clone();
        found.ok_or_else(|| EtcdError::Unreachable {
            endpoint: endpoint(),
            why: format!("it answered something else than {what}"),
        })
    }

    /// Asks one endpoint after the other, beginning with the one that answered last.
    fn call(&self, method: &str, body: &Value) -> Result<Value, EtcdError> {
        let (first, count) = (self.first.load(Ordering::Relaxed), self.endpoints.len());
        let mut failed = None;
        for index in (first..first + count).map(|index| index % count) {
            match self.ask(&self.endpoints[index], method, body) {
                Err(error) if error.may_pass() => failed = Some(error),
                answered => {
                    self.first.store(index, Ordering::Relaxed);
                    return answered;
                }
            }
        }
        let none = || EtcdError::Unreachable { endpoint: "no address".into(), why: "the graph names none".into() };
        Err(failed.unwrap_or_else(none))
    }

    fn ask(&self, endpoint: &str, method: &str, body: &Value) -> Result<Value, EtcdError> {
        let unreachable = |why: String| EtcdError::Unreachable { endpoint: endpoint.into(), why };
        let request = self.agent.post(format!("{endpoint}/v3/{method}")).header("Content-Type", "application/json");
        let mut answer = request.send(body.to_string()).map_err(|error| unreachable(error.to_string()))?;
        let status = answer.status();
        let bytes = answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        let bytes = bytes.map_err(|error| unreachable(error.to_string()))?;
        let told = serde_json::from_slice::<Value>(&bytes);
        if status.is_success() {
            return told.map_err(|error| unreachable(format!("its answer is no JSON: {error}")));
        }
        let message = told.ok().and_then(|told| told["error"].as_str().map(str::to_owned));
        let message = message.unwrap_or_else(|| format!("status {status}"));
        // Without a quorum it answers so, and later otherwise.
        if status.is_server_error() {
            Err(unreachable(message))
        } else {
            Err(EtcdError::Refused { endpoint: endpoint.into(), message })
        }
    }
}
