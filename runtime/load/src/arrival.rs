//! When requests arrive: an open loop of a given rate, whatever the system under test does.

use crate::random::SeededRandom;
use crate::request::LoadRequest;

/// An open loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArrivalProcess {
    /// Mean requests a second; infinite: all at once.
    pub rate: f64,
    /// Shape of the gamma distribution of gaps, as in vLLM: 1 is a Poisson process, less is burstier, more is more even.
    pub burstiness: f64,
}

/// Stream of the seed that gaps are drawn from.
const GAPS: u64 = 2;

impl ArrivalProcess {
    /// A Poisson process.
    pub fn poisson(rate: f64) -> Self {
        Self { rate, burstiness: 1.0 }
    }

    /// Arrival times in seconds, ascending, the first at 0. Gaps are drawn as they are and not stretched to meet the rate
    /// exactly: over few requests a Poisson process is seldom at its mean.
    pub fn times(&self, count: usize, seed: u64) -> Vec<f64> {
        let mut random = SeededRandom::new(seed, GAPS);
        let mut now = 0.0;
        (0..count)
            .map(|index| {
                if index > 0 && self.rate.is_finite() {
                    now += random.gamma_of_mean_one(self.burstiness) / self.rate;
                }
                now
            })
            .collect()
    }

    /// Gives `requests` these arrival times, in their order.
    pub fn schedule(&self, requests: &mut [LoadRequest], seed: u64) {
        let times = self.times(requests.len(), seed);
        requests.iter_mut().zip(times).for_each(|(request, time)| request.arrival_s = time);
    }
}
