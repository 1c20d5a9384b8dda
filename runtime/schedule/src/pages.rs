//! KV page accounting of one attention device: who may write where. The bytes are elsewhere.

/// Hands out pages of a fixed number, each to one owner. It remembers those that were ever given back and not the rest, so that
/// any number of pages costs nothing before it is used.
#[derive(Clone, Debug)]
pub struct PageAllocator {
    /// Given back; the last one is handed out first.
    returned: Vec<u32>,
    /// The lowest page that was never handed out: a run is easier to read in a debugger where low pages come first.
    untouched: u32,
    pages: u32,
}

impl PageAllocator {
    /// All `pages` free.
    pub fn new(pages: u32) -> Self {
        Self { returned: Vec::new(), untouched: 0, pages }
    }

    /// Pages nobody owns.
    pub fn free(&self) -> usize {
        self.returned.len() + (self.pages - self.untouched) as usize
    }

    /// Appends `count` pages to `owner`, or nothing and `false` if there are too few.
    #[must_use]
    pub fn take(&mut self, count: usize, owner: &mut Vec<u32>) -> bool {
        if count > self.free() {
            return false;
        }
        let kept = self.returned.len().saturating_sub(count);
        let fresh = count - (self.returned.len() - kept);
        owner.extend(self.returned.drain(kept..).rev());
        // No more than there are, so they fit 32 bits.
        let next = self.untouched + fresh as u32;
        owner.extend(self.untouched..next);
        self.untouched = next;
        true
    }

    /// Takes all pages of `owner` back.
    pub fn give_back(&mut self, owner: &mut Vec<u32>) {
        self.give_back_from(owner, 0);
    }

    /// Takes the pages of `owner` back, but for the first `kept`.
    pub(crate) fn give_back_from(&mut self, owner: &mut Vec<u32>, kept: usize) {
        self.returned.extend(owner.drain(kept..).rev());
        debug_assert!(self.returned.len() <= self.untouched as usize, "a page was given back twice");
    }

    /// Takes one page back.
    pub(crate) fn put(&mut self, page: u32) {
        self.returned.push(page);
        debug_assert!(self.returned.len() <= self.untouched as usize, "a page was given back twice");
    }
}
