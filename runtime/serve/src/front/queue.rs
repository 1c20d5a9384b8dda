//! Who is decoded next: by priority, then fairly among clients, then by age. Pure.
//!
//! Fairness is start-time fair queueing: a client's *turn* is the tokens it has been given places for, and of those with the most
//! urgent priority the client with the least turn is next. A client that was away begins where the others are, so nobody
//! saves up, and whoever sends ten times as much waits for itself. Where there is no room to wait, whoever has most waiting makes it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Clients that are remembered though they have nothing here.
const MOST_LINES: usize = 4096;

/// Who asks: an API key, or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// The key's place in the list.
    Key(usize),
    /// Where it connects from.
    Address(std::net::IpAddr),
}

/// What waits.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) id: u64,
    pub(super) client: Client,
    /// Lower is earlier.
    pub(super) priority: i32,
    /// Which request it is of, and how many sequences that has: they come and go together.
    pub(super) request: (u64, usize),
    /// Tokens that it may take.
    pub(super) tokens: usize,
    pub(super) arrived: Instant,
    pub(super) what: T,
}

#[derive(Debug)]
struct Line<T> {
    turn: u64,
    /// By priority, each oldest first; none is empty.
    waiting: BTreeMap<i32, VecDeque<Entry<T>>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue<T> {
    lines: HashMap<Client, Line<T>>,
    /// The turn of whoever was served last.
    turn: u64,
    len: usize,
}

impl<T> Line<T> {
    fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    fn holds_all_of(&self, entry: &Entry<T>) -> bool {
        let (request, sequences) = entry.request;
        let there = self.waiting.get(&entry.priority).into_iter().flatten();
        there.filter(|other| other.request.0 == request).count() == sequences
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { lines: HashMap::new(), turn: 0, len: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, entry: Entry<T>) {
        let turn = self.turn;
        let line = self.lines.entry(entry.client).or_insert_with(|| Line { turn, waiting: BTreeMap::new() });
        if line.waiting.is_empty() {
            line.turn = line.turn.max(turn);
        }
        line.waiting.entry(entry.priority).or_default().push_back(entry);
        self.len += 1;
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<Entry<T>> {
        let first = |line: &Line<T>| line.waiting.keys().next().copied();
        let lines = self.lines.iter().filter_map(|(client, line)| Some((first(line)?, line.turn, *client)));
        // Of equals the client that comes first in its own order: the same every time.
        let (priority, turn, client) = lines.min()?;
        let line = self.lines.get_mut(&client)?;
        let waiting = line.waiting.get_mut(&priority)?;
        let entry = waiting.pop_front()?;
        if waiting.is_empty() {
            line.waiting.remove(&priority);
        }
        line.turn += entry.tokens as u64;
        self.turn = self.turn.max(turn);
        self.len -= 1;
        self.forget();
        Some(entry)
    }

    /// Puts the one that was taken last where it was.
    pub(super) fn put_back(&mut self, entry: Entry<T>) {
        let turn = self.turn;
        let line = self.lines.entry(entry.client).or_insert_with(|| Line { turn, waiting: BTreeMap::new() });
        line.turn = line.turn.saturating_sub(entry.tokens as u64);
        line.waiting.entry(entry.priority).or_default().push_front(entry);
        self.len += 1;
    }

    /// Takes out those that `goes` is true of.
    pub(super) fn take(&mut self, goes: impl Fn(&Entry<T>) -> bool) -> Vec<Entry<T>> {
        let mut taken = Vec::new();
        for line in self.lines.values_mut() {
            for waiting in line.waiting.values_mut() {
                let (gone, kept) = std::mem::take(waiting).into_iter().partition(|entry| goes(entry));
                let gone: VecDeque<_> = gone;
                taken.extend(gone);
                *waiting = kept;
            }
            line.waiting.retain(|_, waiting| !waiting.is_empty());
        }
        self.len -= taken.len();
        self.forget();
        taken
    }

    /// Takes out the youngest requests of whoever has most waiting, at least `needed` sequences, so that `client` may have `count` more
    /// here; nothing where `client` would then have more than the other is left with.
    pub(super) fn make_room(&mut self, client: Client, count: usize, needed: usize) -> Vec<Entry<T>> {
        let own = self.lines.get(&client).map_or(0, Line::len);
        let others = self.lines.iter().filter(|(other, _)| **other != client);
        let Some((most, heaviest)) = others.map(|(other, line)| (line.len(), *other)).max() else { return Vec::new() };
        if most < own + count + needed {
            return Vec::new();
        }
        let line = &self.lines[&heaviest];
        let (mut found, mut requests) = (0, HashSet::new());
        // Those of a request stand side by side, unless some of them are decoded already.
        let youngest = line.waiting.values().rev().flat_map(|waiting| waiting.iter().rev());
        for entry in youngest {
            let (request, sequences) = entry.request;
            if found >= needed {
                break;
            }
            if !requests.contains(&request) && line.holds_all_of(entry) {
                requests.insert(request);
                found += sequences;
            }
        }
        if found < needed || most - found < own + count {
            return Vec::new();
        }
        self.take(|entry| requests.contains(&entry.request.0))
    }

    pub(super) fn take_older(&mut self, now: Instant, than: Duration) -> Vec<Entry<T>> {
        self.take(|entry| now.saturating_duration_since(entry.arrived) >= than)
    }

    /// There may be any number of clients: those with nothing here, and nothing that others have not caught up with, leave no
    /// trace; nor does anyone once nobody waits, and of very many those that do not wait are let off.
    fn forget(&mut self) {
        if self.len == 0 {
            self.turn = self.lines.values().map(|line| line.turn).fold(self.turn, u64::max);
            self.lines.clear();
        }
        let turn = if self.lines.len() > MOST_LINES { u64::MAX } else { self.turn };
        self.lines.retain(|_, line| !line.waiting.is_empty() || line.turn > turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64, client: usize, priority: i32, tokens: usize) -> Entry<()> {
        Entry { id, client: Client::Key(client), priority, request: (id, 1), tokens, arrived: Instant::now(), what: () }
    }

    fn order(queue: &mut Queue<()>) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop()).map(|entry| entry.id).collect()
    }

    #[test]
    fn one_client_is_served_by_age_and_priority() {
        let mut queue = Queue::default();
        for (id, priority) in [(0, 0), (1, 0), (2, -1), (3, 5), (4, -1)] {
            queue.push(entry(id, 0, priority, 10));
        }
        assert_eq!(queue.len(), 5);
        assert_eq!(order(&mut queue), [2, 4, 0, 1, 3]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_client_with_much_waits_for_itself() {
        let mut queue = Queue::default();
        (0..100).for_each(|id| queue.push(entry(id, 0, 0, 10)));
        (0..10).for_each(|_| assert!(queue.pop().is_some()));
        // A newcomer begins where the other is, and then they take turns; one whose requests are half as large has two a turn.
        (100..104).for_each(|id| queue.push(entry(id, 1, 0, 10)));
        (200..208).for_each(|id| queue.push(entry(id, 2, 0, 5)));
        let next: Vec<u64> = (0..16).filter_map(|_| queue.pop()).map(|entry| entry.id / 100).collect();
        let of = |client: u64| next.iter().filter(|id| **id == client).count();
        assert_eq!((of(0), of(1), of(2)), (4, 4, 8), "{next:?}");
    }

    #[test]
    fn whoever_was_away_has_saved_nothing_up() {
        let mut queue = Queue::default();
        queue.push(entry(0, 1, 0, 10));
        assert_eq!(order(&mut queue), [0]);
        (10..60).for_each(|id| queue.push(entry(id, 0, 0, 10)));
        (0..40).for_each(|_| assert!(queue.pop().is_some()));
        (100..110).for_each(|id| queue.push(entry(id, 1, 0, 10)));
        let next: Vec<u64> = (0..6).filter_map(|_| queue.pop()).map(|entry| entry.id / 100).collect();
        assert_eq!(next.iter().filter(|id| **id == 1).count(), 3, "{next:?}");
    }

    #[test]
    fn what_is_put_back_comes_next_and_costs_nothing() {
        let mut queue = Queue::default();
        (0..4).for_each(|id| queue.push(entry(id, id as usize % 2, 0, 10)));
        for _ in 0..3 {
            let first = queue.pop().expect("there are some");
            assert_eq!(first.id, 0);
            queue.put_back(first);
        }
        assert_eq!((queue.len(), order(&mut queue)), (4, vec![0, 1, 2, 3]));
    }

    #[test]
    fn what_is_taken_out_is_gone() {
        let mut queue = Queue::default();
        (0..10).for_each(|id| queue.push(entry(id, id as usize % 3, 0, 10)));
        let taken = queue.take(|entry| entry.id % 2 == 0);
        assert_eq!((taken.len(), queue.len()), (5, 5));
        assert!(queue.take_older(Instant::now(), Duration::from_secs(3600)).is_empty());
        assert_eq!(queue.take_older(Instant::now(), Duration::ZERO).len(), 5);
        assert!(queue.pop().is_none() && queue.lines.len() <= 3);
    }

    #[test]
    fn whoever_has_most_waiting_makes_room() {
        let mut queue = Queue::default();
        (0..10).for_each(|id| queue.push(entry(id, 0, 0, 10)));
        (20..24).for_each(|id| queue.push(Entry { request: (20, 4), ..entry(id, 0, 0, 10) }));
        (40..43).for_each(|id| queue.push(entry(id, 1, 0, 10)));
        let ids = |taken: Vec<Entry<()>>| taken.iter().map(|entry| entry.id).collect::<Vec<_>>();
        // Whole requests, the youngest first, and of the client with most.
        assert_eq!(ids(queue.make_room(Client::Key(2), 1, 1)), [20, 21, 22, 23]);
        assert_eq!(ids(queue.make_room(Client::Key(1), 2, 2)), [8, 9]);
        // Nobody makes room for itself, nor for one that has as much.
        assert!(queue.make_room(Client::Key(0), 1, 1).is_empty());
        assert!(queue.make_room(Client::Key(1), 5, 1).is_empty());
        assert_eq!(queue.len(), 11);
        // One of which a part is decoded stays.
        let mut queue = Queue::default();
        (0..4).for_each(|id| queue.push(Entry { request: (0, 4), ..entry(id, 0, 0, 10) }));
        assert!(queue.pop().is_some());
        assert!(queue.make_room(Client::Key(1), 1, 1).is_empty());
    }

    /// Any number of clients that come once must not fill the memory.
    #[test]
    fn clients_that_have_gone_are_forgotten() {
        let mut queue = Queue::default();
        for client in 0..10_000 {
            queue.push(entry(client as u64, client, 0, 10));
            assert!(queue.pop().is_some());
        }
        assert!(queue.lines.len() <= 2, "{}", queue.lines.len());
    }
}
