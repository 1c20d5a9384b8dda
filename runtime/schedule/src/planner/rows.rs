//! The rows of a step. Decode rows come first and all of them fit: a sequence that speaks keeps its pace.
//!
//! Prompts get what is left. While any sequence of the run decodes, all prompts of a device together have at most
//! `prefill_chunk` rows in a step of a micro-batch, so that a decode step is never longer than one chunk makes it, however many
//! prompts arrive. And they fill a micro-batch only as far as it stays level with the others, but for a floor of a
//! quarter of a chunk. The prompts of a micro-batch share these rows evenly; with more prompts than rows, those that
//! waited longest come first.

use super::StepPlanner;
use super::memory::Growth;
use crate::batch::DeviceBatch;

/// Rows of prefill that a device has left in a step, and the sequences that share them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillBudget {
    /// By limits.
    rows: usize,
    /// Of these, those that balance must not take away.
    floor: usize,
    /// What all of them may cost, for the step to be level.
    cost: f64,
    sequences: usize,
}

impl StepPlanner {
    /// Makes room for page tables that are still to grow, so that a steady step allocates nothing.
    pub(super) fn reserve_pages(&mut self, micro_batch: usize, batches: &mut [DeviceBatch]) {
        let Self { pages, running, .. } = self;
        pages.fill(0);
        for running in running.iter().filter(|running| running.micro_batch == micro_batch) {
            pages[running.device] += running.sequence.final_pages;
        }
        batches.iter_mut().zip(pages).for_each(|(batch, pages)| batch.pages.reserve(*pages));
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

    /// Rows that prompts of a device may have together in a step of a micro-batch, balance apart.
    pub(super) fn prompt_rows_of_a_device(&self) -> usize {
        if self.someone_decodes() { self.config.prefill_chunk } else { self.config.rows_per_device }
    }

    pub(super) fn someone_decodes(&self) -> bool {
        self.running.iter().any(|running| !running.ended && !running.prefilling())
    }

    /// Chunks of what members have still to read.
    #[inline(never)]
    pub(super) fn prefill_rows(&mut self, micro_batch: usize, batches: &mut [DeviceBatch]) {
        let running = &self.running;
        let reads = |index: &usize| running[*index].micro_batch == micro_batch && running[*index].prefilling();
        self.order.clear();
        self.order.extend((0..running.len()).filter(reads));
        self.level_for = 0;
        self.order.sort_unstable_by_key(|index| (running[*index].prefill_turn, *index));
        self.set_prefill_budgets(micro_batch, batches);
        let mut room = self.config.rows_per_micro_batch - batches.iter().map(|batch| batch.rows).sum::<usize>();
        for index in &self.order {
            let running = &mut self.running[*index];
            let budget = &mut self.budgets[running.device];
            let level = self.cost.prompt_rows(budget.cost / budget.sequences as f64, running.prefilled);
            let level = level.max(budget.floor.div_ceil(budget.sequences));
            let share = budget.rows.div_ceil(budget.sequences).min(level).min(room);
            let rows = share.min(self.config.prefill_chunk).min(running.prefill - running.prefilled);
            budget.sequences -= 1;
            if rows > 0 {
                budget.rows -= rows;
                budget.floor = budget.floor.saturating_sub(rows);
                budget.cost = (budget.cost - self.cost.of_prompt(rows, running.prefilled)).max(0.0);
                room -= rows;
                self.prefill_turns += 1;
                running.prefill_turn = self.prefill_turns;
                running.push_prefill(rows, &mut batches[running.device]);
                if let Some(reuse) = &mut self.reuse {
                    reuse.reads(micro_batch, running.sequence.arrival);
                    self.stirred = true;
                }
            }
        }
    }

    fn set_prefill_budgets(&mut self, micro_batch: usize, batches: &[DeviceBatch]) {
        self.count_loads();
        let decode = |batch: &DeviceBatch| self.cost.of(batch.rows, batch.context());
        let decode_in_all: f64 = batches.iter().map(decode).sum();
        let most = self.prompt_rows_of_a_device();
        let most = if self.someone_decodes() { most.min(self.rows_in_time(micro_batch)) } else { most };
        let in_all = self.prompt_cost_in_all(micro_batch, decode_in_all);
        for (device, batch) in batches.iter().enumerate() {
            self.budgets[device] = PrefillBudget {
                rows: most.min(self.config.rows_per_device - batch.rows),
                floor: self.prompt_floor(),
                cost: self.prompt_cost(micro_batch, device, decode(batch), in_all),
                sequences: 0,
            };
        }
        self.order.iter().for_each(|index| self.budgets[self.running[*index].device].sequences += 1);
    }
}
