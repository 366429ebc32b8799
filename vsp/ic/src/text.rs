//! UTF-16 text in fields of fixed size.

/// Writes text and a terminating zero into a field. `None` if it does not fit.
pub(crate) fn encode(text: &str, field: &mut [u8]) -> Option<usize> {
    let units: Vec<u16> = text.encode_utf16().chain([0]).collect();
    let size = units.len() * 2;
    let target = field.get_mut(..size)?;
    for (bytes, unit) in target.chunks_exact_mut(2).zip(units) {
        bytes.copy_from_slice(&unit.to_le_bytes());
    }
    Some(size)
}

/// Writes as much of a text as fits, with a terminating zero.
pub(crate) fn encode_cut(text: &str, field: &mut [u8]) {
    let room = (field.len() / 2).saturating_sub(1);
    let mut units = 0;
    let cut: String = text
        .chars()
        .take_while(|c| {
            units += c.len_utf16();
            units <= room
        })
        .collect();
    encode(&cut, field);
}

/// Reads text up to a terminating zero or the end of the field. What is no text is replaced.
pub(crate) fn decode(field: &[u8]) -> String {
    let units = field.chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_cut_between_characters() {
        let mut field = [0xFF; 6];
        encode_cut("a𝄞b", &mut field);
        assert_eq!(field, [b'a', 0, 0, 0, 0xFF, 0xFF]);
        assert_eq!(encode("abc", &mut field), None);
        assert_eq!(encode("ab", &mut field), Some(6));
        assert_eq!(decode(&field), "ab");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(text in "[^\0]{0,40}") {
            let mut field = [0xAA; 200];
            prop_assert!(encode(&text, &mut field).is_some());
            prop_assert_eq!(decode(&field), text);
        }

        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(decode(&bytes).chars().count() <= bytes.len() / 2);
        }
    }
}
