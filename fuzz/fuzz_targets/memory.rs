//! A guest that says anything about its memory, while the parent wants now more and now less of it.
//!
//! What must hold: no panic; the guest has no more pages than it has RAM; pages that it gives up are its own, and no more
//! than it was asked for.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use parterre_vsp_memory::session::Session;
use parterre_vsp_memory::wire::PageRange;

const RAM: [PageRange; 2] = [PageRange { first: 0, count: 0xA0 }, PageRange { first: 0x100, count: 0x700 }];

#[derive(Arbitrary, Debug)]
enum Step {
    /// A message of any bytes.
    Say(Vec<u8>),
    /// A message of a known kind: kind, transaction, body.
    Tell { kind: u8, transaction: u8, body: Vec<u32> },
    /// The pages that it gives up, as a guest says it.
    GiveUp { more: bool, ranges: Vec<(u16, u8)> },
    /// The parent changes its mind.
    Want(u16),
    /// The parent sends what it has to say.
    Listen,
}

fn header(kind: u16, size: usize, transaction: u32) -> Vec<u8> {
    let size = u16::try_from(8 + size).unwrap_or(u16::MAX);
    [&kind.to_le_bytes()[..], &size.to_le_bytes(), &transaction.to_le_bytes()].concat()
}

fn packet(step: &Step) -> Option<Vec<u8>> {
    match step {
        Step::Say(bytes) => Some(bytes.clone()),
        Step::Tell { kind, transaction, body } => {
            let mut packet = header(u16::from(kind % 16), 4 * body.len(), u32::from(*transaction));
            packet.extend(body.iter().flat_map(|word| word.to_le_bytes()));
            Some(packet)
        }
        Step::GiveUp { more, ranges } => {
            let mut packet = header(7, 8 + 8 * ranges.len(), 1);
            packet.extend([0; 4]);
            packet.extend((u32::from(*more) | (ranges.len() as u32) << 1).to_le_bytes());
            for (start, count) in ranges {
                packet.extend((u64::from(*start) | u64::from(*count) << 40).to_le_bytes());
            }
            Some(packet)
        }
        Step::Want(_) | Step::Listen => None,
    }
}

fuzz_target!(|steps: (bool, Vec<Step>)| {
    let (started, steps) = steps;
    let all: u64 = RAM.iter().map(|range| range.count).sum();
    let mut session = Session::new(&RAM, all);
    if started {
        for (kind, word) in [(1, 0x20000), (3, 3)] {
            let mut packet = header(kind, 24, 1);
            packet.extend(u32::to_le_bytes(word));
            packet.extend([0; 20]);
            assert!(session.take(&packet).is_ok(), "the usual start works");
        }
    }
    for step in steps {
        if let Some(packet) = packet(&step) {
            let before = session.assigned();
            // What breaks the protocol costs the channel.
            let Ok(given) = session.take(&packet) else { return };
            let pages: u64 = given.iter().map(|range| range.count).sum();
            assert_eq!(session.assigned() + pages, before);
            for range in given {
                let is_ram = |of: &PageRange| {
                    range.first >= of.first && range.first + range.count <= of.first + of.count
                };
                assert!(range.count == 0 || RAM.iter().any(is_ram), "{range:?} is not its own");
            }
        }
        match step {
            Step::Want(pages) => session.set_target(pages.into()),
            Step::Listen => drop(session.next_message()),
            _ => {}
        }
        assert!(session.assigned() <= all);
    }
});
