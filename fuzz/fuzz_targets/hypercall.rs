//! A parent and its guests do what the data says; whatever it is, the hypervisor answers, every page stays whose it is, and
//! everything comes back in the end.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use parterre_core::fake::Player;

/// A hypervisor is made for ever, so one serves many plays.
const PLAYS: u32 = 1000;

thread_local! {
    static PLAYER: RefCell<Option<(Player, u32)>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| {
    let used = PLAYER.with(RefCell::take).filter(|(_, plays)| *plays < PLAYS);
    let (mut player, plays) = match used {
        Some((mut player, plays)) => {
            player.again_with_guest();
            (player, plays + 1)
        }
        None => (Player::with_guest(), 0),
    };
    player.play(data);
    player.rig.check();
    player.end();
    PLAYER.set(Some((player, plays)));
});
