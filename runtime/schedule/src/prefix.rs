//! KV pages of one attention device, and which of them hold the beginning of what token ids: sequences that begin alike share pages.
//!
//! A page is *cached* once all of its positions are stored and its tokens are known. It is found by its tokens and the page before it,
//! both compared as they are: a hash only says where to look, so no two beginnings are ever taken for one another. Nobody writes
//! to a cached page, so nothing need be copied for a writer. It counts its holders; with none left it stays, *idle*, and goes
//! when pages are needed, the one that was given back first. A sequence gives its pages back from the last to the first and holds
//! all that stand before a page it holds, so a page never goes before those that follow it, and a page number names a whole
//! beginning for as long as anything follows.

use crate::pages::PageAllocator;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// No page.
const NONE: u32 = u32::MAX;

/// Token ids of a sequence, by position: its prompt, then what it has generated.
#[derive(Clone, Copy, Debug)]
pub struct KnownTokens<'a> {
    /// Of the prompt.
    pub prompt: &'a [u32],
    /// Behind it.
    pub generated: &'a [u32],
}

impl<'a> KnownTokens<'a> {
    /// Those of a page of `page_tokens` positions, in two parts.
    fn page(&self, page: usize, page_tokens: usize) -> [&'a [u32]; 2] {
        let (from, to, prompt) = (page * page_tokens, (page + 1) * page_tokens, self.prompt.len());
        let generated = &self.generated[from.max(prompt) - prompt..to.max(prompt) - prompt];
        [&self.prompt[from.min(prompt)..to.min(prompt)], generated]
    }
}

/// Pages of one device. Until it is told to share, every page has one owner.
#[derive(Clone, Debug)]
pub struct PagePool {
    allocator: PageAllocator,
    index: Option<PrefixIndex>,
}

impl PagePool {
    /// All `pages` free.
    pub fn new(pages: u32) -> Self {
        Self { allocator: PageAllocator::new(pages), index: None }
    }

    /// Shares pages of `page_tokens` positions from now on.
    pub fn share(&mut self, page_tokens: usize) {
        self.index.get_or_insert_with(|| PrefixIndex::new(page_tokens));
    }

    /// Pages that can be taken: nobody's, and idle ones.
    pub fn free(&self) -> usize {
        self.allocator.free() + self.idle()
    }

    /// Cached pages that nobody holds.
    pub fn idle(&self) -> usize {
        self.index.as_ref().map_or(0, |index| index.idle)
    }

    /// A number that changes whenever another page is cached or one no longer is.
    pub fn version(&self) -> u64 {
        self.index.as_ref().map_or(0, |index| index.version)
    }

    /// Appends `count` pages to `owner`, or nothing and `false` if there are too few. Idle ones go last, and are idle no more.
    #[must_use]
    pub fn take(&mut self, count: usize, owner: &mut Vec<u32>) -> bool {
        if count > self.free() {
            return false;
        }
        let plain = count.min(self.allocator.free());
        let taken = self.allocator.take(plain, owner);
        debug_assert!(taken, "{plain} pages are free");
        if let Some(index) = &mut self.index {
            owner.extend((plain..count).map(|_| index.evict()));
        }
        true
    }

    /// The cached pages that `tokens` begin with, at most `most`, into `found`.
    pub fn find(&self, tokens: KnownTokens<'_>, most: usize, found: &mut Vec<u32>) {
        found.clear();
        let Some(index) = &self.index else { return };
        while found.len() < most {
            let part = tokens.page(found.len(), index.page_tokens);
            let before = found.last().copied().unwrap_or(NONE);
            match index.find(index.hash(before, part), before, part) {
                Some(page) => found.push(page),
                None => return,
            }
        }
    }

    /// How many of `found` are held: holding them too takes no free page.
    pub fn held(&self, found: &[u32]) -> usize {
        let Some(index) = &self.index else { return 0 };
        // Who holds one holds all before it.
        found.partition_point(|page| index.cached[*page as usize].holders > 0)
    }

    /// One more holder of each of `found`.
    pub fn hold(&mut self, found: &[u32]) {
        if let Some(index) = &mut self.index {
            found.iter().for_each(|page| index.hold(*page));
        }
    }

