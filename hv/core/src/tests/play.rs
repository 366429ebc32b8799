//! Whatever a parent and its guests do, the hypervisor answers, and every page stays whose it is.

use crate::fake::Player;
use proptest::prelude::*;
use std::{collections::BTreeMap, vec::Vec};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_parent_does_breaks_the_hypervisor(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut player = Player::new();
        player.play(&data);
        player.rig.check();
        player.end();
    }

    #[test]
    fn nothing_that_a_guest_does_breaks_the_hypervisor(data in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let mut player = Player::with_guest();
        for part in data.chunks(200) {
            player.play(part);
            player.rig.check();
        }
        player.end();
    }
}

/// The tests above are worth something only if play gets somewhere.
#[test]
fn play_reaches_the_good_case_of_every_call() {
    let mut answers: BTreeMap<_, Vec<u16>> = BTreeMap::new();
    let mut state = 1u64;
    for _ in 0..300 {
        let mut player = Player::with_guest();
        let data: Vec<u8> = (0..2000)
            .map(|_| {
                // SplitMix64: play takes several bytes for each step, which must not depend on one another.
                state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                ((mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) >> 33) as u8
            })
            .collect();
        player.play(&data);
        player.rig.check();
        for (code, statuses) in player.answers {
            answers.entry(code).or_default().extend(statuses);
        }
    }
    // Nobody plays with a second processor here, so none is added.
    let mut called =
        Player::calls().filter(|code| *code != parterre_abi::hypercall::HypercallCode::ADD_LOGICAL_PROCESSOR);
    assert_eq!(called.find(|code| !answers.get(code).is_some_and(|statuses| statuses.contains(&0))), None);
}
