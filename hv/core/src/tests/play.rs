//! Whatever a parent and its guests do, the hypervisor answers, and every page stays whose it is.

use crate::fake::Player;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_parent_does_breaks_the_hypervisor(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut player = Player::new();
        player.play(&data);
        player.rig.check();
    }

    #[test]
    fn nothing_that_a_guest_does_breaks_the_hypervisor(data in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let mut player = Player::with_guest();
        for part in data.chunks(200) {
            player.play(part);
            player.rig.check();
        }
    }
}
