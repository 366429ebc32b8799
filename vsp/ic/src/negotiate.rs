//! The first message on a channel: the parent lists versions, the guest takes one of the framework and one of the
//! service, or none.
//!
//! Source: Linux `drivers/hv/channel_mgmt.c`, `vmbus_prep_negotiate_resp`.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::{Version, WireVersion};

/// The versions in the header of the negotiation itself.
pub const VERSION: Version = Version::new(1, 0);

/// `struct icmsg_negotiate`, without the versions that follow it.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Counts {
    frameworks: U16,
    messages: U16,
    reserved: U32,
}

/// What a guest chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Version of the framework.
    pub framework: Version,
    /// Version of the service's messages.
    pub version: Version,
}

/// The body of the parent's message.
pub fn offer(frameworks: &[Version], versions: &[Version]) -> Vec<u8> {
    let counts = Counts {
        frameworks: (frameworks.len() as u16).into(),
        messages: (versions.len() as u16).into(),
        reserved: 0.into(),
    };
    let mut body = counts.as_bytes().to_vec();
    for version in frameworks.iter().chain(versions) {
        body.extend_from_slice(WireVersion::from(*version).as_bytes());
    }
    body
}

/// What is wrong with a guest's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChoice {
    /// It is too short.
    #[error("the guest's choice of versions is cut off")]
    Short,
    /// It is not one version of each.
    #[error("the guest chose {0} framework and {1} message versions instead of one of each")]
    Counts(u16, u16),
    /// It was not offered.
    #[error("the guest chose framework {} and version {}, which were not offered", .0.framework, .0.version)]
    NotOffered(Choice),
}

/// Reads the guest's answer. `None`: the guest knows none of the versions.
///
/// # Errors
/// The answer is malformed, or chooses what was not offered.
pub fn choice(
    body: &[u8],
    frameworks: &[Version],
    versions: &[Version],
) -> Result<Option<Choice>, BadChoice> {
    let (counts, rest) = Counts::read_from_prefix(body).map_err(|_| BadChoice::Short)?;
    match (counts.frameworks.get(), counts.messages.get()) {
        (1, 1) => {}
        // A guest that knows the framework but no version of the service says so by one of the two.
        (0, _) | (_, 0) => return Ok(None),
        (frameworks, messages) => return Err(BadChoice::Counts(frameworks, messages)),
    }
    let (chosen, _) = <[WireVersion; 2]>::read_from_prefix(rest).map_err(|_| BadChoice::Short)?;
    let choice = Choice { framework: chosen[0].into(), version: chosen[1].into() };
    if frameworks.contains(&choice.framework) && versions.contains(&choice.version) {
        Ok(Some(choice))
    } else {
        Err(BadChoice::NotOffered(choice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMEWORKS: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];
    const VERSIONS: &[Version] = &[Version::new(4, 0)];

    fn read(body: &[u8]) -> Result<Option<Choice>, BadChoice> {
        choice(body, FRAMEWORKS, VERSIONS)
    }

    #[test]
    fn the_offer_lists_frameworks_first() {
        let body = offer(FRAMEWORKS, VERSIONS);
        assert_eq!(body, [2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    }

    #[test]
    fn choices_are_one_of_each_none_or_wrong() {
        let good = [1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 9, 9];
        let choice = Choice { framework: Version::new(3, 0), version: Version::new(4, 0) };
        assert_eq!(read(&good), Ok(Some(choice)));
        assert_eq!(read(&[0; 8]), Ok(None));
        assert_eq!(read(&good[..15]), Err(BadChoice::Short));
        assert_eq!(read(&good[..3]), Err(BadChoice::Short));
        let mut many = good;
        many[0] = 2;
        assert_eq!(read(&many), Err(BadChoice::Counts(2, 1)));
        let mut other = good;
        other[12] = 5;
        assert!(matches!(read(&other), Err(BadChoice::NotOffered(_))));
    }
}
