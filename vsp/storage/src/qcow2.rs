//! qcow2 images, by the crate `imago`.
//!
//! An image's own words about other files (a backing file, a data file) are never followed: an image that came from elsewhere
//! could name any file of the parent. What the crate takes on trust about the counts of references is looked at here first:
//! a damaged image must not cost the worker.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use imago::file::File as ImageFile;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use crate::disk::{Facts, Image};
use crate::file::SECTOR;

/// An open image.
pub struct Qcow2Image {
    // Discarding takes the image for itself, everything else shares it.
    access: RwLock<FormatAccess<ImageFile>>,
}

/// Opens an image in a file.
///
/// # Errors
/// A sentence: it is no qcow2 image, it is damaged, or it needs another file.
pub fn open(file: File, read_only: bool) -> Result<(Qcow2Image, Facts), String> {
    let bad = |error: io::Error| format!("the disk cannot be used as a qcow2 image: {error}");
    let counted = header_is_counted(&file).map_err(bad)?;
    let file = ImageFile::try_from(file).map_err(bad)?;
    let image = Qcow2::<ImageFile>::builder(file)
        .write(!read_only)
        .open(DenyImplicitOpenGate::default())
        .map_err(bad)?;
    if image.implicit_backing_file().is_some() {
        return Err("the disk is a qcow2 image over a backing file, which is not supported; \
                    `qemu-img convert` makes one image of the two"
            .into());
    }
    if !counted {
        return Err("the qcow2 image is damaged: its counts of references do not count its own header; \
                    `qemu-img check -r all` may mend a copy of it"
            .into());
    }
    let access = FormatAccess::new(image);
    let size = access.size() - access.size() % u64::from(SECTOR);
    if size == 0 {
        return Err("the qcow2 image holds no data: its disk has no size".into());
    }
    let can_unmap = !read_only;
    let facts = Facts { size, block: SECTOR, physical: 4096, read_only, can_unmap, unmapped_zero: can_unmap };
    Ok((Qcow2Image { access: RwLock::new(access) }, facts))
}

/// Whether the image's counts of references say that its first cluster, which holds the header, is in use.
///
/// Every image that is whole does. In one that does not, the crate would give the header's cluster to data, or look for a
/// place for the missing counts without end.
///
/// Source: QEMU, `docs/interop/qcow2`, "Header" and "Host cluster management".
fn header_is_counted(file: &File) -> io::Result<bool> {
    const VERSION: u64 = 4;
    const REFCOUNT_TABLE: u64 = 48;
    const REFCOUNT_ORDER: u64 = 96;
    const OFFSET: u64 = !0x1ff;
    let word = |at| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).map(|()| u32::from_be_bytes(bytes))
    };
    let offset = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).map(|()| u64::from_be_bytes(bytes) & OFFSET)
    };
    // Counts have sixteen bits before version 3. The first of those with less than eight is in the byte's lowest bits.
    let order = if word(VERSION)? < 3 { 4 } else { word(REFCOUNT_ORDER)?.min(6) };
    let table = offset(REFCOUNT_TABLE)?;
    let block = offset(table)?;
    if table == 0 || block == 0 {
        return Ok(false);
    }
    let mut count = [0; 8];
    let count = &mut count[..(1 << order) / 8 + usize::from(order < 3)];
    file.read_exact_at(count, block)?;
    if order < 3 {
        count[0] &= (1 << (1 << order)) - 1;
    }
    Ok(count.iter().any(|byte| *byte != 0))
}

impl Qcow2Image {
    fn shared<T>(&self, work: impl FnOnce(&FormatAccess<ImageFile>) -> io::Result<T>) -> io::Result<T> {
        work(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn alone<T>(&self, work: impl FnOnce(&mut FormatAccess<ImageFile>) -> io::Result<T>) -> io::Result<T> {
        work(&mut self.access.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Image for Qcow2Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.shared(|access| access.read(buffer, offset))
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        self.shared(|access| access.write(buffer, offset))
    }

    fn flush(&self) -> io::Result<()> {
        // The caches of the format into the file, then the file onto its medium.
        self.shared(|access| access.flush().and_then(|()| access.sync()))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // Old images (version 2) know no zero clusters, only clusters that are not there.
        self.alone(|access| {
            access.discard_to_zero(offset, len).or_else(|_| access.discard_to_any(offset, len))
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.alone(|access| access.discard_to_zero(offset, len)).is_ok() {
            return Ok(());
        }
        self.shared(|access| access.write_zeroes(offset, len))
    }

    fn resize(&self, size: Option<u64>) -> io::Result<u64> {
        self.alone(|access| {
            if let Some(size) = size {
                // What is not there reads as zeroes: there is no backing file.
                access.resize_grow(size, PreallocateMode::None)?;
                access.flush()?;
                access.sync()?;
            }
            Ok(access.size())
        })
    }
}
