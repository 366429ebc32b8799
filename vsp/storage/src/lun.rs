//! A logical unit: a disk or a DVD drive that executes commands.
//!
//! It decides what a command means for its medium; it moves no data itself. The outcome is an answer from tables, sense data, or
//! steps for an engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use crate::disk::{Medium, Operation};
use crate::scsi::cdb::Blocks;
use crate::scsi::inquiry::{self, Identity, Limits};
use crate::scsi::mmc::{self, MediaEvent};
use crate::scsi::mode::{self, Kind, Question};
use crate::scsi::{Command, Sense};

/// Longest transfer of a request in bytes.
pub const MAX_TRANSFER: u32 = 1 << 20;
/// Longest WRITE SAME in blocks: what its 10-byte form can say.
const MAX_WRITE_SAME: u32 = 0xFFFF;
/// Most ranges of an UNMAP.
const MAX_UNMAP_RANGES: usize = 256;
/// Most bytes of an UNMAP.
const MAX_UNMAP: u64 = 8 << 30;
/// Most pieces of memory that one step may have: what the kernel takes in one call (`IOV_MAX`).
pub const MAX_SEGMENTS: usize = 1024;

/// The data that comes with a command, in guest memory.
pub trait Payload {
    /// How long it is.
    fn len(&self) -> usize;
    /// Copies some of it; `None` if it is shorter than that or not in guest memory.
    fn read(&self, at: usize, buffer: &mut [u8]) -> Option<()>;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which memory a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepData {
    /// None.
    None,
    /// The payload's beginning.
    Payload,
    /// The payload's first block, again and again.
    FirstBlock,
}

/// Something for an engine to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub operation: Operation,
    /// Where on the medium, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u64,
    /// With what.
    pub data: StepData,
}

/// One step, as nearly always, or several that may be done in any order.
#[derive(Debug, PartialEq, Eq)]
pub enum Steps {
    /// One.
    One(Step),
    /// At least one.
    Many(Vec<Step>),
}

impl Steps {
    /// All of them.
    pub fn as_slice(&self) -> &[Step] {
        match self {
            Steps::One(step) => std::slice::from_ref(step),
            Steps::Many(steps) => steps,
        }
    }
}

/// What becomes of a command.
pub enum Outcome {
    /// It is done.
    Done,
    /// It is done, and this is the answer, not longer than the guest wants.
    Data(Vec<u8>),
    /// It failed.
    Failed(Sense),
    /// The request does not fit the command: too little memory for the data.
    Invalid,
    /// There is no unit that could execute it.
    Nobody,
    /// An engine has to do something.
    Steps(Arc<Medium>, Steps),
}

impl From<Result<Outcome, Sense>> for Outcome {
    fn from(result: Result<Outcome, Sense>) -> Outcome {
        result.unwrap_or_else(Outcome::Failed)
    }
}

