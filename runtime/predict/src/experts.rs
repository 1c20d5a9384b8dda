//! How many of a device's experts the rows of a task are routed to.

use rally_load::random::SeededRandom;
use serde_json::Value;

/// Most choices of experts that are drawn one by one; of more, chance has no say: every expert is hit, or as good as.
const DRAWN_CHOICES: usize = 4096;

/// How rows spread over experts.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ExpertLoad {
    /// Every expert is as likely as any other, and chance does the rest.
    #[default]
    Natural,
    /// A router that is made to use all experts alike: no expert is hit twice before all are hit once.
    Balanced,
    /// As often as was counted, by layer (one list: the same in all) and expert.
    Recorded(Vec<Vec<f64>>),
}

/// A text that is no histogram of experts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no histogram of experts: {0}; expected a list of counts, one an expert, or such a list for every layer")]
pub struct HistogramError(String);

impl ExpertLoad {
    /// Reads `[12, 7, …]` or `[[12, 7, …], …]`, counts of a model with `experts`.
    ///
    /// # Errors
    /// [`HistogramError`] for anything else, and where a layer has other than `experts` counts or none above 0.
    pub fn from_json(text: &str, experts: usize) -> Result<Self, HistogramError> {
        let value: Value = serde_json::from_str(text).map_err(|error| HistogramError(error.to_string()))?;
        let counts = |value: &Value| -> Option<Vec<f64>> { value.as_array()?.iter().map(Value::as_f64).collect() };
        let layers: Option<Vec<Vec<f64>>> = match counts(&value) {
            Some(all) if !all.is_empty() => Some(vec![all]),
            _ => value.as_array().and_then(|layers| layers.iter().map(counts).collect()),
        };
        let layers = layers.filter(|layers| !layers.is_empty());
        let layers = layers.ok_or_else(|| HistogramError("no counts are there".into()))?;
        for (layer, counts) in layers.iter().enumerate() {
            if counts.len() != experts {
                let found = counts.len();
                return Err(HistogramError(format!(
                    "list {layer} has {found} counts, and the model {experts} experts"
                )));
            }
            if counts.iter().any(|count| !(count.is_finite() && *count >= 0.0)) || counts.iter().sum::<f64>() <= 0.0 {
                return Err(HistogramError(format!(
                    "the counts of list {layer} are not all 0 or more, with one above"
                )));
            }
        }
        Ok(Self::Recorded(layers))
    }

    /// Of the `top_k` experts that a row is routed to, how many are among `held` (ids), in the mean.
    pub fn chosen(&self, layer: usize, held: &[usize], top_k: usize, experts: usize) -> f64 {
        match self {
            Self::Natural | Self::Balanced => held.len() as f64 * top_k as f64 / experts.max(1) as f64,
            Self::Recorded(layers) => {
                let counts = &layers[layer.min(layers.len() - 1)];
                let here: f64 = held.iter().map(|id| counts[*id]).sum();
                top_k as f64 * here / counts.iter().sum::<f64>()
            }
        }
    }

    /// Experts among `held` (ids) that any of `rows` rows is routed to, each row to `top_k` of `experts`.
    pub fn hit(&self, rows: usize, layer: usize, held: &[usize], top_k: usize, experts: usize) -> f64 {
        let (here, all) = (held.len() as f64, experts.max(1) as f64);
        let share = top_k as f64 / all;
        match self {
            Self::Natural => here * (1.0 - (1.0 - share).powf(rows as f64)),
            Self::Balanced => here * (rows as f64 * share).min(1.0),
            Self::Recorded(layers) => {
                let counts = &layers[layer.min(layers.len() - 1)];
                let total: f64 = counts.iter().sum();
                // A row chooses an expert at most once.
                let chosen = |id: &usize| (counts[*id] / total * top_k as f64).min(1.0);
                held.iter().map(|id| 1.0 - (1.0 - chosen(id)).powf(rows as f64)).sum()
            }
        }
    }

