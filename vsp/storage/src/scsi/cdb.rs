//! Commands out of command descriptor blocks.
//!
//! A block is at most 16 bytes that the guest chose. Fields that may hold only one value are checked here; those that depend on
//! the disk (block addresses, lengths of data) by the logical unit.

use super::Sense;

/// Operation codes (SPC-5, SBC-4, MMC-6).
pub mod opcode {
    #![allow(missing_docs)]
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0A;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1A;
    pub const START_STOP_UNIT: u8 = 0x1B;
    pub const PREVENT_ALLOW_REMOVAL: u8 = 0x1E;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2A;
    pub const SEEK_10: u8 = 0x2B;
    pub const VERIFY_10: u8 = 0x2F;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4A;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const READ_TRACK_INFORMATION: u8 = 0x52;
    pub const MODE_SENSE_10: u8 = 0x5A;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8A;
    pub const VERIFY_16: u8 = 0x8F;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9E;
    pub const REPORT_LUNS: u8 = 0xA0;
    pub const READ_12: u8 = 0xA8;
    pub const WRITE_12: u8 = 0xAA;
    pub const READ_DVD_STRUCTURE: u8 = 0xAD;
    pub const MECHANISM_STATUS: u8 = 0xBD;
}

/// The service action of READ CAPACITY (16).
const READ_CAPACITY_16: u8 = 0x10;

/// A run of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub count: u32,
}

/// A command. `allocation` is the most bytes that the guest takes as an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields have the names of the standards")]
pub enum Command {
    TestUnitReady,
    RequestSense { descriptor: bool, allocation: u8 },
    Inquiry { page: Option<u8>, allocation: u16 },
    ModeSense { ten: bool, page: u8, subpage: u8, control: u8, no_blocks: bool, allocation: u16 },
    ReadCapacity10,
    ReadCapacity16 { allocation: u32 },
    ReportLuns { select: u8, allocation: u32 },
    Read { blocks: Blocks, unit_access: bool },
    Write { blocks: Blocks, unit_access: bool },
    WriteSame { blocks: Blocks, unmap: bool, zeroes: bool },
    Unmap { length: u16 },
    SynchronizeCache { blocks: Blocks },
    Verify { blocks: Blocks },
    Seek { lba: u64 },
    StartStop { start: bool, load_eject: bool },
    PreventRemoval { prevent: bool },
    ReadToc { msf: bool, format: u8, track: u8, allocation: u16 },
    GetConfiguration { kind: u8, first: u16, allocation: u16 },
    GetEventStatus { polled: bool, classes: u8, allocation: u16 },
    ReadDiscInformation { kind: u8, allocation: u16 },
    ReadTrackInformation { allocation: u16 },
    ReadDvdStructure { format: u8, allocation: u16 },
    MechanismStatus { allocation: u16 },
}

/// The bytes of a block, zero where it ends.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn bit(&self, at: usize, mask: u8) -> bool {
        self.byte(at) & mask != 0
    }

    fn number(&self, at: usize, length: usize) -> u64 {
        (at..at + length).fold(0, |value, at| value << 8 | u64::from(self.byte(at)))
    }

    fn half(&self, at: usize) -> u16 {
        self.number(at, 2) as u16
    }

    fn word(&self, at: usize) -> u32 {
        self.number(at, 4) as u32
    }

    /// A command of six bytes: 21 bits of address, and a count in which 0 means 256.
    fn blocks_6(&self) -> Blocks {
        let count = match self.byte(4) {
            0 => 256,
            count => count.into(),
        };
        Blocks { lba: self.number(1, 3) & 0x1F_FFFF, count }
    }

    fn blocks_10(&self) -> Blocks {
        Blocks { lba: self.number(2, 4), count: self.half(7).into() }
    }

    fn blocks_12(&self) -> Blocks {
        Blocks { lba: self.number(2, 4), count: self.word(6) }
    }

    fn blocks_16(&self) -> Blocks {
        Blocks { lba: self.number(2, 8), count: self.word(10) }
    }
}

/// Length of a command by the group of its operation code (SPC-5, table 23); 0 for groups without a fixed one.
fn length(code: u8) -> usize {
    match code >> 5 {
        0 => 6,
        1 | 2 => 10,
        4 => 16,
        5 => 12,
        _ => 0,
    }
}

impl Command {
    /// The command in a block.
    ///
    /// # Errors
    /// The sense data with which the command is to be refused.
    pub fn parse(cdb: &[u8]) -> Result<Command, Sense> {
        let Some(code) = cdb.first().copied() else { return Err(Sense::INVALID_OPCODE) };
        let fields = Fields(cdb);
        let command = match code >> 5 {
            0 => parse_6(code, &fields),
            1 | 2 => parse_10(code, &fields),
            4 => parse_16(code, &fields),
            5 => parse_12(code, &fields),
            _ => Err(Sense::INVALID_OPCODE),
        }?;
        if cdb.len() < length(code) { Err(Sense::INVALID_FIELD) } else { Ok(command) }
    }
}

