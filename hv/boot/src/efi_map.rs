//! The firmware's memory map: its descriptors, what they mean, and the copy that the parent is given.
//!
//! The parent calls the firmware's runtime services itself, so it needs the map as the firmware gave it, with one
//! change: what belongs to the hypervisor reads `EfiReservedMemoryType`. Source: UEFI 2.10, 7.2.3 "GetMemoryMap".

use arrayvec::ArrayVec;
use parterre_hw::launch::{MemoryKind, PAGE_SIZE, PhysicalRange};

/// `EfiReservedMemoryType`.
const RESERVED: u32 = 0;
/// `EfiConventionalMemory`: free.
const CONVENTIONAL: u32 = 7;
/// `EFI_MEMORY_RUNTIME`: needs a virtual address for runtime services.
const ATTRIBUTE_RUNTIME: u64 = 1 << 63;

/// The bytes of a descriptor that mean something (version 1); firmware may put descriptors further apart.
pub const DESCRIPTOR_LENGTH: usize = 40;

/// `EFI_MEMORY_DESCRIPTOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Type of memory.
    pub kind: u32,
    /// Physical address of the first byte.
    pub base: u64,
    /// Length in pages of 4 KiB.
    pub pages: u64,
    /// Attributes.
    pub attributes: u64,
}

impl Descriptor {
    /// The addresses; a length that would wrap around ends at the highest address.
    pub fn range(&self) -> PhysicalRange {
        PhysicalRange::new(self.base, self.pages.saturating_mul(PAGE_SIZE))
    }

    /// Whether nobody uses it while boot services are active.
    pub fn is_free(&self) -> bool {
        self.kind == CONVENTIONAL
    }

    /// What the memory is for after boot services are left.
    pub fn kind(&self) -> MemoryKind {
        match self.kind {
            // Loader code and data, boot services code and data, conventional.
            1..=4 | CONVENTIONAL => MemoryKind::Ram,
            8 => MemoryKind::Unusable,
            9 => MemoryKind::AcpiReclaim,
            10 => MemoryKind::AcpiNvs,
            11 | 12 => MemoryKind::Mmio,
            14 => MemoryKind::Persistent,
            // Reserved, runtime services, PAL code, unaccepted memory, whatever a later specification adds.
            _ => MemoryKind::Reserved,
        }
    }

    /// The descriptor's first [`DESCRIPTOR_LENGTH`] bytes.
    fn to_bytes(self) -> [u8; DESCRIPTOR_LENGTH] {
        let mut bytes = [0; DESCRIPTOR_LENGTH];
        bytes[0..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.base.to_le_bytes());
        // Bytes 16..24 are the virtual address: 0 until the parent sets it.
        bytes[24..32].copy_from_slice(&self.pages.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.attributes.to_le_bytes());
        bytes
    }
}

/// The copy does not fit into the memory set aside for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Writes the parent's copy of the map into `target`, descriptors `stride` bytes apart, with the ranges in `owned`
/// reserved. Returns its length in bytes.
///
/// # Errors
/// [`NoRoom`] when `target` is too short or `stride` is no descriptor's length.
pub fn write_copy(
    descriptors: impl Iterator<Item = Descriptor>,
    owned: &[PhysicalRange],
    stride: usize,
    target: &mut [u8],
) -> Result<usize, NoRoom> {
    if stride < DESCRIPTOR_LENGTH {
        return Err(NoRoom);
    }
    let mut length = 0;
    for descriptor in descriptors {
        for piece in carve(descriptor, owned)? {
            let slot = target.get_mut(length..length + stride).ok_or(NoRoom)?;
            slot.fill(0);
            slot[..DESCRIPTOR_LENGTH].copy_from_slice(&piece.to_bytes());
            length += stride;
        }
    }
    Ok(length)
}

/// How many pieces one descriptor may fall into: at most one more than twice the owned ranges in it.
const MAX_PIECES: usize = 16;

