//! Events on their way into a guest, as the control block encodes them (AMD APM volume 2, 15.20).

use parterre_core::machine::Event;

const TYPE_SHIFT: u32 = 8;
/// Type: a physical or virtual interrupt.
pub const TYPE_INTERRUPT: u64 = 0;
/// Type: NMI.
pub const TYPE_NMI: u64 = 2;
/// Type: an exception that no INT3 or INTO raised.
pub const TYPE_EXCEPTION: u64 = 3;
const TYPE_SOFTWARE: u64 = 4;
/// There is an error code.
pub const HAS_ERROR: u64 = 1 << 11;
const VALID: u64 = 1 << 31;

const VECTOR_NMI: u8 = 2;
const VECTOR_BREAKPOINT: u8 = 3;
const VECTOR_OVERFLOW: u8 = 4;

/// The event as EVENTINJ takes it. The return address of a software interrupt is the caller's business.
pub fn encode(event: Event) -> u64 {
    let bits = |kind: u64, vector: u8| VALID | kind << TYPE_SHIFT | u64::from(vector);
    match event {
        Event::Interrupt(vector) => bits(TYPE_INTERRUPT, vector),
        Event::Nmi => bits(TYPE_NMI, VECTOR_NMI),
        Event::Exception(vector, None) => bits(TYPE_EXCEPTION, vector),
        Event::Exception(vector, Some(error)) => {
            bits(TYPE_EXCEPTION, vector) | HAS_ERROR | u64::from(error) << 32
        }
        Event::Software(vector, _) => bits(TYPE_SOFTWARE, vector),
    }
}

/// Whether an exit cut short the delivery of anything. QEMU's emulation leaves the rest of the word as it was.
#[inline]
pub fn is_valid(info: u64) -> bool {
    info & VALID != 0
}

/// The event whose delivery an exit cut short, out of EXITINTINFO.
///
/// `None` also for software interrupts and the exceptions of INT3 and INTO: RIP still points at the instruction, which
/// raises them again. QEMU's emulation says "exception" of every event; vectors tell what they were.
pub fn decode(info: u64) -> Option<Event> {
    if !is_valid(info) {
        return None;
    }
    let vector = info as u8;
    match info >> TYPE_SHIFT & 7 {
        TYPE_INTERRUPT => Some(Event::Interrupt(vector)),
        TYPE_NMI => Some(Event::Nmi),
        TYPE_EXCEPTION => match vector {
            VECTOR_NMI => Some(Event::Nmi),
            VECTOR_BREAKPOINT | VECTOR_OVERFLOW => None,
            32.. => Some(Event::Interrupt(vector)),
            _ => Some(Event::Exception(vector, (info & HAS_ERROR != 0).then_some((info >> 32) as u32))),
        },
        _ => None,
    }
}

/// Whether an exit cut short the delivery of a software interrupt.
pub fn is_software(info: u64) -> bool {
    is_valid(info) && info >> TYPE_SHIFT & 7 == TYPE_SOFTWARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_injected_comes_back_when_cut_short() {
        let events = [
            Event::Interrupt(0x30),
            Event::Interrupt(255),
            Event::Nmi,
            Event::Exception(6, None),
            Event::Exception(14, Some(0xffff_fffb)),
            Event::Exception(13, Some(0)),
        ];
        for event in events {
            assert_eq!(decode(encode(event)), Some(event));
            assert_eq!(decode(encode(event) & !VALID), None);
        }
    }

    #[test]
    fn encodings_are_the_manuals() {
        assert_eq!(encode(Event::Interrupt(0x41)), 0x8000_0041);
        assert_eq!(encode(Event::Nmi), 0x8000_0202);
        assert_eq!(encode(Event::Exception(13, Some(0x10))), 0x0000_0010_8000_0b0d);
        assert_eq!(encode(Event::Software(0x80, 2)), 0x8000_0480);
    }

    #[test]
    fn instructions_raise_their_own_events_again() {
        assert_eq!(decode(encode(Event::Software(0x80, 2))), None);
        assert!(is_software(encode(Event::Software(0x80, 2))));
        assert_eq!(decode(encode(Event::Exception(3, None))), None);
    }

    #[test]
    fn an_emulator_that_calls_everything_an_exception_is_understood() {
        assert_eq!(decode(0x8000_0330), Some(Event::Interrupt(0x30)));
        assert_eq!(decode(0x8000_0302), Some(Event::Nmi));
    }
}