fn parse_6(code: u8, fields: &Fields<'_>) -> Result<Command, Sense> {
    let allocation = fields.byte(4);
    Ok(match code {
        opcode::TEST_UNIT_READY => Command::TestUnitReady,
        opcode::REQUEST_SENSE => Command::RequestSense { descriptor: fields.bit(1, 1), allocation },
        opcode::READ_6 => Command::Read { blocks: fields.blocks_6(), unit_access: false },
        opcode::WRITE_6 => Command::Write { blocks: fields.blocks_6(), unit_access: false },
        opcode::INQUIRY => {
            let (vital, page) = (fields.bit(1, 1), fields.byte(2));
            if fields.bit(1, 2) || (!vital && page != 0) {
                return Err(Sense::INVALID_FIELD);
            }
            Command::Inquiry { page: vital.then_some(page), allocation: fields.half(3) }
        }
        opcode::MODE_SENSE_6 => mode_sense(false, allocation.into(), fields),
        opcode::START_STOP_UNIT => {
            // A power condition or a format layer is not a start or a stop; it changes nothing here.
            let (start, load_eject) = match fields.byte(4) >> 4 {
                0 => (fields.bit(4, 1), fields.bit(4, 2)),
                _ => (true, false),
            };
            Command::StartStop { start, load_eject }
        }
        opcode::PREVENT_ALLOW_REMOVAL => Command::PreventRemoval { prevent: fields.bit(4, 1) },
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

fn mode_sense(ten: bool, allocation: u16, fields: &Fields<'_>) -> Command {
    let (page, control) = (fields.byte(2) & 0x3F, fields.byte(2) >> 6);
    let no_blocks = fields.bit(1, 8);
    Command::ModeSense { ten, page, subpage: fields.byte(3), control, no_blocks, allocation }
}

fn parse_10(code: u8, fields: &Fields<'_>) -> Result<Command, Sense> {
    let (blocks, allocation) = (fields.blocks_10(), fields.half(7));
    Ok(match code {
        opcode::READ_CAPACITY_10 => Command::ReadCapacity10,
        opcode::READ_10 => Command::Read { blocks, unit_access: unit_access(fields)? },
        opcode::WRITE_10 => Command::Write { blocks, unit_access: unit_access(fields)? },
        opcode::SEEK_10 => Command::Seek { lba: blocks.lba },
        opcode::VERIFY_10 => verify(blocks, fields)?,
        opcode::SYNCHRONIZE_CACHE_10 => Command::SynchronizeCache { blocks },
        opcode::WRITE_SAME_10 => write_same(blocks, false, fields)?,
        opcode::UNMAP if fields.bit(1, 1) => return Err(Sense::INVALID_FIELD),
        opcode::UNMAP => Command::Unmap { length: allocation },
        opcode::READ_TOC => Command::ReadToc {
            msf: fields.bit(1, 2),
            // Old programs put the format into the control byte.
            format: match fields.byte(2) & 0xF {
                0 => fields.byte(9) >> 6,
                format => format,
            },
            track: fields.byte(6),
            allocation,
        },
        opcode::GET_CONFIGURATION => {
            Command::GetConfiguration { kind: fields.byte(1) & 3, first: fields.half(2), allocation }
        }
        opcode::GET_EVENT_STATUS => {
            Command::GetEventStatus { polled: fields.bit(1, 1), classes: fields.byte(4), allocation }
        }
        opcode::READ_DISC_INFORMATION => {
            Command::ReadDiscInformation { kind: fields.byte(1) & 7, allocation }
        }
        opcode::READ_TRACK_INFORMATION => Command::ReadTrackInformation { allocation },
        opcode::MODE_SENSE_10 => mode_sense(true, allocation, fields),
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

fn parse_12(code: u8, fields: &Fields<'_>) -> Result<Command, Sense> {
    let blocks = fields.blocks_12();
    Ok(match code {
        opcode::REPORT_LUNS => Command::ReportLuns { select: fields.byte(2), allocation: fields.word(6) },
        opcode::READ_12 => Command::Read { blocks, unit_access: unit_access(fields)? },
        opcode::WRITE_12 => Command::Write { blocks, unit_access: unit_access(fields)? },
        opcode::READ_DVD_STRUCTURE => {
            Command::ReadDvdStructure { format: fields.byte(7), allocation: fields.half(8) }
        }
        opcode::MECHANISM_STATUS => Command::MechanismStatus { allocation: fields.half(8) },
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

fn parse_16(code: u8, fields: &Fields<'_>) -> Result<Command, Sense> {
    let blocks = fields.blocks_16();
    Ok(match code {
        opcode::READ_16 => Command::Read { blocks, unit_access: unit_access(fields)? },
        opcode::WRITE_16 => Command::Write { blocks, unit_access: unit_access(fields)? },
        opcode::VERIFY_16 => verify(blocks, fields)?,
        opcode::SYNCHRONIZE_CACHE_16 => Command::SynchronizeCache { blocks },
        opcode::WRITE_SAME_16 => write_same(blocks, true, fields)?,
        opcode::SERVICE_ACTION_IN_16 if fields.byte(1) & 0x1F == READ_CAPACITY_16 => {
            Command::ReadCapacity16 { allocation: fields.word(10) }
        }
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

/// The FUA bit of a read or write. Protection information is not there (RDPROTECT, WRPROTECT).
fn unit_access(fields: &Fields<'_>) -> Result<bool, Sense> {
    if fields.byte(1) & 0xE0 != 0 { Err(Sense::INVALID_FIELD) } else { Ok(fields.bit(1, 8)) }
}

/// Without a comparison with data of the guest's (BYTCHK 0).
fn verify(blocks: Blocks, fields: &Fields<'_>) -> Result<Command, Sense> {
    if fields.byte(1) & 0xE6 != 0 { Err(Sense::INVALID_FIELD) } else { Ok(Command::Verify { blocks }) }
}

fn write_same(blocks: Blocks, sixteen: bool, fields: &Fields<'_>) -> Result<Command, Sense> {
    let flags = fields.byte(1);
    let zeroes = sixteen && flags & 1 != 0;
    // Protection information, ANCHOR, and the address bits of old versions are not there.
    if flags & 0xF0 != 0 || flags & 0x06 != 0 || (!sixteen && flags & 1 != 0) {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(Command::WriteSame { blocks, unmap: flags & 8 != 0, zeroes })
}

#[cfg(test)]
mod tests;
