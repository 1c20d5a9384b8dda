//! The way to a peer, as those see it who post: what is under way to it, and when it can be told that nothing more will come.

use super::announce::Aside;
use crate::tcp::Tcp;
use crate::transport::{Peer, Transport};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    /// Posted, and neither with the peer nor given up.
    under_way: u32,
    /// Gone out.
    sent: u32,
    /// Nothing is taken any more.
    finishing: bool,
    finished: bool,
    /// What is posted next is changed on its way.
    damage: Option<u64>,
}

/// One a peer.
#[derive(Debug)]
pub(super) struct Way {
    peer: Peer,
    state: Mutex<State>,
}

impl Way {
    pub(super) fn to(peer: Peer) -> Self {
        Self { peer, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a post, if any are taken; with it, what is to be changed in it.
    pub(super) fn take(&self) -> Option<Option<u64>> {
        let mut state = self.state();
        if state.finishing {
            return None;
        }
        state.under_way += 1;
        Some(state.damage.take())
    }

    /// A post goes out.
    pub(super) fn goes_out(&self) {
        self.state().sent += 1;
    }

    /// A post is with the peer, or was dropped.
    pub(super) fn is_through(&self, links: &Tcp) {
        let mut state = self.state();
        state.under_way -= 1;
        self.settle(&mut state, links);
    }

    /// Nothing more is taken. The peer is told once nothing is under way.
    pub(super) fn finish(&self, links: &Tcp) {
        let mut state = self.state();
        state.finishing = true;
        self.settle(&mut state, links);
    }

    fn settle(&self, state: &mut State, links: &Tcp) {
        if state.finishing && !state.finished && state.under_way == 0 {
            state.finished = true;
            links.send(self.peer, Aside::Sent(state.sent).encode());
            links.finish_one(self.peer);
        }
    }

    /// The peer is given up: what was said before [`Way::finish`] is still to be heard.
    pub(super) fn give_up(&self, links: &Tcp) {
        let mut state = self.state();
        if state.finishing && !state.finished {
            state.finished = true;
            links.finish_one(self.peer);
        }
        state.finishing = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state().finished
    }

    pub(super) fn damage(&self, chosen: u64) {
        self.state().damage = Some(chosen);
    }

    /// Damage that was meant for what goes out next, which is no post.
    pub(super) fn take_damage(&self) -> Option<u64> {
        self.state().damage.take()
    }
}