    /// The same as it comes out by chance, and not in the mean: who waits for the slowest of several devices waits for the one that
    /// had bad luck. The same `luck` is the same choices of the same rows, whichever experts are `held`.
    pub fn draw(&self, luck: Luck, rows: usize, layer: usize, held: &[usize], top_k: usize, experts: usize) -> f64 {
        let mut random = SeededRandom::new(luck.seed, luck.stream);
        match self {
            Self::Natural if rows * top_k <= DRAWN_CHOICES && top_k <= experts => {
                let mut hit = vec![false; experts];
                // Of the row at hand: which experts it has chosen.
                let mut chosen = Vec::with_capacity(top_k);
                for _ in 0..rows {
                    chosen.clear();
                    while chosen.len() < top_k {
                        let id = random.between(0, experts - 1);
                        if !chosen.contains(&id) {
                            chosen.push(id);
                            hit[id] = true;
                        }
                    }
                }
                held.iter().filter(|id| hit[**id]).count() as f64
            }
            Self::Recorded(_) if rows * top_k <= DRAWN_CHOICES => {
                let missed: Vec<f64> = (0..experts).map(|_| random.uniform()).collect();
                let is_hit = |id: &&usize| missed[**id] < self.hit(rows, layer, &[**id], top_k, experts);
                held.iter().filter(is_hit).count() as f64
            }
            _ => self.hit(rows, layer, held, top_k, experts),
        }
    }
}

/// Which draw it is: choices of a layer in a step are its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Luck {
    /// Of all draws.
    pub seed: u64,
    /// Of these.
    pub stream: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_what_chance_and_counts_say() {
        let all: Vec<usize> = (0..8).collect();
        let recorded = |text: &str| ExpertLoad::from_json(text, 8).expect("it is a histogram");
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} {want}");
        near(ExpertLoad::Natural.hit(1, 0, &all, 3, 8), 3.0);
        near(ExpertLoad::Balanced.hit(2, 0, &all, 3, 8), 6.0);
        near(ExpertLoad::Balanced.hit(9, 0, &all[..2], 3, 8), 2.0);
        // Two of eight experts have a quarter of what rows choose, or as much of it as was counted for them.
        near(ExpertLoad::Natural.chosen(0, &all[..2], 3, 8), 0.75);
        near(recorded("[9,3,0,0,0,0,2,2]").chosen(0, &all[..2], 2, 8), 1.5);
        near(recorded("[9,3,0,0,0,0,2,2]").chosen(5, &all, 2, 8), 2.0);
        // Counted evenly is natural; counted on two experts, no other is ever hit.
        near(recorded("[1,1,1,1,1,1,1,1]").hit(5, 3, &all, 3, 8), ExpertLoad::Natural.hit(5, 0, &all, 3, 8));
        near(recorded("[9,9,0,0,0,0,0,0]").hit(50, 0, &all, 2, 8), 2.0);
        near(recorded("[[1,1,1,1,1,1,1,1],[5,5,0,0,0,0,0,0]]").hit(4, 1, &all[2..], 2, 8), 0.0);
    }

    #[test]
    fn draws_are_what_chance_makes_of_the_mean() {
        let recorded = ExpertLoad::from_json("[9,3,1,1,1,0,2,2]", 8).expect("it is a histogram");
        for load in [ExpertLoad::Natural, ExpertLoad::Balanced, recorded] {
            let (low, high): (Vec<usize>, Vec<usize>) = ((0..4).collect(), (4..8).collect());
            let draw = |stream: u64, held: &[usize]| load.draw(Luck { seed: 5, stream }, 6, 0, held, 2, 8);
            let (mut sums, mut differ) = ([0.0; 2], false);
            for stream in 0..4000 {
                let both = [draw(stream, &low), draw(stream, &high)];
                assert_eq!(both, [draw(stream, &low), draw(stream, &high)], "the same luck is the same draw");
                assert_eq!(
                    both[0] + both[1],
                    draw(stream, &[0, 1, 2, 3, 4, 5, 6, 7]),
                    "all experts are those of both halves"
                );
                differ |= both != [draw(0, &low), draw(0, &high)];
                sums[0] += both[0] / 4000.0;
                sums[1] += both[1] / 4000.0;
            }
            let want = [load.hit(6, 0, &low, 2, 8), load.hit(6, 0, &high, 2, 8)];
            assert!(sums.iter().zip(want).all(|(got, want)| (got - want).abs() < 0.05), "{load:?}: {sums:?} {want:?}");
            assert_eq!(differ, load != ExpertLoad::Balanced);
        }
        // Of very many rows the mean: none is missed.
        let luck = Luck { seed: 5, stream: 0 };
        assert_eq!(ExpertLoad::Natural.draw(luck, 5000, 0, &[3], 2, 8), ExpertLoad::Natural.hit(5000, 0, &[3], 2, 8));
    }

    #[test]
    fn what_is_no_histogram_is_said() {
        for (text, said) in [
            ("[1, 2]", "has 2 counts, and the model 8 experts"),
            ("[]", "no counts are there"),
            ("{}", "no counts are there"),
            ("[0,0,0,0,0,0,0,0]", "one above"),
            ("[1,1,1,1,1,1,1,-1]", "one above"),
            ("[1,", "EOF"),
        ] {
            let error = ExpertLoad::from_json(text, 8).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
