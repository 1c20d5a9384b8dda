//! What a micro-batch's step costs: `rows × a + context × b`, and how a and b are learned from steps that were timed.
//!
//! Only the ratio of the two matters to whoever compares micro-batches. Nothing here reads a clock: seconds are handed in.

/// Cost of rows and of what they look at, in any one unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostModel {
    /// Of a row: projections, FFN, head.
    pub per_row: f64,
    /// Of a position that a row attends to.
    pub per_context: f64,
}

impl Default for CostModel {
    /// Before anything was timed. At Step-3's shapes a row's attention projections are 2 × 169 M operations a layer and a
    /// visible position is 2 × 32,768 (64 heads of 256, scores and sums): some 5,000 positions weigh as much as a row.
    fn default() -> Self {
        Self { per_row: 1.0, per_context: 1.0 / 5000.0 }
    }
}

impl CostModel {
    /// Cost of `rows` rows that attend to `context` positions, all rows together.
    pub fn of(&self, rows: usize, context: usize) -> f64 {
        self.per_row * rows as f64 + self.per_context * context as f64
    }

    /// Cost of `rows` rows of a prompt of which `read` tokens were read before.
    pub fn of_prompt(&self, rows: usize, read: usize) -> f64 {
        self.of(rows, rows * read + rows * (rows + 1) / 2)
    }

    /// Most rows of such a prompt that cost at most `cost`.
    pub fn prompt_rows(&self, cost: f64, read: usize) -> usize {
        // b/2 r² + (a + b (read + 1/2)) r = cost, solved in the form that stands b = 0.
        let (half, linear) = (self.per_context / 2.0, self.per_row + self.per_context * (read as f64 + 0.5));
        let rows = 2.0 * cost / (linear + (linear * linear + 4.0 * half * cost).sqrt());
        // A hair more, so that the exact cost of a number of rows gives that number; no cost at all gives any number.
        if rows.is_nan() { usize::MAX } else { (rows * (1.0 + 1e-9)) as usize }
    }
}

/// Share of what was known that a new timing leaves: about the last hundred steps count.
const KEPT: f64 = 0.99;
/// Weight of the model before learning against the spread of what was seen: decides only where timings leave a or b open,
/// as when rows and context always grow together.
const PRIOR_WEIGHT: f64 = 1e-4;
/// From this weight of steps on, one that took longer than [`CLIP`] times what was expected counts as that: a lane that
/// lost its core for ten milliseconds says nothing about rows. Costs that have really risen are still found, by and by.
const WARM: f64 = 20.0;
/// Share of a mean step that rows and context make up where timings say that they make up nothing.
const FLAT: f64 = 1e-3;
/// See [`WARM`].
const CLIP: f64 = 3.0;

/// Learns a [`CostModel`] from timed steps: least squares with an intercept (what a step costs with any rows at all, such as
/// reading the weights, is the same for every micro-batch), old steps forgotten, outliers clipped, nothing ever
/// negative.
#[derive(Clone, Debug)]
pub struct CostLearner {
    prior: CostModel,
    model: CostModel,
    /// Sum of weights.
    weight: f64,
    /// Means of rows, context, seconds.
    mean: [f64; 3],
    /// Weighted sums of products of deviations: rows², rows × context, context², rows × seconds, context × seconds,
    /// seconds².
    spread: [f64; 6],
}

impl CostLearner {
    /// Knows `prior`, in any unit, and nothing else.
    pub fn new(prior: CostModel) -> Self {
        Self { prior, model: prior, weight: 0.0, mean: [0.0; 3], spread: [0.0; 6] }
    }

    /// The model that fits what was seen, in seconds; before anything was, the prior.
    pub fn model(&self) -> CostModel {
        self.model
    }

    /// Whether it has seen a step.
    pub fn has_learned(&self) -> bool {
        self.weight > 0.0
    }

    /// Seconds that so much is expected to take, with what takes equally long for any rows; 0 before anything was seen.
    pub fn expected(&self, rows: usize, context: usize) -> f64 {
        self.expects(rows as f64, context as f64).max(0.0)
    }

    /// Means of rows, context and seconds; of old ones less and less.
    pub(crate) fn mean(&self) -> [f64; 3] {
        self.mean
    }

