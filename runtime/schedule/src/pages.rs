//! KV page accounting of one attention device: who may write where. The bytes are elsewhere.

/// Hands out pages of a fixed number, each to one owner.
#[derive(Clone, Debug)]
pub struct PageAllocator {
    free: Vec<u32>,
    total: usize,
}

impl PageAllocator {
    /// All `pages` free.
    pub fn new(pages: u32) -> Self {
        // Reversed, so that the lowest page is handed out first: a run is easier to read in a debugger.
        Self { free: (0..pages).rev().collect(), total: pages as usize }
    }

    /// Pages there are.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages nobody owns.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Appends `count` pages to `owner`, or nothing and `false` if there are too few.
    #[must_use]
    pub fn take(&mut self, count: usize, owner: &mut Vec<u32>) -> bool {
        if count > self.free.len() {
            return false;
        }
        let kept = self.free.len() - count;
        owner.extend(self.free.drain(kept..).rev());
        true
    }

    /// Takes all pages of `owner` back.
    pub fn give_back(&mut self, owner: &mut Vec<u32>) {
        self.free.extend(owner.drain(..).rev());
        debug_assert!(self.free.len() <= self.total, "a page was given back twice");
    }
}
