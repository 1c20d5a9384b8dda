//! What transports say to each other reads as it was written, and nothing else is read.

use proptest::prelude::*;
use rally_transport::SlotKey;
use rally_transport::nixl::announce::{Announcement, Aside, RemotePlace};
use rally_transport::transport::FIRST_ASIDE;

fn announcement() -> impl Strategy<Value = Announcement> {
    let key = any::<([u16; 4], u8)>().prop_map(|([edge, micro_batch, from, to], leg)| SlotKey {
        edge,
        micro_batch,
        from,
        to,
        leg,
    });
    let place = (proptest::option::of(0..u32::MAX), any::<[(u64, u64); 3]>());
    let place = place.prop_map(|(card, parts)| RemotePlace { card, parts });
    let slots = proptest::collection::vec((key, place), 0..9);
    ("[a-z0-9 ]{0,40}", any::<Vec<u8>>(), slots).prop_map(|(agent, metadata, slots)| Announcement {
        agent,
        metadata,
        slots,
    })
}

proptest! {
    #[test]
    fn what_is_announced_reads_as_it_was_written(announcement in announcement(), sent: u32) {
        for aside in [Aside::Announced(announcement), Aside::Sent(sent)] {
            let bytes = aside.encode();
            prop_assert_eq!(Aside::decode(&bytes), Some(Ok(aside)));
            for end in 1..bytes.len() {
                prop_assert!(matches!(Aside::decode(&bytes[..end]), Some(Err(_))), "cut at {}", end);
            }
            prop_assert!(matches!(Aside::decode(&[&bytes[..], &[0]].concat()), Some(Err(_))));
        }
    }

    #[test]
    fn words_of_hosts_are_none_of_a_transport(first in 0..FIRST_ASIDE, rest: Vec<u8>) {
        prop_assert_eq!(Aside::decode(&[&[first][..], &rest].concat()), None);
    }

    /// Lengths that are lies reserve nothing and make nothing panic.
    #[test]
    fn junk_is_refused(first in FIRST_ASIDE.., rest: Vec<u8>) {
        if let Some(Ok(aside)) = Aside::decode(&[&[first][..], &rest].concat()) {
            prop_assert_eq!(aside.encode(), [&[first][..], &rest].concat());
        }
    }
}

#[test]
fn a_message_without_bytes_is_nobodys() {
    assert_eq!(Aside::decode(&[]), None);
}
