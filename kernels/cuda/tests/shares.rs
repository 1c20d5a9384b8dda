//! Who gets how many multiprocessors of which card: drawn wishes against what must hold, and each refusal once. Without a card the
//! processor stands in for one; `RALLY_CUDA=card` divides a real one.

use proptest::prelude::*;
use rally_cuda::CudaError;
use rally_cuda::machine::Machines;
use rally_cuda::shares::{Grain, Wanted, divide};

const HOPPER: Grain = Grain { multiprocessors: 132, least: 8, step: 8 };

fn want(card: Option<usize>, sms: Option<u32>) -> Wanted {
    Wanted { card, sms }
}

/// Of devices on card 0: the place that is refused, and why.
fn refusal(sms: &[Option<u32>]) -> (usize, String) {
    let wanted: Vec<Wanted> = sms.iter().map(|sms| want(Some(0), *sms)).collect();
    let (place, error) = divide(&wanted, &[HOPPER]).expect_err("there is no such division");
    assert!(matches!(error, CudaError::Share { .. }), "{error}");
    (place, error.to_string())
}

#[test]
fn what_cannot_be_is_refused_where_it_is_asked_for() {
    for (sms, place, word) in [
        (&[Some(136)][..], 0, "which has 132"),
        (&[Some(48), Some(88)], 1, "which has 132, 48 of them taken"),
        (&[Some(48), Some(83)], 1, "in steps of 8"),
        (&[Some(44), Some(88 - 4)], 0, "in steps of 8"),
        (&[Some(4), Some(128)], 0, "8 or more"),
        (&[Some(0)], 0, "8 or more"),
        (&[Some(48), None], 1, "give it `sms` too"),
        (&[Some(44), Some(44), Some(44)], 0, "in steps of 8"),
    ] {
        let (at, said) = refusal(sms);
        assert!(at == place && said.contains(word), "{sms:?}: device {at}: {said}");
    }
    let (place, error) = divide(&[want(None, None), want(Some(2), None)], &[HOPPER; 2]).expect_err("no third card");
    assert!(place == 1 && matches!(error, CudaError::Ordinal { ordinal: 2, count: 2 }), "{place}: {error}");
}

#[test]
fn devices_that_name_no_card_take_them_in_turn() {
    let wanted = [want(None, None), want(Some(1), None), want(None, None), want(None, None)];
    let given = divide(&wanted, &[HOPPER; 3]).expect("whole cards");
    assert_eq!(given.iter().map(|given| given.card).collect::<Vec<_>>(), [0, 1, 2, 0]);
    let halves = divide(&[want(None, Some(48)), want(None, Some(84))], &[HOPPER]).expect("48 and the rest");
    assert_eq!(halves.iter().map(|given| (given.card, given.sms)).collect::<Vec<_>>(), [(0, Some(48)), (0, Some(84))]);
}

fn wishes() -> impl Strategy<Value = (Vec<Wanted>, Vec<Grain>)> {
    let grain = (4u32..150, prop::sample::select(vec![(8, 8), (4, 2), (2, 2)]))
        .prop_map(|(multiprocessors, (least, step))| Grain { multiprocessors, least, step });
    let wanted = (prop::option::of(0usize..4), prop::option::of(0u32..140)).prop_map(|(card, sms)| Wanted {
        card,
        sms: sms.map(|sms| if sms.is_multiple_of(3) { sms } else { sms / 8 * 8 }),
    });
    (prop::collection::vec(wanted, 0..6), prop::collection::vec(grain, 1..4))
}

proptest! {
    /// Whatever is given is there, once, and as it was wanted; whatever is refused could not be given.
    #[test]
    fn nobody_is_given_what_another_has((wanted, cards) in wishes()) {
        let card_of = |index: usize| wanted[index].card.unwrap_or(index % cards.len());
        let of = |card: usize| (0..wanted.len()).filter(move |index| card_of(*index) == card);
        let possible = (0..wanted.len()).all(|index| card_of(index) < cards.len()) && cards.iter().enumerate().all(|(card, grain)| {
            let sizes: Vec<u32> = of(card).filter_map(|index| wanted[index].sms).collect();
            let odd = sizes.iter().filter(|sms| !sms.is_multiple_of(grain.step)).count();
            let sum: u32 = sizes.iter().sum();
            sizes.is_empty()
                || sizes.len() == of(card).count()
                    && sum <= grain.multiprocessors
                    && sizes.iter().all(|sms| *sms >= grain.least)
                    && (odd == 0 || odd == 1 && sum == grain.multiprocessors)
        });
        match divide(&wanted, &cards) {
            Ok(given) => {
                prop_assert!(possible, "{given:?}");
                for (index, given) in given.iter().enumerate() {
                    prop_assert_eq!((given.card, given.sms), (card_of(index), wanted[index].sms));
                }
            }
            Err((place, error)) => prop_assert!(!possible && place < wanted.len(), "{}: {}", place, error),
        }
    }
}

#[test]
fn machines_have_the_shares_that_were_wanted() {
    let on_card = std::env::var("RALLY_CUDA").as_deref() == Ok("card");
    let machines = if on_card { Machines::Cards } else { Machines::StandIn };
    let opened = machines.open_all(&[want(Some(0), Some(48)), want(Some(0), Some(84))]).expect("they are opened");
    let counts: Vec<usize> = opened.iter().map(|machine| machine.multiprocessors()).collect();
    assert_eq!(counts, [48, 84]);
    for (machine, said) in opened.iter().zip(["48", "84"]) {
        assert!(machine.name().contains(&format!("{said} ")), "{}", machine.name());
    }
    let (place, error) = machines.open_all(&[want(Some(0), Some(64)), want(Some(0), Some(72))]).expect_err("too many");
    assert_eq!(place, 1, "{error}");
    assert!(machines.open_all(&[]).expect("nothing wanted").is_empty());
}
