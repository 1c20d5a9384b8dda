//! Percentiles, means and spreads of complete samples. Nothing is bucketed or estimated.

/// The `percent`-th percentile of ascending `sorted`, linear between its neighbours (NumPy's default, hence vLLM's); `None` of
/// nothing.
pub fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
    let (below, share) = (place.floor() as usize, place.fract());
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    Some(low + (high - low) * share)
}

/// What is said of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// Arithmetic mean.
    pub mean: f64,
    /// 50th percentile.
    pub median: f64,
    /// Standard deviation of the sample taken as the whole (division by n), as in vLLM.
    pub std: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Distribution {
    /// Of `samples` in any order; `None` of nothing.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let mean = mean(&samples)?;
        let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / samples.len() as f64;
        let (median, p99) = (percentile(&samples, 50.0)?, percentile(&samples, 99.0)?);
        Some(Self { mean, median, std: variance.sqrt(), p99 })
    }
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
}

/// A figure that was measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// 50th percentile.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// 95 % confidence interval of the mean by Student's t; `None` of a single measurement.
    pub ci95: Option<(f64, f64)>,
    /// Measurements.
    pub count: usize,
}

impl Spread {
    /// Of repeated measurements; `None` of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (mean, count) = (mean(&sorted)?, sorted.len());
        let ci95 = (count > 1).then(|| {
            let variance = sorted.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
            let half = student_t_975(count - 1) * (variance / count as f64).sqrt();
            (mean - half, mean + half)
        });
        Some(Self { median: percentile(&sorted, 50.0)?, min, max, ci95, count })
    }
}

/// The 97.5 % quantile of Student's t with `degrees` degrees of freedom, at least one: tables to 10, then the first terms of the
/// Cornish–Fisher expansion around the normal's 1.95996, which are within 0.001 from there on.
fn student_t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    if let Some(quantile) = TABLE.get(degrees.saturating_sub(1)) {
        return *quantile;
    }
    let (z, n) = (1.959_964_f64, degrees as f64);
    let first = (z.powi(3) + z) / (4.0 * n);
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n);
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * n.powi(3));
    z + first + second + third
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_t_are_those_of_the_tables() {
        for (degrees, quantile) in [(1, 12.706), (5, 2.571), (11, 2.201), (20, 2.086), (30, 2.042), (120, 1.980)] {
            let got = student_t_975(degrees);
            assert!((got - quantile).abs() < 0.0011, "t(0.975, {degrees}) = {quantile}, not {got}");
        }
    }
}