/// A logical unit.
pub struct Lun {
    kind: Kind,
    identity: Identity,
    medium: RwLock<Option<Arc<Medium>>>,
    /// What the guest is to be told before its next command is executed (unit attention).
    attention: Mutex<Option<Sense>>,
    /// Set while there is an attention, so that the usual command takes no lock.
    has_attention: AtomicBool,
    event: Mutex<MediaEvent>,
    locked: AtomicBool,
    /// Is called when the guest has taken the medium out itself.
    ejected: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Lun {
    /// A unit. A disk always has a medium.
    pub fn new(kind: Kind, identity: Identity, medium: Option<Arc<Medium>>) -> Lun {
        Lun {
            kind,
            identity,
            medium: RwLock::new(medium),
            attention: Mutex::new(None),
            has_attention: AtomicBool::new(false),
            event: Mutex::new(MediaEvent::None),
            locked: AtomicBool::new(false),
            ejected: OnceLock::new(),
        }
    }

    /// Tells whoever wants to know that the guest has taken the medium out.
    pub fn told_of_eject(&self) {
        if let Some(tell) = self.ejected.get() {
            tell();
        }
    }

    /// Has somebody told, from now on, when the guest takes the medium out itself. The first who asks is told.
    pub fn tell_ejects(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let _ = self.ejected.set(tell);
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its medium.
    pub fn medium(&self) -> Option<Arc<Medium>> {
        self.medium.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another medium in (a DVD), or the same one with another size; the guest is told.
    pub fn change_medium(&self, medium: Option<Arc<Medium>>) {
        let event = if medium.is_some() { MediaEvent::New } else { MediaEvent::Removed };
        if medium.is_none() {
            // Nothing is left that could be kept in.
            self.locked.store(false, Ordering::Release);
        }
        *self.medium.write().unwrap_or_else(PoisonError::into_inner) = medium;
        *self.event.lock().unwrap_or_else(PoisonError::into_inner) = event;
        let sense = if self.kind == Kind::Dvd { Sense::MEDIUM_CHANGED } else { Sense::CAPACITY_CHANGED };
        *self.attention.lock().unwrap_or_else(PoisonError::into_inner) = Some(sense);
        self.has_attention.store(true, Ordering::Release);
    }

    /// Whether the guest keeps its medium from being taken out (PREVENT ALLOW MEDIUM REMOVAL), as it does while it is mounted.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    /// Presses the drive's button: the guest is told that somebody wants the medium out, when it next asks for events.
    pub fn request_eject(&self) {
        *self.event.lock().unwrap_or_else(PoisonError::into_inner) = MediaEvent::EjectRequest;
    }

    /// Another guest has come, which has locked nothing.
    pub(crate) fn restart(&self) {
        self.locked.store(false, Ordering::Release);
    }

    fn take_attention(&self) -> Option<Sense> {
        if !self.has_attention.load(Ordering::Acquire) {
            return None;
        }
        self.has_attention.store(false, Ordering::Release);
        self.attention.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Executes a command. REPORT LUNS is the controller's: see [`report_luns`].
    pub fn execute(&self, command: Command, payload: &dyn Payload) -> Outcome {
        let always = matches!(
            command,
            Command::Inquiry { .. } | Command::RequestSense { .. } | Command::GetEventStatus { .. }
        );
        if !always && let Some(sense) = self.take_attention() {
            return Outcome::Failed(sense);
        }
        self.common(command)
            .or_else(|| match self.kind {
                Kind::Disk => self.disk(command, payload),
                Kind::Dvd => self.dvd(command, payload),
            })
            .map_or(Outcome::Failed(Sense::INVALID_OPCODE), Outcome::from)
    }

    /// Commands that every unit knows, and that need no medium.
    fn common(&self, command: Command) -> Option<Result<Outcome, Sense>> {
        Some(match command {
            Command::Inquiry { page, allocation } => self.inquiry(page, allocation.into()),
            Command::RequestSense { descriptor, allocation } => {
                let sense = self.take_attention().unwrap_or(Sense::NONE);
                let data = if descriptor { sense.descriptor().to_vec() } else { sense.fixed().to_vec() };
                answer(data, allocation.into())
            }
            Command::ModeSense { ten, page, subpage, control, allocation, .. } => {
                let read_only = self.medium().is_none_or(|medium| medium.facts.read_only);
                let question = Question { ten, page, subpage, control };
                mode::sense(self.kind, question, read_only).and_then(|data| answer(data, allocation.into()))
            }
            _ => return None,
        })
    }

    fn inquiry(&self, page: Option<u8>, allocation: usize) -> Result<Outcome, Sense> {
        let data = match page {
            None => inquiry::standard(self.kind),
            Some(page) => inquiry::vital(self.kind, page, &self.identity, &self.limits())?,
        };
        answer(data, allocation)
    }

    fn limits(&self) -> Limits {
        let facts = self.medium().map(|medium| medium.facts);
        let block = facts.map_or(512, |facts| facts.block);
        let granularity = facts.map_or(1, |facts| facts.physical.max(4096) / block);
        Limits {
            transfer: MAX_TRANSFER / block,
            write_same: MAX_WRITE_SAME,
            unmap: (MAX_UNMAP / u64::from(block)) as u32,
            unmap_ranges: MAX_UNMAP_RANGES as u32,
            unmap_granularity: granularity,
            can_unmap: facts.is_some_and(|facts| facts.can_unmap && !facts.read_only),
            unmapped_zero: facts.is_some_and(|facts| facts.unmapped_zero),
        }
    }

    fn disk(&self, command: Command, payload: &dyn Payload) -> Option<Result<Outcome, Sense>> {
        let Some(medium) = self.medium() else { return Some(Err(Sense::TARGET_FAILURE)) };
        Some(match command {
            Command::TestUnitReady | Command::StartStop { .. } | Command::PreventRemoval { .. } => {
                Ok(Outcome::Done)
            }
            Command::ReadCapacity10 => answer(capacity_10(&medium), 8),
            Command::ReadCapacity16 { allocation } => answer(capacity_16(&medium), allocation as usize),
            Command::Read { blocks, .. } => transfer(medium, Operation::Read, blocks, payload),
            Command::Write { blocks, unit_access } => {
                transfer(medium, Operation::Write { durable: unit_access }, blocks, payload)
            }
            Command::WriteSame { blocks, unmap, zeroes } => {
                write_same(medium, blocks, unmap, zeroes, payload)
            }
            Command::Unmap { length } => unmap(medium, length.into(), payload),
            Command::SynchronizeCache { blocks } => range(&medium, blocks).map(|_| flush(medium)),
            Command::Verify { blocks } => range(&medium, blocks).map(|_| Outcome::Done),
            _ => return None,
        })
    }

    fn dvd(&self, command: Command, payload: &dyn Payload) -> Option<Result<Outcome, Sense>> {
        let medium = self.medium();
        let blocks = medium.as_deref().map(mmc_blocks);
        Some(match command {
            Command::StartStop { start, load_eject } => self.start_stop(start, load_eject),
            Command::PreventRemoval { prevent } => {
                self.locked.store(prevent, Ordering::Release);
                Ok(Outcome::Done)
            }
            Command::GetConfiguration { kind, first, allocation } => {
                mmc::configuration(blocks, kind, first).and_then(|data| answer(data, allocation.into()))
            }
            // Notifications without being asked would need a command that stays open.
            Command::GetEventStatus { polled: false, .. } => Err(Sense::INVALID_FIELD),
            Command::GetEventStatus { classes, allocation, .. } => {
                let mut event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
                let data = mmc::event_status(classes, *event, blocks.is_some());
                if data.len() > 4 {
                    *event = MediaEvent::None;
                }
                answer(data, allocation.into())
            }
            Command::MechanismStatus { allocation } => {
                answer(vec![0, 0, 0, 0, 0, 0, 0, 0], allocation.into())
            }
            command => {
                let (Some(medium), Some(blocks)) = (medium, blocks) else {
                    return Some(Err(Sense::NO_MEDIUM));
                };
                return disc(medium, blocks, command, payload);
            }
        })
    }

    fn start_stop(&self, start: bool, load_eject: bool) -> Result<Outcome, Sense> {
        if load_eject && !start {
            if self.is_locked() {
                return Err(Sense::REMOVAL_PREVENTED);
            }
            if self.medium().is_some() {
                self.change_medium(None);
                // The guest did it itself and need not be told.
                self.take_attention();
                self.told_of_eject();
            }
        }
        Ok(Outcome::Done)
    }
}

/// Commands of a DVD drive that need a medium.
fn disc(
    medium: Arc<Medium>,
    blocks: u32,
    command: Command,
    payload: &dyn Payload,
) -> Option<Result<Outcome, Sense>> {
    Some(match command {
        Command::TestUnitReady => Ok(Outcome::Done),
        Command::ReadCapacity10 => answer(capacity_10(&medium), 8),
        Command::ReadCapacity16 { allocation } => answer(capacity_16(&medium), allocation as usize),
        Command::Read { blocks, .. } => transfer(medium, Operation::Read, blocks, payload),
        Command::Verify { blocks } => range(&medium, blocks).map(|_| Outcome::Done),
        Command::Seek { lba } => range(&medium, Blocks { lba, count: 1 }).map(|_| Outcome::Done),
        Command::SynchronizeCache { .. } => Ok(Outcome::Done),
        Command::ReadToc { msf, format, track, allocation } => {
            mmc::table_of_contents(blocks, msf, format, track)
                .and_then(|data| answer(data, allocation.into()))
        }
        Command::ReadDiscInformation { kind: 0, allocation } => {
            answer(mmc::disc_information(), allocation.into())
        }
        Command::ReadDiscInformation { .. } => Err(Sense::INVALID_FIELD),
        Command::ReadTrackInformation { allocation } => {
            answer(mmc::track_information(blocks), allocation.into())
        }
        Command::ReadDvdStructure { format, allocation } => {
            mmc::dvd_structure(blocks, format).and_then(|data| answer(data, allocation.into()))
        }
        _ => return None,
    })
}

/// Cuts an answer to what the guest takes.
fn answer(mut data: Vec<u8>, allocation: usize) -> Result<Outcome, Sense> {
    data.truncate(allocation);
    Ok(Outcome::Data(data))
}

/// REPORT LUNS (SPC-5, 6.33): the units, or the well-known ones, which there are none of.
pub fn report_luns(select: u8, allocation: u32, luns: &[u8]) -> Result<Outcome, Sense> {
    let luns = match select {
        0 | 2 => luns,
        1 => &[],
        _ => return Err(Sense::INVALID_FIELD),
    };
    let mut data = vec![0; 8 + 8 * luns.len()];
    let length = (8 * luns.len()) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    for (entry, lun) in data[8..].chunks_exact_mut(8).zip(luns) {
        // Peripheral device addressing, bus 0.
        entry[1] = *lun;
    }
    answer(data, allocation as usize)
}

/// Blocks of a medium.
fn block_count(medium: &Medium) -> u64 {
    medium.facts.size / u64::from(medium.facts.block)
}

/// Blocks of a DVD, whose commands have 32 bits for them.
fn mmc_blocks(medium: &Medium) -> u32 {
    block_count(medium).min(u32::MAX.into()) as u32
}

fn capacity_10(medium: &Medium) -> Vec<u8> {
    let last = block_count(medium).saturating_sub(1).min(u32::MAX.into()) as u32;
    [last.to_be_bytes(), medium.facts.block.to_be_bytes()].concat()
}

fn capacity_16(medium: &Medium) -> Vec<u8> {
    let facts = &medium.facts;
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&block_count(medium).saturating_sub(1).to_be_bytes());
    data[8..12].copy_from_slice(&facts.block.to_be_bytes());
    // Logical blocks of a physical one, as a power of two.
    data[13] = (facts.physical / facts.block).max(1).ilog2() as u8;
    if facts.can_unmap && !facts.read_only {
        data[14] = 0x80 | if facts.unmapped_zero { 0x40 } else { 0 };
    }
    data
}

/// Blocks as bytes: offset and length.
fn range(medium: &Medium, blocks: Blocks) -> Result<(u64, u64), Sense> {
    let all = block_count(medium);
    let block = u64::from(medium.facts.block);
    match blocks.lba.checked_add(blocks.count.into()) {
        Some(end) if end <= all => Ok((blocks.lba * block, u64::from(blocks.count) * block)),
        _ => Err(Sense::OUT_OF_RANGE),
    }
}

fn transfer(
    medium: Arc<Medium>,
    operation: Operation,
    blocks: Blocks,
    payload: &dyn Payload,
) -> Result<Outcome, Sense> {
    if operation != Operation::Read && medium.facts.read_only {
        return Err(Sense::WRITE_PROTECTED);
    }
    let (offset, len) = range(&medium, blocks)?;
    if len == 0 {
        return Ok(Outcome::Done);
    }
    if len > MAX_TRANSFER.into() {
        return Err(Sense::INVALID_FIELD);
    }
    if len > payload.len() as u64 {
        return Ok(Outcome::Invalid);
    }
    let step = Step { operation, offset, len, data: StepData::Payload };
    Ok(Outcome::Steps(medium, Steps::One(step)))
}

fn flush(medium: Arc<Medium>) -> Outcome {
    if medium.facts.read_only {
        return Outcome::Done;
    }
    let step = Step { operation: Operation::Flush, offset: 0, len: 0, data: StepData::None };
    Outcome::Steps(medium, Steps::One(step))
}

/// One block of the guest's over a range; nearly always zeroes.
fn write_same(
    medium: Arc<Medium>,
    blocks: Blocks,
    unmap: bool,
    zeroes: bool,
    payload: &dyn Payload,
) -> Result<Outcome, Sense> {
    if medium.facts.read_only {
        return Err(Sense::WRITE_PROTECTED);
    }
    if blocks.count == 0 || blocks.count > MAX_WRITE_SAME {
        return Err(Sense::INVALID_FIELD);
    }
    let (offset, len) = range(&medium, blocks)?;
    let block = medium.facts.block as usize;
    let zero = zeroes || {
        let mut data = vec![0; block];
        if payload.read(0, &mut data).is_none() {
            return Ok(Outcome::Invalid);
        }
        data.iter().all(|byte| *byte == 0)
    };
    if zero {
        let operation = Operation::WriteZeroes { unmap: unmap && medium.facts.can_unmap };
        return Ok(Outcome::Steps(medium, Steps::One(Step { operation, offset, len, data: StepData::None })));
    }
    let piece = (block * MAX_SEGMENTS) as u64;
    let steps = (0..len.div_ceil(piece)).map(|number| Step {
        operation: Operation::Write { durable: false },
        offset: offset + number * piece,
        len: piece.min(len - number * piece),
        data: StepData::FirstBlock,
    });
    let steps = steps.collect();
    Ok(Outcome::Steps(medium, Steps::Many(steps)))
}

/// UNMAP (SBC-4, 5.35): a list of ranges comes as data.
fn unmap(medium: Arc<Medium>, length: usize, payload: &dyn Payload) -> Result<Outcome, Sense> {
    const HEADER: usize = 8;
    const ENTRY: usize = 16;
    if medium.facts.read_only {
        return Err(Sense::WRITE_PROTECTED);
    }
    if !medium.facts.can_unmap {
        return Err(Sense::INVALID_OPCODE);
    }
    if length == 0 {
        return Ok(Outcome::Done);
    }
    if length < HEADER {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let mut list = vec![0; length.min(HEADER + ENTRY * MAX_UNMAP_RANGES)];
    if length > payload.len() || payload.read(0, &mut list).is_none() {
        return Ok(Outcome::Invalid);
    }
    let told = usize::from(u16::from_be_bytes([list[2], list[3]]));
    if told.min(length - HEADER) / ENTRY > MAX_UNMAP_RANGES {
        return Err(Sense::INVALID_PARAMETER);
    }
    let mut steps = Vec::new();
    let mut total = 0;
    for entry in list[HEADER..].chunks_exact(ENTRY).take(told / ENTRY) {
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let blocks = Blocks { lba: number(&entry[..8]), count: number(&entry[8..12]) as u32 };
        let (offset, len) = range(&medium, blocks)?;
        total += len;
        if len > 0 {
            steps.push(Step { operation: Operation::Discard, offset, len, data: StepData::None });
        }
    }
    if total > MAX_UNMAP {
        return Err(Sense::INVALID_PARAMETER);
    }
    Ok(if steps.is_empty() { Outcome::Done } else { Outcome::Steps(medium, Steps::Many(steps)) })
}

#[cfg(test)]
mod tests;
