//! A parent and its guests do what the data says; whatever it is, the hypervisor answers, and every page stays whose it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parterre_core::fake::Player;

fuzz_target!(|data: &[u8]| {
    let mut player = Player::with_guest();
    for part in data.chunks(256) {
        player.play(part);
        player.rig.check();
    }
});
