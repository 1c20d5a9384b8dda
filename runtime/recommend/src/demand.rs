//! What a trace of real requests asks for: contexts with their shares, and tokens a second.

use rally_load::LoadRequest;

/// Contexts that a trace is told in: the search asks for means over them a million times.
const CONTEXTS: usize = 24;
/// The stretch of time whose rate a deployment must keep up with.
const BUSIEST_S: f64 = 60.0;

/// A trace, as sizing needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Requests.
    pub requests: usize,
    /// From the first arrival to the last, in seconds.
    pub span_s: f64,
    /// Tokens that a generated token attends to, with shares of generated tokens; ascending.
    pub contexts: Vec<(u64, f64)>,
    /// Tokens generated a second, over the whole trace; none where all comes at once.
    pub tokens_per_s: Option<f64>,
    /// The same in its busiest minute.
    pub busiest_tokens_per_s: Option<f64>,
}

impl Demand {
    /// Of `requests`, ascending by arrival.
    pub fn of(requests: &[LoadRequest]) -> Self {
        let span_s =
            requests.last().map_or(0.0, |last| last.arrival_s) - requests.first().map_or(0.0, |first| first.arrival_s);
        let tokens: f64 = requests.iter().map(|request| request.output_tokens as f64).sum();
        let arrives = span_s > 0.0;
        Self {
            requests: requests.len(),
            span_s,
            contexts: contexts(requests),
            tokens_per_s: arrives.then(|| tokens / span_s),
            // Of less than a minute the whole is the busiest part.
            busiest_tokens_per_s: arrives.then(|| busiest(requests) / span_s.min(BUSIEST_S)),
        }
    }

    /// A mean over generated tokens.
    pub fn mean_context(&self) -> f64 {
        let shares: f64 = self.contexts.iter().map(|(_, share)| share).sum();
        self.contexts.iter().map(|(tokens, share)| *tokens as f64 * share).sum::<f64>() / shares
    }
}

/// Every sequence weighs as many tokens as it generates, at the context it has half way; neighbours of about equal weight are one.
fn contexts(requests: &[LoadRequest]) -> Vec<(u64, f64)> {
    let half_way = |request: &LoadRequest| (request.prompt_tokens + request.output_tokens.div_ceil(2)) as f64;
    let mut each: Vec<(f64, f64)> =
        requests.iter().map(|request| (half_way(request), request.output_tokens as f64)).collect();
    each.sort_by(|left, right| left.0.total_cmp(&right.0));
    let all: f64 = each.iter().map(|(_, weight)| weight).sum();
    let mut told: Vec<(u64, f64)> = Vec::new();
    let (mut sum, mut weight, mut passed) = (0.0, 0.0, 0.0);
    for (index, (context, own)) in each.iter().enumerate() {
        (sum, weight, passed) = (sum + context * own, weight + own, passed + own);
        let part = (told.len() + 1) as f64 / CONTEXTS as f64;
        if passed >= all * part || index + 1 == each.len() {
            told.push(((sum / weight).round().max(1.0) as u64, weight / all));
            (sum, weight) = (0.0, 0.0);
        }
    }
    told
}

/// Most tokens of requests that arrive within [`BUSIEST_S`].
fn busiest(requests: &[LoadRequest]) -> f64 {
    let (mut most, mut sum, mut first) = (0.0, 0.0, 0);
    for request in requests {
        sum += request.output_tokens as f64;
        while requests[first].arrival_s < request.arrival_s - BUSIEST_S {
            sum -= requests[first].output_tokens as f64;
            first += 1;
        }
        most = f64::max(most, sum);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(arrival_s: f64, prompt_tokens: usize, output_tokens: usize) -> LoadRequest {
        LoadRequest { arrival_s, prompt_tokens, output_tokens }
    }

    #[test]
    fn a_trace_is_told_in_few_contexts_with_the_same_mean() {
        let requests: Vec<LoadRequest> =
            (0..5000).map(|n| request(n as f64 * 0.1, 1 + n * n % 30_011, 1 + n * 7 % 900)).collect();
        let demand = Demand::of(&requests);
        let tokens: f64 = requests.iter().map(|request| request.output_tokens as f64).sum();
        let mean: f64 = (requests.iter())
            .map(|r| (r.prompt_tokens + r.output_tokens.div_ceil(2)) as f64 * r.output_tokens as f64)
            .sum::<f64>()
            / tokens;
        assert!(demand.contexts.len() <= CONTEXTS && demand.contexts.len() > 20, "{:?}", demand.contexts);
        assert!((demand.mean_context() / mean - 1.0).abs() < 1e-3, "{} {mean}", demand.mean_context());
        assert!(demand.contexts.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert!((demand.contexts.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((demand.tokens_per_s.expect("it lasts") - tokens / 499.9).abs() < 1e-6);
    }

    #[test]
    fn the_busiest_minute_counts() {
        // Two bursts, the second twice as large; then nothing for ten minutes.
        let mut requests: Vec<LoadRequest> = (0..60).map(|n| request(n as f64, 10, 100)).collect();
        requests.extend((0..120).map(|n| request(300.0 + n as f64 / 2.0, 10, 100)));
        requests.push(request(1000.0, 10, 100));
        let demand = Demand::of(&requests);
        assert!((demand.busiest_tokens_per_s.expect("it lasts") - 12_000.0 / 60.0).abs() < 5.0, "{demand:?}");
        assert!(demand.tokens_per_s < demand.busiest_tokens_per_s);
        let at_once = Demand::of(&[request(0.0, 10, 4), request(0.0, 30, 4)]);
        assert_eq!((at_once.tokens_per_s, at_once.contexts), (None, vec![(12, 0.5), (32, 0.5)]));
    }
}