    /// Caches the first `full` pages of an owner, whose first `shared` are cached already, and counts it as a holder of each. Where
    /// another page holds the same, the owner has that one instead: no row of it may be in flight.
    pub fn enter(&mut self, tokens: KnownTokens<'_>, pages: &mut [u32], shared: &mut usize, full: usize) {
        let Some(index) = &mut self.index else { return };
        while *shared < full {
            let part = tokens.page(*shared, index.page_tokens);
            let before = shared.checked_sub(1).map_or(NONE, |last| pages[last]);
            let hash = index.hash(before, part);
            let page = &mut pages[*shared];
            match index.find(hash, before, part) {
                Some(cached) => {
                    index.hold(cached);
                    self.allocator.put(std::mem::replace(page, cached));
                }
                None => index.insert(*page, hash, before, part),
            }
            *shared += 1;
        }
    }

    /// Takes all pages of an owner back. The first `shared` are cached, and stay so.
    pub fn give_back(&mut self, owner: &mut Vec<u32>, shared: usize) {
        self.allocator.give_back_from(owner, shared);
        if let Some(index) = &mut self.index {
            owner.drain(..).rev().for_each(|page| index.let_go(page));
        }
    }

    /// Pages that can be taken once all of `leavers` have given theirs back, beside those that can be taken now. Each is an owner's
    /// pages, and how many of them are cached.
    pub fn freed_by<'a>(&mut self, leavers: impl Iterator<Item = (&'a [u32], usize)> + Clone) -> usize {
        let mut freed = 0;
        for (pages, shared) in leavers.clone() {
            freed += pages.len() - shared;
            if let Some(index) = &mut self.index {
                pages[..shared].iter().for_each(|page| index.cached[*page as usize].leaving += 1);
            }
        }
        for (pages, shared) in leavers {
            let Some(index) = &mut self.index else { break };
            for page in &pages[..shared] {
                let cached = &mut index.cached[*page as usize];
                // Once for all of its holders.
                let leaving = std::mem::take(&mut cached.leaving);
                freed += usize::from(leaving == cached.holders);
            }
        }
        freed
    }
}

/// What is known of a cached page.
#[derive(Clone, Copy, Debug)]
struct Cached {
    /// The page before it, or [`NONE`].
    before: u32,
    /// Of `before` and its tokens.
    hash: u64,
    /// Another page with this hash, or [`NONE`].
    alike: u32,
    /// Cached pages that follow it.
    followers: u32,
    /// Sequences that hold it.
    holders: u32,
    /// Of them, those that are counted as leaving.
    leaving: u32,
    /// Neighbours among idle pages, or [`NONE`].
    older: u32,
    newer: u32,
}

const UNKNOWN: Cached =
    Cached { before: NONE, hash: 0, alike: NONE, followers: 0, holders: 0, leaving: 0, older: NONE, newer: NONE };

/// Cached pages by what they hold.
#[derive(Clone, Debug)]
struct PrefixIndex {
    page_tokens: usize,
    keys: RandomState,
    /// By hash: the first of its pages.
    first: HashMap<u64, u32>,
    /// By page, as far as pages were ever cached.
    cached: Vec<Cached>,
    /// `page_tokens` a page.
    tokens: Vec<u32>,
    idle: usize,
    /// Ends of the list of idle pages.
    oldest: u32,
    newest: u32,
    version: u64,
}

impl PrefixIndex {
    fn new(page_tokens: usize) -> Self {
        Self {
            page_tokens,
            keys: RandomState::new(),
            first: HashMap::new(),
            cached: Vec::new(),
            tokens: Vec::new(),
            idle: 0,
            oldest: NONE,
            newest: NONE,
            version: 0,
        }
    }

    fn hash(&self, before: u32, part: [&[u32]; 2]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write_u32(before);
        part.into_iter().flatten().for_each(|token| hasher.write_u32(*token));
        hasher.finish()
    }

    fn tokens(&self, page: u32) -> &[u32] {
        &self.tokens[page as usize * self.page_tokens..][..self.page_tokens]
    }

    fn find(&self, hash: u64, before: u32, [front, back]: [&[u32]; 2]) -> Option<u32> {
        let mut page = *self.first.get(&hash)?;
        while page != NONE {
            let cached = &self.cached[page as usize];
            let (a, b) = self.tokens(page).split_at(front.len());
            if cached.before == before && a == front && b == back {
                return Some(page);
            }
            page = cached.alike;
        }
        None
    }

