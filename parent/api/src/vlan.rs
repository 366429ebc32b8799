//! VLANs of network adapters: one, without tags, or several, with theirs.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Greatest VLAN (IEEE 802.1Q: 4095 is reserved, 0 stands for none).
const MAX_VLAN: u16 = 4094;
/// Most ranges of a list: what a line of text names.
const MAX_RANGES: usize = 64;

/// Checks the number of a VLAN.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn check_vlan(vlan: u16) -> Result<(), String> {
    match vlan {
        1..=MAX_VLAN => Ok(()),
        _ => Err(format!("there is no VLAN {vlan}; give 1 to {MAX_VLAN}")),
    }
}

/// Some VLANs; text is `5,7-9`. Ascending, and no two ranges touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VlanList(Vec<RangeInclusive<u16>>);

impl VlanList {
    /// The ranges.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        self.0.iter().cloned()
    }

    /// Whether a VLAN is among them.
    pub fn contains(&self, vlan: u16) -> bool {
        self.0.iter().any(|range| range.contains(&vlan))
    }

    /// The ranges of those that are not `vlan`.
    pub fn ranges_without(&self, vlan: u16) -> Vec<RangeInclusive<u16>> {
        let parts = self.0.iter().flat_map(|range| {
            let (first, last) = (*range.start(), *range.end());
            // What is before, and what is behind; all of it is before or behind if it is not among them.
            [first..=last.min(vlan.saturating_sub(1)), first.max(vlan.saturating_add(1))..=last]
        });
        parts.filter(|part| !part.is_empty()).collect()
    }

    fn new(mut ranges: Vec<RangeInclusive<u16>>) -> VlanList {
        ranges.sort_by_key(|range| *range.start());
        let mut joined: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if *range.start() <= last.end() + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => joined.push(range),
            }
        }
        VlanList(joined)
    }
}

impl fmt::Display for VlanList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, range) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for VlanList {
    type Err = String;

    fn from_str(text: &str) -> Result<VlanList, String> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                let number = text.trim().parse().ok();
                number.ok_or_else(|| format!("'{text}' is not a VLAN; give a list such as 5,7-9"))
            };
            let (first, last): (u16, u16) = (number(first)?, number(last)?);
            check_vlan(first)?;
            check_vlan(last)?;
            if first > last {
                return Err(format!("the range of VLANs {first}-{last} goes backwards"));
            }
            Ok(first..=last)
        };
        let ranges: Vec<_> = text.split(',').map(range).collect::<Result<_, String>>()?;
        if ranges.len() > MAX_RANGES {
            return Err(format!("a list names at most {MAX_RANGES} ranges of VLANs"));
        }
        Ok(VlanList::new(ranges))
    }
}

impl Serialize for VlanList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VlanList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VlanList, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// An adapter in trunk mode: the guest sees several VLANs, and tells them apart by the tags of frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trunk {
    /// The VLANs whose frames pass, with their tags.
    pub allowed: VlanList,
    /// The VLAN of frames without a tag, which always pass. Without one it is where untagged frames of the switch are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<u16>,
}

impl Trunk {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.native.map_or(Ok(()), check_vlan)
    }
}

impl fmt::Display for Trunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.allowed)?;
        self.native.map_or(Ok(()), |native| write!(f, " (native {native})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_sorted_and_joined() {
        for (text, read) in
            [("5", "5"), ("9,5,7-8", "5,7-9"), ("1-4094", "1-4094"), ("5-9,6", "5-9"), (" 5 , 6 ", "5-6")]
        {
            assert_eq!(text.parse::<VlanList>().unwrap().to_string(), read);
        }
        for bad in ["", "0", "4095", "5-", "-5", "5-4", "5,,6", "x", "99999", "+5-x"] {
            assert!(bad.parse::<VlanList>().is_err(), "{bad}");
        }
        let many: Vec<String> = (0..65).map(|n| (n * 2 + 1).to_string()).collect();
        assert!(many.join(",").parse::<VlanList>().is_err());
    }

    #[test]
    fn one_can_be_left_out() {
        let list: VlanList = "1-3,7,9-10".parse().unwrap();
        let without = |vlan| VlanList(list.ranges_without(vlan)).to_string();
        assert_eq!(
            [1, 2, 7, 10, 8].map(without),
            ["2-3,7,9-10", "1,3,7,9-10", "1-3,9-10", "1-3,7,9", "1-3,7,9-10"]
        );
        assert!(list.contains(2) && list.contains(7) && !list.contains(8));
    }

    #[test]
    fn trunks_are_json_of_text() {
        let trunk = Trunk { allowed: "5,7-9".parse().unwrap(), native: Some(3) };
        let json = serde_json::to_string(&trunk).unwrap();
        assert_eq!(json, r#"{"allowed":"5,7-9","native":3}"#);
        assert_eq!(serde_json::from_str::<Trunk>(&json).unwrap(), trunk);
        assert_eq!(trunk.to_string(), "5,7-9 (native 3)");
        assert!(serde_json::from_str::<Trunk>(r#"{"allowed":"5-"}"#).is_err());
        assert!(Trunk { native: Some(4095), ..trunk }.check().is_err());
    }
}
