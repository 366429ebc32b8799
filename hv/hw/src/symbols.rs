//! Names for addresses of the image, out of the file of symbols that the boot program loaded.
//!
//! The file is text: one line `RVA NAME` per function, the RVA (offset from the image's start) in hexadecimal without
//! prefix, lines sorted by it, names demangled. It is not trusted: whatever it holds, a search ends and stays inside.

/// A file of symbols.
#[derive(Clone, Copy, Debug, Default)]
pub struct Symbols<'a>(&'a [u8]);

impl<'a> Symbols<'a> {
    /// Takes the file's content as it is.
    pub const fn new(file: &'a [u8]) -> Self {
        Self(file)
    }

    /// The function that `rva` lies in, and how far in it.
    pub fn find(&self, rva: u64) -> Option<(&'a str, u64)> {
        // The line that starts at or before the middle decides. `low` is always the start of a line.
        let (mut low, mut high) = (0, self.0.len());
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let start = self.0[low..middle].iter().rposition(|b| *b == b'\n').map_or(low, |at| low + at + 1);
            let end = self.0[start..].iter().position(|b| *b == b'\n').map_or(self.0.len(), |at| start + at);
            match parse(&self.0[start..end]) {
                Some((address, name)) if address <= rva => {
                    found = Some((name, rva - address));
                    low = end + 1;
                }
                _ => high = start,
            }
        }
        found
    }
}

fn parse(line: &[u8]) -> Option<(u64, &str)> {
    let (address, name) = core::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &[u8] = b"1000 start\n1010 core::fmt::write\n2000 <a::B as c::D>::e f\nabcdef last\n";

    #[test]
    fn the_function_around_an_address_is_found() {
        let symbols = Symbols::new(FILE);
        assert_eq!(symbols.find(0xfff), None);
        assert_eq!(symbols.find(0x1000), Some(("start", 0)));
        assert_eq!(symbols.find(0x1fff), Some(("core::fmt::write", 0xfef)));
        assert_eq!(symbols.find(0x2005), Some(("<a::B as c::D>::e f", 5)));
        assert_eq!(symbols.find(u64::MAX), Some(("last", u64::MAX - 0xabcdef)));
    }

    #[test]
    fn an_empty_or_damaged_file_names_nothing() {
        assert_eq!(Symbols::default().find(5), None);
        assert_eq!(Symbols::new(b"\n\n\xff\xfe").find(5), None);
    }

    proptest! {
        #[test]
        fn every_symbol_is_found(gaps in prop::collection::vec(1_u64..5000, 1..60), at in 0_usize..60, into in 0_u64..5000) {
            let mut address = 0;
            let addresses: Vec<u64> = gaps.iter().map(|gap| { address += gap; address }).collect();
            let file: String = addresses.iter().map(|a| format!("{a:x} f{a}\n")).collect();
            let rva = addresses[at % addresses.len()] + into;
            let expected = addresses.iter().rev().find(|a| **a <= rva).unwrap();
            let name = format!("f{expected}");
            prop_assert_eq!(Symbols::new(file.as_bytes()).find(rva), Some((name.as_str(), rva - expected)));
        }

        #[test]
        fn anything_may_be_in_the_file(file in prop::collection::vec(any::<u8>(), 0..200), rva: u64) {
            Symbols::new(&file).find(rva);
        }
    }
}
