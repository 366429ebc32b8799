//! Checksums that nobody has computed yet.
//!
//! What comes from another guest or from the parent carries the sum of its pseudo header where its checksum shall be. Of TCP
//! the guest is only told that the segment is good. Datagrams are finished here: DHCP clients read them past the guest's
//! network stack, and look at the checksum themselves.

use vm_memory::VolatileSlice;

/// Bytes that are copied at once.
const PIECE: usize = 512;

/// A sum of 16-bit words (RFC 1071) over pieces of any length.
#[derive(Default)]
struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let (first, rest) = if self.odd { bytes.split_at(bytes.len().min(1)) } else { bytes.split_at(0) };
        let byte = |byte: &u8| u64::from(*byte);
        self.total += first.first().map_or(0, byte);
        self.total += rest.chunks(2).map(|w| byte(&w[0]) << 8 | w.get(1).map_or(0, byte)).sum::<u64>();
        self.odd ^= bytes.len() % 2 == 1;
    }

    fn fold(mut self) -> u16 {
        while self.total > 0xFFFF {
            self.total = (self.total & 0xFFFF) + (self.total >> 16);
        }
        self.total as u16
    }
}

/// Computes the checksum of a frame of `len` bytes in `slices` that begins at `start` and has its place `offset` bytes
/// behind. `None`: they are not in the frame, which is as it was.
pub(crate) fn complete(slices: &[VolatileSlice<'_>], len: usize, start: usize, offset: usize) -> Option<()> {
    let place = start.checked_add(offset)?;
    if place.checked_add(2)? > len || len > slices.iter().map(VolatileSlice::len).sum() {
        return None;
    }
    let mut sum = Sum::default();
    let mut at = 0;
    for slice in slices {
        let end = slice.len().min(len.saturating_sub(at));
        let mut from = start.saturating_sub(at).min(end);
        while from < end {
            let mut piece = [0; PIECE];
            let count = PIECE.min(end - from);
            slice.subslice(from, count).ok()?.copy_to(&mut piece[..count]);
            sum.add(&piece[..count]);
            from += count;
        }
        at += slice.len();
    }
    // Zero would mean that there is none (RFC 768).
    let checksum = match !sum.fold() {
        0 => 0xFFFF,
        other => other,
    };
    let [high, low] = checksum.to_be_bytes();
    put(slices, place, high)?;
    put(slices, place + 1, low)
}

fn put(slices: &[VolatileSlice<'_>], mut at: usize, byte: u8) -> Option<()> {
    for slice in slices {
        if at < slice.len() {
            slice.subslice(at, 1).ok()?.copy_from(&[byte]);
            return Some(());
        }
        at -= slice.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(frame: &mut [u8], cuts: &[usize], len: usize, start: usize, offset: usize) -> Option<()> {
        let mut slices = Vec::new();
        let mut rest = frame;
        for cut in cuts {
            let (piece, more) = rest.split_at_mut((*cut).min(rest.len()));
            slices.push(VolatileSlice::from(piece));
            rest = more;
        }
        slices.push(VolatileSlice::from(rest));
        complete(&slices, len, start, offset)
    }

    #[test]
    fn a_datagram_gets_its_checksum() {
        // From 10.0.0.1:68 to 10.0.0.2:67, "abc"; the pseudo header's sum stands in the checksum's place.
        let pseudo: u16 = 0x0A00 + 1 + 0x0A00 + 2 + 17 + 11;
        let mut datagram = [&[0, 68, 0, 67, 0, 11][..], &pseudo.to_be_bytes(), b"abc"].concat();
        run(&mut datagram, &[], 11, 0, 6).unwrap();
        let sum = 68 + 67 + 11 + u32::from(pseudo) + 0x6162 + 0x6300;
        let expected = !((sum & 0xFFFF) as u16 + (sum >> 16) as u16);
        assert_eq!(datagram[6..8], expected.to_be_bytes());
        // What would be zero is not.
        let mut zero = [0xFF, 0xFF, 0, 0];
        run(&mut zero, &[], 4, 0, 2).unwrap();
        assert_eq!(zero, [0xFF; 4]);
    }

    #[test]
    fn places_outside_are_refused() {
        let mut frame = [7; 20];
        for (len, start, offset) in [(20, 19, 0), (20, 14, 6), (21, 0, 0), (20, usize::MAX, 6), (0, 0, 0)] {
            assert_eq!(run(&mut frame, &[3], len, start, offset), None);
        }
        assert_eq!(frame, [7; 20]);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            frame in prop::collection::vec(any::<u8>(), 2..3000), cuts in prop::collection::vec(0usize..900, 0..6), start: u16,
            offset in 0usize..40,
        ) {
            let start = usize::from(start) % frame.len();
            let (mut whole, mut cut) = (frame.clone(), frame.clone());
            let done = run(&mut whole, &[], frame.len(), start, offset);
            prop_assert_eq!(run(&mut cut, &cuts, frame.len(), start, offset), done);
            prop_assert_eq!(&whole, &cut);
            if done.is_some() {
                // A receiver that adds everything up, the pseudo header in place of what was there, finds it right.
                let mut sum = Sum::default();
                sum.add(&whole[start..]);
                if offset % 2 == 0 {
                    sum.total += u64::from(u16::from_be_bytes([frame[start + offset], frame[start + offset + 1]]));
                    prop_assert_eq!(sum.fold(), 0xFFFF);
                }
            }
        }
    }
}
