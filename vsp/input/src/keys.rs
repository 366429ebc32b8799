//! Scan codes (set 1) of keys by name, and of text on a keyboard with the layout of the United States.

/// A key: its make code, and the byte before it if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// 0, 0xE0 or 0xE1.
    pub prefix: u8,
    /// Make code.
    pub code: u8,
}

/// A key that goes down or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stroke {
    /// Which.
    pub key: Key,
    /// Up.
    pub released: bool,
}

const fn key(code: u8) -> Key {
    Key { prefix: 0, code }
}

const fn extended(code: u8) -> Key {
    Key { prefix: 0xE0, code }
}

const SHIFT: Key = key(0x2A);

/// Keys that make no character, by their names.
const NAMED: [(&str, Key); 40] = [
    ("esc", key(0x01)),
    ("backspace", key(0x0E)),
    ("tab", key(0x0F)),
    ("enter", key(0x1C)),
    ("ctrl", key(0x1D)),
    ("shift", SHIFT),
    ("alt", key(0x38)),
    ("space", key(0x39)),
    ("caps-lock", key(0x3A)),
    ("f1", key(0x3B)),
    ("f2", key(0x3C)),
    ("f3", key(0x3D)),
    ("f4", key(0x3E)),
    ("f5", key(0x3F)),
    ("f6", key(0x40)),
    ("f7", key(0x41)),
    ("f8", key(0x42)),
    ("f9", key(0x43)),
    ("f10", key(0x44)),
    ("num-lock", key(0x45)),
    ("scroll-lock", key(0x46)),
    ("sysrq", key(0x54)),
    ("f11", key(0x57)),
    ("f12", key(0x58)),
    ("right-ctrl", extended(0x1D)),
    ("right-alt", extended(0x38)),
    ("right-shift", key(0x36)),
    ("home", extended(0x47)),
    ("up", extended(0x48)),
    ("page-up", extended(0x49)),
    ("left", extended(0x4B)),
    ("right", extended(0x4D)),
    ("end", extended(0x4F)),
    ("down", extended(0x50)),
    ("page-down", extended(0x51)),
    ("insert", extended(0x52)),
    ("del", extended(0x53)),
    ("win", extended(0x5B)),
    ("menu", extended(0x5D)),
    ("minus", key(0x0C)),
];

/// Rows of keys: the first one's make code, what they write without shift and with it.
const ROWS: [(u8, &str, &str); 5] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
];

/// The key that writes a character, and whether shift is held.
fn of_character(character: char) -> Option<(Key, bool)> {
    match character {
        '\n' => return Some((key(0x1C), false)),
        '\t' => return Some((key(0x0F), false)),
        _ => {}
    }
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let at = |row: &str| row.chars().position(|other| other == character);
        let (place, shift) = match at(plain) {
            Some(place) => (place, false),
            None => (at(shifted)?, true),
        };
        Some((key(first + u8::try_from(place).ok()?), shift))
    })
}

/// The strokes that write a text.
///
/// # Errors
/// The first character that no key writes.
pub fn text(text: &str) -> Result<Vec<Stroke>, char> {
    let mut strokes = Vec::new();
    for character in text.chars() {
        let (key, shift) = of_character(character).ok_or(character)?;
        let mut held = vec![key];
        if shift {
            held.insert(0, SHIFT);
        }
        press(&held, &mut strokes);
    }
    Ok(strokes)
}

/// The strokes of keys that are held together, as in `ctrl-alt-del`: named keys, or characters that need no shift. A name that
/// has a hyphen stays whole (`page-up`).
///
/// # Errors
/// A name that is no key's.
pub fn chord(names: &str) -> Result<Vec<Stroke>, String> {
    let mut held = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        // The longest name that stands there.
        let mut named: Vec<_> = NAMED.iter().filter(|(name, _)| is_next(rest, name)).collect();
        named.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        let length = match named.first() {
            Some((name, key)) => {
                held.push(*key);
                name.len()
            }
            None => {
                let character = rest.chars().next().unwrap_or_default().to_ascii_lowercase();
                let single = of_character(character).filter(|_| is_next(rest, &rest[..character.len_utf8()]));
                let Some((key, false)) = single else {
                    let name = rest.split('-').next().unwrap_or(rest);
                    return Err(format!("there is no key '{}'", name.escape_default()));
                };
                held.push(key);
                character.len_utf8()
            }
        };
        rest = rest[length..].strip_prefix('-').unwrap_or(&rest[length..]);
    }
    let mut strokes = Vec::new();
    press(&held, &mut strokes);
    Ok(strokes)
}

/// Whether a name stands at the beginning, with a hyphen or nothing behind it.
fn is_next(rest: &str, name: &str) -> bool {
    rest.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        && rest.get(name.len()..).is_some_and(|behind| behind.is_empty() || behind.starts_with('-'))
}

/// Down in order, up in the opposite one.
fn press(held: &[Key], strokes: &mut Vec<Stroke>) {
    strokes.extend(held.iter().map(|key| Stroke { key: *key, released: false }));
    strokes.extend(held.iter().rev().map(|key| Stroke { key: *key, released: true }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codes(strokes: &[Stroke]) -> Vec<u8> {
        strokes.iter().map(|stroke| stroke.key.code | if stroke.released { 0x80 } else { 0 }).collect()
    }

    #[test]
    fn text_is_typed() {
        assert_eq!(codes(&text("aB\n").unwrap()), [0x1E, 0x9E, 0x2A, 0x30, 0xB0, 0xAA, 0x1C, 0x9C]);
        assert_eq!(codes(&text("/?").unwrap()), [0x35, 0xB5, 0x2A, 0x35, 0xB5, 0xAA]);
        assert_eq!(text("aé"), Err('é'));
    }

    #[test]
    fn keys_are_held_together() {
        let strokes = chord("ctrl-alt-del").unwrap();
        assert_eq!(codes(&strokes), [0x1D, 0x38, 0x53, 0xD3, 0xB8, 0x9D]);
        assert_eq!(strokes[2].key.prefix, 0xE0);
        assert_eq!(codes(&chord("Page-Up").unwrap()), [0x49, 0xC9]);
        assert_eq!(codes(&chord("alt-sysrq-b").unwrap())[..3], [0x38, 0x54, 0x30]);
        assert!(chord("ctrl-hyper").unwrap_err().contains("hyper"));
        assert_eq!(chord(""), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn any_words_are_keys_or_an_error(words in ".{0,20}") {
            if let Ok(strokes) = chord(&words) {
                prop_assert!(strokes.len() % 2 == 0);
            }
            let _ = text(&words);
        }
    }
}
