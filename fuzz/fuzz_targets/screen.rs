//! A guest that says anything about its screen.
//!
//! What must hold: no panic; a picture that is shown lies in the video memory.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use parterre_vsp_video::session::{Effect, Session};

const VRAM: u32 = 8 << 20;
const PIXEL: u64 = 4;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A packet of any bytes.
    Say(Vec<u8>),
    /// A message of some kind.
    Tell { kind: u8, body: Vec<u32> },
    /// The parent looks, or no longer.
    Watch(bool),
    /// The video memory was put where the guest wanted it, or not.
    Place(bool),
}

fuzz_target!(|steps: Vec<Step>| {
    let mut session = Session::new(VRAM);
    let mut wanted = None;
    for step in steps {
        let packet = match step {
            Step::Say(packet) => packet,
            Step::Tell { kind, body } => {
                let size = 16 + 4 * body.len() as u32;
                let words = [1, size, u32::from(kind % 16), size - 8].into_iter().chain(body);
                words.flat_map(u32::to_le_bytes).collect()
            }
            Step::Watch(watched) => {
                session.watch(watched);
                continue;
            }
            Step::Place(done) => {
                if let Some((context, gpa)) = wanted.take() {
                    session.placed(context, gpa, done);
                }
                continue;
            }
        };
        match session.take(&packet) {
            Ok(Effect::Place { context, gpa }) => wanted = Some((context, gpa)),
            Ok(_) => {}
            Err(_) => return,
        }
        while session.next_message().is_some() {}
        if let Some(picture) = session.picture() {
            let last = u64::from(picture.pitch) * u64::from(picture.height);
            assert!(u64::from(picture.width) * PIXEL <= u64::from(picture.pitch));
            assert!(
                u64::from(picture.offset) + last <= u64::from(VRAM),
                "{picture:?} leaves the video memory"
            );
        }
    }
});
