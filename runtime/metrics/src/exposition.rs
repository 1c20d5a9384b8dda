//! Writes metrics that are read at a scrape, in Prometheus' text format.

use crate::family::{Family, Identity, SampledCounter, SampledGauge, SampledHistogram};
use crate::histogram::AtomicHistogram;
use std::fmt::{Display, Write};

/// A page in the making. A family without a sample leaves no line.
#[derive(Debug)]
pub struct Exposition<'a> {
    identity: &'a Identity,
    text: String,
    written: Vec<&'static str>,
}

/// Takes the samples of one family.
pub struct Samples<'a> {
    identity: &'a Identity,
    family: &'a Family,
    text: &'a mut String,
}

/// Takes the samples of one histogram family.
pub struct HistogramSamples<'a>(Samples<'a>);

impl<'a> Exposition<'a> {
    /// An empty page of this process.
    pub fn new(identity: &'a Identity) -> Self {
        Self { identity, text: String::new(), written: Vec::new() }
    }

    /// Writes a counter, whose samples `fill` gives.
    pub fn counter(&mut self, family: &SampledCounter, fill: impl FnOnce(&mut Samples<'_>)) {
        self.family(&family.0, "counter", fill);
    }

    /// Writes a gauge, whose samples `fill` gives.
    pub fn gauge(&mut self, family: &SampledGauge, fill: impl FnOnce(&mut Samples<'_>)) {
        self.family(&family.0, "gauge", fill);
    }

    /// Writes a histogram, whose series `fill` gives.
    pub fn histogram(&mut self, family: &SampledHistogram, fill: impl FnOnce(&mut HistogramSamples<'_>)) {
        self.family(&family.0, "histogram", |samples| {
            let Samples { identity, family, text } = samples;
            fill(&mut HistogramSamples(Samples { identity, family, text }));
        });
    }

    fn family(&mut self, family: &Family, kind: &str, fill: impl FnOnce(&mut Samples<'_>)) {
        assert!(!self.written.contains(&family.name), "{} is on the page already", family.name);
        self.written.push(family.name);
        let before = self.text.len();
        put(&mut self.text, format_args!("# HELP {} {}\n# TYPE {} {kind}\n", family.name, family.help, family.name));
        let head = self.text.len();
        fill(&mut Samples { identity: self.identity, family, text: &mut self.text });
        if self.text.len() == head {
            self.text.truncate(before);
        } else {
            self.text.push('\n');
        }
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Samples<'_> {
    /// One series: values of the family's own labels (those of the process are added) and the value.
    pub fn push(&mut self, labels: &[&str], value: f64) {
        self.line("", labels, None, value);
    }

    fn line(&mut self, suffix: &str, labels: &[&str], le: Option<&dyn Display>, value: impl Display) {
        let (identity, family) = (self.identity, self.family);
        put(self.text, format_args!("{}{suffix}", family.name));
        let mut separator = '{';
        for (label, value) in family.values(identity, labels) {
            put(self.text, format_args!("{separator}{}=\"{}\"", label.key(), escaped(value)));
            separator = ',';
        }
        if let Some(le) = le {
            put(self.text, format_args!("{separator}le=\"{le}\""));
            separator = ',';
        }
        let close = if separator == ',' { "}" } else { "" };
        put(self.text, format_args!("{close} {value}\n"));
    }
}

impl HistogramSamples<'_> {
    /// One series: values of the family's own labels, and histograms of equal edges that are added up. `per_unit` is what they
    /// were made with.
    pub fn push(&mut self, labels: &[&str], parts: &[&AtomicHistogram], per_unit: f64) {
        let edges = self.0.family.edges;
        let (mut cells, mut sum) = (vec![0; edges.len() + 1], 0);
        for part in parts {
            let (counts, part_sum) = part.read();
            assert_eq!(counts.len(), cells.len(), "{}: a histogram with other edges", self.0.family.name);
            cells.iter_mut().zip(counts).for_each(|(cell, count)| *cell += count);
            sum += part_sum;
        }
        let mut total = 0;
        for (edge, cell) in edges.iter().map(|edge| edge as &dyn Display).chain([&"+Inf" as &dyn Display]).zip(cells) {
            total += cell;
            self.0.line("_bucket", labels, Some(edge), total);
        }
        self.0.line("_sum", labels, None, sum as f64 / per_unit);
        self.0.line("_count", labels, None, total);
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes all that is written to it");
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    #[test]
    fn a_page_reads_as_prometheus_wants_it() {
        let identity = Identity::new("a \"b\"");
        let mut page = Exposition::new(&identity);
        page.gauge(&names::KV_CACHE_USAGE, |samples| samples.push(&[], 0.25));
        page.counter(&names::LANE_BUBBLE_SECONDS, |samples| samples.push(&["attn", "host"], 1.5));
        page.counter(&names::EXPERT_TOKENS, |_| ());
        let text = page.into_text();
        assert!(text.contains("\nrally_kv_cache_usage_perc{model_name=\"a \\\"b\\\"\",engine=\"0\"} 0.25\n"), "{text}");
        assert!(text.contains("\nrally_lane_bubble_seconds_total{lane=\"attn\",cause=\"host\"} 1.5\n"), "{text}");
        assert!(!text.contains("expert"), "a family without samples has no lines: {text}");
    }

    /// Two contenders of one bench are two series of one family, whatever labels it has of its own.
    #[test]
    fn a_contender_is_named_on_every_series() {
        let identity = Identity::new("m").with_schedule("ping_pong:2");
        let mut page = Exposition::new(&identity);
        page.gauge(&names::KV_CACHE_USAGE, |samples| samples.push(&[], 0.25));
        page.counter(&names::LANE_BUSY_SECONDS, |samples| samples.push(&["attn"], 1.5));
        let text = page.into_text();
        assert!(text.contains("{model_name=\"m\",engine=\"0\",schedule=\"ping_pong:2\"} 0.25\n"), "{text}");
        assert!(
            text.contains("\nrally_lane_busy_seconds_total{schedule=\"ping_pong:2\",lane=\"attn\"} 1.5\n"),
            "{text}"
        );
    }

    #[test]
    fn buckets_are_cumulative() {
        let identity = Identity::new("m");
        let histogram = AtomicHistogram::new(names::MICRO_BATCH_TOKENS.edges(), 1.0);
        [1, 3, 3, 1 << 20].into_iter().for_each(|rows| histogram.record(rows));
        let mut page = Exposition::new(&identity);
        page.histogram(&names::MICRO_BATCH_TOKENS, |samples| samples.push(&[], &[&histogram], 1.0));
        let text = page.into_text();
        for line in [
            "_bucket{le=\"1\"} 1",
            "_bucket{le=\"2\"} 1",
            "_bucket{le=\"4\"} 3",
            "_bucket{le=\"16384\"} 3",
            "_bucket{le=\"+Inf\"} 4",
            "_sum 1048583",
            "_count 4",
        ] {
            assert!(text.contains(&format!("\nrally_micro_batch_tokens{line}\n")), "{line} in {text}");
        }
    }

    #[test]
    #[should_panic(expected = "outside the bound")]
    fn a_value_outside_the_bound_is_refused() {
        let identity = Identity::new("m");
        Exposition::new(&identity)
            .counter(&names::LANE_BUBBLE_SECONDS, |samples| samples.push(&["attn", "the moon"], 1.0));
    }
}