    /// Caches a page, with one holder.
    fn insert(&mut self, page: u32, hash: u64, before: u32, [front, back]: [&[u32]; 2]) {
        let at = page as usize;
        if at >= self.cached.len() {
            self.cached.resize(at + 1, UNKNOWN);
            self.tokens.resize((at + 1) * self.page_tokens, 0);
        }
        let (a, b) = self.tokens[at * self.page_tokens..][..self.page_tokens].split_at_mut(front.len());
        a.copy_from_slice(front);
        b.copy_from_slice(back);
        let alike = self.first.insert(hash, page).unwrap_or(NONE);
        self.cached[at] = Cached { before, hash, alike, holders: 1, ..UNKNOWN };
        if before != NONE {
            self.cached[before as usize].followers += 1;
        }
        self.version += 1;
    }

    fn hold(&mut self, page: u32) {
        let Cached { holders, older, newer, .. } = self.cached[page as usize];
        if holders == 0 {
            self.unlink(older, newer);
        }
        self.cached[page as usize].holders += 1;
    }

    fn let_go(&mut self, page: u32) {
        let newest = self.newest;
        let cached = &mut self.cached[page as usize];
        cached.holders -= 1;
        if cached.holders > 0 {
            return;
        }
        (cached.older, cached.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = page,
            newest => self.cached[newest as usize].newer = page,
        }
        self.newest = page;
        self.idle += 1;
    }

    /// Takes a page out of the list of idle ones.
    fn unlink(&mut self, older: u32, newer: u32) {
        match older {
            NONE => self.oldest = newer,
            older => self.cached[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.cached[newer as usize].older = older,
        }
        self.idle -= 1;
    }

    /// The idle page that was given back first, cached no more. There is one.
    fn evict(&mut self) -> u32 {
        let page = self.oldest;
        let Cached { before, hash, alike, followers, older, newer, .. } = self.cached[page as usize];
        assert!(followers == 0, "page {page} goes before one that follows it");
        self.unlink(older, newer);
        if before != NONE {
            self.cached[before as usize].followers -= 1;
        }
        let first = self.first[&hash];
        match (first == page, alike) {
            (true, NONE) => drop(self.first.remove(&hash)),
            (true, alike) => drop(self.first.insert(hash, alike)),
            (false, alike) => {
                let mut other = first;
                while self.cached[other as usize].alike != page {
                    other = self.cached[other as usize].alike;
                }
                self.cached[other as usize].alike = alike;
            }
        }
        self.version += 1;
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash only says where to look: with one hash for all, everything is found that is there, and nothing else.
    #[test]
    fn beginnings_with_one_hash_are_told_apart() {
        const HASH: u64 = 7;
        let tokens: Vec<[u32; 3]> = vec![[1, 2, 3], [1, 2, 4], [3, 2, 1], [0, 0, 0], [1, 2, 3]];
        let before = [NONE, NONE, NONE, NONE, 1];
        let part = |page: u32| {
            let (front, back) = tokens[page as usize].split_at(page as usize % 3);
            [front, back]
        };
        // Whichever of them is evicted, from the beginning, the middle or the end of those with the hash.
        for order in [[4, 0, 1, 2, 3], [3, 4, 1, 0, 2], [2, 0, 4, 3, 1]] {
            let mut index = PrefixIndex::new(3);
            for page in 0..5 {
                assert_eq!(index.find(HASH, before[page as usize], part(page)), None);
                index.insert(page, HASH, before[page as usize], part(page));
            }
            assert_eq!(index.find(HASH, 0, part(4)), None, "the same tokens behind another page");
            assert_eq!(index.find(HASH, NONE, [&[], &[1, 2, 5]]), None);
            order.into_iter().for_each(|page| index.let_go(page));
            for (gone, page) in order.into_iter().enumerate() {
                assert_eq!(index.evict(), page);
                for other in 0..5 {
                    let there = !order[..=gone].contains(&other);
                    assert_eq!(index.find(HASH, before[other as usize], part(other)), there.then_some(other));
                }
            }
            assert!(index.first.is_empty() && index.idle == 0);
        }
    }
}
