//! The rows of a step. Decode rows come first and all of them fit: a sequence that speaks keeps its pace.
//!
//! Prompts get what is left. While any sequence of the run decodes, all prompts of a device together have at most
//! `prefill_chunk` rows in a step of a micro-batch, so that a decode step is never longer than one chunk makes it, however many
//! prompts arrive. The prompts of a micro-batch share these rows evenly; with more prompts than rows, those that waited longest
//! come first.

use super::StepPlanner;
use super::memory::Growth;
use crate::batch::DeviceBatch;

/// Rows of prefill that a device has left in a step, and the sequences that share them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillBudget {
    rows: usize,
    sequences: usize,
}

impl StepPlanner {
    /// Makes room for page tables that are still to grow, so that a steady step allocates nothing.
    pub(super) fn reserve_pages(&self, micro_batch: usize, batches: &mut [DeviceBatch]) {
        for (device, batch) in batches.iter_mut().enumerate() {
            let members = self.running.iter().filter(|r| r.micro_batch == micro_batch && r.device == device);
            batch.pages.reserve(members.map(|running| running.sequence.final_pages).sum());
        }
    }

    /// One row for each member that decodes and has a page for it, oldest first.
    pub(super) fn decode_rows(&mut self, micro_batch: usize, batches: &mut [DeviceBatch]) {
        let mut index = 0;
        while index < self.running.len() {
            let running = &self.running[index];
            if running.micro_batch == micro_batch && running.decodes() {
                match self.grow(index) {
                    Growth::Ready => {
                        let running = &mut self.running[index];
                        running.push_decode(&mut batches[running.device]);
                    }
                    Growth::Waits => {}
                    // The next one has taken its index.
                    Growth::Left => continue,
                }
            }
            index += 1;
        }
    }

    /// Chunks of what members have still to read.
    pub(super) fn prefill_rows(&mut self, micro_batch: usize, batches: &mut [DeviceBatch]) {
        let running = &mut self.running;
        let reads = |index: &usize| running[*index].micro_batch == micro_batch && running[*index].prefilling();
        self.order.clear();
        self.order.extend((0..running.len()).filter(reads));
        self.order.sort_unstable_by_key(|index| (running[*index].prefill_turn, *index));
        let others_decode = running.iter().any(|running| !running.ended && !running.prefilling());
        let most = if others_decode { self.config.prefill_chunk } else { usize::MAX };
        for (budget, batch) in self.budgets.iter_mut().zip(batches.iter()) {
            *budget = PrefillBudget { rows: most.min(self.config.rows_per_device - batch.rows), sequences: 0 };
        }
        self.order.iter().for_each(|index| self.budgets[running[*index].device].sequences += 1);
        let mut room = self.config.rows_per_micro_batch - batches.iter().map(|batch| batch.rows).sum::<usize>();
        for index in &self.order {
            let running = &mut running[*index];
            let budget = &mut self.budgets[running.device];
            let share = budget.rows.div_ceil(budget.sequences).min(room);
            let rows = share.min(self.config.prefill_chunk).min(running.prefill - running.prefilled);
            budget.sequences -= 1;
            if rows > 0 {
                budget.rows -= rows;
                room -= rows;
                self.prefill_turns += 1;
                running.prefill_turn = self.prefill_turns;
                running.push_prefill(rows, &mut batches[running.device]);
            }
        }
    }
}
