//! A load: requests with their arrival times and lengths, and how many may be under way at once.

/// One request of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadRequest {
    /// When it arrives, in seconds after the load begins. Latency counts from here.
    pub arrival_s: f64,
    /// Prompt tokens, at least one.
    pub prompt_tokens: usize,
    /// Tokens to generate, at least one.
    pub output_tokens: usize,
}

/// Requests by arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Ascending in `arrival_s`.
    pub requests: Vec<LoadRequest>,
    /// Most requests under way at once: what arrives later waits its turn outside, and its latency runs. `None`: no bound.
    pub max_concurrency: Option<usize>,
}

/// The longest request a deployment can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimits {
    /// Prompt and generated tokens together.
    pub total_tokens: usize,
}

/// A request that a deployment can never take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "request {number} of the load has {prompt_tokens} prompt and {output_tokens} output tokens, and a sequence may have \
     {total_tokens} in all: raise the graph's `limits.kv_tokens`, use a model with more positions, or clip with --clip"
)]
pub struct TooLong {
    /// Which, from 1.
    pub number: usize,
    /// Its prompt.
    pub prompt_tokens: usize,
    /// What it would generate.
    pub output_tokens: usize,
    /// What there is room for.
    pub total_tokens: usize,
}

impl LoadLimits {
    fn holds(self, request: &LoadRequest) -> bool {
        request.prompt_tokens.saturating_add(request.output_tokens) <= self.total_tokens
    }
}

impl Load {
    /// Whether every request fits.
    ///
    /// # Errors
    /// [`TooLong`] for the first that does not.
    pub fn check(&self, limits: LoadLimits) -> Result<(), TooLong> {
        match self.requests.iter().enumerate().find(|(_, request)| !limits.holds(request)) {
            None => Ok(()),
            Some((index, request)) => Err(TooLong {
                number: index + 1,
                prompt_tokens: request.prompt_tokens,
                output_tokens: request.output_tokens,
                total_tokens: limits.total_tokens,
            }),
        }
    }

    /// Shortens what does not fit: first the prompt, to no less than one token, then what is generated. Returns how many
    /// requests were shortened. `limits` must have room for two tokens.
    pub fn clip(&mut self, limits: LoadLimits) -> usize {
        let total = limits.total_tokens.max(2);
        let long = |request: &&mut LoadRequest| !limits.holds(request);
        self.requests
            .iter_mut()
            .filter(long)
            .map(|request| {
                request.output_tokens = request.output_tokens.min(total - 1);
                request.prompt_tokens = request.prompt_tokens.min(total - request.output_tokens);
            })
            .count()
    }

    /// Tokens to be generated, over all requests.
    pub fn output_tokens(&self) -> usize {
        self.requests.iter().map(|request| request.output_tokens).sum()
    }
}
