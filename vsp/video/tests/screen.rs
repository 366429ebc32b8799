//! The screen with a guest in memory.

use std::sync::{Arc, Mutex};

use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vmbus_server::{ChannelError, Device};
use parterre_vsp_video::session::{PIXEL, RESOLUTIONS};
use parterre_vsp_video::{Screen, State, VRAM_SIZE, Vram};
use proptest::prelude::*;

const PLACE: u64 = 0xF800_0000;

/// Video memory that can be at [`PLACE`] only.
struct TestVram {
    place: Mutex<Option<u64>>,
    bytes: Mutex<Vec<u8>>,
}

impl Vram for TestVram {
    fn place(&self, gpa: Option<u64>) -> Result<(), String> {
        if gpa.is_some_and(|gpa| gpa != PLACE) {
            return Err("no such place".into());
        }
        *self.place.lock().unwrap() = gpa;
        Ok(())
    }

    fn read(&self, offset: u32, bytes: &mut [u8]) -> std::io::Result<()> {
        let all = self.bytes.lock().unwrap();
        let part = all.get(offset as usize..offset as usize + bytes.len());
        bytes.copy_from_slice(part.ok_or(std::io::ErrorKind::InvalidInput)?);
        Ok(())
    }
}

fn message(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = (body.len() as u32 + 8).to_le_bytes();
    [&[1, 0, 0, 0], &size, &kind.to_le_bytes(), &size, body].concat()
}

fn vram(gpa: u64) -> Vec<u8> {
    message(3, &[&gpa.to_le_bytes()[..], &[1], &gpa.to_le_bytes()].concat())
}

