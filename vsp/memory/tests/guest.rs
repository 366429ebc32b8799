//! Dynamic memory with a guest in memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use parterre_vmbus_server::ChannelError;
use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vsp_memory::wire::PageRange;
use parterre_vsp_memory::{DynamicMemory, Ram};
use proptest::prelude::*;

const PAGES: u64 = 4096;

/// Notes what is released.
#[derive(Default)]
struct TestRam(Mutex<Vec<PageRange>>);

impl Ram for TestRam {
    fn ranges(&self) -> Vec<PageRange> {
        vec![PageRange { first: 0, count: PAGES / 2 }, PageRange { first: 0x10_0000, count: PAGES / 2 }]
    }

    fn release(&self, range: PageRange) -> std::io::Result<()> {
        self.0.lock().unwrap().push(range);
        Ok(())
    }
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(body.len() as u16 + 8).to_le_bytes(), &[7, 0, 0, 0], body].concat()
}

fn word(range: PageRange) -> [u8; 8] {
    (range.first | range.count << 40).to_le_bytes()
}

fn response(ranges: &[PageRange], more: bool) -> Vec<u8> {
    let head = [[0; 4], (u32::from(more) | (ranges.len() as u32) << 1).to_le_bytes()].concat();
    message(7, &ranges.iter().fold(head, |body, range| [body, word(*range).to_vec()].concat()))
}

struct Rig {
    ram: Arc<TestRam>,
    memory: DynamicMemory,
    channel: FakeChannel,
}

impl Rig {
    fn new() -> Rig {
        let ram = Arc::new(TestRam::default());
        let memory = DynamicMemory::new(ram.clone()).unwrap();
        let channel = FakeGuest::new().open(&memory, 0).unwrap();
        Rig { ram, memory, channel }
    }

    fn ready() -> Rig {
        let mut rig = Rig::new();
        assert_eq!(rig.say(&message(1, &[0, 0, 2, 0, 0, 0, 0, 0])), [accepted(2, true)]);
        let answers = rig.say(&message(3, &[[3 | 7 << 2, 0, 0, 0, 0, 0, 0, 0], [0; 8], [0xFF; 8]].concat()));
        assert_eq!(answers[0], accepted(4, true));
        let told = [&[0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0][..], &PAGES.to_le_bytes()].concat();
        assert_eq!((answers.len(), answers[1][0], &answers[1][8..]), (2, 12, &told[..]));
        rig
    }

