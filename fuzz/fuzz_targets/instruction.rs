//! The instruction decoder against a general one: what both know has the same length.
#![no_main]

use iced_x86::{Decoder, DecoderOptions};
use libfuzzer_sys::fuzz_target;
use parterre_core::instruction::{Exiting, MemoryAccess, Mode};

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let (mode, bits) = match first % 3 {
        0 => (Mode::Bits16, 16),
        1 => (Mode::Bits32, 32),
        _ => (Mode::Bits64, 64),
    };
    let general = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
    if let Some((_, length)) = Exiting::decode(bytes, mode) {
        assert_eq!(usize::from(length), general.len(), "{bytes:02x?}");
    }
    if let Some(access) = MemoryAccess::decode(bytes, mode) {
        assert!(!general.is_invalid(), "{bytes:02x?}");
        assert_eq!(usize::from(access.length()), general.len(), "{bytes:02x?}");
        let (mut gprs, mut rflags) = ([u64::from(*first); 16], 2);
        let written = access.complete(u64::MAX, &mut gprs, &mut rflags);
        assert_eq!(written.is_some(), access.writes(), "{bytes:02x?}");
    }
});