    /// The same as [`CostLearner::expected`], which may come out negative here.
    pub(crate) fn expects(&self, rows: f64, context: f64) -> f64 {
        let CostModel { per_row, per_context } = self.model;
        let [mean_rows, mean_context, mean_seconds] = self.mean;
        if self.weight == 0.0 {
            return 0.0;
        }
        mean_seconds + per_row * (rows - mean_rows) + per_context * (context - mean_context)
    }

    /// Takes note of a step. Timings that are no positive number are dropped, and so are steps without rows.
    pub fn observe(&mut self, rows: usize, context: usize, seconds: f64) {
        if rows == 0 || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        let (rows, context) = (rows as f64, context as f64);
        let seen = [rows, context, self.clipped(rows, context, seconds)];
        let kept = self.weight * KEPT;
        self.weight = kept + 1.0;
        let [r, c, s] = std::array::from_fn(|i| seen[i] - self.mean[i]);
        for (mean, deviation) in self.mean.iter_mut().zip([r, c, s]) {
            *mean += deviation / self.weight;
        }
        let share = kept / self.weight;
        for (sum, product) in self.spread.iter_mut().zip([r * r, r * c, c * c, r * s, c * s, s * s]) {
            *sum = *sum * KEPT + product * share;
        }
        self.model = self.fit();
    }

    fn clipped(&self, rows: f64, context: f64, seconds: f64) -> f64 {
        let [.., mean_seconds] = self.mean;
        let expected = self.expects(rows, context);
        // A small step may be expected to take no time at all; half the mean is nothing to be surprised at.
        if self.weight < WARM { seconds } else { seconds.min(CLIP * expected.max(mean_seconds / 2.0)) }
    }

    /// None of it negative; the prior decides what timings leave open. How much that is shows in the first fit's
    /// residue: the noisier and the fewer the timings, the nearer the second one keeps to the prior, which counts as
    /// uncertain by its own size.
    fn fit(&self) -> CostModel {
        let [rows, context, seconds] = self.mean;
        let unit = seconds / (self.prior.per_row * rows + self.prior.per_context * context);
        let expected = [self.prior.per_row * unit, self.prior.per_context * unit];
        let least = [PRIOR_WEIGHT * rows * rows, PRIOR_WEIGHT * context * context];
        let [a, b] = self.least_squares(expected, least);
        let [.., rs, cs, ss] = self.spread.map(|sum| sum / self.weight);
        let noise = (ss - a * rs - b * cs).max(0.0) / self.weight;
        let pull = |i: usize| least[i] + if expected[i] > 0.0 { noise / (expected[i] * expected[i]) } else { 0.0 };
        let [a, b] = self.least_squares(expected, [pull(0), pull(1)]);
        let sound = a.is_finite() && b.is_finite() && a + b > 0.0;
        if sound {
            return CostModel { per_row: a, per_context: b };
        }
        // Steps that take equally long whatever is in them: the prior says what compares with what, and in seconds it is next to nothing.
        let flat = FLAT * unit;
        if flat.is_finite() && flat > 0.0 {
            CostModel { per_row: self.prior.per_row * flat, per_context: self.prior.per_context * flat }
        } else {
            self.prior
        }
    }

    /// Costs of a row and of a position that fit best, each pulled towards what is expected; none negative.
    fn least_squares(&self, expected: [f64; 2], pull: [f64; 2]) -> [f64; 2] {
        let [rr, rc, cc, rs, cs, _] = self.spread.map(|sum| sum / self.weight);
        let (aa, bb) = (rr + pull[0], cc + pull[1]);
        let (right_a, right_b) = (rs + pull[0] * expected[0], cs + pull[1] * expected[1]);
        let determinant = aa * bb - rc * rc;
        let (a, b) = ((right_a * bb - right_b * rc) / determinant, (right_b * aa - right_a * rc) / determinant);
        if a.is_finite() && b.is_finite() && a >= 0.0 && b >= 0.0 {
            [a, b]
        } else if b.is_finite() && b > 0.0 {
            // Noise made one of the two negative: without it, the other explains everything.
            [0.0, (right_b / bb).max(0.0)]
        } else {
            [(right_a / aa).max(0.0), 0.0]
        }
    }
}
