//! On any machine, with a card or without: looking never panics, and what is missing is named with its remedy.

use rally_cuda::memory::{ALIGNMENT, Arena};
use rally_cuda::mfa::fp8_value_place;
use rally_cuda::probe::{Card, probe};
use rally_cuda::{CudaError, Device};

#[test]
fn looking_for_cuda_tells_what_to_install() {
    let found = probe();
    for error in [found.driver.err(), found.cards.err(), found.compiler.err()].into_iter().flatten() {
        let said = error.to_string();
        assert!(["install", "nvidia-smi"].iter().any(|remedy| said.contains(remedy)), "{said}");
    }
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let error = Device::open(1000).expect_err("no machine has a thousand cards");
    assert!(
        matches!(error, CudaError::NoDriver | CudaError::NoDevice | CudaError::Ordinal { ordinal: 1000, .. }),
        "{error}"
    );
}

#[test]
fn cards_are_compiled_for_as_they_are() {
    let card = |major, minor| Card {
        ordinal: 0,
        name: "a card".into(),
        capability: (major, minor),
        multiprocessors: 132,
        memory_bytes: 1,
        l2_bytes: 1,
    };
    assert_eq!([card(8, 0).arch(), card(8, 9).arch(), card(9, 0).arch()], ["sm_80", "sm_89", "sm_90a"]);
    assert!(card(9, 0).is_hopper() && !card(8, 9).is_hopper() && !card(10, 0).is_hopper());
}

#[test]
fn an_arena_is_sized_before_it_is_taken() {
    assert_eq!(Arena::bytes_for([]), 0);
    assert_eq!(Arena::bytes_for([1, 1, 300]), 2 * ALIGNMENT + 300);
    assert_eq!(Arena::bytes_for([ALIGNMENT, 5]), ALIGNMENT + 5);
}

#[test]
fn fp8_values_lie_as_the_kernels_say() {
    // cu/mfa_decode_fp8.cu: of every 16, position 8 a + 2 b + c is stored at 4 b + 2 a + c.
    for group in 0..4 {
        for (a, b, c) in (0..16).map(|i| (i / 8, i % 8 / 2, i % 2)) {
            assert_eq!(fp8_value_place(16 * group + 8 * a + 2 * b + c), 16 * group + 4 * b + 2 * a + c);
        }
    }
}
