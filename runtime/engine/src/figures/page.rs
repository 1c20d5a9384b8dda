//! A run's figures as metrics.

use super::{LaneFigures, NS_PER_S, RunFigures, Series};
use rally_metrics::{AtomicHistogram, BubbleCause, Exposition, Source, names};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most (layer, expert) pairs that get a series each. Step-3 has 56 × 48; a model with more experts than a dashboard can draw
/// still has its imbalance, one number a layer.
const MOST_EXPERT_SERIES: usize = 4096;

fn read(cell: &AtomicU64) -> f64 {
    cell.load(Ordering::Relaxed) as f64
}

impl Source for RunFigures {
    fn write(&self, page: &mut Exposition<'_>) {
        self.write_planner(page);
        self.write_lanes(page);
        self.write_durations(page);
        self.write_experts(page);
        self.write_stragglers(page);
    }
}

impl RunFigures {
    fn write_planner(&self, page: &mut Exposition<'_>) {
        let planner = &self.planner;
        page.gauge(&names::NUM_REQUESTS_RUNNING, |samples| samples.push(&[], read(&planner.running)));
        page.gauge(&names::NUM_REQUESTS_WAITING, |samples| samples.push(&[], planner.all_waiting() as f64));
        let used = read(&planner.used_pages) / (planner.pages.max(1)) as f64;
        page.gauge(&names::KV_CACHE_USAGE, |samples| samples.push(&[], used));
        page.counter(&names::NUM_PREEMPTIONS, |samples| samples.push(&[], read(&planner.preemptions)));
        page.counter(&names::PREFIX_CACHE_QUERIES, |samples| samples.push(&[], read(&planner.prefix_queries)));
        page.counter(&names::PREFIX_CACHE_HITS, |samples| samples.push(&[], read(&planner.prefix_hits)));
        page.gauge(&names::MICRO_BATCHES_IN_USE, |samples| samples.push(&[], read(&planner.micro_batches_in_use)));
        page.histogram(&names::MICRO_BATCH_TOKENS, |samples| samples.push(&[], &[&planner.rows], 1.0));
    }

    fn write_lanes(&self, page: &mut Exposition<'_>) {
        page.counter(&names::LANE_BUSY_SECONDS, |samples| {
            for lane in &self.lanes {
                samples.push(&[&lane.name], lane.work_ns.iter().map(read).sum::<f64>() / NS_PER_S);
            }
        });
        page.counter(&names::LANE_BUBBLE_SECONDS, |samples| {
            for lane in &self.lanes {
                for cause in BubbleCause::ALL {
                    samples.push(&[&lane.name, cause.name()], read(&lane.bubble_ns[cause as usize]) / NS_PER_S);
                }
            }
        });
        page.counter(&names::TRANSFER_EXPOSED_SECONDS, |samples| {
            for stage in &self.edges {
                let exposed: f64 = self.lanes.iter().map(|lane| read(&lane.exposed_ns[*stage])).sum();
                samples.push(&[&self.stages[*stage]], exposed / NS_PER_S);
            }
        });
    }

    fn write_durations(&self, page: &mut Exposition<'_>) {
        page.histogram(&names::STAGE_SECONDS, |samples| {
            for lane in &self.lanes {
                for (series, durations) in lane.series.iter().zip(&lane.durations) {
                    if let Series::Stage { stage, layer_kind } = series {
                        samples.push(&[&self.stages[*stage], layer_kind, &lane.device], &[durations], NS_PER_S);
                    }
                }
            }
        });
        page.histogram(&names::TRANSFER_SECONDS, |samples| {
            for stage in &self.edges {
                let parts: Vec<&AtomicHistogram> = self.lanes.iter().flat_map(|lane| lane.transfers(*stage)).collect();
                samples.push(&[&self.stages[*stage]], &parts, NS_PER_S);
            }
        });
    }

    /// Tokens by layer and expert, all lanes together; layers without experts are left out.
    fn expert_tokens(&self) -> BTreeMap<usize, Vec<f64>> {
        let mut layers: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for lane in self.lanes.iter().filter(|lane| lane.experts > 0) {
            for (layer, counts) in lane.expert_tokens.chunks(lane.experts).enumerate() {
                let sums = layers.entry(layer).or_default();
                sums.resize(sums.len().max(lane.experts), 0.0);
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += read(count));
            }
        }
        layers.retain(|_, counts| counts.iter().any(|count| *count > 0.0));
        layers
    }

    fn write_experts(&self, page: &mut Exposition<'_>) {
        let layers = self.expert_tokens();
        page.gauge(&names::EXPERT_IMBALANCE, |samples| {
            for (layer, counts) in &layers {
                let most = counts.iter().fold(0.0, |most: f64, count| most.max(*count));
                let mean = counts.iter().sum::<f64>() / counts.len() as f64;
                samples.push(&[&layer.to_string()], most / mean);
            }
        });
        if layers.values().map(Vec::len).sum::<usize>() > MOST_EXPERT_SERIES {
            return;
        }
        page.counter(&names::EXPERT_TOKENS, |samples| {
            for (layer, counts) in &layers {
                for (expert, count) in counts.iter().enumerate() {
                    samples.push(&[&layer.to_string(), &expert.to_string()], *count);
                }
            }
        });
    }
}

impl LaneFigures {
    /// Its histograms of one transfer: one, if it takes part.
    fn transfers(&self, edge: usize) -> impl Iterator<Item = &AtomicHistogram> {
        let ours = move |series: &Series| matches!(series, Series::Transfer { stage } if *stage == edge);
        self.series.iter().zip(&self.durations).filter(move |(series, _)| ours(series)).map(|(_, durations)| durations)
    }
}