    /// Sends a message; returns what comes back.
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

fn accepted(kind: u16, yes: bool) -> Vec<u8> {
    message(kind, &[yes.into(), 0, 0, 0, 0, 0, 0, 0])
}

fn asked(pages: u32) -> Vec<u8> {
    [pages.to_le_bytes(), [0; 4]].concat()
}

#[test]
fn a_guest_gives_pages_up_and_takes_them_back() {
    let mut rig = Rig::ready();
    rig.memory.set_target(PAGES - 512);
    let requests = rig.run();
    assert_eq!((requests.len(), requests[0][0], &requests[0][8..]), (1, 6, &asked(512)[..]));
    assert!(!rig.memory.state().settled);
    let halves = [PageRange { first: 768, count: 128 }, PageRange { first: 512, count: 256 }];
    assert!(rig.say(&response(&halves, true)).is_empty());
    let rest = [PageRange { first: 0x10_0000, count: 128 }];
    assert!(rig.say(&response(&rest, false)).is_empty());
    let state = rig.memory.wait(Duration::ZERO);
    assert_eq!((state.assigned, state.target, state.settled), (PAGES - 512, PAGES - 512, true));
    assert_eq!(*rig.ram.0.lock().unwrap(), [PageRange { first: 512, count: 384 }, rest[0]]);

    rig.memory.set_target(PAGES - 100);
    let requests = rig.run();
    let back = [word(PageRange { first: 512, count: 384 }), word(PageRange { first: 0x10_0000, count: 28 })];
    let expected = [&[0, 0, 0, 0, 2, 0, 0, 0][..], &back.concat()].concat();
    assert_eq!((requests.len(), requests[0][0], &requests[0][8..]), (1, 8, &expected[..]));
    assert!(!rig.memory.state().settled);
    assert!(rig.say(&message(9, &[])).is_empty());
    let state = rig.memory.state();
    assert_eq!((state.assigned, state.settled), (PAGES - 100, true));
}

#[test]
fn a_guest_that_has_no_more_to_give_is_left_alone() {
    let mut rig = Rig::ready();
    rig.memory.set_target(1000);
    rig.run();
    // Some: it is asked for the rest. None: it is not.
    let requests = rig.say(&response(&[PageRange { first: 0, count: 1 }], false));
    assert_eq!(requests[0][8..], asked(3095));
    assert!(rig.say(&response(&[], false)).is_empty());
    assert_eq!((rig.memory.state().assigned, rig.memory.state().settled), (PAGES - 1, true));
    rig.memory.set_target(1000);
    assert_eq!(rig.run()[0][0], 6);
}

#[test]
fn pressure_is_told_and_a_new_guest_starts_afresh() {
    let mut rig = Rig::ready();
    rig.say(&message(
        5,
        &[[9, 0, 0, 0, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0, 0], [0; 8], [0; 8], [0; 8]].concat(),
    ));
    let pressure = rig.memory.state().pressure.unwrap();
    assert_eq!((pressure.available, pressure.committed), (9, 8));
    rig.memory.set_target(PAGES - 4);
    rig.run();
    rig.say(&response(&[PageRange { first: 4, count: 4 }], false));
    // A guest counts as committed what it gave up.
    rig.say(&message(5, &[[0; 8], [10, 0, 0, 0, 0, 0, 0, 0], [0; 8], [0; 8], [0; 8]].concat()));
    assert_eq!(rig.memory.state().pressure.unwrap().committed, 6);
    let Rig { memory, channel, .. } = rig;
    drop(channel);
    let state = memory.state();
    assert_eq!((state.assigned, state.target, state.version), (PAGES, PAGES - 4, None));
    assert!(state.pressure.is_none() && state.settled);
}

#[test]
fn versions_are_negotiated() {
    let mut rig = Rig::new();
    assert_eq!(rig.say(&message(1, &[0, 0, 3, 0, 0, 0, 0, 0])), [accepted(2, false)]);
    assert_eq!(rig.say(&message(1, &[3, 0, 0, 0, 1, 0, 0, 0])), [accepted(2, true)]);
    // Windows 7 has no message of information.
    assert_eq!(rig.say(&message(3, &[0; 24])), [accepted(4, true)]);
    assert_eq!(rig.memory.state().version.unwrap().to_string(), "0.3");
    // It cannot balloon, so it is not asked to.
    rig.memory.set_target(1);
    assert!(rig.run().is_empty() && rig.memory.state().settled);
}

#[test]
fn what_is_not_the_guests_to_give_ends_the_channel() {
    let bad = [
        (PageRange { first: PAGES / 2, count: 1 }, "not its memory"),
        (PageRange { first: PAGES / 2 - 1, count: 2 }, "not its memory"),
        (PageRange { first: 0, count: 101 }, "100 at most"),
    ];
    for (range, word) in bad {
        let mut rig = Rig::ready();
        rig.memory.set_target(PAGES - 100);
        rig.run();
        rig.ends_with(&response(&[range], false), word);
        assert!(rig.ram.0.lock().unwrap().is_empty());
    }
    let mut rig = Rig::ready();
    rig.memory.set_target(PAGES - 100);
    rig.run();
    rig.say(&response(&[PageRange { first: 5, count: 5 }], true));
    rig.ends_with(&response(&[PageRange { first: 9, count: 1 }], true), "second time");
}

#[test]
fn what_comes_out_of_turn_ends_the_channel() {
    let out_of_turn = [message(9, &[]), response(&[], false), message(11, &[0; 8]), message(1, &[0; 8])];
    for bad in out_of_turn {
        Rig::ready().ends_with(&bad, "out of turn");
    }
    for early in [message(3, &[0; 24]), message(5, &[0; 40])] {
        Rig::new().ends_with(&early, "out of turn");
    }
    Rig::new().ends_with(&[], "no header");
}

#[test]
fn many_small_pieces_come_back_through_a_small_ring() {
    let ram = Arc::new(TestRam::default());
    let memory = DynamicMemory::new(ram).unwrap();
    let mut guest = FakeGuest::new();
    guest.ring_size = 2 * 4096;
    let channel = guest.open(&memory, 0).unwrap();
    let mut rig = Rig { ram: Arc::default(), memory, channel };
    rig.say(&message(1, &[0, 0, 2, 0, 0, 0, 0, 0]));
    rig.say(&message(3, &[1; 24]));
    rig.memory.set_target(PAGES - 1000);
    rig.run();
    let odd: Vec<_> = (0..1000).map(|page| PageRange { first: page * 2, count: 1 }).collect();
    for (index, piece) in odd.chunks(250).enumerate() {
        rig.say(&response(piece, index < 3));
    }
    rig.memory.set_target(PAGES);
    let (mut ranges, mut last) = (0, 1);
    while last == 1 {
        for request in rig.run() {
            last = request[8];
            ranges += usize::from(u16::from_le_bytes([request[12], request[13]]));
        }
    }
    assert_eq!(ranges, 1000);
    rig.say(&message(9, &[]));
    assert_eq!((rig.memory.state().assigned, rig.memory.state().settled), (PAGES, true));
}

proptest! {
    #[test]
    fn any_packets_cost_at_most_the_channel(
        packets in prop::collection::vec((0u16..14, prop::collection::vec(any::<u8>(), 0..80)), 1..20),
        targets in prop::collection::vec(0..2 * PAGES, 20),
        ready in any::<bool>(),
    ) {
        let mut rig = if ready { Rig::ready() } else { Rig::new() };
        for ((kind, body), target) in packets.into_iter().zip(targets) {
            rig.memory.set_target(target);
            rig.channel.post(1, &message(kind, &body));
            let ended = rig.channel.run().is_err();
            rig.channel.receive_all();
            let state = rig.memory.state();
            prop_assert!(state.assigned <= PAGES);
            let released: u64 = rig.ram.0.lock().unwrap().iter().map(|range| range.count).sum();
            prop_assert!(released >= PAGES - state.assigned || ended);
            if ended {
                break;
            }
        }
    }
}