fn situation(offset: u32, depth: u8, width: u32, height: u32, pitch: u32) -> Vec<u8> {
    let words = [width, height, pitch].map(u32::to_le_bytes).concat();
    message(5, &[&[7, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &offset.to_le_bytes(), &[depth], &words].concat())
}

struct Rig {
    vram: Arc<TestVram>,
    screen: Screen,
    channel: FakeChannel,
}

impl Rig {
    fn new() -> Rig {
        let bytes = Mutex::new(vec![0; VRAM_SIZE as usize]);
        let vram = Arc::new(TestVram { place: Mutex::default(), bytes });
        let screen = Screen::new(vram.clone()).unwrap();
        let channel = FakeGuest::new().open(&screen, 0).unwrap();
        Rig { vram, screen, channel }
    }

    fn ready() -> Rig {
        let mut rig = Rig::new();
        let answers = rig.say(&message(1, &[3, 0, 5, 0]));
        assert_eq!(answers, [padded(message(2, &[3, 0, 5, 0, 1, 1]))]);
        rig
    }

    fn say(&mut self, message: &[u8]) -> Vec<Vec<u8>> {
        self.channel.post(1, message);
        self.run()
    }

    fn run(&mut self) -> Vec<Vec<u8>> {
        self.channel.run().unwrap();
        self.channel.receive_all().iter().map(|packet| packet.payload().to_vec()).collect()
    }

    fn ends_with(&mut self, bad: &[u8], word: &str) {
        self.channel.post(1, bad);
        match self.channel.run() {
            Err(ChannelError::Protocol(text)) => assert!(text.contains(word), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

#[test]
fn a_guest_draws_and_the_parent_sees_it() {
    let mut rig = Rig::ready();
    assert_eq!(rig.screen.offer().mmio_megabytes, 8);
    assert_eq!(rig.say(&vram(PLACE)), [message(4, &PLACE.to_le_bytes())]);
    assert_eq!(*rig.vram.place.lock().unwrap(), Some(PLACE));
    assert!(rig.screen.picture().is_none());
    assert_eq!(rig.say(&situation(0, 32, 2, 2, 12)), [message(6, &[7, 0, 0, 0, 0, 0, 0, 0])]);
    rig.vram.bytes.lock().unwrap()[..24].copy_from_slice(&[
        1, 2, 3, 0xFF, 4, 5, 6, 0, 9, 9, 9, 9, //
        7, 8, 9, 0, 10, 11, 12, 0, 9, 9, 9, 9,
    ]);
    let picture = rig.screen.picture().unwrap();
    assert_eq!((picture.width, picture.height), (2, 2));
    assert_eq!(picture.rgb, [3, 2, 1, 6, 5, 4, 9, 8, 7, 12, 11, 10]);
    let Rig { vram, screen, channel } = rig;
    drop(channel);
    assert_eq!((screen.picture(), *vram.place.lock().unwrap()), (None, None));
}

#[test]
fn resolutions_are_told_and_fit() {
    let mut rig = Rig::ready();
    let answer = &rig.say(&message(13, &[64]))[0];
    assert_eq!(answer[16 + 128..][..3], [RESOLUTIONS.len() as u8, 2, 0]);
    assert_eq!(answer[16 + 131 + 8..][..4], [0, 4, 0, 3]);
    for (width, height) in RESOLUTIONS.map(|(width, height)| (u32::from(width), u32::from(height))) {
        assert!(width * height * PIXEL <= VRAM_SIZE);
        rig.say(&situation(0, 32, width, height, width * PIXEL));
    }
}

#[test]
fn changes_are_told_while_somebody_looks() {
    let mut rig = Rig::ready();
    rig.say(&vram(PLACE));
    rig.say(&situation(0, 32, 640, 480, 2560));
    rig.screen.watch(true);
    assert_eq!(rig.run(), [padded(message(9, &[1, 0, 0, 1]))]);
    let before = rig.screen.state();
    assert_eq!((before.size, before.version.unwrap().to_string()), (Some((640, 480)), "3.5".into()));
    assert!(rig.say(&message(10, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])).is_empty());
    assert_eq!(rig.screen.state(), State { changes: before.changes + 1, ..before });
    // Also after the driver was loaded again.
    rig.say(&message(1, &[3, 0, 2, 0]));
    assert_eq!(rig.say(&vram(PLACE))[1], padded(message(9, &[1, 0, 0, 1])));
    rig.screen.watch(false);
    assert_eq!(rig.run(), [padded(message(9, &[0, 0, 0, 0]))]);
}

#[test]
fn a_place_that_cannot_be_had_is_refused() {
    let mut rig = Rig::ready();
    for _ in 0..3 {
        assert_eq!(rig.say(&vram(0x1000)), [message(4, &(!0x1000u64).to_le_bytes())]);
    }
    rig.say(&situation(0, 32, 640, 480, 2560));
    assert!(rig.screen.picture().is_none());
    rig.ends_with(&vram(0x1000), "no such place");
}

#[test]
fn other_versions_are_refused() {
    let mut rig = Rig::new();
    assert_eq!(rig.say(&message(1, &[3, 0, 0, 0])), [padded(message(2, &[3, 0, 0, 0, 0, 1]))]);
    assert_eq!(rig.screen.state().version, None);
    rig.ends_with(&vram(PLACE), "before the version");
}

#[test]
fn pictures_outside_the_video_memory_end_the_channel() {
    let bad = [
        situation(0, 32, 1024, 768, 4092),
        situation(0, 32, 2048, 1025, 8192),
        situation(1, 32, 2048, 1024, 8192),
        situation(u32::MAX, 32, 1, 1, 4),
        situation(0, 32, 0x4000_0000, 1, u32::MAX),
        situation(0, 32, 1, u32::MAX, 4),
        situation(0, 32, 0, 10, 4),
        situation(0, 16, 640, 480, 2560),
    ];
    for bad in bad {
        Rig::ready().ends_with(&bad, "does not lie in");
    }
    for cut in [vec![], vec![0; 16], message(5, &[0; 8]), message(10, &[0, 2, 0]), vec![1; 16]] {
        Rig::ready().ends_with(&cut, "cut off");
    }
}

proptest! {
    #[test]
    fn any_packets_cost_at_most_the_channel(
        packets in prop::collection::vec((0u32..16, prop::collection::vec(any::<u8>(), 0..60)), 1..20),
        size in (0u32..4000, 0u32..4000, 0u32..20000),
    ) {
        let mut rig = Rig::ready();
        rig.say(&vram(PLACE));
        rig.channel.post(1, &situation(0, 32, size.0, size.1, size.2));
        let mut ended = rig.channel.run().is_err();
        for (kind, body) in packets {
            if ended {
                break;
            }
            rig.channel.post(1, &message(kind, &body));
            ended = rig.channel.run().is_err();
            rig.channel.receive_all();
            if let Some(picture) = rig.screen.picture() {
                prop_assert_eq!(picture.rgb.len(), (picture.width * picture.height * 3) as usize);
            }
        }
    }
}