/// Cuts a descriptor along the owned ranges.
fn carve(
    descriptor: Descriptor,
    owned: &[PhysicalRange],
) -> Result<ArrayVec<Descriptor, MAX_PIECES>, NoRoom> {
    let mut pieces = ArrayVec::new();
    let (mut from, end) = (descriptor.base, descriptor.range().end());
    if descriptor.pages == 0 {
        return Ok(pieces);
    }
    while from < end {
        let inside = owned.iter().find(|range| range.contains(from));
        let to = match inside {
            Some(range) => range.end(),
            None => owned.iter().map(|range| range.base).filter(|base| *base > from).min().unwrap_or(end),
        }
        .min(end);
        let (kind, attributes) = match inside {
            Some(_) => (RESERVED, descriptor.attributes & !ATTRIBUTE_RUNTIME),
            None => (descriptor.kind, descriptor.attributes),
        };
        let pages = (to - from).div_ceil(PAGE_SIZE);
        pieces.try_push(Descriptor { kind, base: from, pages, attributes }).map_err(|_| NoRoom)?;
        from = to;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{u32_at, u64_at};

    fn copy(list: &[Descriptor], owned: &[PhysicalRange], stride: usize) -> Vec<(u32, u64, u64, u64)> {
        let mut target = vec![0xaa; 20 * stride];
        let length = write_copy(list.iter().copied(), owned, stride, &mut target).unwrap();
        target[..length]
            .chunks(stride)
            .map(|d| {
                assert_eq!((u64_at(d, 16), u32_at(d, 4)), (Some(0), Some(0)));
                assert!(d[DESCRIPTOR_LENGTH..].iter().all(|byte| *byte == 0));
                (u32_at(d, 0).unwrap(), u64_at(d, 8).unwrap(), u64_at(d, 24).unwrap(), u64_at(d, 32).unwrap())
            })
            .collect()
    }

    #[test]
    fn owned_ranges_are_reserved_in_the_copy() {
        let list = [
            Descriptor { kind: 1, base: 0x10_0000, pages: 16, attributes: 0xf },
            Descriptor { kind: 5, base: 0x20_0000, pages: 2, attributes: ATTRIBUTE_RUNTIME | 0xf },
        ];
        let owned = [PhysicalRange::new(0x10_2000, 0x3000), PhysicalRange::new(0x10_8000, 0x8000)];
        assert_eq!(
            copy(&list, &owned, 48),
            [
                (1, 0x10_0000, 2, 0xf),
                (0, 0x10_2000, 3, 0xf),
                (1, 0x10_5000, 3, 0xf),
                (0, 0x10_8000, 8, 0xf),
                (5, 0x20_0000, 2, ATTRIBUTE_RUNTIME | 0xf),
            ]
        );
        assert_eq!(copy(&list, &[], 40).len(), 2);
    }

    #[test]
    fn a_target_too_short_is_told() {
        let list = [Descriptor { kind: 7, base: 0, pages: 1, attributes: 0 }];
        assert_eq!(write_copy(list.into_iter(), &[], 48, &mut [0; 47]), Err(NoRoom));
        assert_eq!(write_copy(list.into_iter(), &[], 39, &mut [0; 480]), Err(NoRoom));
        let owned: Vec<_> = (0..20).map(|i| PhysicalRange::new(i * 0x2000, 0x1000)).collect();
        let long = [Descriptor { kind: 7, base: 0, pages: 100, attributes: 0 }];
        assert_eq!(write_copy(long.into_iter(), &owned, 48, &mut [0; 4800]), Err(NoRoom));
    }

    #[test]
    fn types_mean_what_the_specification_says() {
        let kind = |kind| Descriptor { kind, base: 0, pages: 1, attributes: 0 }.kind();
        assert!([1, 2, 3, 4, 7].iter().all(|t| kind(*t) == MemoryKind::Ram));
        assert!([0, 5, 6, 13, 15, 16, 0x8000_0000].iter().all(|t| kind(*t) == MemoryKind::Reserved));
        assert_eq!(
            (kind(8), kind(9), kind(10)),
            (MemoryKind::Unusable, MemoryKind::AcpiReclaim, MemoryKind::AcpiNvs)
        );
        assert_eq!((kind(11), kind(14)), (MemoryKind::Mmio, MemoryKind::Persistent));
    }
}
